"""The decision log of a head on disk: JSON lines in numbered files, rotated by size, each of which can be read alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dgpunet_dask.errors import MissingPath, UnreadablePath

#: A file that has grown to this many bytes is followed by a new one.
FILE_BYTES_MAX: Final = 16 << 20
#: So many files are kept, the newest ones: 128 MiB at most, of the order of a million decisions.
FILES_MAX: Final = 8


def log_files(folder: Path) -> list[Path]:
    """Return the files of the log, oldest first."""
    return sorted(folder.glob("decisions-*.jsonl"))


def read_log(folder: Path) -> str:
    """Return the whole log as text.

    Raises
    ------
    MissingPath
        If there is none.
    UnreadablePath
        If it cannot be read.
    """
    files = log_files(folder)
    if not files:
        raise MissingPath(path=folder / "decisions-*.jsonl")
    try:
        return "".join(file.read_text(encoding="utf-8") for file in files)
    except OSError as error:
        raise UnreadablePath(path=folder, why=error.strerror or str(error)) from error
