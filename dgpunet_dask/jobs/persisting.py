"""Steps that must come to their end: whatever the disk has room for, and whoever gives up waiting for them meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from dgpunet_dask.errors.fullness import SHORTAGES

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long after a full disk the ledger is asked again.
FULL_WAIT_S: Final = 1.0
#: And how often, where the disk says that it has room, and has none for this.
FULL_TRIES: Final = 60


async def written(
    step: Callable[[], Awaitable[T]], room: Callable[[], Awaitable[None]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> T:
    """Return what `step` gives, which writes to the ledger. A full disk, or too many open files, is nobody's fault: it is
    done again until there is room.

    Parameters
    ----------
    room
        Waits until the head's disk has room.

    Raises
    ------
    DiskFull, OutOfFiles
        If there was no room for long; also from `room`.
    """
    for _ in range(FULL_TRIES):
        try:
            return await step()
        except SHORTAGES as error:
            log.warning("the ledger waits for room: %s", error)
        await sleep(FULL_WAIT_S)
        await room()
    return await step()


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` gives. A caller that is cancelled meanwhile waits for its end all the same, and is cancelled then.

    For what must not stop half-way: the ledger may have taken it in already.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: a failure after the end of its purpose is no news
        raise
