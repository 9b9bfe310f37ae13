"""A ledger under all that can happen to it, with the limits that must hold after every step.

Units come, are placed, load stages, end, run out of memory; devices are lost, come back, join and leave; others use cards; time passes,
owners come and go, policies are swapped. What happens is up to the caller: Hypothesis in the tests, chance in ``bench/ledger.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Host, features_of
from dgpunet_dask.model.policy import NO_POLICY
from dgpunet_dask.placement.feasible import is_own_resident, need_mib
from dgpunet_dask.placement.oom import Overrun, next_demands
from dgpunet_dask.placement.order import Shares
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.policy_file import parse_policy
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.placement.resolve import draws_on

FOREIGN: Final = "foreign"
HOSTS: Final = tuple(
    Host(name=name, roles=roles, ram_mib=ram << 10, cpus=cpus, power="mains", idle_s=3600.0)
    for name, roles, ram, cpus in (("laptop", ("chat-llm",), 16, 8), ("tower", ("batch",), 64, 16), ("pair", (), 32, 4))
)
CARDS: Final = tuple(
    Device(
        name=name, host=host, vram_mib=gib << 10, capability=capability, features=features_of(capability), speed=speed, reserve_mib=512,
        model=f"RTX {name[:2]}",
    )
    for name, host, gib, capability, speed in (
        ("a1", "laptop", 8, (8, 9), 0.8), ("b1", "tower", 32, (12, 0), 3.0), ("c1", "tower", 24, (8, 6), 1.5),
        ("d1", "pair", 16, (8, 9), 1.6), ("d2", "pair", 16, (8, 9), 1.6),
    )
)  # fmt: skip
DEVICES: Final = (*CARDS, *(Device(name=h.cpu_device, host=h.name, kind="cpu", speed=0.03) for h in HOSTS))
KINDS: Final = (
    Demand(stage="embed", vram="2GiB", resident="600MiB", user="ann", features=["bf16"], work=1.0),
    Demand(stage="embed", vram="3GiB", resident="600MiB", user="bob", cpu_ok=True, cpus=2),
    Demand(stage="chat", vram="10GiB", resident="8GiB", user="ann", priority="interactive"),
    Demand(stage="chat", vram="14GiB", resident="12GiB", user="eve", work=4.0),
    Demand(stage="image", vram="7GiB", features=["fp8"], user="bob", work=2.0),
    Demand(stage="pose", vram="5GiB", exclusive=True, user="eve"),
    Demand(stage="whole", user="ann", work=8.0),
    Demand(stage="split", vram="6GiB", gpus=2, user="bob"),
    Demand(stage="split", vram="12GiB", gpus=2, same_host=True, user="eve", work=3.0),
    Demand(stage="sort", gpus=0, cpus=3, ram="6GiB", user="ann"),
    Demand(stage="embed", vram="2GiB", priority="idle", user="bob", inputs={"tower": 1 << 24}),
)
POLICIES: Final = (
    NO_POLICY,
    *(
        parse_policy("version: 1\n" + text, "ledger.yaml")
        for text in (
            "rules: [{name: e, match: {stage: embed}, share: {max_per_gpu: 3}}, {name: c, match: {stage: chat}, deny: [{device: c1}]}]\n",
            "reserve: [{name: talk, device: d1, vram: 10GiB, for: {stage: chat}}]\nfair_share: {ann: 2}\n",
            ("rules: [{name: p, match: {stage: image}, prefer: [{by: speed, weight: 50}, {host: pair, weight: 30}]},"
            " {name: s, share: {max_per_gpu: 2}}]\n"),
            ("hosts: [{match: {host: laptop}, when: {idle: '>=15m', hours: '22:00-08:00'}, otherwise: [interactive]}]\n"
            "rules: [{name: r, match: {user: bob}, require: {vram: 4GiB}, allow: [{host: tower}, {role: chat-llm}], exclusive: true}]\n"),
        )
    ),
)


@dataclass
class Unit:
    """A running unit."""

    demand: Demand
    stated: Demand
    devices: tuple[str, ...]
    cost_s: float


class LedgerPlay:
    """The pool and what it must agree with. `steps` counts what happened."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.shares = Shares(NO_POLICY.weight_of)
        self.units: dict[str, Unit] = {}
        self.residents: set[tuple[str, str]] = set()
        self.steps: Counter[str] = Counter()
        self.broken: list[str] = []
        self._number = count()
        for device in DEVICES:
            self.pool.add_device(device, next(h for h in HOSTS if h.name == device.host))

    # What happens

    def place(self, demand: Demand) -> Decision:
        """Ask the pool, compare with the plain rules, evict what must leave, and start the unit."""
        self.steps["place"] += 1
        pool = self.pool
        decision, plain = pool.place(demand), place(pool.fleet(), demand, pool.policy, pool.estimates)
        if (decision.outcome, decision.devices, decision.evict) != (plain.outcome, plain.devices, plain.evict):
            self.broken.append(f"the pool says {decision.outcome} {decision.devices}, the rules {plain.outcome} {plain.devices}")
        if decision.outcome == "placed":
            for name in decision.devices:
                for holder in set(decision.evict).intersection(pool.slot(name).charges):
                    self._unload(name, holder)
            self._start(demand, decision)
        return decision

    def _start(self, demand: Demand, decision: Decision) -> None:
        plan, holder = self.pool.plan(demand), f"u{next(self._number)}"
        for name in decision.devices:
            self.pool.charge(self.pool.activation(name, demand, holder, plan))
            self._pin(name, plan.request.demand, idle=False)
        self.units[holder] = Unit(plan.request.demand, demand, decision.devices, plan.request.work_s)
        self.shares.begin(u.demand.user for u in self.units.values())
        self.shares.add(demand.user, plan.request.work_s)
        self.broken += self._forbidden(holder)
        self.steps["placed"] += 1

    def finish(self, holder: str, *, took: float = 1.0) -> None:
        """End a unit; the part of it that stays is loaded, where it was not."""
        self.steps["finish"] += 1
        unit = self._drop(holder, took)
        for name in unit.devices:
            if name in self.pool and self.pool.slot(name).is_gpu:
                self._keep(name, unit.demand)

    def oom(self, holder: str) -> None:
        """Let a unit run out of memory: it comes again with what it asks for next."""
        self.steps["oom"] += 1
        unit = self._drop(holder, 1.0)
        name = unit.devices[0]
        if name not in self.pool or not self.pool.slot(name).is_gpu:
            return
        card = self.pool.slot(name).device
        charge = unit.demand.vram_mib or (card.usable_mib or 0)
        overrun = Overrun(name, charge, None, card.vram_mib or 0, unit.demand.vram_mib is None)
        for demand in next_demands(unit.stated, overrun, self.pool.plan(unit.stated).request.on_oom)[:1]:
            self.place(demand)

    def lose(self, name: str) -> None:
        """Lose a device's worker: its units are gone, what is loaded stays charged."""
        self.steps["lose"] += 1
        for holder in [h for h, u in self.units.items() if name in u.devices]:
            self._drop(holder, 1.0)
        if name in self.pool:
            self.pool.set_state(name, "lost")

    def join(self, name: str) -> None:
        """Let a device (again) be there."""
        self.steps["join"] += 1
        device = next(d for d in DEVICES if d.name == name)
        host = self.pool.host(device.host) or next(h for h in HOSTS if h.name == device.host)
        self.pool.add_device(device, host)

    def leave(self, name: str) -> None:
        """Take a device out for good, unless something runs there."""
        self.steps["leave"] += 1
        if name in self.pool and not self.pool.slot(name).activations:
            self.residents = {r for r in self.residents if r[0] != name}
            self.pool.remove_device(name)

    def foreign(self, name: str, mib: int) -> None:
        """Let others use so much of a card."""
        self.steps["foreign"] += 1
        if name in self.pool and mib:
            self.pool.charge(Charge(holder=FOREIGN, device=name, vram_mib=mib, kind="foreign"))
        elif name in self.pool:
            self.pool.release(FOREIGN, name)

    def evict(self, name: str) -> None:
        """Unload what is idle on a device."""
        self.steps["evict"] += 1
        if name in self.pool:
            for holder in [c.holder for c in self.pool.slot(name).charges.values() if c.evictable]:
                self._unload(name, holder)

    def policy(self, number: int) -> None:
        """Put another policy in force."""
        self.steps["policy"] += 1
        policy = POLICIES[number % len(POLICIES)]
        self.pool.set_policy(policy)
        self.shares.weight_of = policy.weight_of

    def owner(self, host: str, idle_s: float | None) -> None:
        """Let the owner of a host come or go."""
        self.steps["owner"] += 1
        found = self.pool.host(host)
        if found is not None:
            self.pool.update_host(replace(found, idle_s=idle_s))

    def later(self, seconds: float, minute: int) -> None:
        """Let time pass."""
        self.steps["later"] += 1
        self.pool.begin(self.pool.now + seconds)
        self.pool.set_minute(minute)

    # What it comes to

    def _drop(self, holder: str, took: float) -> Unit:
        unit = self.units.pop(holder)
        self.pool.release(holder)
        for name in unit.devices:
            if name in self.pool:
                self._pin(name, unit.demand, idle=True)
        self.shares.add(unit.demand.user, unit.cost_s * (took - 1.0))
        return unit

    def _pin(self, name: str, demand: Demand, *, idle: bool) -> None:
        """A loaded stage is idle while no unit on its device uses it."""
        charges = tuple(self.pool.slot(name).charges.values())
        used = any(c.kind == "activation" and (c.stage, c.model) == (demand.stage, demand.model) for c in charges)
        for charge in charges:
            if is_own_resident(charge, demand):
                self.pool.charge(replace(charge, evictable=idle and not used))

    def _keep(self, name: str, demand: Demand) -> None:
        slot = self.pool.slot(name)
        charges = tuple(slot.charges.values())
        if demand.stage is None or not demand.resident_mib or any(is_own_resident(c, demand) for c in charges):
            return
        if any(c.exclusive for c in charges) or need_mib(slot.device, charges, demand) == 0:
            return
        busy = any(c.kind == "activation" and (c.stage, c.model) == (demand.stage, demand.model) for c in charges)
        if not busy and sum(c.vram_mib for c in charges if c.kind != "foreign") + demand.resident_mib <= (slot.usable_mib or 0):
            holder = " ".join(filter(None, (demand.stage, demand.model)))
            self.residents.add((name, holder))
            resident = Charge(
                holder=holder, device=name, vram_mib=demand.resident_mib, kind="resident", stage=demand.stage, model=demand.model,
                evictable=True,
            )  # fmt: skip
            self.pool.charge(resident)

    def _unload(self, name: str, holder: str) -> None:
        self.pool.release(holder, name)
        self.residents.discard((name, holder))

    def _forbidden(self, holder: str) -> Iterator[str]:
        """Yield each rule of the policy in force that the placement of `holder` breaks, read straight from the policy."""
        unit, policy, pool = self.units[holder], self.pool.policy, self.pool
        subject = (unit.demand.stage, unit.demand.model, unit.demand.user, unit.demand.priority)
        rules = [rule for rule in policy.rules if rule.match.holds(*subject)]
        for name in unit.devices:
            slot = pool.slot(name)
            if any(s.picks(slot.device, slot.host) for rule in rules for s in rule.deny or ()):
                yield f"{holder} is denied on {name}"
            kept = [r for r in policy.reserves if r.device == name and not r.match.holds(*subject)]
            charges = tuple(slot.charges.values())
            back = sum(max(0, r.vram_mib - sum(c.vram_mib for c in charges if draws_on(c, r))) for r in kept)
            if slot.charges[holder].vram_mib and (slot.usable_mib or 0) - slot.charged_mib < back:
                yield f"{holder} takes of a reserve on {name}"
            if any(
                rule.match.picks(slot.device, slot.host)
                and unit.demand.priority not in rule.otherwise
                and rule.unmet(slot.host, pool.minute) is not None
                for rule in policy.hosts
            ):
                yield f"{holder} runs on {name} against its owner's conditions"

    def faults(self) -> list[str]:
        """Return every limit that is broken; empty where all is well."""
        found, self.broken = self.broken, []
        held = {(name, holder) for holder, unit in self.units.items() for name in unit.devices}
        fleet = self.pool.fleet()
        for charge in fleet.charges:
            known = {"activation": held, "resident": self.residents}.get(charge.kind)
            if known is not None and (charge.device, charge.holder) not in known:
                found.append(f"nobody has the charge of {charge.holder} on {charge.device}")
        lying = {(c.device, c.holder) for c in fleet.charges}
        found += [f"{holder} has no charge on {name}" for name, holder in held - lying if name in self.pool]
        for device in fleet.devices:
            found += _limits(device, fleet.host_by_name[device.host], fleet.charges_on(device.name))
        return found + [f"{user} has had {self.shares.of(user)}" for user in ("ann", "bob", "eve") if self.shares.of(user) < 0]


def _limits(device: Device, host: Host, charges: tuple[Charge, ...]) -> list[str]:
    """Return the limits of one device that are broken. What others took is not ours to limit."""
    units = [c for c in charges if c.kind == "activation"]
    ours = sum(c.vram_mib for c in charges if c.kind != "foreign")
    broken = {
        "overcommitted": device.kind == "gpu" and ours > (device.usable_mib or 0),
        "more units than may share it": device.kind == "gpu" and len(units) > min((c.share or 1 for c in units), default=1),
        "not alone": any(c.exclusive for c in units) and len(units) > 1,
        "short of cores": device.kind == "cpu" and host.cpus is not None and sum(c.cpus for c in units) > host.cpus,
        "short of memory": device.kind == "cpu" and host.ram_mib is not None and sum(c.ram_mib for c in units) > host.ram_mib,
    }
    return [f"{device.name} is {what}" for what, is_broken in broken.items() if is_broken]
