"""What the policy format says of one demand, written down a second time: slowly, and apart from the engine but for the values."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from dgpunet_dask.model.fleet import runs_arch
from dgpunet_dask.placement.estimate import NO_ESTIMATES, device_class
from dgpunet_dask.units import Mib


class Answer(NamedTuple):
    """The first reason of each device that refuses, the others best first, what comes of it, and who leaves for it."""

    first: dict[str, str]
    ranking: list[str]
    outcome: tuple[str, ...] | str
    leaving: tuple[str, ...] = ()


class Oracle:
    """Asked once: `answer`."""

    def __init__(self, fleet: Any, demand: Any, policy: Any, estimates: Any = NO_ESTIMATES) -> None:
        self.learned = estimates.of(demand.stage, demand.model)
        peak = estimates.peak_mib(demand.stage, demand.model)
        if demand.vram is None:
            too_small = max(int(demand.larger_than or 0), self.learned.larger_than_mib)
            vram = None if peak is None else Mib.of(max(peak, demand.resident_mib))
            demand = replace(demand, vram=vram, larger_than=Mib.of(too_small) if too_small else None)
        self.fleet, self.d, self.priority = fleet, demand, demand.priority
        self.priority = demand.priority or self.top(policy, "priority") or "batch"
        self.rules = [r for r in policy.rules if r.match.holds(*self.subject)]
        self.allow, self.prefer, self.share = (self.top(policy, key) for key in ("allow", "prefer", "max_per_gpu"))
        self.prefer = self.prefer or None  # an empty list takes a preference back
        self.alone = demand.exclusive or any(r.exclusive for r in self.rules)
        needs = [r.require for r in self.rules if r.require]
        self.vram = max((n for n in (demand.vram_mib, *(q.vram_mib for q in needs)) if n is not None), default=None)
        self.ram = max(demand.ram_mib, *(q.ram_mib or 0 for q in needs), 0)
        self.cpus = max(demand.cpus, *(q.cpus or 0 for q in needs), 0)
        self.capabilities = [s for s in (demand.capability, *(q.compute_capability for q in needs)) if s]
        self.drivers = [s for s in (demand.driver_spec, *(q.driver for q in needs)) if s]
        self.features = demand.feature_set.union(*(q.features for q in needs))
        self.roles, self.denied = [q.role for q in needs if q.role], [s for r in self.rules for s in r.deny or ()]
        self.owners = [h for h in policy.hosts if self.priority not in h.otherwise]
        self.kept = [r for r in policy.reserves if not r.match.holds(*self.subject)]
        self.known = demand.work is not None or self.learned.work_s.count > 0

    @property
    def subject(self) -> Any:
        return self.d.stage, self.d.model, self.d.user, self.priority

    def top(self, policy: Any, key: str) -> Any:
        layers, rules = ("human", "generated", "built-in"), (r for r in policy.rules if r.match.holds(*self.subject))
        found = [r for r in rules if getattr(r, key) is not None]
        found.sort(key=lambda r: (layers.index(r.layer), *(-n for n in r.match.specificity), r.name))
        return getattr(found[0], key) if found else None

    def own(self, charge: Any) -> bool:
        return _copy(charge, self.d)

    def room(self, device: Any, charges: Any) -> Any:
        """Return what would be charged, what is free, what is kept for other work, and the idle residents that may leave."""
        draws = {r.name: [c for c in charges if c.kind != "foreign" and r.match.holds(c.stage, c.model, c.user, c.priority)]
                 for r in self.kept if r.device == device.name}  # fmt: skip
        protected = {c.holder for drawing in draws.values() for c in drawing}
        idle = [c for c in charges if c.kind == "resident" and c.evictable and not self.own(c) and c.holder not in protected]
        usable = _usable(device)
        whole = usable - min(device.reserve_mib, sum(c.vram_mib for c in charges if c.kind == "foreign"))
        need = (whole if self.vram is None else self.vram) - min((c.vram_mib for c in charges if self.own(c)), default=0)
        kept = sum(max(0, r.vram_mib - sum(c.vram_mib for c in draws[r.name])) for r in self.kept if r.name in draws)
        return max(0, need) * (device.kind == "gpu"), usable - sum(c.vram_mib for c in charges), kept, idle

    def never(self, device: Any) -> list[str]:
        """Return the reasons by rule and for ever."""
        d, host, gpu = self.d, self.fleet.host_by_name[device.host], device.kind == "gpu"
        total, usable = device.vram_mib, _usable(device)
        picked = self.allow is None or any(s.picks(device, host) for s in self.allow)
        fits = usable > 0 if self.vram is None else self.vram <= usable
        wrong = {
            "denied": device.name in d.avoid or any(s.picks(device, host) for s in self.denied),
            "not_allowed": not picked or (d.gpus == 0 if gpu else not d.cpu_ok or d.gpus > 1),
            "role": not all(any(fnmatchcase(has, role) for has in host.roles) for role in self.roles),
            "owner": any(o.match.picks(device, host) and o.unmet(host, self.fleet.minute) for o in self.owners),
            "vram_unknown": gpu and total is None and self.vram != 0,
            "vram_total": gpu and total is not None and (not fits or (d.larger_than is not None and total <= d.larger_than)),
            "host_ram": host.ram_mib is not None and self.ram > host.ram_mib,
            "host_cpus": host.cpus is not None and self.cpus > host.cpus,
            "compute_capability": gpu and not all(device.capability and s.accepts(device.capability) for s in self.capabilities),
            "feature": gpu and not self.features <= device.features,
            "driver": gpu and not all(device.driver and s.accepts(device.driver) for s in self.drivers),
            "runtime_arch": gpu and None not in {device.runtime_arches, device.capability}
            and not any(runs_arch(device.capability, a) for a in device.runtime_arches),
        }  # fmt: skip
        return [code for code, holds in wrong.items() if holds]

    def not_now(self, device: Any, charges: Any) -> list[str]:
        """Return the reasons of the moment."""
        host, gpu, state = self.fleet.host_by_name[device.host], device.kind == "gpu", self.fleet.states.get(device.name, "running")
        need, free, kept, idle = self.room(device, charges)
        room, units = free + sum(c.vram_mib for c in idle), [c for c in charges if c.kind == "activation"]
        fits = gpu and device.vram_mib is not None and (self.vram or 0) <= _usable(device)
        shares = [self.share, *(c.share for c in units)]
        full = gpu and len(units) >= self.slots(charges)
        limit = full and (self.slots(charges) > 1 or None not in shares)
        cores = len(units) > 0 if host.cpus is None else sum(c.cpus for c in units) + self.cpus > host.cpus
        memory = host.ram_mib is not None and host.cpus is not None and sum(c.ram_mib for c in units) + self.ram > host.ram_mib
        wrong = {
            "lost": state == "lost", "draining": state == "draining", "cordoned": state == "cordoned" or device.cordoned,
            "exclusive": any(c.exclusive for c in charges)
            or (self.alone and any(c.kind != "foreign" and not self.own(c) and c not in idle for c in charges)),
            "share_limit": limit, "reserved": fits and 0 < need <= room and need > room - kept, "vram_free": fits and need > room,
            "busy": state == "paused" or (full and not limit) or (not gpu and len(units) > 0 and (cores or memory)),
        }  # fmt: skip
        return [code for code, holds in wrong.items() if holds]

    def slots(self, charges: Any) -> int:
        return min(self.share or 1, *(c.share or 1 for c in charges if c.kind == "activation"), 10**9)

    def run(self, device: Any) -> Any:
        """Return the seconds of one unit alone: stated, learned on such cards, learned on others, or one second at speed 1."""
        seen = self.learned.run_s.get(device_class(device))
        if self.d.work is None and seen is not None:
            return seen.value
        learned = self.learned.work_s.value if self.learned.work_s.count else 1.0
        return (learned if self.d.work is None else self.d.work) / device.speed

    def load(self, device: Any, charges: Any) -> Any:
        seen = self.learned.load_s
        if any(self.own(c) for c in charges) or not seen:
            return 0.0
        mean = sum(m.value for m in seen.values()) / len(seen)
        return seen[device_class(device)].value if device_class(device) in seen else mean

    def seconds(self, device: Any, charges: Any) -> Any:
        """Return load, transfer and run."""
        links, places = {h.name: h.link for h in self.fleet.hosts}, {d.name: d.host for d in self.fleet.devices}
        ends = [(size, (places.get(at, at), device.host)) for at, size in self.d.inputs.items()]
        rates = [
            (size, [self.fleet.links[way]] if way in self.fleet.links else [links[h] for h in way if links.get(h)])
            for size, way in ends if way[0] != way[1]
        ]  # fmt: skip
        move = sum(size / min(rate) for size, rate in rates if rate)
        return self.load(device, charges) + move + self.run(device) * (self.slots(charges) if device.kind == "gpu" else 1)

    def left(self, device: Any, charges: Any) -> Any:
        """Return the VRAM left over once those have left that must, cheapest reload first and none in vain, and who they are."""
        need, free, kept, idle = self.room(device, charges)
        idle.sort(key=lambda c: (c.vram_mib / 1024 if c.reload_s is None else c.reload_s, c.vram_mib, c.holder))
        missing: int = need + kept - free if need else 0
        gone: list[Any] = []
        while idle and (self.alone or sum(c.vram_mib for c in gone) < missing):
            gone.append(idle.pop(0))
        for c in [] if self.alone else gone[::-1]:
            if sum(g.vram_mib for g in gone) - c.vram_mib >= missing:
                gone.remove(c)
        if device.kind == "cpu":
            return 0, [c.holder for c in gone] if self.alone else []
        return free + sum(c.vram_mib for c in gone) - need, [c.holder for c in gone]

    def again(self, device: Any, charges: Any) -> Any:
        """Return the seconds to load again what must leave."""
        gone = self.left(device, charges)[1]
        return sum(c.vram_mib / 1024 if c.reload_s is None else c.reload_s for c in charges if c.holder in gone)

    def total(self, device: Any, finish: float, best: float) -> Any:
        """Return Σ weight × score."""
        host = self.fleet.host_by_name[device.host]
        there = sum(n for at, n in self.d.inputs.items() if {d.name: d.host for d in self.fleet.devices}.get(at, at) == host.name)
        score = {"finish": best / finish if finish else 1.0, "speed": device.speed / max(d.speed for d in self.fleet.devices),
                 "data_local": there / (sum(self.d.inputs.values()) or 1)}  # fmt: skip
        wishes = [(p.weight, float(p.selector.picks(device, host)) if p.selector else score[p.by]) for p in self.prefer or ()]
        return sum(w * s for w, s in wishes) + (0 if any(p.by == "finish" for p in self.prefer or ()) else 100 * score["finish"])

    def grouped(self, names: list[str], wanted: Any) -> list[list[str]]:
        """Return the names in groups that may serve together, of those with cards enough."""
        hosts: dict[str, list[str]] = {}
        for name in names:
            hosts.setdefault(self.fleet.by_name[name].host if self.d.same_host else "", []).append(name)
        return [group for group in hosts.values() if wanted(len(group))]

    def waits_for(self, ready: dict[str, float], refused: dict[str, Any]) -> bool:
        """Whether a busy device would finish the work before the best of `ready`."""
        best = min(ready, key=lambda name: (ready[name], name))
        on_cpu = self.fleet.by_name[best].kind == "cpu"
        if self.d.gpus > 1 or not (on_cpu or (self.known and self.prefer is None)):
            return False
        later = []
        for name, codes in refused.items():
            device, charges = self.fleet.by_name[name], list(self.fleet.charges_on(name))
            if self.never(device) or not codes or (not self.known and device.kind == "cpu"):
                continue
            ending = [c for c in charges if self.end(c, device) is not None]
            for gone in sorted(ending, key=lambda c: (self.end(c, device), c.holder)):
                charges = [c for c in charges if c.holder != gone.holder]
                used = [c for c in charges if c.kind in {"activation", "lease"}]
                idle = [_copy(c, gone) and not any(_copy(c, user) for user in used) for c in charges]
                charges = [replace(c, evictable=c.evictable or free) for c, free in zip(charges, idle, strict=True)]
                if not self.not_now(device, charges):
                    start = self.end(gone, device) + self.fleet.booked.get(name, 0.0)
                    later.append(
                        start + self.seconds(device, [c for c in charges if c.kind == "resident"]) + self.again(device, charges)
                    )
                    break
        return min(later, default=ready[best]) < ready[best] - 1e-9

    def end(self, charge: Any, device: Any) -> Any:
        guess = not self.known and charge.ends_s is None and charge.kind == "activation"
        return 1.0 / device.speed if guess else charge.ends_s

    def answer(self) -> Answer:
        """Return the whole answer."""
        devices = {d.name: (d, self.fleet.charges_on(d.name)) for d in self.fleet.devices}
        never = {name: self.never(d) for name, (d, _) in devices.items()}
        if self.d.gpus > 1:
            able = [n for n in never if not never[n] and devices[n][0].kind == "gpu"]
            never |= {n: ["not_allowed"] for group in self.grouped(able, lambda size: size < self.d.gpus) for n in group}
        refused = {name: never[name] + self.not_now(d, charges) for name, (d, charges) in devices.items()}
        if self.d.gpus > 1:
            able = [n for n in refused if not refused[n]]
            refused |= {n: ["busy"] for group in self.grouped(able, lambda size: size < self.d.gpus) for n in group}
        ready = {n: self.seconds(*devices[n]) + self.again(*devices[n]) for n in refused if not refused[n]}
        totals = {n: self.total(devices[n][0], ready[n], min(ready.values())) for n in ready}
        ranking = sorted(ready, key=lambda n: (-round(totals[n], 6), self.left(*devices[n])[0], n))
        first = {n: codes[0] for n, codes in refused.items() if codes}
        size = max(1, self.d.gpus)
        groups = [group[:size] for group in self.grouped(ranking, lambda n: n >= size)]
        if not groups:
            return Answer(first, ranking, "never" if first and all(never[n] for n in first) else "wait")
        chosen = max(groups, key=lambda g: sum(totals[n] for n in g))
        if self.waits_for(ready, refused):
            return Answer(first, ranking, "wait")
        return Answer(first, ranking, tuple(chosen), tuple(sorted({c for n in chosen for c in self.left(*devices[n])[1]})))


def _usable(device: Any) -> Any:
    return max(0, (device.vram_mib or 0) - device.reserve_mib)


def _copy(charge: Any, of: Any) -> bool:
    """Return whether a resident is the stage of a demand or charge, with the same model where both say which."""
    same = charge.kind == "resident" and charge.stage is not None and charge.stage == of.stage
    return same and (charge.model == of.model or None in (charge.model, of.model))
