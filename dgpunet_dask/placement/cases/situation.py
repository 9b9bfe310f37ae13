"""The moment that a case describes: the fleet of its file, with what is reported otherwise, is loaded, and runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Fleet, Host
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.cases.shape import CaseEntry, ResidentEntry
from dgpunet_dask.placement.feasible import slots
from dgpunet_dask.placement.place import activation
from dgpunet_dask.placement.resolve import Request, resolve
from dgpunet_dask.units import Mib


class Impossible(NamedTuple):
    """What a card could never hold: the key and the place under it that ask for it, and why not."""

    key: str
    place: int | str
    what: str


def situation(fleet: Fleet, policy: Policy, case: CaseEntry) -> tuple[Fleet, list[Impossible]]:
    """Return the fleet at the moment of `case`, and whatever could never lie on it."""
    charges: list[Charge] = []
    faults: list[Impossible] = []

    def lay(charge: Charge, key: str, place: int | str) -> None:
        charges.append(charge)
        faults.extend(_beyond(fleet, charge.device, charges, key, place))

    for name, size in case.foreign.items():
        lay(Charge(holder="other programs", device=name, vram_mib=int(size), kind="foreign"), "foreign", name)
    for i, entry in enumerate(case.resident):
        lay(_resident(entry, i), "resident", i)
    for i, running in enumerate(case.running):
        request = resolve(Demand.parse(running.demand), policy)
        for device in running.on:
            lay(_running(fleet, device, charges, request, f"running {i + 1}"), "running", i)
    hosts = tuple(_host(host, case) for host in fleet.hosts)
    used = {(c.device, c.stage) for c in charges if c.kind in {"activation", "lease"}}
    lying = tuple(replace(c, evictable=c.kind == "resident" and (c.device, c.stage) not in used) for c in charges)
    return replace(fleet, hosts=hosts, charges=lying, states=dict(case.states), minute=case.at), faults


def _host(host: Host, case: CaseEntry) -> Host:
    facts = case.hosts.get(host.name)
    if facts is None:
        return host
    told: dict[str, Any] = {"idle_s": facts.idle, "power": facts.power, "ram_mib": facts.ram, "cpus": facts.cpus}
    return replace(host, **{name: fact for name, fact in told.items() if fact is not None})


def _resident(entry: ResidentEntry, i: int) -> Charge:
    return Charge(
        holder=f"{entry.stage} loaded" if i == 0 else f"{entry.stage} loaded {i + 1}", device=entry.on, vram_mib=int(entry.vram),
        kind="resident", stage=entry.stage, model=entry.model, reload_s=entry.reload,
    )  # fmt: skip


def _running(fleet: Fleet, device: str, charges: list[Charge], request: Request, holder: str) -> Charge:
    """Return the charge of what runs: a lease where it states no work and may share its device, else a unit."""
    here = [c for c in charges if c.device == device]
    card, work = fleet.by_name[device], request.demand.work
    unit = activation(card, here, request, holder)
    if work is None:
        return unit if unit.exclusive else replace(unit, kind="lease", share=None)
    share = 1 if card.kind == "cpu" else slots(here, request)
    return replace(unit, ends_s=share * request.run_s(card))


def _beyond(fleet: Fleet, device: str, charges: list[Charge], key: str, place: int | str) -> Iterator[Impossible]:
    """Yield a fault where the last of `charges` no longer fits its card.

    Ours keep off the card's reserve, others need not. What a policy forbids may run all the same, started under another.
    """
    card = fleet.by_name[device]
    if card.usable_mib is None or card.vram_mib is None:
        return
    here = [c for c in charges if c.device == device]
    ours = sum(c.vram_mib for c in here if c.kind != "foreign")
    most, total = (card.vram_mib, sum(c.vram_mib for c in here)) if ours <= card.usable_mib else (card.usable_mib, ours)
    if total > most:
        yield Impossible(key, place, f"{device} cannot hold this: {Mib.of(total)} would lie on its {Mib.of(most)}")
