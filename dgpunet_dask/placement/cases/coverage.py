"""What cases have shown of a policy: each condition seen to hold and not to hold, each preference seen to decide.

A clause is looked at where its rule matches the work and where it is in force: one that a more specific rule replaces is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.policy import HostRule, Policy, Require, Reserve, Rule, Selector, SourceRef
from dgpunet_dask.placement.cases.values import Case, Suite
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.resolve import clause_of, priority_of


class Clause(NamedTuple):
    """One thing that a policy says, and where. `both`: it is to be seen not to hold as well."""

    file: str
    line: int
    rule: str
    name: str
    both: bool = True


class Count(NamedTuple):
    """How often a clause was seen to hold (of a preference: to decide), and not to."""

    true: int = 0
    false: int = 0


@dataclass(frozen=True)
class Line:
    """What was seen of one clause."""

    clause: Clause
    seen: Count

    @property
    def gap(self) -> str | None:
        """What was never seen, ``None`` where nothing is missing."""
        wish = self.clause.name.startswith("prefer")
        if not self.seen.true and not self.seen.false and self.clause.both:
            return "never met"
        if not self.seen.true:
            return "never decided" if wish else "never true"
        return "never false" if self.clause.both and not self.seen.false else None


Event = tuple[Clause, bool]


def coverage(suites: Iterable[Suite]) -> list[Line]:
    """Return what the cases of `suites` have shown of each clause of their policies, in the order of the files."""
    counts: dict[Clause, Count] = {}
    for suite in suites:
        for clause in clauses(suite.policy):
            counts.setdefault(clause, Count())
        for case in suite.cases:
            for clause, holds in events(case, suite.policy):
                seen = counts[clause]
                counts[clause] = Count(seen.true + holds, seen.false + (not holds))
    return [Line(clause, counts[clause]) for clause in sorted(counts)]


def events(case: Case, policy: Policy) -> Iterator[Event]:
    """Yield what one case shows. Of a burst, the moment before it starts."""
    for demand in [case.submit] if case.submit is not None else [b.demand for b in case.bursts]:
        decision = place(case.fleet, demand, policy)
        at = _Moment(case.fleet, demand, policy, decision)
        for rule in policy.rules:
            yield from at.rule(rule)
        for reserve in policy.reserves:
            yield from at.reserve(reserve)
        for owner in policy.hosts:
            yield from at.owner(owner)


# What there is to be seen


def clauses(policy: Policy) -> Iterator[Clause]:
    """Yield all that a policy says of placement."""
    for rule in policy.rules:
        yield from (_of(rule, name) for name in _names(rule))
    yield from (_reserve(reserve) for reserve in policy.reserves)
    for owner in policy.hosts:
        yield from (_owner(owner, name) for name in (*_conditions(owner), *(["otherwise"] if owner.otherwise else [])))


def _names(rule: Rule) -> Iterator[str]:
    if rule.match.globs:
        yield "match"
    if rule.require is not None:
        yield from (f"require.{key}" for key in _asked(rule.require))
    for key in ("allow", "deny", "prefer"):
        yield from (f"{key}.{i}" for i in range(len(getattr(rule, key) or ())))
    if rule.exclusive:
        yield "exclusive"
    if rule.max_per_gpu is not None:
        yield "share"
    yield from (key for key in ("priority", "on_oom") if getattr(rule, key) is not None)


#: Of these one side says all: a preference decides, and what to do when memory runs out is only looked up here.
_ONE_SIDED: Final = ("prefer", "on_oom", "priority")


def _of(rule: Rule, name: str) -> Clause:
    at = rule.source(name)
    return Clause(at.file, at.line, rule.name, name, both=not name.startswith(_ONE_SIDED))


def _reserve(reserve: Reserve) -> Clause:
    at = reserve.source or SourceRef("policy", 0, 0, reserve.name)
    return Clause(at.file, at.line, at.name, "reserve")


def _owner(owner: HostRule, name: str) -> Clause:
    at = owner.source or SourceRef("policy", 0, 0, f"hosts: {owner.match}")
    return Clause(at.file, at.line, at.name, name)


def _asked(need: Require) -> list[str]:
    return [key for key in ("vram", *_REQUIRES) if getattr(need, _ATTRIBUTE.get(key, key)) not in {None, frozenset()}]


_ATTRIBUTE: Final[Mapping[str, str]] = {"vram": "vram_mib", "ram": "ram_mib"}


def _conditions(owner: HostRule) -> dict[str, HostRule]:
    """Return the owner's conditions one by one."""
    plain = HostRule(match=owner.match)
    every = {
        "when.idle": replace(plain, idle_s=owner.idle_s),
        "when.power": replace(plain, power=owner.power),
        "when.hours": replace(plain, hours=owner.hours),
    }
    return {name: one for name, one in every.items() if one != plain}


# What is seen


def _capability(need: Require, device: Device, _: Host) -> bool:
    return (
        need.compute_capability is not None and device.capability is not None and need.compute_capability.accepts(device.capability)
    )


def _driver(need: Require, device: Device, _: Host) -> bool:
    return need.driver is not None and device.driver is not None and need.driver.accepts(device.driver)


#: All but `vram`, which depends on the moment.
_REQUIRES: Final[Mapping[str, Callable[[Require, Device, Host], bool]]] = {
    "compute_capability": _capability,
    "features": lambda need, device, _: need.features <= device.features,
    "driver": _driver,
    "role": lambda need, device, host: Selector(role=need.role).picks(device, host),
    "ram": lambda need, _, host: host.ram_mib is None or (need.ram_mib or 0) <= host.ram_mib,
    "cpus": lambda need, _, host: host.cpus is None or (need.cpus or 0) <= host.cpus,
}
_OF_HOSTS: Final = ("role", "ram", "cpus")


@dataclass(frozen=True)
class _Moment:
    """One decision, and what it shows of each entry of a policy."""

    fleet: Fleet
    demand: Demand
    policy: Policy
    decision: Decision

    @property
    def priority(self) -> str:
        return priority_of(self.demand, self.policy)

    def _in_force(self, rule: Rule, name: str) -> bool:
        """Whether `rule` is the one whose clause `name` counts."""
        d, priority = self.demand, None if name == "priority" else self.priority
        return clause_of((r for r in self.policy.rules if r.match.holds(d.stage, d.model, d.user, priority)), name) is rule

    def rule(self, rule: Rule) -> Iterator[Event]:
        """Yield what is seen of a rule."""
        holds = rule.match.holds(self.demand.stage, self.demand.model, self.demand.user, self.priority)
        if rule.match.globs:
            yield _of(rule, "match"), holds
        if rule.priority is not None and self._in_force(rule, "priority"):
            yield _of(rule, "priority"), self.demand.priority is None
        if not holds:
            return
        yield from self._needs(rule)
        for key in ("deny", "allow"):
            if key == "deny" or self._in_force(rule, "allow"):
                yield from self._picks(rule, key)
        if rule.exclusive:
            yield from self._either(_of(rule, "exclusive"), [s.device for s in self.decision.ranking], "exclusive")
        yield from self._chosen(rule)

    def _needs(self, rule: Rule) -> Iterator[Event]:
        need = rule.require or Require()
        for key in _asked(need):
            for device in self.fleet.devices if key in _OF_HOSTS else self.fleet.gpus():
                met = (
                    self._has_vram(need, device)
                    if key == "vram"
                    else _REQUIRES[key](need, device, self.fleet.host_by_name[device.host])
                )
                yield _of(rule, f"require.{key}"), met

    def _has_vram(self, need: Require, device: Device) -> bool:
        """Whether that much is free now: what is too little for ever and what is taken at the moment count alike."""
        free = self.fleet.free_mib(device.name)
        return free is not None and (need.vram_mib or 0) <= free

    def _picks(self, rule: Rule, key: str) -> Iterator[Event]:
        for i, selector in enumerate(getattr(rule, key) or ()):
            for device in self.fleet.devices:
                yield _of(rule, f"{key}.{i}"), selector.picks(device, self.fleet.host_by_name[device.host])

    def _chosen(self, rule: Rule) -> Iterator[Event]:
        """Yield what is seen of the clauses that come from one rule alone."""
        if rule.max_per_gpu is not None and self._in_force(rule, "max_per_gpu"):
            units = {c.device for c in self.fleet.charges if c.kind == "activation"}
            joined = [s.device for s in self.decision.ranking if s.device in units or rule.max_per_gpu == 1]
            yield from self._either(_of(rule, "share"), joined, "share_limit")
        if rule.on_oom is not None and self._in_force(rule, "on_oom"):
            yield _of(rule, "on_oom"), True
        if rule.prefer and self._in_force(rule, "prefer") and len(self.decision.ranking) > 1:
            for i in range(len(rule.prefer)):
                yield _of(rule, f"prefer.{i}"), self._decides(rule, i)

    def _either(self, clause: Clause, will_do: Iterable[str], code: str) -> Iterator[Event]:
        """Yield that `clause` was met by a device that will do, and broken by one that is refused for it."""
        if any(True for _ in will_do):
            yield clause, True
        if any(v.code == code for verdicts in self.decision.refusals.values() for v in verdicts):
            yield clause, False

    def _decides(self, rule: Rule, i: int) -> bool:
        """Whether the first two differ in what a preference gives them, or another would be first without it."""
        wishes = rule.prefer or ()
        first, second = self.decision.ranking[:2]
        if first.parts.get(wishes[i].name) != second.parts.get(wishes[i].name):
            return True
        without = replace(rule, prefer=(*wishes[:i], *wishes[i + 1 :]))
        other = place(
            self.fleet, self.demand, replace(self.policy, rules=tuple(without if r is rule else r for r in self.policy.rules))
        )
        return other.ranking[:1] == () or other.ranking[0].device != first.device

    def reserve(self, reserve: Reserve) -> Iterator[Event]:
        """Yield whether a reserve kept work out, or let some in."""
        verdicts = self.decision.refusals.get(reserve.device, ())
        if any(v.code == "reserved" for v in verdicts):
            yield _reserve(reserve), True
        elif not verdicts:
            yield _reserve(reserve), False

    def owner(self, owner: HostRule) -> Iterator[Event]:
        """Yield which of an owner's conditions hold."""
        spared = self.priority in owner.otherwise
        hosts = {d.host for d in self.fleet.devices if owner.match.picks(d, self.fleet.host_by_name[d.host])}
        for host in sorted(hosts):
            if owner.otherwise:
                yield _owner(owner, "otherwise"), spared
            for name, condition in {}.items() if spared else _conditions(owner).items():
                yield _owner(owner, name), condition.unmet(self.fleet.host_by_name[host], self.fleet.minute) is None


def told(lines: Iterable[Line]) -> Iterator[str]:
    """Yield a line for each clause, and how many were seen as they should be."""
    found = list(lines)
    for line in found:
        clause, seen = line.clause, line.seen
        counts = (
            f"decided {seen.true} of {seen.true + seen.false}"
            if clause.name.startswith("prefer")
            else f"true {seen.true} false {seen.false}"
        )
        yield f"{clause.file}:{clause.line}  {clause.rule} {clause.name}  {counts}" + (f"  {line.gap.upper()}" if line.gap else "")
    whole = sum(line.gap is None for line in found)
    yield f"{whole} of {len(found)} clauses seen both ways, or to decide"
