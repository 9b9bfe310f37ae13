"""Policy test files (design §5.4): text in, cases out; no file is read here. Use::

wanted = references(text, "tests/embed.yaml")         # which fleet and policies it names
suite = parse_cases(text, "tests/embed.yaml", fleet, policy)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dgpunet_dask.config.yamlfile import Document, check_version, load, validate
from dgpunet_dask.errors import MalformedFile, Problem
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import LAYERS, NO_POLICY, Layer, Policy
from dgpunet_dask.placement.cases.checks import CHECKS, known_names
from dgpunet_dask.placement.cases.shape import FORMAT_VERSION, BurstEntry, CaseEntry, CaseFile, WantEntry
from dgpunet_dask.placement.cases.situation import situation
from dgpunet_dask.placement.cases.values import Burst, Case, Suite, Want


class Reference(NamedTuple):
    """A file that a test file names, relative to its own folder, and where it does so; its layer is ``None`` where its folder says it."""

    path: str
    line: int
    col: int
    layer: Layer | None = None


class References(NamedTuple):
    """The files that a test file builds upon."""

    fleet: Reference | None
    policies: tuple[Reference, ...]


def references(text: str, file: str) -> References:
    """Return what a test file names, as far as it can be read.

    Raises
    ------
    MalformedFile
        Where the text is no YAML.
    """
    document = load(text, file)
    data = document.data if isinstance(document.data, Mapping) else {}
    fleet, policies = data.get("fleet"), data.get("policies")
    found = [_policy(document, i, item) for i, item in enumerate(policies if isinstance(policies, list) else ())]
    named = Reference(fleet, *document.position(("fleet",))) if isinstance(fleet, str) else None
    return References(named, tuple(p for p in found if p is not None))


def _policy(document: Document, i: int, item: Any) -> Reference | None:
    place = document.position(("policies", i))
    if isinstance(item, str):
        return Reference(item, *place)
    if isinstance(item, Mapping) and isinstance(item.get("file"), str) and item.get("layer") in (None, *LAYERS):
        return Reference(item["file"], *place, item.get("layer"))
    return None


def parse_cases(text: str, file: str, fleet: Fleet | None, policy: Policy | None = NO_POLICY) -> Suite:
    """Return the cases of a file.

    Parameters
    ----------
    text, file
        The file's content, and its name for messages.
    fleet, policy
        What the files say that it names. ``None``: they could not be read, so that only mistakes in this file are looked for.

    Raises
    ------
    MalformedFile
        With every mistake as file:line:col.
    NewerFormat
        For a version that this release does not know.
    """
    document = load(text, file)
    check_version(document, FORMAT_VERSION)
    names = [] if fleet is None else [lambda d: known_names(d, fleet)]
    entries = validate(document, CaseFile, [*CHECKS, *names])
    if fleet is None or policy is None:
        return Suite(file, Fleet(), NO_POLICY, ())
    problems: list[Problem] = []
    cases = tuple(_case(document, i, entry, fleet, policy, problems) for i, entry in enumerate(entries.cases))
    if problems:
        raise MalformedFile(problems)
    return Suite(file, fleet, policy, cases)


def _case(document: Document, i: int, entry: CaseEntry, fleet: Fleet, policy: Policy, problems: list[Problem]) -> Case:
    now, impossible = situation(fleet, policy, entry)
    problems += (document.problem(("cases", i, fault.key, fault.place), fault.what) for fault in impossible)
    return Case(
        name=entry.name,
        line=document.position(("cases", i))[0],
        fleet=now,
        want=_want(entry.want),
        submit=None if entry.submit is None else Demand.parse(entry.submit),
        bursts=tuple(_bursts(entry)),
        reasons=entry.reasons,
    )


def _bursts(entry: CaseEntry) -> Iterator[Burst]:
    found = entry.submit_all or []
    for burst in [found] if isinstance(found, BurstEntry) else found:
        yield Burst(burst.count, Demand.parse(burst.demand))


def _want(want: WantEntry | str) -> Want:
    if not isinstance(want, WantEntry):
        return Want(outcome="wait" if want == "wait" else "never")
    return Want(on=tuple(want.on or ()), then=tuple(want.then or ()), placed=want.placed or {}, makespan_s=want.makespan_at_most)
