"""Whether a failure means that a disk is full: the system's fault, never that of the work that met it. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from dgpunet_dask.errors import DiskFull, LowDisk

_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: SQLITE_FULL, which SQLite's errors carry as `sqlite_errorcode`; its extended codes have it in their last byte.
_SQLITE_FULL: Final = 13


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from or during, tells of a disk or quota without room."""
    return any(_is_full(one) for one in _chain(error))


def _is_full(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return (
        isinstance(error, DiskFull | LowDisk)
        or (isinstance(error, OSError) and error.errno in _ERRNOS)
        or (isinstance(code, int) and code & 0xFF == _SQLITE_FULL)
    )


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
