"""What is done with the files of a ledger without opening them in SQLite."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import DamagedLedger
from dgpunet_dask.security.files import signature, sync_folder

#: How often a copy is tried while a head writes.
COPY_TRIES: Final = 20


def copy_still(path: Path, copy: Path) -> None:
    """Copy a ledger and its log as they stood together at one moment.

    Raises
    ------
    DamagedLedger
        If they do not hold still.
    """
    names = ("", "-wal")
    for _ in range(COPY_TRIES):
        before = [signature(path.with_name(path.name + end)) for end in names]
        for end in names:
            copy.with_name(copy.name + end).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + end), copy.with_name(copy.name + end))
        if before == [signature(path.with_name(path.name + end)) for end in names]:
            return
    raise DamagedLedger(path=path, why="it is being written; look again when its head is idle")


def put_aside(path: Path) -> Path:
    """Move a damaged file and what belongs to it out of the way; what was put aside before stays."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged.{number}")
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    sync_folder(path.parent)
    return aside
