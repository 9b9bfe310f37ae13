"""Where a demand goes: resolve, filter, rank, choose. Pure: the same fleet, policy and demand give the same decision, whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from dgpunet_dask.model.decision import Decision, Outcome, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.feasible import in_reason_order, need_mib, never_verdicts, not_now_verdicts
from dgpunet_dask.placement.gang import choose, too_few
from dgpunet_dask.placement.rank import candidate, duration_s, field_of, scores
from dgpunet_dask.placement.resolve import Request, resolve
from dgpunet_dask.placement.waiting import had_better_wait, soonest

Verdicts = Mapping[str, tuple[Verdict, ...]]


def place(fleet: Fleet, demand: Demand, policy: Policy = NO_POLICY, estimates: Estimates = NO_ESTIMATES) -> Decision:
    """Decide upon one unit of work; see `place_request`."""
    return replace(place_request(fleet, resolve(demand, policy, estimates)), policy=policy.digest)


def place_request(fleet: Fleet, request: Request) -> Decision:
    """Decide upon one unit of work whose policy is resolved.

    Returns
    -------
    Decision
        ``placed`` with the chosen device, or devices; where `evict` is not empty, those idle residents must have left before the
        unit may start. ``never`` where each device fails by rule or for ever. ``wait`` otherwise, and for an empty fleet; a ranking
        that is not empty then says that a busy device, `waits_for`, would finish it sooner than any free one.
        Every device is either in the ranking or refused with all its verdicts.
    """
    refusals = refuse(fleet, request)
    field = field_of(fleet, request)
    ready = [
        candidate(d, fleet.host_by_name[d.host], fleet.charges_on(d.name), field) for d in fleet.devices if not refusals[d.name]
    ]
    ranking = scores(ready, field)
    refused = {name: verdicts for name, verdicts in refusals.items() if verdicts}
    chosen = choose(ranking, fleet.by_name, request.demand)
    better = had_better_wait(fleet, field, ready, refused) if chosen else None
    if better is not None:
        return Decision("wait", ranking, refused, waits_for=better)
    if not chosen:
        busy = soonest(fleet, field, refused)
        return Decision(outcome_of(chosen, refused), ranking, refused, waits_for=None if busy is None else busy.device)
    evict = {holder for c in ready if c.device.name in chosen for holder in c.evict}
    return Decision("placed", ranking, refused, chosen, tuple(sorted(evict)))


def outcome_of(chosen: Iterable[str], refused: Verdicts) -> Outcome:
    """Return the outcome. Never needs a refusal by rule or for ever on each device; an empty fleet may still grow."""
    if tuple(chosen):
        return "placed"
    return "never" if refused and all(verdicts[0].never for verdicts in refused.values()) else "wait"


def refuse(fleet: Fleet, request: Request) -> dict[str, tuple[Verdict, ...]]:
    """Return all verdicts of each device, in `REASON_ORDER`; an empty tuple where it will do now."""
    never = never_table(fleet, request)
    found = {d.name: never[d.name] + _now(fleet, d, request) for d in fleet.devices}
    free = [d for d in fleet.gpus() if not found[d.name]] if request.demand.gpus > 1 else []
    for name, verdict in too_few(free, request.demand, "busy", "free at once").items():
        found[name] = (verdict,)
    return found


def never_table(fleet: Fleet, request: Request) -> dict[str, tuple[Verdict, ...]]:
    """Return, for each device, the verdicts by rule and for ever, in `REASON_ORDER`."""
    found = {d.name: never_verdicts(d, fleet.host_by_name[d.host], request, fleet.minute) for d in fleet.devices}
    able = [d for d in fleet.gpus() if not found[d.name]]
    for name, verdict in too_few(able, request.demand, "not_allowed", "that can hold it").items():
        found[name] = in_reason_order((verdict, *found[name]))
    return found


def charges_of(fleet: Fleet, request: Request, decision: Decision, holder: str) -> tuple[Charge, ...]:
    """Return what a placed unit charges: one activation for each chosen device, with its expected end."""
    field = field_of(fleet, request)
    charges = []
    for name in decision.devices:
        device, here = fleet.by_name[name], fleet.charges_on(name)
        ends_s = duration_s(device, here, field) if request.known else None
        charges.append(replace(activation(device, here, request, holder), ends_s=ends_s))
    return tuple(charges)


def activation(device: Device, charges: Iterable[Charge], request: Request, holder: str) -> Charge:
    """Return the charge of one unit on `device`, where `charges` lie already; its end is left open."""
    demand = request.demand
    return Charge(
        holder=holder, device=device.name, vram_mib=need_mib(device, charges, demand), ram_mib=demand.ram_mib, cpus=demand.cpus,
        stage=demand.stage, model=demand.model, user=demand.user, priority=demand.priority,
        exclusive=demand.exclusive, share=request.share,
    )  # fmt: skip


def _now(fleet: Fleet, device: Device, request: Request) -> tuple[Verdict, ...]:
    state = fleet.states.get(device.name, "running")
    return not_now_verdicts(device, fleet.host_by_name[device.host], state, fleet.charges_on(device.name), request)
