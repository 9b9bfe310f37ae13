"""Policy files (design §5.3): text in, `Policy` out; no file is read here.

    parse_policy(text, "mine.yaml", "human")                    # one file
    parse_policies([(text, file, layer), ...])                  # all files in force, as one policy

All mistakes of all files are reported at once. What needs more than one value to be seen as a mistake (a name used twice, two rules
between which nothing decides) is looked for among the entries that are right by themselves, so that one slip hides nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from dgpunet_dask.config.yamlfile import Document, check_version, load, validate
from dgpunet_dask.errors import MalformedFile, Problem
from dgpunet_dask.model.policy import LAYERS, HostRule, Layer, Match, Policy, Reserve, Rule, Selector, SourceRef
from dgpunet_dask.placement.policy_checks import CHECKS, Weighted, ambiguous_rules, ambiguous_weights, repeated
from dgpunet_dask.placement.policy_model import FORMAT_VERSION, HostEntry, PolicyEntries, ReserveEntry, RuleEntry, WeightEntry

#: The clauses of a rule: the key in the file, and the attribute of `Rule`.
CLAUSES: Final[Mapping[str, str]] = {
    "require": "require", "allow": "allow", "deny": "deny", "prefer": "prefer", "share": "max_per_gpu", "exclusive": "exclusive",
    "priority": "priority", "on_oom": "on_oom",
}  # fmt: skip
_WHEN: Final = "unknown key 'when'"
_WHEN_TOLD: Final = (
    "the key 'when' is kept for conditions on rules and means nothing yet; remove it (an entry under `hosts:` takes `when`)"
)

Source = tuple[str, str, Layer]
M = TypeVar("M", bound=BaseModel)


def parse_policy(text: str, file: str, layer: Layer = "human") -> Policy:
    """Return what one file says.

    Raises
    ------
    MalformedFile
        With every mistake as file:line:col.
    NewerFormat
        For a version that this release does not know.
    """
    return parse_policies([(text, file, layer)])


def parse_policies(sources: Iterable[Source]) -> Policy:
    """Return what several files say together.

    A higher layer's rule replaces a lower one's of the same name clause by clause, its reserve of the same name and its `hosts` entry
    with the same match as a whole; the order of files within a layer means nothing.

    Parameters
    ----------
    sources
        Text, name for messages and layer of each file.

    Raises
    ------
    MalformedFile
        With every mistake of every file.
    NewerFormat
        For a version that this release does not know.
    """
    layers: dict[Layer, list[_Part]] = {layer: [] for layer in LAYERS}
    for text, file, layer in sources:
        layers[layer].append(_read(text, file, layer))
    united = [_side_by_side(parts) for parts in layers.values()]
    problems = [problem for part in united for problem in part.problems]
    try:
        policy = merge([part.policy for part in united])
    except MalformedFile as error:
        problems += error.problems
    if problems:
        raise MalformedFile(problems)
    return policy


def merge(policies: Sequence[Policy]) -> Policy:
    """Return one policy of several, from the lowest layer to the highest: what a later one names replaces what an earlier one does.

    Raises
    ------
    MalformedFile
        Where two rules of one layer are equally specific, can match the same work and set the same clause, so that nothing decides.
    """
    rules: dict[str, Rule] = {}
    reserves: dict[str, Reserve] = {}
    hosts: dict[Selector, tuple[HostRule, ...]] = {}
    weights: dict[str, float] = {}
    for policy in policies:
        for rule in policy.rules:
            rules[rule.name] = _over(rules[rule.name], rule) if rule.name in rules else rule
        reserves |= {r.name: r for r in policy.reserves}
        hosts |= {h.match: tuple(o for o in policy.hosts if o.match == h.match) for h in policy.hosts}
        weights = dict(policy.weights) | {glob: w for glob, w in weights.items() if glob not in dict(policy.weights)}
    problems = list(ambiguous_rules(tuple(rules.values())))
    if problems:
        raise MalformedFile(problems)
    return Policy(tuple(rules.values()), tuple(reserves.values()), tuple(chain(*hosts.values())), tuple(weights.items()))


def _over(lower: Rule, higher: Rule) -> Rule:
    """Return `lower` with each clause that `higher` sets, by the places where it sets them."""
    said = {key: name for key, name in (*CLAUSES.items(), ("match", "match")) if key in higher.at}
    kept = {path: ref for path, ref in lower.at.items() if path.partition(".")[0] not in {"", *said}}
    changes: dict[str, Any] = {name: getattr(higher, name) for name in said.values()}
    return replace(lower, **changes, layer=higher.layer, at={**kept, **higher.at})


class _Part(NamedTuple):
    """What is right in a file or a layer, and its mistakes. The policy of a file has no weights, that of a layer has."""

    policy: Policy
    problems: tuple[Problem, ...] = ()
    weights: tuple[Weighted, ...] = ()


def _side_by_side(parts: Sequence[_Part]) -> _Part:
    """Return the union of one layer's files. What bears a name that another has is a mistake; the first of them counts."""
    rules, same_rule = repeated("rule", chain(*(p.policy.rules for p in parts)), lambda r: r.source())
    reserves, same_reserve = repeated("reserve", chain(*(p.policy.reserves for p in parts)), lambda r: r.source)
    hosts = tuple(chain(*(p.policy.hosts for p in parts)))
    weights = tuple(chain(*(p.weights for p in parts)))
    problems = tuple(dict.fromkeys((*chain(*(p.problems for p in parts)), *same_rule, *same_reserve, *ambiguous_weights(weights))))
    ranked = sorted(weights, key=lambda w: (*(-n for n in w.rank), w.glob))
    return _Part(Policy(rules, reserves, hosts, tuple((w.glob, w.weight) for w in ranked)), problems)


# One file


def _read(text: str, file: str, layer: Layer) -> _Part:
    """Return what is right in a file, and its mistakes."""
    try:
        document = load(text, file)
    except MalformedFile as error:
        return _Part(Policy(), tuple(error.problems))
    check_version(document, FORMAT_VERSION)
    problems: list[Problem] = []
    try:
        validate(document, PolicyEntries, CHECKS)
    except MalformedFile as error:
        problems = [_explained(p) for p in error.problems]
    return _Part(_policy(document, layer), tuple(problems), tuple(_weights(document)))


def _explained(problem: Problem) -> Problem:
    return problem._replace(what=_WHEN_TOLD) if problem.what.startswith(_WHEN) else problem


def _policy(document: Document, layer: Layer) -> Policy:
    """Return the entries that are right by themselves."""
    places = _places(document)
    rules = (_rule(document, places[i], entry, layer) for i, entry in _entries(document, "rules", RuleEntry))
    reserves = (_reserve(document, place, entry) for place, entry in _entries(document, "reserve", ReserveEntry))
    hosts = (_host(document, place, entry) for place, entry in _entries(document, "hosts", HostEntry))
    return Policy(tuple(rules), tuple(reserves), tuple(hosts))


def _entries(document: Document, key: str, model: type[M]) -> Iterator[tuple[int, M]]:
    """Yield place and value of each entry of the list `key` that is right by itself."""
    items = document.data.get(key) if isinstance(document.data, Mapping) else None
    for i, item in enumerate(items if isinstance(items, list) else ()):
        try:
            yield i, model.model_validate(item)
        except ValidationError:
            continue  # told already


def _rule(document: Document, places: Mapping[str, tuple[int, int]], entry: RuleEntry, layer: Layer) -> Rule:
    return Rule(
        name=entry.name,
        match=Match() if entry.match is None else entry.match.value(),
        require=None if entry.require is None else entry.require.value(),
        allow=None if entry.allow is None else tuple(s.value() for s in entry.allow),
        deny=None if entry.deny is None else tuple(s.value() for s in entry.deny),
        prefer=None if entry.prefer is None else tuple(w.value() for w in entry.prefer),
        max_per_gpu=None if entry.share is None else entry.share.max_per_gpu,
        exclusive=entry.exclusive,
        priority=entry.priority,
        on_oom=None if entry.on_oom is None else entry.on_oom.value(),
        layer=layer,
        at={path: SourceRef(document.file, *place, entry.name) for path, place in places.items()},
    )


def _places(document: Document) -> Mapping[int, Mapping[str, tuple[int, int]]]:
    """Return where each rule stands, and each clause in it, as deep as what decides or is decided by itself."""
    found: dict[int, dict[str, tuple[int, int]]] = {}
    for path in document.values:
        if path[:1] != ("rules",) or len(path) < 2 or not isinstance(path[1], int):
            continue
        here, inner = found.setdefault(path[1], {}), path[2:]
        if not inner:
            here[""] = document.position((*path, "name"))
        elif inner[0] != "name" and len(inner) <= _DEPTH.get(inner[0], 1):
            here[".".join(map(str, inner))] = document.key_position(path)
    return found


_DEPTH: Final[Mapping[str | int, int]] = {"match": 2, "require": 2, "allow": 2, "deny": 2, "prefer": 2, "share": 2, "on_oom": 2}


def _reserve(document: Document, i: int, entry: ReserveEntry) -> Reserve:
    match = entry.kept_for.value()
    source = SourceRef(document.file, *document.position(("reserve", i)), entry.name)
    return Reserve(name=entry.name, device=entry.device, vram_mib=int(entry.vram), match=match, source=source)


def _host(document: Document, i: int, entry: HostEntry) -> HostRule:
    match, when = entry.match.value(), entry.when
    source = SourceRef(document.file, *document.position(("hosts", i)), f"hosts: {match}")
    otherwise = frozenset(entry.otherwise)
    return HostRule(match=match, idle_s=when.idle, power=when.power, hours=when.hours, otherwise=otherwise, source=source)


def _weights(document: Document) -> Iterator[Weighted]:
    """Yield the users' weights that are right by themselves."""
    data = document.data.get("fair_share") if isinstance(document.data, Mapping) else None
    for glob, weight in data.items() if isinstance(data, Mapping) else ():
        try:
            WeightEntry.model_validate({"fair_share": {glob: weight}})
        except ValidationError:
            continue  # told already
        yield Weighted(glob, float(weight), SourceRef(document.file, *document.key_position(("fair_share", glob)), glob))
