"""Units that ran out of a card's memory: what their stage asks for next, for the whole job. The decisions are in `requeue` and `placement.oom`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from dgpunet_dask.errors import DgpunetError, ForeignMemory, StageOutOfMemory, Unplaceable
from dgpunet_dask.jobs.flights import Attempt, Flights
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.requeue import FOREIGN_RETRIES, Growth, Tries, asks_more
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.policy import OnOom
from dgpunet_dask.placement.oom import next_demands

#: Errors that are about memory.
SHORT: Final = (StageOutOfMemory, ForeignMemory, Unplaceable)


class Shortage:
    """Lets the demands of one job's stages grow.

    Parameters
    ----------
    flights
        Whose stages they are.
    learned, on_oom
        Takes in what was too small; says how far a demand may grow.
    """

    def __init__(
        self, flights: Flights, learned: Learning, on_oom: Callable[[Demand], OnOom], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.flights, self.learned, self.on_oom, self.sleep = flights, learned, on_oom, sleep
        self.grown: dict[str, Growth] = {}

    def stage_of(self, attempt: Attempt, error: DgpunetError) -> str | None:
        """Return the stage that `error` is about, ``None`` where trying again is not ours to decide.

        `Unplaceable` counts only after memory was short: then what the stage asked for next was more than any device has.
        """
        if not isinstance(error, Unplaceable):
            return str(error.fields["stage"]) if error.fields.get("stage") in attempt.futures else None
        return next((name for name in self.grown if attempt.futures[name].status == "error"), None)

    async def settle(self, attempt: Attempt, name: str, error: DgpunetError) -> None:
        """Return once stage `name` of an attempt may be submitted again.

        Raises
        ------
        StageOutOfMemory, ForeignMemory
            If it was tried often enough, or there is nothing left to ask for.
        """
        if isinstance(error, ForeignMemory):
            await self._wait_for_others(attempt.unit.tries[name], error)
        else:
            await self._grow(attempt, name, error)

    async def _wait_for_others(self, tries: Tries, error: ForeignMemory) -> None:
        tries.foreign += 1
        if tries.foreign > FOREIGN_RETRIES:
            raise ForeignMemory(**{**error.fields, "attempts": tries.failures}) from error
        await self.sleep(tries.wait_s())

    async def _grow(self, attempt: Attempt, name: str, error: DgpunetError) -> None:
        """Let stage `name` of this job ask for more from now on, unless it does already: other units may have met the same."""
        stages = self.flights.stages
        demand, tries = stages[name].demand, attempt.unit.tries[name]
        assert demand is not None  # only stages on a card run out of its memory
        if isinstance(error, StageOutOfMemory):
            overrun, on_oom = tries.overran(error.fields), self.on_oom(demand)
            if len(tries.overruns) > on_oom.retries:
                raise self._held(demand, name, tries) from error
            if asks_more(demand, overrun):
                return
            self.grown[name] = Growth(tries, overrun, list(next_demands(demand, overrun, on_oom)))
        elif demand != attempt.asked[name]:
            return
        growth = self.grown[name]
        if not growth.left:
            raise self._held(demand, name, growth.tries) from error
        more = growth.left.pop(0)
        stages[name] = stages[name].asking(more)
        self.learned.overrun(demand, growth.overrun, more)
        await self.learned.now()

    def _held(self, demand: Demand, name: str, tries: Tries) -> StageOutOfMemory:
        """Return the error that a unit is given up with after `tries`."""
        self.learned.held(demand)
        return tries.held(name)
