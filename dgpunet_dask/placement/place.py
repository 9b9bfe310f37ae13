"""Where a demand goes: filter, rank, choose. Pure: the same fleet and demand give the same decision, whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dgpunet_dask.model.decision import Decision, Outcome, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet
from dgpunet_dask.placement.feasible import in_reason_order, need_mib, never_verdicts, not_now_verdicts
from dgpunet_dask.placement.gang import choose, too_few
from dgpunet_dask.placement.rank import candidate, field_of, scores

Verdicts = Mapping[str, tuple[Verdict, ...]]


def place(fleet: Fleet, demand: Demand) -> Decision:
    """Decide upon one unit of work.

    Returns
    -------
    Decision
        ``placed`` with the chosen device, or devices; where `evict` is not empty, those idle residents must have left before the
        unit may start. ``never`` where each device fails by rule or for ever. ``wait`` otherwise, and for an empty fleet.
        Every device is either in the ranking or refused with all its verdicts.
    """
    refusals = refuse(fleet, demand)
    ready = [candidate(d, fleet.charges_on(d.name), demand) for d in fleet.devices if not refusals[d.name]]
    ranking = scores(ready, field_of(fleet.devices))
    chosen = choose(ranking, fleet.by_name, demand)
    evict = {holder for c in ready if c.device.name in chosen for holder in c.evict}
    refused = {name: verdicts for name, verdicts in refusals.items() if verdicts}
    return Decision(outcome_of(chosen, refused), ranking, refused, chosen, tuple(sorted(evict)))


def outcome_of(chosen: Iterable[str], refused: Verdicts) -> Outcome:
    """Return the outcome. Never needs a refusal for ever on each device; an empty fleet may still grow."""
    if tuple(chosen):
        return "placed"
    return "never" if refused and all(verdicts[0].never for verdicts in refused.values()) else "wait"


def refuse(fleet: Fleet, demand: Demand) -> dict[str, tuple[Verdict, ...]]:
    """Return all verdicts of each device, in `REASON_ORDER`; an empty tuple where it will do now."""
    never = never_table(fleet, demand)
    found = {d.name: never[d.name] + _now(fleet, d, demand) for d in fleet.devices}
    free = [d for d in fleet.gpus() if not found[d.name]] if demand.gpus > 1 else []
    for name, verdict in too_few(free, demand, "busy", "free at once").items():
        found[name] = (verdict,)
    return found


def never_table(fleet: Fleet, demand: Demand) -> dict[str, tuple[Verdict, ...]]:
    """Return, for each device, the verdicts that no waiting removes, in `REASON_ORDER`."""
    cards = {d.name: never_verdicts(d, fleet.host_by_name[d.host], demand) for d in fleet.gpus()}
    able = [d for d in fleet.gpus() if not cards[d.name]]
    for name, verdict in too_few(able, demand, "not_allowed", "that can hold it").items():
        cards[name] = in_reason_order((verdict, *cards[name]))
    possible = not all(cards.values())
    cpus = (d for d in fleet.devices if d.kind == "cpu")
    return cards | {d.name: never_verdicts(d, fleet.host_by_name[d.host], demand, possible) for d in cpus}


def charges_of(fleet: Fleet, demand: Demand, decision: Decision, holder: str) -> tuple[Charge, ...]:
    """Return what a placed unit charges: one activation for each chosen device."""
    return tuple(activation(fleet.by_name[name], fleet.charges_on(name), demand, holder) for name in decision.devices)


def activation(device: Device, charges: Iterable[Charge], demand: Demand, holder: str) -> Charge:
    """Return the charge of one unit of `demand` on `device`, where `charges` lie already."""
    mib = need_mib(device, charges, demand)
    return Charge(
        holder=holder, device=device.name, vram_mib=mib, ram_mib=demand.ram_mib, cpus=demand.cpus,
        stage=demand.stage, exclusive=demand.exclusive,
    )  # fmt: skip


def _now(fleet: Fleet, device: Device, demand: Demand) -> tuple[Verdict, ...]:
    state = fleet.states.get(device.name, "running")
    return not_now_verdicts(device, fleet.host_by_name[device.host], state, fleet.charges_on(device.name), demand)
