"""What one demand means to a pool: its request, the classes that can hold it, and the answers that it was given already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge
from dgpunet_dask.placement.feasible import never_verdicts, not_now_verdicts
from dgpunet_dask.placement.place import activation
from dgpunet_dask.placement.rank import Candidate, Field, candidate, duration_s, scored, terms_of
from dgpunet_dask.placement.resolve import FINISH_WEIGHT, PRIOR_WORK_S, Request
from dgpunet_dask.placement.slots import MEMO_MAX, DeviceClass, Group, Slot, weigh
from dgpunet_dask.placement.waiting import after, later_s

NEVER_S: Final = float("inf")


class Offer(NamedTuple):
    """What any device of a group has for a demand: seconds until it would be done, VRAM left over beside it."""

    finish_s: float
    left_mib: int


class Free(NamedTuple):
    """When a busy device could take the demand, until when that is believed, and how long a unit then takes there.

    `version`: of the slot that was asked.
    """

    version: int
    at_s: float
    until_s: float
    duration_s: float


class Plan:
    """A demand under a policy, for the classes there are. It holds while the pool's `epoch` is its own.

    `able`: the classes that could hold the demand when free. `final`: whether waiting is in vain where there is none. `waits`: whether
    the work may wait by choice for any faster device; else it only keeps off a CPU, if `may_wait`.
    """

    def __init__(self, demand: Demand, request: Request, epoch: int, classes: Iterable[DeviceClass], minute: int | None) -> None:
        self.demand, self.request, self.epoch = demand, request, epoch
        verdicts = {kind: never_verdicts(kind.device, kind.host, request, minute) for kind in classes}
        self.able = tuple(kind for kind, found in verdicts.items() if not found)
        self.classes = frozenset(self.able)
        self.final = bool(verdicts) and all(any(v.final for v in found) for found in verdicts.values())
        self.one_card = demand.gpus <= 1 and not demand.inputs
        self.work_s, self.known = request.work_s, request.known
        self.waits = self.known and request.prefer is None
        self.may_wait = demand.gpus <= 1 and (self.waits or any(not kind.is_gpu for kind in self.able))
        self.terms = terms_of(request)
        self.field = Field(0.0, request)
        self.offers: dict[Group, Offer | None] = {}  # those that `offer` has found
        self._charges: dict[Group, Charge] = {}
        self._totals: dict[tuple[Group, float, float], float] = {}
        self._free: dict[Slot, Free] = {}
        self._runs: dict[DeviceClass, float] = {}
        self.least_s = min(map(self.run_s, self.able), default=0.0)


    # Free devices

    def offer(self, group: Group) -> Offer | None:
        """Return what the devices of `group` have for the demand, ``None`` where they will not do now."""
        try:
            return self.offers[group]
        except KeyError:
            if len(self.offers) >= MEMO_MAX:
                self.offers.clear()
            found = self.offers[group] = self._ask(next(iter(group.members.values())))
            return found

    def _ask(self, slot: Slot) -> Offer | None:
        charges = tuple(slot.charges.values())
        if not_now_verdicts(slot.device, slot.host, slot.state, charges, self.request):
            return None
        found = candidate(slot.device, slot.host, charges, self.field)
        return Offer(found.finish_s, found.left_mib)

    def total(self, group: Group, offer: Offer, best_s: float, fastest: float) -> float:
        """Return the score of a device of `group`, where the earliest finish is `best_s`, to a millionth."""
        if self.request.prefer is None:
            return round(FINISH_WEIGHT * (best_s / offer.finish_s if offer.finish_s > 0 else 1.0), 6)
        key = (group, best_s, fastest)
        found = self._totals.get(key)
        if found is None:
            if len(self._totals) >= MEMO_MAX:
                self._totals.clear()
            kind = group.kind
            one = Candidate(kind.device, kind.host, offer.left_mib, (), offer.finish_s)
            found = self._totals[key] = round(scored(one, Field(fastest, self.request, best_s), self.terms).total, 6)
        return found

    def evict(self, slot: Slot) -> tuple[str, ...]:
        """Return the idle residents that must leave `slot`, which will do now, before the demand fits."""
        if not any(c.evictable for c in slot.charges.values()):
            return ()
        return tuple(sorted(candidate(slot.device, slot.host, tuple(slot.charges.values()), self.field).evict))

    def charge(self, slot: Slot, holder: str) -> Charge:
        """Return what one unit takes of `slot` as it is now. Without inputs: they make the time hang on where they lie."""
        if slot.group is None:
            return self._charge(slot, holder)
        known = self._charges.get(slot.group)
        if known is None:
            if len(self._charges) >= MEMO_MAX:
                self._charges.clear()
            known = self._charges[slot.group] = self._charge(slot, "")
            weigh(known)
        copied = object.__new__(Charge)  # `replace` takes ten times as long
        copied.__dict__.update(known.__dict__, holder=holder, device=slot.name)
        return copied

    def _charge(self, slot: Slot, holder: str) -> Charge:
        charges = tuple(slot.charges.values())
        found = activation(slot.device, charges, self.request, holder)
        return replace(found, ends_s=duration_s(slot.device, charges, self.field)) if self.known else found

    # Busy devices

    def run_s(self, kind: DeviceClass) -> float:
        """Return the seconds of one unit on a device of `kind` where its stage is loaded, at the share that it would have."""
        found = self._runs.get(kind)
        if found is None:
            share = (self.request.share or 1) if kind.is_gpu else 1
            found = self._runs[kind] = share * self.request.run_s(kind.device)
        return found

    def free(self, slot: Slot, now: float, *, guess: bool) -> Free:
        """Return when the busy `slot` could take the demand: at an infinite moment where that is not known.

        `guess`: take the prior where the end of a running unit is not known; see `waiting`.
        """
        if guess:
            return self._ask_busy(slot, now, guess=True)
        known = self._free.get(slot)
        if known is None or known.version != slot.version or now >= known.until_s:
            if len(self._free) >= MEMO_MAX:
                self._free.clear()
            known = self._free[slot] = self._ask_busy(slot, now, guess=False)
        return known

    def _ask_busy(self, slot: Slot, now: float, *, guess: bool) -> Free:
        """Let the holders go one by one, as `waiting.free_in_s` does."""
        charges = list(slot.charges.values())
        until = NEVER_S
        for left_s, _, charge in sorted(self._ends(slot, now, guess=guess), key=lambda end: end[:2]):
            charges = after(charges, charge)
            end = slot.ends.get(charge.holder)
            until = min(until, end.overdue_s if end is not None else NEVER_S)
            if not not_now_verdicts(slot.device, slot.host, slot.state, charges, self.request):
                return Free(slot.version, now + left_s, until, later_s(slot.device, charges, self.field))
        return Free(slot.version, NEVER_S, until, 0.0)

    def fits_emptied(self, slot: Slot) -> bool:
        """Whether the demand would fit on `slot` once all units there have ended."""
        return not not_now_verdicts(slot.device, slot.host, slot.state, emptied(slot.charges.values()), self.request)

    def _ends(self, slot: Slot, now: float, *, guess: bool) -> list[tuple[float, str, Charge]]:
        found = []
        for holder, charge in slot.charges.items():
            left_s = slot.remaining_s(holder, now)
            if left_s is None and guess and charge.kind == "activation":
                left_s = PRIOR_WORK_S / slot.device.speed
            if left_s is not None:
                found.append((left_s, holder, charge))
        return found


def emptied(charges: Iterable[Charge]) -> list[Charge]:
    """Return what is left of `charges` when all units have ended: leases, others' use, and loaded stages, all idle."""
    return [c if c.kind != "resident" else replace(c, evictable=True) for c in charges if c.kind != "activation"]
