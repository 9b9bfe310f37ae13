"""What is done with the files of a ledger without opening them in SQLite."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import DamagedLedger
from dgpunet_dask.security.files import signature, sync_folder, write_private

#: How often a copy is tried while a head writes.
COPY_TRIES: Final = 20
#: The number of the last boot lies beside the ledger twice: who deletes ``ledger.db*`` leaves the second.
SECOND_NOTE: Final = "last-boot"


def noted_boot(ledger: Path) -> int:
    """Return the last boot that is noted beside a ledger, 0 where none is."""
    return max(_number_in(note) for note in _notes(ledger))


def note_boot(ledger: Path, boot: int) -> None:
    """Note the number of a boot, durably."""
    for note in _notes(ledger):
        write_private(note, f"{boot}\n")


def _notes(ledger: Path) -> tuple[Path, Path]:
    return ledger.with_name(f"{ledger.name}.boot"), ledger.with_name(SECOND_NOTE)


def _number_in(note: Path) -> int:
    try:
        return int(note.read_text())
    except (OSError, ValueError):
        return 0


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
