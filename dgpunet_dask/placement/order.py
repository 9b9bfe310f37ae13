"""The order in which waiting work is served, the same in the live pump and in simulation. Values in, order out; no clock.

Work waits in *lines*: units of one demand, first come, first served. Among the heads of the lines: urgency (interactive, batch, idle),
then aged lines, then the user who has had the least of the fleet for his weight, then the longest work, then arrival. A line whose head
cannot be placed is passed over, so that a large demand does not keep small ones from devices that it cannot use.

*Ageing*: each placement of work that is not more urgent, on a device that the head could use, passes the head; once that is `PATIENCE`
for each such device the line is aged, and devices are kept free for the first of the aged (as a reservation is in EASY backfilling).
Counting placements and not seconds makes the order the same in every run; counting them per device leaves a burst longest first.

*Fair share*: what a user has had is counted in seconds at speed 1, divided by his weight. Who comes back after a pause starts level
with the one who has had least of those at work, as a new process does in Linux's completely fair scheduler: neither is time away saved
up, nor must who was there before wait until a newcomer has caught up.

*Giving way*: who would send away a loaded stage that others of no less urgency wait for, lets them go first until it is aged. Two
models that do not fit one card together are then loaded once for more than `PATIENCE` units of each, and not once for each unit as in
order of arrival (the idea of KAI-Scheduler's minimum runtime). Where each call comes only after the last has ended there is nothing to
bring together, and each call loads.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from dgpunet_dask.model.demand import PRIORITIES, Demand
from dgpunet_dask.model.fleet import Charge

#: Placements, for each device that could hold it, that may pass the head of a line before devices are kept free for it.
PATIENCE: Final = 16
#: The place of each priority, the most urgent first.
URGENCY: Final = {priority: rank for rank, priority in enumerate(PRIORITIES)}

LineT = TypeVar("LineT")


class Standing(NamedTuple):
    """The sort key of a line's head: the lowest is served first.

    Parameters
    ----------
    urgency
        `URGENCY` of its priority.
    fresh
        False for an aged line.
    share
        What its user has had for his weight, `Shares.of`.
    brevity
        Seconds at speed 1, negative: the longest first.
    arrival
        Whatever tells who came first; total.
    """

    urgency: int
    fresh: bool
    share: float
    brevity: float
    arrival: Any


def standing(*, priority: str | None, aged: bool, share: float, work_s: float, arrival: Any) -> Standing:
    """Return the sort key of a head of `priority` (in force) and of `work_s` seconds at speed 1."""
    return Standing(urgency_of(priority), not aged, share, -work_s, arrival)


def urgency_of(priority: str | None) -> int:
    """Return the place of a priority in force; work without one counts as batch."""
    return URGENCY[priority or "batch"]


def is_aged(passed: int, devices: int = 1) -> bool:
    """Whether a head that `devices` devices could hold when free has been passed too often."""
    return passed >= PATIENCE * max(1, devices)


def passes(by: int, waiting: int) -> bool:
    """Whether a placement of urgency `by` counts against a head of urgency `waiting` that could have used the device."""
    return by >= waiting


def gives_way(urgency: int, *, aged: bool, leaving: Collection[Charge], others: Iterable[tuple[int, Demand]]) -> bool:
    """Whether a head that would send away the stages `leaving` lets the heads of other lines go first.

    It is served at the end of the pass if none of them took the device.

    Parameters
    ----------
    urgency, aged
        Of the head.
    leaving
        The residents that would have to go.
    others
        Urgency and demand of each other line that has a waiting head.
    """
    if not leaving or aged:
        return False
    return any(u <= urgency and any(c.holds(d.stage, d.model) for c in leaving) for u, d in others)


class Shares:
    """What each user has had, in seconds at speed 1. `weight_of` gives a user's weight: `Policy.weight_of`."""

    def __init__(self, weight_of: Callable[[str | None], float]) -> None:
        self.weight_of = weight_of
        self._used: dict[str | None, float] = {}
        self._active: frozenset[str | None] = frozenset()
        self._level = 0.0

    def begin(self, active: Iterable[str | None]) -> None:
        """Begin a pass in which the users `active` have waiting or running work; who was not active before starts level."""
        now = frozenset(active)
        stayed = [self._exact(user) for user in now & self._active]
        self._level = max(self._level, min(stayed, default=self._level))
        if now != self._active:
            for user in now - self._active:
                self._used[user] = max(self._used.get(user, 0.0), self._level * self._weight(user))
            self._active = now
        if len(self._used) > len(now):
            for user in [u for u in self._used if u not in now and self._exact(u) <= self._level]:
                del self._used[user]  # coming back would start level in any case

    def add(self, user: str | None, work_s: float) -> None:
        """Count `work_s` more for `user`: what is expected when a unit starts, and at its end what it took beyond that (or less)."""
        self._used[user] = self._used.get(user, 0.0) + work_s

    def of(self, user: str | None) -> float:
        """Return what `user` has had for his weight, to a millionth, so that rounding does not decide."""
        return round(self._exact(user), 6)

    def _exact(self, user: str | None) -> float:
        return self._used.get(user, 0.0) / self._weight(user)

    def _weight(self, user: str | None) -> float:
        return max(self.weight_of(user), 1e-9)


class Turns(Generic[LineT]):
    """Lines in the order in which they are to be served in one pass.

    Keys may grow while the pass goes on (a user's share does with each placement) and are looked at again before a line is given out;
    a line that becomes aged meanwhile is served as such from the next pass on.
    """

    def __init__(self, lines: Iterable[LineT], key: Callable[[LineT], Standing]) -> None:
        self._key = key
        self._count = itertools.count()
        self._heap = [(key(line), next(self._count), line) for line in lines]
        heapq.heapify(self._heap)

    def pop(self) -> LineT | None:
        """Return the line to be served next and leave it out from now on; ``None`` at the end of the pass."""
        while self._heap:
            known, _, line = heapq.heappop(self._heap)
            now = self._key(line)
            if now <= known:
                return line
            heapq.heappush(self._heap, (now, next(self._count), line))
        return None

    def push(self, line: LineT) -> None:
        """Let `line` be served once more: it has a further head."""
        heapq.heappush(self._heap, (self._key(line), next(self._count), line))
