"""What a unit that ran out of GPU memory asks for next. Pure.

*Its own overrun*: it asks for more, `OnOom.grow` times what it was charged or needed, whichever is more, on a card larger than the one
that was too small; the rule of HTCondor's ``retry_request_memory``, with the failed card left out. That may be more than any larger card
has, or there may be no larger one. Then, in this order: a card of any size, where only a part of the one that failed was charged; the
whole of a larger card; the whole of one as large. *A card that others fill*: it asks for the same again, a little later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dgpunet_dask.errors import StageOutOfMemory
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.policy import OnOom
from dgpunet_dask.units import Mib

#: How often one stage of a unit is tried again on cards that others fill, and how long after the first and each later time.
FOREIGN_RETRIES: Final = 4
FOREIGN_WAIT_S: Final = 2.0


@dataclass(frozen=True)
class Overrun:
    """One own overrun, in MiB: what was charged, what would have been needed (``None``: not known), what the card has.

    `whole`: all that is usable of the card was charged.
    """

    device: str
    charge_mib: int
    peak_mib: int | None
    card_mib: int
    whole: bool

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Overrun:
        """Return the overrun that the fields of a `StageOutOfMemory` tell."""
        charge = int(fields.get("charge_mib") or 0)
        peak, card = fields.get("peak_mib"), int(fields.get("card_mib") or charge)
        return cls(str(fields["device"]), charge, peak, card, bool(fields.get("whole")))

    @property
    def need_mib(self) -> int:
        """What was needed at least."""
        return max(self.charge_mib, self.peak_mib or 0)

    def __str__(self) -> str:
        return f"{self.device} ({Mib.of(self.charge_mib)} of {Mib.of(self.card_mib)})"


def next_demands(demand: Demand, overrun: Overrun, on_oom: OnOom) -> tuple[Demand, ...]:
    """Return what to ask for after `overrun`, best first: each only if no device can ever hold the one before. Empty: give up.

    Giving up is right where the policy allows no more than was charged already.
    """
    grown = math.ceil(overrun.need_mib * on_oom.grow)
    vram = grown if on_oom.max_mib is None else min(on_oom.max_mib, grown)
    if vram <= overrun.charge_mib:
        return ()
    larger, as_large = Mib.of(overrun.card_mib), Mib.of(max(0, overrun.card_mib - 1))
    more = replace(demand, vram=Mib.of(max(vram, demand.resident_mib)), larger_than=larger)
    found = [more]
    if not overrun.whole:
        found.append(replace(more, larger_than=demand.larger_than))
    if on_oom.max_mib is None:
        found.append(replace(more, vram=None))
        if not overrun.whole:
            found.append(replace(more, vram=None, larger_than=as_large))
    return tuple(found)


def asks_more(demand: Demand, overrun: Overrun) -> bool:
    """Whether `demand` asks for more than what was too small: another unit of its job has met the same meanwhile."""
    if demand.larger_than is not None and int(demand.larger_than) >= overrun.card_mib:
        return True
    return not overrun.whole and (demand.vram_mib is None or demand.vram_mib > overrun.charge_mib)


@dataclass
class Tries:
    """How often one stage of one unit was tried, what is still open to ask for, and the fields of the last overrun's error."""

    overruns: list[Overrun] = field(default_factory=list)
    foreign: int = 0
    left: list[Demand] = field(default_factory=list)
    fields: Mapping[str, Any] = field(default_factory=dict)

    def overran(self, fields: Mapping[str, Any], demand: Demand, on_oom: OnOom) -> None:
        """Take in an overrun; `demand` is what the stage asks for now."""
        self.fields = fields
        self.overruns.append(Overrun.of(fields))
        self.left = list(next_demands(demand, self.overruns[-1], on_oom))

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
