"""The nearest fix of work that is refused: the smallest change of its demand or of the policy with which one device would take it.

Each code that a change can lift has a function in `LIFTS`. For each device they are applied in turn until nothing stands in its way; of
the devices where that succeeds, the one with the fewest and slightest changes is named, a CPU only where no card is near. What cannot be changed by a word (the arches of
an installed torch, memory that a card does not report, a peak that was learned) gives no fix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from dgpunet_dask.model.decision import TRIAL, Verdict
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet
from dgpunet_dask.model.policy import Policy, Require, Rule, Selector, SourceRef
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.feasible import kept_back_mib, need_mib, never_verdicts, not_now_verdicts, room_mib
from dgpunet_dask.placement.place import refuse
from dgpunet_dask.placement.resolve import Request, resolve
from dgpunet_dask.units import Mib, VersionSpec

#: A device that needs more changes than this is not near.
CHANGES_MAX: Final = 6
#: Takes the place of a selector that was struck out, so that the others keep theirs: no device has an empty name.
_NOBODY: Final = Selector(device="")


@dataclass(frozen=True)
class Fix:
    """What to change, and what demand and policy are then. `at_once`: `device` would take the work at once."""

    device: str
    changes: tuple[str, ...]
    demand: Demand
    policy: Policy
    at_once: bool

    def __str__(self) -> str:
        return f"{'; '.join(self.changes)} would fit {self.device}{'' if self.at_once else ' once it is free'}"

    def to_json(self) -> dict[str, Any]:
        """Return the fix without the policy."""
        return {"device": self.device, "changes": list(self.changes), "now": self.at_once, "text": str(self)}


class _Case(NamedTuple):
    """One device, and the demand and policy as changed so far."""

    fleet: Fleet
    device: Device
    demand: Demand
    policy: Policy
    request: Request


class _Step(NamedTuple):
    """One change: in words, what it gives, and how much it asks (0 nothing, 1 to give something up)."""

    text: str
    demand: Demand
    policy: Policy
    cost: float


def nearest(fleet: Fleet, demand: Demand, policy: Policy, estimates: Estimates = NO_ESTIMATES) -> Fix | None:
    """Return the smallest change with which one device takes the work, ``None`` where no words help.

    Where some device could take it later as things are, only changes that let it start now are looked for.
    """
    refused = refuse(fleet, resolve(demand, policy, estimates))
    if not refused or not all(refused.values()):
        return None
    waits = any(not verdicts[0].never for verdicts in refused.values())
    found = []
    for device in fleet.devices if waits or demand.gpus > 1 else _kinds(fleet, policy):
        fix = _for_device(fleet, device, demand, policy, estimates, waits=waits)
        found += [] if fix is None else [fix]
    return min(found, key=lambda pair: _order(fleet, *pair))[1] if found else None


def _kinds(fleet: Fleet, policy: Policy) -> list[Device]:
    """Return the first of all devices that differ in no fact and that no selector of the policy tells apart."""
    kinds: dict[Any, Device] = {}
    for device in fleet.devices:
        host = fleet.host_by_name[device.host]
        picked = tuple(selector.picks(device, host) for selector in policy.selectors)
        kinds.setdefault((replace(device, name="", host="", uuid=None), replace(host, name=""), picked), device)
    return list(kinds.values())


def _order(fleet: Fleet, cost: float, fix: Fix) -> tuple[bool, int, float, str]:
    """Return the sort key: a CPU last, since who asks for a card seldom means one; then fewer, then slighter changes."""
    return fleet.by_name[fix.device].kind == "cpu", len(fix.changes), cost, fix.device


def _for_device(
    fleet: Fleet, device: Device, demand: Demand, policy: Policy, estimates: Estimates, *, waits: bool
) -> tuple[float, Fix] | None:
    texts: dict[str, str] = {}
    cost = 0.0
    for _ in range(CHANGES_MAX + 1):
        case = _Case(fleet, device, demand, policy, resolve(demand, policy, estimates))
        verdicts = _verdicts(case)
        obstacle = next((v for v in verdicts if waits or v.never), None)
        if obstacle is None:
            return cost, Fix(device.name, tuple(texts.values()), demand, policy, at_once=not verdicts)
        step = LIFTS[obstacle.code](case) if obstacle.code in LIFTS else None
        if step is None or _on_trial(obstacle):
            return None
        demand, policy = step.demand, step.policy
        texts[step.text.partition(" -> ")[0]] = step.text
        cost += step.cost
    return None


def _verdicts(case: _Case) -> tuple[Verdict, ...]:
    fleet, device, request = case.fleet, case.device, case.request
    if request.demand.gpus > 1:
        return refuse(fleet, request)[device.name]
    host, state = fleet.host_by_name[device.host], fleet.states.get(device.name, "running")
    now = not_now_verdicts(device, host, state, fleet.charges_on(device.name), request)
    return never_verdicts(device, host, request, fleet.minute) + now


def _on_trial(verdict: Verdict) -> bool:
    """Whether the obstacle goes by itself, once others have succeeded there."""
    return verdict.code == "denied" and f"({TRIAL}" in (verdict.rule or "")


# Needs: of the demand, or of a rule


def _relax(case: _Case, name: str, will_do: Callable[[Any], bool], value: Any, cost: float) -> _Step | None:
    """Set the need `name` to `value` in the demand or the first rule that asks for what will not do."""
    own = getattr(case.demand, name)
    if not will_do(own):
        return _Step(f"{name} {_shown(own)} -> {_shown(value)}", replace(case.demand, **{name: value}), case.policy, cost)
    for rule in _matching(case):
        key = f"{name}_mib" if name in {"vram", "ram"} else name
        asked = None if rule.require is None else getattr(rule.require, key)
        if rule.require is not None and not will_do(asked):
            shown = _shown(Mib.of(asked) if isinstance(asked, int) and key != name else asked)
            text = f"require.{name} at {_at(rule.source(f'require.{name}'))} {shown} -> {_shown(value)}"
            return _Step(text, case.demand, _with_need(case.policy, rule, rule.require, key, value), cost)
    return None


def _with_need(policy: Policy, rule: Rule, need: Require, key: str, value: Any) -> Policy:
    plain: Any = int(value) if isinstance(value, Mib) else frozenset(value) if key == "features" else value
    changed: Any = {key: plain}
    return _with_rule(policy, replace(rule, require=replace(need, **changed)))


def _matching(case: _Case) -> list[Rule]:
    return [rule for rule in case.policy.rules if rule.name in case.request.rules]


def _with_rule(policy: Policy, changed: Rule) -> Policy:
    return replace(policy, rules=tuple(changed if rule.name == changed.name else rule for rule in policy.rules))


def _rule_at(case: _Case, source: SourceRef) -> Rule:
    return next(rule for rule in case.policy.rules if rule.name == source.name)


def _at(source: SourceRef) -> str:
    return f"{source.file}:{source.line}"


def _shown(value: Any) -> str:
    if value is None:
        return "not stated"
    return (", ".join(sorted(value)) or "none") if isinstance(value, tuple | frozenset) else str(value)


def _less(case: _Case, name: str, most: int | None, kind: Callable[[int], Any]) -> _Step | None:
    """Ask for `most` at most of something that is counted."""
    if most is None or most <= 0 or (name == "vram" and most < case.demand.resident_mib):
        return None
    asked = {"vram": case.request.demand.vram_mib or most, "ram": case.request.demand.ram_mib, "cpus": case.request.demand.cpus}[name]
    return _relax(case, name, lambda need: need is None or int(need) <= most, kind(most), 1 - most / max(asked, most))


def _vram_total(case: _Case) -> _Step | None:
    return _less(case, "vram", case.device.usable_mib, Mib.of)


def _vram_free(case: _Case) -> _Step | None:
    """What is free now, beside what is kept for others; the work's own loaded stage counts as free."""
    charges, demand = case.fleet.charges_on(case.device.name), case.request.demand
    missing = need_mib(case.device, charges, demand) - _left(case)
    if demand.vram_mib is not None:
        return _less(case, "vram", demand.vram_mib - missing, Mib.of)
    left = _left(case)
    if left <= 0 or left < demand.resident_mib:
        return None
    changed = replace(case.demand, vram=Mib.of(left))
    return _Step(f"vram not stated, the whole card -> {Mib.of(left)}", changed, case.policy, 1 - left / (case.device.usable_mib or left))


def _left(case: _Case) -> int:
    charges = case.fleet.charges_on(case.device.name)
    return room_mib(case.device, charges, case.request) - kept_back_mib(case.device, charges, case.request)


def _host_ram(case: _Case) -> _Step | None:
    return _less(case, "ram", case.fleet.host_by_name[case.device.host].ram_mib, Mib.of)


def _host_cpus(case: _Case) -> _Step | None:
    return _less(case, "cpus", case.fleet.host_by_name[case.device.host].cpus, int)


def _version(name: str, fact: Callable[[Device], tuple[int, ...] | None]) -> Callable[[_Case], _Step | None]:
    def lift(case: _Case) -> _Step | None:
        have = fact(case.device)
        if have is None:
            return None
        spec = VersionSpec(">=" + ".".join(map(str, have)))
        return _relax(case, name, lambda need: need is None or need.accepts(have), spec, 0.5)

    return lift


def _feature(case: _Case) -> _Step | None:
    have = case.device.features
    missing = case.request.demand.feature_set - have
    kept = tuple(sorted(case.request.demand.feature_set & have))
    return _relax(case, "features", have.issuperset, kept, 0.5 * len(missing))


# What the policy forbids


def _denied(case: _Case) -> _Step | None:
    host = case.fleet.host_by_name[case.device.host]
    selector, source = next((s, ref) for s, ref in case.request.deny if s.picks(case.device, host))
    if source is None:
        return _Step(f"avoid nothing ({case.device.name})", replace(case.demand, avoid=()), case.policy, 0.5)
    rule = _rule_at(case, source)
    deny = tuple(_NOBODY if s == selector else s for s in rule.deny or ())
    return _Step(f"remove deny ({selector}) at {_at(source)}", case.demand, _with_rule(case.policy, replace(rule, deny=deny)), 1.0)


def _not_allowed(case: _Case) -> _Step | None:
    host, allow, demand = case.fleet.host_by_name[case.device.host], case.request.allow, case.demand
    if allow is not None and not any(s.picks(case.device, host) for s in allow):
        source = case.request.sources["not_allowed"]
        rule = _rule_at(case, source)
        policy = _with_rule(case.policy, replace(rule, allow=(*(rule.allow or ()), Selector(device=case.device.name))))
        return _Step(f"add {{device: {case.device.name}}} to allow at {_at(source)}", demand, policy, 1.0)
    if case.device.kind == "gpu":
        less = demand.gpus - 1
        return _Step(f"gpus -> {less}", replace(demand, gpus=less), case.policy, 1.0) if demand.gpus > 1 else None
    return None if demand.gpus > 1 else _Step("cpu_ok: true", replace(demand, cpu_ok=True), case.policy, 1.5)


def _role(case: _Case) -> _Step | None:
    host = case.fleet.host_by_name[case.device.host]
    role, source = next((r, ref) for r, ref in case.request.roles if not Selector(role=r).picks(case.device, host))
    rule = _rule_at(case, source)
    if rule.require is None:
        return None
    policy = _with_rule(case.policy, replace(rule, require=replace(rule.require, role=None)))
    return _Step(f"remove require.role {role} at {_at(source)}", case.demand, policy, 1.0)


def _owner(case: _Case) -> _Step | None:
    host, priority = case.fleet.host_by_name[case.device.host], str(case.request.demand.priority)
    found = next(r for r in case.request.owner if r.match.picks(case.device, host) and r.unmet(host, case.fleet.minute) is not None)
    changed = replace(found, otherwise=found.otherwise | {priority})
    policy = replace(case.policy, hosts=tuple(changed if rule is found else rule for rule in case.policy.hosts))
    where = "" if found.source is None else f" at {_at(found.source)}"
    return _Step(f"add {priority} to otherwise of {found.match}{where}", case.demand, policy, 1.0)


LIFTS: Final[Mapping[str, Callable[[_Case], _Step | None]]] = {
    "denied": _denied,
    "not_allowed": _not_allowed,
    "role": _role,
    "owner": _owner,
    "vram_total": _vram_total,
    "host_ram": _host_ram,
    "host_cpus": _host_cpus,
    "compute_capability": _version("compute_capability", lambda device: device.capability),
    "feature": _feature,
    "driver": _version("driver", lambda device: device.driver),
    "reserved": _vram_free,
    "vram_free": _vram_free,
}
