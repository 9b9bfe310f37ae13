"""Whose fault a failed attempt is. Pure."""

from __future__ import annotations

from typing import Final, Literal, get_args

CauseCode = Literal["user", "data", "gpu-oom", "host-oom", "gpu-hardware", "thermal", "network", "disk", "version", "system"]
CAUSES: Final[tuple[str, ...]] = get_args(CauseCode)
