"""What the scheduler has learned by itself, from tasks of plain Dask clients, kept beyond its end.

The head's own estimates, which jobs feed, are another file: a stage that both have met is the head's. A new scheduler, of this head or
of the next, is given back what is kept and learns on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from dgpunet_dask.errors import BadValue, DgpunetError
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.placement.estimate import Estimates

log = logging.getLogger(__name__)

#: How often the plugin is asked.
PERIOD_S: Final = 5.0

#: Gives the plugin estimates to know beside its own, and returns all that it has learned by itself then.
Exchange = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class TaskLearning:
    """Follows the plugin's estimates. `kept` is their file; `exchange` asks the plugin (RPC ``dgpunet_own``)."""

    def __init__(self, kept: Learning, exchange: Exchange) -> None:
        self.kept, self.exchange = kept, exchange

    async def run(self) -> None:
        """Exchange and keep until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(PERIOD_S)

    async def once(self) -> None:
        """Give the plugin what is kept, and keep what it knows by then. A scheduler that is away is asked the next time."""
        try:
            known = Estimates.from_json(await self.exchange(self.kept.estimates.to_json()))
        except (BadValue, DgpunetError) as error:
            log.debug("what the scheduler has learned cannot be kept now: %s", error)
            return
        if known != self.kept.estimates:
            self.kept.estimates = known
        await in_thread(self.kept.keep)
