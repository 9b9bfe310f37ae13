"""What the head knows of the ways between its hosts: whose turn it is to measure, what was measured, what it was when all was well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpunet_dask.clock import Clock


class LinkBook:
    """Filled in once `cluster.links` is there."""

    def __init__(self, file: Path, clock: Clock) -> None:
        self.file, self.clock = file, clock
        self.told: list[list[Any]] | None = None

    def due(self, host: str, here: Sequence[str]) -> str | None:
        """Return the host to measure."""
        return None

    def measured(self, report: Mapping[str, Any]) -> None:
        """Take a result."""

    def news(self) -> list[list[Any]] | None:
        """Return what the scheduler has not been told."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return links and baseline."""
        return {"links": [], "baseline": []}
