"""When busy devices come free, and whether work had better wait for one of them than start at once on a slower one.

Waiting is chosen only where both ends are known: the run time of the work, stated or learned, and the end of whatever stands in the way.
The one exception is a CPU against a busy card: there the prior, one unit being as long as another, is enough, since a CPU is slower by
orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from dgpunet_dask.model.decision import Verdict
from dgpunet_dask.model.fleet import Charge, Device, Fleet
from dgpunet_dask.placement.feasible import evictions, not_now_verdicts, reload_s
from dgpunet_dask.placement.rank import Candidate, Field, duration_s
from dgpunet_dask.placement.resolve import PRIOR_WORK_S, Request

#: Finishes that differ by less are equal: a device that is free now is taken.
_SAME_S = 1e-9


class Finish(NamedTuple):
    """When a busy device would have done the work, in seconds from now."""

    seconds: float
    device: str


def soonest(fleet: Fleet, field: Field, refusals: Mapping[str, Sequence[Verdict]], *, guess: bool = False) -> Finish | None:
    """Return the busy device that would finish the work first, the lower name among equals; ``None`` where no end is known.

    `guess`: take the prior where the end of a running unit is not known, and look at cards only.
    """
    found = []
    for device in fleet.gpus() if guess else fleet.devices:
        verdicts = refusals.get(device.name, ())
        if not verdicts or any(v.never for v in verdicts):
            continue
        free = _free(fleet, device, field.request, guess=guess)
        if free is not None:
            free_s, left = free
            start_s = free_s + fleet.booked.get(device.name, 0.0)
            found.append(Finish(start_s + later_s(device, left, field), device.name))
    return min(found, default=None)


def free_in_s(fleet: Fleet, device: Device, request: Request, *, guess: bool = False) -> float | None:
    """Return the seconds until `device` could take the work as holders let go one by one, ``None`` where that is not known."""
    free = _free(fleet, device, request, guess=guess)
    return None if free is None else free[0]


def later_s(device: Device, left: Sequence[Charge], field: Field) -> float:
    """Return the seconds that the work will take on a device that is busy now, once only `left` is charged there; see `Candidate.finish_s`."""
    loaded = [c for c in left if c.kind == "resident"]
    return duration_s(device, loaded, field) + sum(map(reload_s, evictions(device, left, field.request)))


def _free(fleet: Fleet, device: Device, request: Request, *, guess: bool) -> tuple[float, list[Charge]] | None:
    """Return when `device` could take the work, and what will still be charged there then."""
    charges = list(fleet.charges_on(device.name))
    host, state = fleet.host_by_name[device.host], fleet.states.get(device.name, "running")
    ends = sorted((end, c.holder, c) for c in charges if (end := _end_s(c, device, guess=guess)) is not None)
    for end, _, charge in ends:
        charges = after(charges, charge)
        if not not_now_verdicts(device, host, state, charges, request):
            return end, charges
    return None


def after(charges: Iterable[Charge], leaving: Charge) -> list[Charge]:
    """Return `charges` once `leaving` has let go: the stage that it used stays loaded, idle where nothing else there uses it."""
    left = [c for c in charges if c is not leaving]
    users = [c for c in left if c.kind in {"activation", "lease"}]
    return [
        replace(c, evictable=True) if c.holds(leaving.stage, leaving.model) and not any(c.holds(u.stage, u.model) for u in users) else c
        for c in left
    ]


def _end_s(charge: Charge, device: Device, *, guess: bool) -> float | None:
    if charge.ends_s is None and guess and charge.kind == "activation":
        return PRIOR_WORK_S / device.speed
    return charge.ends_s


def had_better_wait(
    fleet: Fleet, field: Field, candidates: Sequence[Candidate], refusals: Mapping[str, Sequence[Verdict]]
) -> str | None:
    """Return the busy device to wait for, ``None`` where the best of `candidates` is to be taken.

    A preference of the policy outranks time, so that preferred work never waits by choice, except that it keeps off a CPU.
    """
    request = field.request
    best = min(candidates, key=lambda c: (c.finish_s, c.device.name))
    on_cpu = best.device.kind == "cpu"
    if request.demand.gpus > 1 or not (on_cpu or (request.known and request.prefer is None)):
        return None
    busy = soonest(fleet, field, refusals, guess=not request.known)
    return busy.device if busy is not None and busy.seconds < best.finish_s - _SAME_S else None
