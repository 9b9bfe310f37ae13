"""What a unit that ran out of GPU memory asks for next. Pure.

*Its own overrun*: it asks for more, see `placement.oom`. *A card that others fill*: it asks for the same again, a little later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dgpunet_dask.errors import StageOutOfMemory
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.oom import Overrun
from dgpunet_dask.units import Mib

#: How often one stage of a unit is tried again on cards that others fill, and how long after the first and each later time.
FOREIGN_RETRIES: Final = 4
FOREIGN_WAIT_S: Final = 2.0


def asks_more(demand: Demand, overrun: Overrun) -> bool:
    """Whether `demand` asks for more than what was too small: another unit of its job has met the same meanwhile."""
    if demand.larger_than is not None and int(demand.larger_than) >= overrun.card_mib:
        return True
    return not overrun.whole and (demand.vram_mib is None or demand.vram_mib > overrun.charge_mib)


@dataclass
class Tries:
    """How often one stage of one unit was tried, and the fields of the last overrun's error."""

    overruns: list[Overrun] = field(default_factory=list)
    foreign: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    def overran(self, fields: Mapping[str, Any]) -> Overrun:
        """Take in an overrun and return it."""
        self.fields = fields
        self.overruns.append(Overrun.of(fields))
        return self.overruns[-1]

    @property
    def failures(self) -> int:
        """Starts that ended for want of memory."""
        return len(self.overruns) + self.foreign

    def held(self, stage: str) -> StageOutOfMemory:
        """Return the error that the unit is held with: the highest peak of all tries, and every card that was tried."""
        worst = max(self.overruns, key=lambda o: o.need_mib)
        peak = f"at least {Mib.of(worst.need_mib)}" if worst.peak_mib is None else str(Mib.of(worst.need_mib))
        charge = Mib.of(max(o.charge_mib for o in self.overruns))
        cards = ", ".join(map(str, self.overruns))
        told = {"stage": stage, "peak": peak, "charge": charge, "cards": cards, "attempts": self.failures, "peak_mib": worst.peak_mib}
        return StageOutOfMemory(**{**self.fields, **told})

    def wait_s(self) -> float:
        """Return how long to wait after a card was found filled: twice as long each time."""
        return FOREIGN_WAIT_S * 2.0 ** (self.foreign - 1)


@dataclass
class Growth:
    """How the demand of one stage of a job has grown: by whose tries, after which overrun, and what is still open to ask for.

    It is the job's and not a unit's, so that each size is found too small, or more than any device has, but once.
    """

    tries: Tries
    overrun: Overrun
    left: list[Demand]
