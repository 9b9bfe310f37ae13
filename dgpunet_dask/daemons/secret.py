"""The secret path under which Dask's own pages answer on 127.0.0.1: they ask for no key, so who does not know it finds nothing."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final

from dgpunet_dask.security.files import locked, write_private

_WHOLE: Final = re.compile(r"[0-9a-f]{32}")


def http_prefix(run: Path) -> str:
    """Return the path of this home, made when it is first asked for, mode 0600. Safe from any thread and process."""
    file = run / "dashboard.secret"
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(file):
        found = _read(file)
        if found is None:  # never made, or cut short with the power: an empty path would be no secret
            found = secrets.token_hex(16)
            write_private(file, found)
    return found


def _read(file: Path) -> str | None:
    try:
        text = file.read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return text if _WHOLE.fullmatch(text) else None
