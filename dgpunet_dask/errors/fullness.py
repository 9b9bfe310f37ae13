"""Whether a failure means that a disk is full, or that no more files can be opened: the system's fault, never that of the work that met it. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from dgpunet_dask.errors.cluster import LowDisk
from dgpunet_dask.errors.jobs import DiskFull, OutOfFiles

#: What the system says where a disk or a quota has no room.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: The same of open files: of the process, of the machine.
NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
#: What the product raises where the system is short of something: it is waited for, and nobody is to blame.
SHORTAGES: Final = (DiskFull, OutOfFiles)
#: SQLITE_FULL, which SQLite's errors carry as `sqlite_errorcode`; its extended codes have it in their last byte.
_SQLITE_FULL: Final = 13


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from or during, tells of a disk or quota without room."""
    return full_in(error) is not None


def full_in(error: BaseException | None) -> BaseException | None:
    """Return what tells of a disk or quota without room: `error` itself, or one that it was raised from or during; ``None`` if none does."""
    return next((one for one in _chain(error) if says_full(one)), None)


def says_full(error: BaseException) -> bool:
    """Whether `error` itself tells of a disk or quota without room, whatever lies behind it."""
    code = getattr(error, "sqlite_errorcode", None)
    return (
        isinstance(error, DiskFull | LowDisk)
        or (isinstance(error, OSError) and error.errno in NO_ROOM)
        or (isinstance(code, int) and code & 0xFF == _SQLITE_FULL)
    )


def out_of_files(error: BaseException | None) -> BaseException | None:
    """Return what tells that no more files can be opened: `error` itself, or one that it was raised from or during; ``None`` if none does."""
    return next((one for one in _chain(error) if isinstance(one, OutOfFiles) or (isinstance(one, OSError) and one.errno in NO_FILES)), None)


def is_short(error: BaseException | None) -> bool:
    """Whether `error` tells that the system lacks something that it will have again: room on a disk, or files that may be opened."""
    return is_full(error) or out_of_files(error) is not None


def shortage_of(error: BaseException, path: object) -> DiskFull | OutOfFiles | None:
    """Return the product's error where `error` itself, met at `path`, tells that the system is short of something; ``None`` for others."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskFull(path=path)
    return OutOfFiles(why=str(error)) if isinstance(error, OSError) and error.errno in NO_FILES else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those behind it, each once; those of groups too."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
