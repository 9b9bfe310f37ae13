"""What is no mistake in a policy but says nothing, or cannot be meant: dead and shadowed rules, names that the fleet does not have.

Each check is a function of the policy, or of the policy and a fleet, that yields findings.
What two rules do to one another is told only where it holds for all work that the one matches, so that no finding is a guess.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from dgpunet_dask.errors import did_you_mean
from dgpunet_dask.model.demand import PRIORITIES, Demand
from dgpunet_dask.model.fleet import FEATURES_FROM, Device, Fleet, Host
from dgpunet_dask.model.policy import SELECTOR_KEYS, HostRule, Match, Policy, Reserve, Rule, Selector, SourceRef
from dgpunet_dask.placement.covering import ALL, UNSTATED, match_covers, outranks, taken
from dgpunet_dask.placement.globs import witness
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.policy_checks import SINGLE
from dgpunet_dask.units import Mib


class Finding(NamedTuple):
    """One thing to look at; `line` and `col` are 1-based, `rule` is the name of the entry."""

    file: str
    line: int
    col: int
    rule: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}: {self.what}; {self.cure}"


Findings = Iterator[Finding]


def lint(policy: Policy, fleet: Fleet | None = None) -> tuple[Finding, ...]:
    """Return all findings in the order of their places.

    Parameters
    ----------
    fleet
        Where given, the policy is held against its devices too: what picks none of them, what none of them can run.
    """
    found = [*_dead_matches(policy), *_shadowed(policy), *_unknown_features(policy, fleet)]
    if fleet is not None:
        found += [finding for held_against in FLEET_CHECKS for finding in held_against(policy, fleet)]
    return tuple(sorted(set(found)))


def _at(source: SourceRef | None, what: str, cure: str) -> Finding:
    place_of = source or SourceRef("policy", 0, 0, "")
    return Finding(place_of.file, place_of.line, place_of.col, place_of.name, what, cure)


# The policy alone


def _dead_matches(policy: Policy) -> Findings:
    """Yield each rule whose match nothing can meet."""
    for rule in policy.rules:
        for key, glob in rule.match.globs.items():
            if key != "priority" and witness(glob) is None:
                yield _at(
                    rule.source(f"match.{key}"),
                    f"rule {rule.name!r} is dead: no name matches {glob!r}",
                    "mend the range in brackets",
                )
        if rule.match.priority is not None and not taken(rule.match):
            yield _dead_priority(f"rule {rule.name!r}", rule.match, rule.source("match.priority"))
    for reserve in policy.reserves:
        if reserve.match.priority is not None and not taken(reserve.match):
            yield _dead_priority(f"reserve {reserve.name!r}", reserve.match, reserve.source)


def _dead_priority(who: str, match: Match, source: SourceRef | None) -> Finding:
    glob = match.priority or ""
    return _at(
        source,
        f"{who} is dead: no priority matches {glob!r}",
        f"priorities are {', '.join(PRIORITIES)}{did_you_mean(glob, PRIORITIES)}",
    )


def _alive(policy: Policy) -> list[Rule]:
    return [r for r in policy.rules if taken(r.match) and all(witness(g) is not None for g in r.match.globs.values())]


def _shadowed(policy: Policy) -> Findings:
    """Yield each clause that some other rule always replaces; a rule of which nothing is left is dead."""
    rules = _alive(policy)
    for rule in rules:
        by = {
            key: over
            for key, name in SINGLE.items()
            if getattr(rule, name) is not None and (over := _shadow(rule, key, rules)) is not None
        }
        by |= _pointless_priority(rule)
        if (
            by
            and not any((rule.require, rule.deny, rule.exclusive))
            and set(by) == {k for k, n in SINGLE.items() if getattr(rule, n) is not None}
        ):
            names = " and ".join(dict.fromkeys(by.values()))
            yield _at(
                rule.source(),
                f"rule {rule.name!r} is dead: all that it says is overridden by {names}",
                "remove it, or match less there",
            )
            continue
        for key, over in by.items():
            yield _at(
                rule.source(key),
                f"{key} of rule {rule.name!r} never counts: it is overridden by {over}",
                f"remove {key} here, or match less there",
            )


def _shadow(rule: Rule, key: str, rules: Sequence[Rule]) -> str | None:
    """Return the rule that always counts rather than `rule` for one clause."""
    priorities = UNSTATED if key == "priority" else ALL
    if key == "priority" and not taken(rule.match, UNSTATED):
        return None
    for other in rules:
        sets = getattr(other, SINGLE[key]) is not None and outranks(other, rule)
        alone = key == "share" and other is not rule and bool(other.exclusive)
        if (sets or alone) and match_covers(other.match, rule.match, priorities):
            return (
                f"{'exclusive of ' if alone and not sets else ''}rule {other.name!r} ({other.source().file}:{other.source().line})"
            )
    return None


def _pointless_priority(rule: Rule) -> dict[str, str]:
    """A rule that matches on priority is looked for when the priority is known."""
    if rule.priority is None or taken(rule.match, UNSTATED):
        return {}
    return {"priority": "the priority that its own match demands"}


def _unknown_features(policy: Policy, fleet: Fleet | None) -> Findings:
    known = set(FEATURES_FROM).union(*(d.features for d in fleet.devices) if fleet is not None else ())
    for rule in policy.rules:
        for name in sorted(rule.require.features - known if rule.require is not None else ()):
            what = f"no card has the feature {name!r} by its compute capability" + (
                ", nor does one of the fleet state it" if fleet else ""
            )
            hint = did_you_mean(name, known).removeprefix("; ") or f"known: {', '.join(sorted(known))}"
            yield _at(rule.source("require.features"), what, hint)


# The policy on a fleet


def _hosts(fleet: Fleet) -> Iterator[tuple[Device, Host]]:
    return ((d, fleet.host_by_name[d.host]) for d in fleet.devices)


def _selectors(policy: Policy) -> Iterator[tuple[Rule, str, Selector]]:
    """Yield every selector of a rule with the path of its clause."""
    for rule in policy.rules:
        for key in ("allow", "deny"):
            yield from ((rule, f"{key}.{i}", s) for i, s in enumerate(getattr(rule, key) or ()))
        yield from ((rule, f"prefer.{i}", p.selector) for i, p in enumerate(rule.prefer or ()) if p.selector is not None)


def _idle_selectors(policy: Policy, fleet: Fleet) -> Findings:
    for rule, path, selector in _selectors(policy):
        if not any(selector.picks(d, h) for d, h in _hosts(fleet)):
            yield _at(
                rule.source(path), f"{path.split('.')[0]}: {selector} picks no device of this fleet", _nearest(selector, fleet)
            )
    for rule in policy.rules:
        role = None if rule.require is None else rule.require.role
        if role is not None and not any(Selector(role=role).picks(d, h) for d, h in _hosts(fleet)):
            yield _at(
                rule.source("require.role"),
                f"require: role {role} is of no host of this fleet",
                _nearest(Selector(role=role), fleet),
            )


def _idle_owners(policy: Policy, fleet: Fleet) -> Findings:
    for entry in policy.hosts:
        if not _picked(entry, fleet):
            yield _at(entry.source, f"hosts: {entry.match} picks no host of this fleet", _nearest(entry.match, fleet))


def _picked(entry: HostRule, fleet: Fleet) -> bool:
    return any(entry.match.picks(d, h) for d, h in _hosts(fleet))


def _names(key: str, fleet: Fleet) -> list[str]:
    by_key: dict[str, Iterable[str | None]] = {
        "device": (d.name for d in fleet.devices),
        "host": (h.name for h in fleet.hosts),
        "role": (r for h in fleet.hosts for r in h.roles),
        "card": (d.model for d in fleet.devices),
    }
    return sorted({name for name in by_key[key] if name})


def _nearest(selector: Selector, fleet: Fleet) -> str:
    """Return what was perhaps meant by the first key that picks nothing by itself."""
    for key in SELECTOR_KEYS:
        glob = selector.globs.get(key)
        if glob is not None and not any(Selector(**{key: glob}).picks(d, h) for d, h in _hosts(fleet)):
            known = _names(key, fleet)
            hint = did_you_mean(glob.strip("*"), known).removeprefix("; ") or f"it has: {', '.join(known) or 'none'}"
            return f"{key} {glob!r}: {hint}"
    return "each key picks some device, but none is picked by all of them"


def _unsatisfiable(policy: Policy, fleet: Fleet) -> Findings:
    """Yield each rule that narrows its work down to no device of the fleet, with all other rules that apply to all of that work.

    Only where the rule is to blame: without it the work could run, or it alone keeps the work away.
    """
    rules = _alive(policy)
    for rule in rules:
        if (rule.require is None and rule.allow is None and not rule.deny) or _told_already(rule, fleet):
            continue
        covering = [r for r in rules if match_covers(r.match, rule.match)]
        reasons = _nowhere(rule.match, covering, fleet)
        if reasons and (
            not _nowhere(rule.match, [r for r in covering if r is not rule], fleet)
            or (_nowhere(rule.match, [rule], fleet) and not _nowhere(rule.match, [], fleet))
        ):
            what = f"no device of this fleet may run what rule {rule.name!r} matches ({reasons})"
            yield _at(rule.source(), what, "ask less in it or in the rules that match with it, or add such a device")


def _told_already(rule: Rule, fleet: Fleet) -> bool:
    """Whether the reason has a finding of its own: nothing that is allowed exists, or no host has the role."""
    role = None if rule.require is None else rule.require.role
    wanted = [*([rule.allow] if rule.allow else []), *([(Selector(role=role),)] if role is not None else [])]
    return any(not any(s.picks(d, h) for s in some for d, h in _hosts(fleet)) for some in wanted)


def _nowhere(match: Match, rules: Sequence[Rule], fleet: Fleet) -> str:
    """Return why each card refuses the smallest work that `match` takes, under `rules`; empty where one does not.

    Where a rule allows a CPU by name, work that can do without a card is tried as well.
    """
    names = {key: witness(glob) for key, glob in match.globs.items() if key != "priority"}
    priority = None if match.priority is None else taken(match)[0]
    demand = Demand(**{**names, "priority": priority, "vram": Mib.of(1), "cpus": 0})  # type: ignore[arg-type]  # names are text
    empty, policy = dataclasses.replace(fleet, charges=(), states={}, booked={}), Policy(tuple(rules))
    decision = place(empty, demand, policy)
    if decision.outcome != "never":
        return ""
    named = [s for r in rules for s in r.allow or () if any(d.kind == "cpu" and s.picks(d, h) for d, h in _hosts(fleet))]
    if named and place(empty, dataclasses.replace(demand, cpu_ok=True), policy).outcome != "never":
        return ""
    cards = {d.name for d in fleet.gpus()}
    return (
        ", ".join(
            f"{name}: {verdicts[0].code}" for name, verdicts in sorted(decision.refusals.items()) if name in cards and verdicts
        )
        or "no card"
    )


# Reserves


def _reserves(policy: Policy, fleet: Fleet) -> Findings:
    held: Counter[str] = Counter()
    for reserve in policy.reserves:
        device = fleet.by_name.get(reserve.device)
        if device is None or device.kind == "cpu":
            cards = [d.name for d in fleet.gpus()]
            hint = did_you_mean(reserve.device, cards).removeprefix("; ") or f"its cards: {', '.join(cards) or 'none'}"
            yield _at(reserve.source, f"reserve {reserve.name!r}: the fleet has no card {reserve.device!r}", hint)
            continue
        yield from _reserve_size(reserve, device, held[device.name])
        held[device.name] += reserve.vram_mib
        if why := _kept_off(reserve, policy, fleet):
            yield _at(
                reserve.source, f"reserve {reserve.name!r}: {why}", "keep it on a card that the work may use, or change that rule"
            )


def _reserve_size(reserve: Reserve, device: Device, before: int) -> Findings:
    usable = device.usable_mib
    if usable is None:
        what = f"reserve {reserve.name!r}: {device.name} does not report its VRAM, so that nothing can be kept there"
        yield _at(reserve.source, what, "name a card that reports it")
    elif reserve.vram_mib > usable:
        what = f"reserve {reserve.name!r}: {Mib.of(reserve.vram_mib)} is more than the {Mib.of(usable)} that {device.name} can give"
        yield _at(reserve.source, what, "keep less")
    elif reserve.vram_mib + before > usable:
        total = Mib.of(reserve.vram_mib + before)
        what = f"reserve {reserve.name!r}: all reserves of {device.name} come to {total}, and it can give {Mib.of(usable)}"
        yield _at(reserve.source, what, "keep less")


def _kept_off(reserve: Reserve, policy: Policy, fleet: Fleet) -> str:
    """Return which rule keeps all work of a reserve off its own card; empty where none does."""
    device = fleet.by_name[reserve.device]
    host = fleet.host_by_name[device.host]
    for rule in _alive(policy):
        if match_covers(rule.match, reserve.match) and any(s.picks(device, host) for s in rule.deny or ()):
            return f"rule {rule.name!r} ({rule.source().file}:{rule.source('deny').line}) denies {device.name} to all work that it is kept for"
    return ""


FLEET_CHECKS: Final[tuple[Callable[[Policy, Fleet], Findings], ...]] = (_idle_selectors, _idle_owners, _unsatisfiable, _reserves)
