"""Mistakes of a policy test file that its shape alone does not show. They look at plain data, which may have any shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from dgpunet_dask.config.yamlfile import Document, Path
from dgpunet_dask.config.yamltree import quote_it
from dgpunet_dask.errors import BadValue, Problem, did_you_mean
from dgpunet_dask.model.decision import REASON_ORDER
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet

_DEMAND_KEYS: Final = tuple(f.name for f in dataclasses.fields(Demand))
_TEXT: Final = ("stage", "model", "user", "priority")
_SWITCHES: Final = ("same_host", "cpu_ok", "exclusive")


def entries(document: Document) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield place and data of each case as far as the file has the right shape."""
    found = document.data.get("cases") if isinstance(document.data, Mapping) else None
    for i, case in enumerate(found if isinstance(found, list) else ()):
        if isinstance(case, Mapping):
            yield ("cases", i), case


def demands(case: Mapping[str, Any], at: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield place and data of each demand of a case."""
    found: list[tuple[Path, Any]] = [((*at, "submit"), case.get("submit"))]
    bursts = case.get("submit_all")
    if isinstance(bursts, list):
        found += [((*at, "submit_all", i, "demand"), _in(burst, "demand")) for i, burst in enumerate(bursts)]
    else:
        found.append(((*at, "submit_all", "demand"), _in(bursts, "demand")))
    running = case.get("running")
    for i, entry in enumerate(running if isinstance(running, list) else ()):
        found.append(((*at, "running", i, "demand"), _in(entry, "demand")))
    yield from ((path, demand) for path, demand in found if isinstance(demand, Mapping))


def repeated_names(document: Document) -> Iterator[Problem]:
    """Yield each case whose name another bears already."""
    first: dict[str, int] = {}
    for at, case in entries(document):
        name = case.get("name")
        if isinstance(name, str) and name in first:
            yield document.problem(
                (*at, "name"), f"the name {name!r} is taken by the case in line {first[name]}; give each its own"
            )
        elif isinstance(name, str):
            first[name] = document.position((*at, "name"))[0]


def one_submission(document: Document) -> Iterator[Problem]:
    """Yield each case that does not submit exactly one thing, or wants what goes with the other kind."""
    for at, case in entries(document):
        given = [key for key in ("submit", "submit_all") if case.get(key) is not None]
        if len(given) != 1:
            what = (
                "give either `submit` or `submit_all`, not both" if given else "the case submits nothing; add `submit: {stage: …}`"
            )
            yield document.problem(at, what)
            continue
        want, burst = case.get("want"), given == ["submit_all"]
        if isinstance(want, Mapping):
            yield from _wants(document, (*at, "want"), want, burst=burst)
        elif burst and isinstance(want, str):
            yield document.problem((*at, "want"), "`submit_all` wants {placed: …, makespan_at_most: …}, not a word")
        if burst and case.get("reasons"):
            yield document.key_problem((*at, "reasons"), "`reasons` goes with `submit`: many units have many moments")


def _wants(document: Document, at: Path, want: Mapping[str, Any], *, burst: bool) -> Iterator[Problem]:
    fitting = ("placed", "makespan_at_most") if burst else ("on", "then")
    other = ("on", "then") if burst else ("placed", "makespan_at_most")
    for key in other:
        if key in want:
            yield document.key_problem(
                (*at, key), f"`{key}` goes with {'`submit`' if burst else '`submit_all`'}; write {' or '.join(fitting)}"
            )
    if not burst and "on" not in want and not set(other) & set(want):
        yield document.problem(at, "say where: {on: NAME}, or wait, or never")
    if burst and not want:
        yield document.problem(at, 'say what: {placed: {NAME: ">=3"}}, or makespan_at_most')


def good_demands(document: Document) -> Iterator[Problem]:
    """Yield each mistake in a demand."""
    for at, case in entries(document):
        for path, demand in demands(case, at):
            found = [problem for key, value in demand.items() for problem in _demand_key(document, (*path, key), value)]
            yield from found or _told(document, path, demand)  # as a whole: `resident` must be part of `vram`


def _demand_key(document: Document, path: Path, value: Any) -> Iterator[Problem]:
    key, source = str(path[-1]), document.sources.get(path)
    if key not in _DEMAND_KEYS:
        hint = did_you_mean(key, _DEMAND_KEYS) or f"; known keys: {', '.join(_DEMAND_KEYS)}"
        yield document.key_problem(path, f"unknown key {key!r}{hint}")
    elif value is None:
        yield document.problem(path, f"{key}: a value is missing; write it, or leave the key out")
    elif key in _TEXT and not isinstance(value, str):
        yield document.problem(path, f"{key}: {quote_it(source) if source else 'write text'}")
    elif key in _SWITCHES and not isinstance(value, bool):
        yield document.problem(path, f"{key}: write true or false")
    elif key == "inputs":
        yield from _inputs(document, path, value)
    else:
        yield from _told(document, path, {key: value})


def _told(document: Document, path: Path, demand: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what `Demand` itself says of a key, or of a whole demand."""
    try:
        Demand(**demand)
    except BadValue as error:
        told = error.fields
        yield document.problem(path, f"{told['what']}: {told['value']!r} is not valid: {told['why']}")
    except (TypeError, ValueError, OverflowError):
        yield document.problem(path, f"{path[-1]}: no value of this kind; see the keys of a demand")


def _inputs(document: Document, path: Path, value: Any) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield document.problem(path, "inputs: write a mapping of sizes, as {tower: 2GiB}")
        return
    for where, size in value.items():
        wrong_kind = isinstance(size, bool) or not isinstance(size, int | str)
        if wrong_kind or (isinstance(size, int) and size < 0):
            yield document.problem((*path, where), f"{where}: write a size such as 2GiB, or whole bytes")
        else:
            yield from _told(document, (*path, where), {"inputs": {where: size}})


def known_names(document: Document, fleet: Fleet) -> Iterator[Problem]:
    """Yield each name of a device or host that the fleet has not, and each code that is no reason."""
    devices, hosts = list(fleet.by_name), list(fleet.host_by_name)
    for at, case in entries(document):
        for path in _device_places(case, at):
            yield from _known(document, path, devices, "device")
        for host in _mapping(case.get("hosts")):
            yield from _known(document, (*at, "hosts", host), hosts, "host")
        for path, demand in demands(case, at):
            for where in _mapping(demand.get("inputs")):
                yield from _known(document, (*path, "inputs", where), [*devices, *hosts], "device or host")
        for device, code in _mapping(case.get("reasons")).items():
            if isinstance(code, str) and code not in REASON_ORDER:
                hint = did_you_mean(code, REASON_ORDER) or f"; the reasons are {', '.join(REASON_ORDER)}"
                yield document.problem((*at, "reasons", device), f"{code!r} is no reason{hint}")


def _device_places(case: Mapping[str, Any], at: Path) -> Iterator[Path]:
    """Yield the place of each name of a device: as a value, or as a key."""
    want = _mapping(case.get("want"))
    for key in ("on", "then"):
        yield from _listed((*at, "want", key), want.get(key))
    yield from ((*at, "want", "placed", name) for name in _mapping(want.get("placed")))
    for key in ("states", "foreign", "reasons"):
        yield from ((*at, key, name) for name in _mapping(case.get(key)))
    for key in ("running", "resident"):
        found = case.get(key)
        for i, entry in enumerate(found if isinstance(found, list) else ()):
            yield from _listed((*at, key, i, "on"), _in(entry, "on"))


def _listed(path: Path, value: Any) -> Iterator[Path]:
    if isinstance(value, str):
        yield path
    elif isinstance(value, list):
        yield from ((*path, i) for i, name in enumerate(value) if isinstance(name, str))


def _known(document: Document, path: Path, known: Iterable[str], what: str) -> Iterator[Problem]:
    """Yield a problem where the name at `path`, a value or else a key, is not among `known`."""
    value = _value(document.data, path)
    in_list = isinstance(path[-1], int) or path[-1] == "on" or path[-1] == "then"
    name = str(value) if in_list else str(path[-1])
    if name not in known:
        hint = did_you_mean(name, known) or f"; the fleet has {', '.join(known) or 'none'}"
        place = document.position(path) if in_list else document.key_position(path)
        yield Problem(document.file, *place, f"the fleet has no {what} {name!r}{hint}")


def matching_counts(document: Document) -> Iterator[Problem]:
    """Yield each `on` that names more or fewer cards than the demand takes."""
    for at, case in entries(document):
        want, submit = _mapping(case.get("want")), _mapping(case.get("submit"))
        yield from _count(document, (*at, "want", "on"), want.get("on"), submit)
        running = case.get("running")
        for i, entry in enumerate(running if isinstance(running, list) else ()):
            yield from _count(document, (*at, "running", i, "on"), _in(entry, "on"), _mapping(_in(entry, "demand")))


def _count(document: Document, path: Path, on: Any, demand: Mapping[str, Any]) -> Iterator[Problem]:
    names, gpus = ([on] if isinstance(on, str) else on), demand.get("gpus", 1)
    if not isinstance(names, list) or not names or isinstance(gpus, bool) or not isinstance(gpus, int):
        return
    if len(names) != max(1, gpus):
        yield document.problem(path, f"on: {len(names)} name(s), but the demand takes {max(1, gpus)}")
    elif len(set(map(str, names))) < len(names):
        yield document.problem(path, "on: each card once")


def _in(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _value(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


CHECKS: Final = (repeated_names, one_submission, good_demands, matching_counts)
