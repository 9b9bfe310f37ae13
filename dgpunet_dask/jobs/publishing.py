"""Making a unit's results durable and its own: files first, then the ledger.

1. each result is written to a temporary file, which is synced; 2. renamed; 3. the folder is synced; 4. the ledger commits, if the lease
still lives. A head that dies before 4. leaves files that nobody counts on; the unit is computed, or taken from its agent, once more. A
full disk, or too many open files, is nobody's fault: the results stay in memory until there is room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from dgpunet_dask import failpoints
from dgpunet_dask.errors import OutOfFiles
from dgpunet_dask.errors.fullness import SHORTAGES
from dgpunet_dask.jobs.commit import commit_frames
from dgpunet_dask.jobs.task import Parcel
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.jobs.units import result_name

log = logging.getLogger(__name__)

#: How often a full disk is waited for before the job is told of it, and how long each time until files may be opened again.
FULL_TRIES = 20
FILES_WAIT_S = 1.0


async def publish(
    folder: Path, unit_id: str, epoch: int, ends: Mapping[str, Parcel], leaves: Sequence[str], room: Callable[[], Awaitable[None]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> dict[str, str]:
    """Make what the `leaves` gave durable in `folder`; return the digest (hex) of each.

    Parameters
    ----------
    room
        Waits until the disk has room again.

    Raises
    ------
    DiskFull, OutOfFiles
        If there was none again and again.
    """
    for attempt in range(FULL_TRIES):
        try:
            return await in_thread(_write, folder, unit_id, epoch, ends, leaves)
        except SHORTAGES as error:
            if attempt == FULL_TRIES - 1:
                raise
            log.warning("results wait in memory until there is room in %s: %s", folder, error)
            if isinstance(error, OutOfFiles):  # `room` knows of disks alone
                await sleep(FILES_WAIT_S)
            await room()
    raise AssertionError


def _write(folder: Path, unit_id: str, epoch: int, ends: Mapping[str, Parcel], leaves: Sequence[str]) -> dict[str, str]:
    return {
        leaf: commit_frames(folder / result_name(unit_id, leaf, epoch), ends[leaf].frames, failpoints.hit) for leaf in leaves
    }


def take_back(folder: Path, unit_id: str, epoch: int, leaves: Sequence[str]) -> None:
    """Remove results that were refused: another attempt has committed, or the lease had ended."""
    for leaf in leaves:
        (folder / result_name(unit_id, leaf, epoch)).unlink(missing_ok=True)
