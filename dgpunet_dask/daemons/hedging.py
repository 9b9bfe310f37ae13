"""One question to several workers, each of which can answer for some shards: another is asked where one fails, or takes longer than usual."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from dgpunet_dask.retrieval.shards import Placed, Shard, shared_out

if TYPE_CHECKING:
    from dgpunet_dask.clock import Clock
    from dgpunet_dask.retrieval.shards import Found

#: Another copy is asked after so many times the median of recent answers (Dean & Barroso 2013), but no sooner and no later than this.
SLOWER: Final = 3.0
HEDGE_LEAST_S: Final = 0.02
HEDGE_MOST_S: Final = 0.25
#: What nobody has answered by then is scanned by the head, which takes some 20 ms a shard.
ANSWER_S: Final = 0.5
#: Answers that the median is of.
_RECENT: Final = 64

#: Asks a worker, by name, for some shards; what it does not hold is not in the answer.
AskWorker = Callable[[str, "Sequence[Shard]"], "Awaitable[Mapping[Shard, Found]]"]


class Pace:
    """How long workers take to answer."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def note(self, took_s: float) -> None:
        """Take the seconds of an answer."""
        self._recent.append(took_s)

    @property
    def hedge_s(self) -> float:
        """After how many seconds another is asked."""
        if not self._recent:
            return HEDGE_MOST_S
        return min(HEDGE_MOST_S, max(HEDGE_LEAST_S, SLOWER * statistics.median(self._recent)))


class Asking:
    """One such question. `run` is called once, and has the answers by shard that came in time. `late` then names those in whose place another was asked,
    and `failed` those of them that answered with an error.

    Parameters
    ----------
    held, cores
        Who holds which shard, and has how many cores.
    ask
        Asks one of them.
    slow
        Those that are asked only where nobody else is left.
    """

    def __init__(self, held: Placed, cores: Mapping[str, int], ask: AskWorker, pace: Pace, clock: Clock, slow: Iterable[str] = ()) -> None:
        self._left = dict(held)
        self._cores, self._ask, self._pace, self._clock, self._slow = cores, ask, pace, clock, frozenset(slow)
        self._asked: dict[asyncio.Task[Mapping[Shard, Found]], tuple[str, Sequence[Shard], float]] = {}
        self._found: dict[Shard, Found] = {}
        self.late: set[str] = set()
        self.failed: set[str] = set()

    async def run(self, answer_s: float = ANSWER_S) -> dict[Shard, Found]:
        """Ask, and return what came within `answer_s` seconds."""
        began = self._clock.monotonic()
        hedge_at, end = began + self._pace.hedge_s, began + answer_s
        self._begin(self._left)
        try:
            while self._asked and self._missing and (now := self._clock.monotonic()) < end:
                if now >= hedge_at:
                    self._hedge()
                    hedge_at = end
                done, _ = await asyncio.wait(self._asked, timeout=min(hedge_at, end) - now, return_when=asyncio.FIRST_COMPLETED)
                self._take(done)
        finally:
            self.late |= {name for name, _, _ in self._asked.values()} if self._missing else set()
            for task in self._asked:
                task.cancel()
        return self._found

    @property
    def _missing(self) -> list[Shard]:
        return [shard for shard in self._left if shard not in self._found]

    def _begin(self, shards: Iterable[Shard]) -> None:
        """Ask for shards, each of one who has not been asked for it."""
        now = self._clock.monotonic()
        for name, part in shared_out(shards, self._left, self._cores, self._slow).items():
            self._asked[asyncio.ensure_future(self._ask(name, part))] = (name, part, now)
            self._left |= {shard: tuple(other for other in self._left[shard] if other != name) for shard in part}

    def _hedge(self) -> None:
        self.late |= {name for name, _, _ in self._asked.values()}
        self._begin(self._missing)

    def _take(self, done: Iterable[asyncio.Task[Mapping[Shard, Found]]]) -> None:
        for task in done:
            name, part, since = self._asked.pop(task)
            if not task.cancelled() and task.exception() is None:
                self._pace.note(self._clock.monotonic() - since)
                self._found |= task.result()
                self.late.discard(name)
            else:
                self.late.add(name)
                self.failed.add(name)
            self._begin([shard for shard in part if shard not in self._found])
