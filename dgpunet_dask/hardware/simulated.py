"""A fleet that is written down instead of probed: its cards exist on paper, and their work is computed on this machine's CPU."""

from __future__ import annotations

from pathlib import Path

from dgpunet_dask.errors import MissingPath, UnreadablePath
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.placement.fleet_file import parse_fleet


def simulated_fleet(file: Path) -> Fleet:
    """Return the fleet that `file` states.

    Raises
    ------
    MalformedFile
        With every mistake of the file.
    MissingPath, UnreadablePath
        If it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingPath(path=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadablePath(path=file, why=getattr(error, "strerror", None) or str(error)) from error
    return parse_fleet(text, str(file))
