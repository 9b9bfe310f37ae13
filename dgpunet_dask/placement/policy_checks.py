"""Mistakes in policy files that show only where several values are seen together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple, TypeVar

from dgpunet_dask.config.yamlfile import Check, Document, Path
from dgpunet_dask.errors import BadValue, Problem
from dgpunet_dask.model.policy import MATCH_KEYS, SELECTOR_KEYS, Match, Rule, SourceRef
from dgpunet_dask.placement.covering import matches_overlap
from dgpunet_dask.placement.globs import overlap
from dgpunet_dask.placement.policy_model import data_of
from dgpunet_dask.units import Mib

#: Clauses that come from one rule alone: key in the file, attribute of `Rule`.
SINGLE: Final[Mapping[str, str]] = {
    "allow": "allow", "prefer": "prefer", "share": "max_per_gpu", "priority": "priority", "on_oom": "on_oom",
}  # fmt: skip
_CLAUSES: Final = ("require", "allow", "deny", "prefer", "share", "exclusive", "priority", "on_oom")

T = TypeVar("T", bound=Any)


def ambiguous_rules(rules: Sequence[Rule]) -> Iterator[Problem]:
    """Yield each pair of rules of one layer between which nothing decides though both set a clause that only one may."""
    groups: dict[Any, list[Rule]] = {}
    for rule in rules:
        groups.setdefault((rule.layer, rule.match.specificity), []).append(rule)
    for group in groups.values():
        for one, other in combinations(group, 2):
            both = [key for key, name in SINGLE.items() if getattr(one, name) is not None and getattr(other, name) is not None]
            if both and matches_overlap(one.match, other.match):
                yield _ambiguous(one, other, both)


def _ambiguous(one: Rule, other: Rule, both: Sequence[str]) -> Problem:
    where, there = other.source(both[0]), one.source(both[0])
    what = (
        f"rule {other.name!r} and rule {one.name!r} ({there.file}:{there.line}) can match the same work, are equally specific, and both "
        f"set {' and '.join(both)}; make one match more specific (another key, or a name without wildcard), or let only one of them set it"
    )
    return Problem(where.file, where.line, where.col, what)


class Weighted(NamedTuple):
    """One entry of `fair_share`, with its place."""

    glob: str
    weight: float
    source: SourceRef

    @property
    def rank(self) -> tuple[int, ...]:
        """The greater, the more specific."""
        return Match(user=self.glob).specificity


def ambiguous_weights(weights: Iterable[Weighted]) -> Iterator[Problem]:
    """Yield each glob of `fair_share` that stands in two files, and each that an equally specific one overlaps, with another weight."""
    for one, other in combinations(weights, 2):
        there = f"{one.glob!r} ({one.source.file}:{one.source.line})"
        if one.glob == other.glob:
            what = f"{there} has a weight already; keep one of them"
        elif one.weight != other.weight and one.rank == other.rank and overlap(one.glob, other.glob):
            what = f"{other.glob!r} and {there} can match the same user, are equally specific, and differ; make one of them more specific"
        else:
            continue
        yield Problem(other.source.file, other.source.line, other.source.col, what)


def repeated(kind: str, entries: Iterable[T], source: Callable[[T], SourceRef | None]) -> tuple[tuple[T, ...], list[Problem]]:
    """Return the first entry of each name, and a mistake for each other one."""
    first: dict[str, T] = {}
    problems = []
    for entry in entries:
        here, there = source(entry), source(first.setdefault(entry.name, entry))
        if first[entry.name] is not entry and here is not None and there is not None:
            problems.append(Problem(here.file, here.line, here.col, _twice(kind, entry.name, there.file, there.line)))
    return tuple(first.values()), problems


def _repeated_in_one_file(document: Document) -> Iterator[Problem]:
    """Yield each entry whose name an earlier one bears, be it right otherwise or not; `repeated` compares those that are right."""
    for kind, key, at in (("rule", "rules", ("name",)), ("reserve", "reserve", ())):
        first: dict[str, Path] = {}
        for path, entry in _entries(document, key):
            name, here = entry.get("name"), (*path, *at)
            if isinstance(name, str) and first.setdefault(name, here) != here:
                yield document.problem(here, _twice(kind, name, document.file, document.position(first[name])[0]))


def _twice(kind: str, name: str, file: str, line: int) -> str:
    return f"{kind} {name!r} is in {file}:{line} already; give each {kind} its own name"


# Within one entry


def _entries(document: Document, key: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield path and data of each entry as far as it is a mapping."""
    items = data_of(document.data, key)
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, Mapping):
            yield (key, i), item


def _idle_rules(document: Document) -> Iterator[Problem]:
    for path, rule in _entries(document, "rules"):
        if not any(key in rule for key in _CLAUSES):
            yield document.problem((*path, "name"), f"this rule says nothing; give it one of: {', '.join(_CLAUSES)}")


def _share_and_exclusive(document: Document) -> Iterator[Problem]:
    for path, rule in _entries(document, "rules"):
        if "share" in rule and rule.get("exclusive") is True:
            yield document.problem(
                (*path, "exclusive"), "exclusive: work that is alone on its card shares with none; keep either this or `share`"
            )


def _wishes(document: Document) -> Iterator[Problem]:
    for path, rule in _entries(document, "rules"):
        seen: list[Any] = []
        wishes = rule.get("prefer")
        for i, wish in enumerate(wishes if isinstance(wishes, list) else ()):
            if not isinstance(wish, Mapping):
                continue
            at, subject = (*path, "prefer", i), {k: v for k, v in wish.items() if k in {"by", *SELECTOR_KEYS}}
            if "by" in subject and len(subject) > 1:
                yield document.problem(
                    at, "prefer: give either `by` or devices (device, host, role, card), not both; write two items"
                )
            elif not subject:
                yield document.problem(
                    at, "prefer: say what is preferred: `by: finish`, `by: speed`, `by: data_local`, or device, host, role, card"
                )
            elif subject in seen:
                yield document.problem(at, "prefer: this is preferred twice; keep one of them")
            seen.append(subject)


def _empty_selectors(document: Document) -> Iterator[Problem]:
    told = 'this would pick every device; give at least one of: device, host, role, card (every device: {device: "*"})'
    for path, rule in _entries(document, "rules"):
        for key in ("allow", "deny"):
            items = rule.get(key)
            yield from (
                document.problem((*path, key, i), f"{key}: {told}")
                for i, item in enumerate(items if isinstance(items, list) else ())
                if item == {}
            )
    for path, entry in _entries(document, "hosts"):
        if entry.get("match") == {}:
            what = 'match: this would pick every machine; give at least one of: host, role (every machine: {host: "*"})'
            yield document.problem((*path, "match"), what)


def _oom_below_need(document: Document) -> Iterator[Problem]:
    """Yield each `on_oom.max` below what the same rule requires, so that it could never grow."""
    for path, rule in _entries(document, "rules"):
        need, most = data_of(rule, "require", "vram"), data_of(rule, "on_oom", "max")
        try:
            below = Mib(most) < Mib(need)
        except (BadValue, TypeError):
            continue  # the model tells what is wrong with them
        if below:
            what = f"max: {most} is less than the {need} that this rule requires; raise it or leave it out"
            yield document.problem((*path, "on_oom", "max"), what)


def _no_conditions(document: Document) -> Iterator[Problem]:
    for path, entry in _entries(document, "hosts"):
        if entry.get("when") == {}:
            yield document.problem(
                (*path, "when"), "when: give at least one of: idle, power, hours; without any the entry says nothing"
            )


def _reserve_for_all(document: Document) -> Iterator[Problem]:
    for path, entry in _entries(document, "reserve"):
        if entry.get("for") == {}:
            keys = ", ".join(MATCH_KEYS)
            yield document.problem((*path, "for"), f"for: all work would draw on this; name the work by at least one of: {keys}")


CHECKS: Final[tuple[Check, ...]] = (
    _repeated_in_one_file, _idle_rules, _share_and_exclusive, _wishes, _empty_selectors, _oom_below_need, _no_conditions, _reserve_for_all,
)  # fmt: skip
