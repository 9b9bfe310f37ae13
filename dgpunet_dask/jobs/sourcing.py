"""What the head itself asks of its host's agent for a job: the units of the source, and the gather stage; begun anew where a process dies.

A source that is begun anew gives what it gave before once more. That is passed over, after its ids were seen to be the same: what has been
given is on its way already.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from dgpunet_dask.errors import DgpunetError, JobFailed, StageHostLost, StageHung
from dgpunet_dask.jobs.plan import StagePlan
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.jobs.units import Naming
from dgpunet_dask.stagehost.client import AgentClient, agent_is_away
from dgpunet_dask.stagehost.spec import CallResult

log = logging.getLogger(__name__)

T = TypeVar("T")

#: What a process's death, and an agent's, looks like from here.
DEATHS: Final = (StageHostLost, StageHung)
#: Before it is tried again; twice as long each time. An agent that was killed is back within that of the second.
WAIT_S: Final = 1.0
#: An agent's end takes its stage hosts along, and is not the stage's fault: so often at least it is tried again.
AT_LEAST: Final = 3
#: An agent that is not there at all counts as none of these tries: its supervisor brings it back, on a machine that is at its limit late.
AWAY_S: Final = 120.0

Told = Callable[[DgpunetError], None]


async def anew(
    step: Callable[[], Awaitable[T]], retries: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, told: Told = lambda _: None
) -> T:
    """Return what `step` gives; it is done again where a process dies under it, and while there is no agent.

    Parameters
    ----------
    retries
        How often the stage may be started again (job.yaml).
    told
        Is told of each death after which it is tried again.

    Raises
    ------
    StageHostLost, StageHung
        If it died more often, or the agent stays away for `AWAY_S` seconds.
    """
    tried, left_s = 0, AWAY_S
    while True:
        try:
            return await step()
        except DEATHS as error:
            away = agent_is_away(error)
            if left_s <= 0 if away else tried >= max(retries, AT_LEAST):
                raise
            if not away or left_s == AWAY_S:  # once for all the time that it is away
                log.warning("it is tried again: %s", error)
                told(error)
        wait_s = WAIT_S if away else WAIT_S * 2.0**tried
        tried, left_s = (tried, left_s - wait_s) if away else (tried + 1, AWAY_S)
        await sleep(wait_s)


class SourceReader:
    """The pieces of a source, each with its unit's id. Making the value starts nothing; `close` ends it.

    Parameters
    ----------
    agent
        Of the head's host, for this job alone.
    recipe
        What the job's units have in common (`units.recipe_of`).
    sleep, told
        As `anew` has them.
    """

    def __init__(
        self, agent: AgentClient, source: StagePlan, recipe: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, told: Told = lambda _: None
    ) -> None:
        self._agent, self._source, self._recipe, self._sleep, self._told = agent, source, recipe, sleep, told
        self._stream: Iterator[CallResult] | None = None
        self._naming = Naming(recipe)
        self._given, self._digest = 0, hashlib.sha256()

    async def next(self) -> tuple[CallResult | None, str | None]:
        """Return the next piece, ``None`` at the end, and its unit's id, ``None`` for a piece without items.

        Raises
        ------
        StageHostLost, StageHung
            If the source died too often before it gave another piece.
        JobFailed
            If it gave other units when it was begun anew; its subclasses, for what its own code raised.
        """
        piece, unit_id = await anew(self._next, self._source.spec.retries, self._sleep, self._told)
        if piece is not None:
            self._given += 1
            self._digest.update(str(unit_id).encode())
        return piece, unit_id

    async def close(self) -> None:
        """End the source."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await in_thread(_close, stream)

    async def _next(self) -> tuple[CallResult | None, str | None]:
        try:
            if self._stream is None:
                await self._begin()
            return await in_thread(_named_next, self._stream, self._naming, stop=self._agent.close)
        except DEATHS:
            with contextlib.suppress(*DEATHS):
                await self.close()
            raise

    async def _begin(self) -> None:
        """Begin the source, and pass over what it has given before."""
        spec = self._source.spec
        self._stream, self._naming = self._agent.stream(self._source.call.spec, spec.unit_items, spec.unit_bytes), Naming(self._recipe)
        seen = hashlib.sha256()
        for _ in range(self._given):
            _, unit_id = await in_thread(_named_next, self._stream, self._naming, stop=self._agent.close)
            seen.update(str(unit_id).encode())
        if seen.digest() != self._digest.digest():
            raise JobFailed(why=f"the process of source {spec.name} died, and it gave other units when it was started again; submit again")


def _named_next(stream: Iterator[CallResult], naming: Naming) -> tuple[CallResult | None, str | None]:
    piece = next(stream, None)
    return piece, None if piece is None or not piece.items else naming.id_of(piece.frames)


def _close(stream: Any) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()
