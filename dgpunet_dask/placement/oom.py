"""What a unit that ran out of GPU memory asks for next. Pure.

It asks for more, `OnOom.grow` times what it was charged or needed, whichever is more, on a card larger than the one that was too small;
the rule of HTCondor's ``retry_request_memory``, with the failed card left out. That may be more than any larger card has, or there may
be no larger one. Then, in this order: a card of any size, where only a part of the one that failed was charged; the whole of a larger
card; the whole of one as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.policy import OnOom
from dgpunet_dask.units import Mib


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
