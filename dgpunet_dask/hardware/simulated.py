"""A fleet that is written down instead of probed: its cards exist on paper, and their work is computed on this machine's CPU."""

from __future__ import annotations

from pathlib import Path

from dgpunet_dask.config.yamlfile import read_text
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
    return parse_fleet(read_text(file), str(file))
