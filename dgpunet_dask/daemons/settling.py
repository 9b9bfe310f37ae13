"""When a job may be judged by the devices that are here.

A scheduler that was started again meets its workers one by one. What has not come back yet must not be taken for missing, or a job
would be refused for ever because of a moment; what stays away for `REJOIN_S` seconds is. Who can do with what is here does not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from dgpunet_dask.errors import StartFailed
from dgpunet_dask.model.fleet import Fleet

#: How long a job that needs them waits for devices that were here before.
REJOIN_S: Final = 30.0
_POLL_S: Final = 0.05


class Settling:
    """Waits for the fleet.

    Parameters
    ----------
    live
        Gives the fleet as it is; StartFailed while the scheduler does not answer.
    ready
        Whether the scheduler decides by the policies in force.
    awaited
        Gives the names of devices that are to come; ``None``: those that were here when all was there, last time.
    """

    def __init__(
        self, live: Callable[[], Awaitable[Fleet]], ready: Callable[[], bool], awaited: Callable[[], Collection[str]] | None = None
    ) -> None:
        self.live, self.ready = live, ready
        self.met: frozenset[str] = frozenset()
        self.awaited = awaited or (lambda: self.met)

    async def fleet(self, enough: Callable[[Fleet], bool]) -> Fleet:
        """Return the live fleet once it is `enough`, or all that is awaited is there.

        Raises
        ------
        StartFailed
            If the scheduler has not answered by then.
        """
        deadline = asyncio.get_running_loop().time() + REJOIN_S
        while True:
            late = asyncio.get_running_loop().time() > deadline
            try:
                fleet = await self.live()
            except StartFailed:
                if late:
                    raise
            else:
                here = frozenset(device.name for device in fleet.devices)
                whole = late or here.issuperset(self.awaited())
                if whole:
                    self.met = here
                if late or (self.ready() and (whole or enough(fleet))):
                    return fleet
            await asyncio.sleep(_POLL_S)
