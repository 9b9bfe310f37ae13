"""What an agent does beside its heartbeats: each thing in a task of its own, begun again if it breaks.

Ending the agent for one of them would end the loaded stages; going on without it would leave, say, broken cards unseen. So it is begun again,
after a pause that doubles from one end to the next, and heartbeats tell that it was, until it has run for long enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.clock import Clock

log = logging.getLogger(__name__)

#: The first pause, and the longest.
PAUSE_S: Final = 1.0
PAUSE_MOST_S: Final = 60.0
#: What has run for so long is well again.
WELL_S: Final = 600.0


@dataclass
class _State:
    ends: int = 0
    error: str = ""
    ended_s: float = float("-inf")


class Followers:
    """The tasks beside the heartbeats of one agent. `begin` needs a running loop."""

    def __init__(self, clock: Clock, pause_s: float = PAUSE_S) -> None:
        self._clock, self._pause_s = clock, pause_s
        self._states: dict[str, _State] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what `make` gives, anew each time that it ends; `name` says what it looks after."""
        self._tasks.append(asyncio.create_task(self._kept(name, make), name=name))

    async def stop(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def rows(self) -> list[dict[str, Any]]:
        """Return what has ended lately: its name, how often, the last error, and how many seconds ago."""
        now_s = self._clock.monotonic()
        return [
            {"name": name, "ends": state.ends, "error": state.error, "ended_s_ago": round(now_s - state.ended_s, 1)}
            for name, state in self._states.items() if now_s - state.ended_s < WELL_S
        ]  # fmt: skip

    async def _kept(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        state = self._states.setdefault(name, _State())
        while True:
            try:
                await make()
                error: Exception | None = None
            except Exception as broken:
                error = broken
            now_s = self._clock.monotonic()
            state.ends = state.ends + 1 if now_s - state.ended_s < WELL_S else 1
            state.error = "it ended by itself" if error is None else f"{type(error).__name__}: {error}"[:300]
            state.ended_s = now_s
            pause_s = min(PAUSE_MOST_S, self._pause_s * 2 ** min(state.ends - 1, 10))
            log.error("what looks after the %s has ended and is begun again in %.0f s", name, pause_s, exc_info=error)
            await asyncio.sleep(pause_s)
