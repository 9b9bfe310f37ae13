"""Which units in flight deserve a second copy elsewhere, as MapReduce's backup tasks. Pure.

A unit that has run for `FACTOR` times what its stage takes on that class of device, while others have nothing to do there, is started once
more on another device; whichever ends first commits, and the other is refused by its epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

#: A unit that takes so many times its estimate is a straggler.
FACTOR: Final = 3.0
#: And never sooner than this: of very short units the estimate says little, and a copy costs a start.
AT_LEAST_S: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Flight:
    """One stage of one unit on its device: since when (seconds of a clock that never goes back), and its estimate (``None``: not known)."""

    number: int
    stage: str
    device: str
    since_s: float
    estimate_s: float | None
    copied: bool = False

    def overdue(self, now: float) -> bool:
        """Whether it has taken too long by `now`."""
        return self.estimate_s is not None and now - self.since_s > max(AT_LEAST_S, FACTOR * self.estimate_s)


def stragglers(flights: Iterable[Flight], now: float, waiting: Collection[str]) -> list[Flight]:
    """Return the flights to be copied now, the longest overdue first.

    Parameters
    ----------
    waiting
        Stages of which units wait for a device: these need it more than a copy does.
    """
    found = [f for f in flights if not f.copied and f.stage not in waiting and f.overdue(now)]
    return sorted(found, key=lambda f: (f.since_s, f.number))
