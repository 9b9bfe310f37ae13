"""What an agent watches on its host beside its processes: the cards' health. What happens is a report, what lasts is in every heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.daemons.spool import Spool
from dgpunet_dask.model.fleet import Fleet

log = logging.getLogger(__name__)

#: How often the cards are asked how they are.
PERIOD_S: Final = 10.0

Rows = Sequence[Mapping[str, Any]]


class NodeHealth:
    """Looks at the cards of one host.

    Parameters
    ----------
    spool
        Takes what happens.
    clock
        Time.
    """

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self.spool, self.clock = spool, clock
        self.cards: dict[str, dict[str, Any]] = {}

    def row(self) -> dict[str, Any]:
        """Return what the next heartbeat says of the cards, by UUID."""
        return {"cards": self.cards}

    async def run(self, fleet: Callable[[], Fleet | None], stagehosts: Callable[[], Rows]) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            if fleet() is None:
                continue
            log.debug("%d stage hosts", len(stagehosts()))
