"""What is wrong between machines: all hosts' facts, links and listeners at once. Pure.

The document is that of ``GET /v1/doctor``::

    head       {host: NAME}
    hosts      {NAME: {facts: {...}, seen_s_ago: 1.2, state: "ready"}}     facts as `facts` tells
    links      [{src, dst, bytes_per_s, rtt_s, at}]                        measured lately, each direction by itself
    baseline   [{src, dst, bytes_per_s}]                                   what the links once did
    reach      [{src, dst, port, what, ok, why: refused|timeout|no_route}] documented ports, tried from src
    listeners  [{host, address, port, what, protection: mutual-tls|tls+key|key|none}]
    workers    [{name, host, device, state}]                               as in ``status --json``

Each of them may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from dgpunet_dask.observe.checks import links, network, versions, workload
from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Finding
from dgpunet_dask.observe.local import check_host, guarded

Entries = Mapping[str, Facts]

#: States of a host that has no workers, and whose links nobody measures.
_AWAY: Final = frozenset({"lost", "stopped", "drained", "refused"})


def check_cluster(document: Mapping[str, Any], only: str | None = None) -> list[Finding]:
    """Return the findings about every host, and those between them.

    Parameters
    ----------
    only
        Tell of this host alone: its own findings, and its links and ports.
    """
    doc = Facts(document, "head")
    hosts = _hosts(doc)
    found = [finding for name, entry in hosts.items() for finding in _host(doc, name, entry)]
    for name, between in _BETWEEN.items():
        found += guarded(partial(between, hosts), doc, name)
    return found if only is None else [finding for finding in found if _about(finding, only)]


def _hosts(doc: Facts) -> dict[str, Facts]:
    """Return each host's entry by name."""
    entries = doc.at("hosts")
    found = entries if isinstance(entries, Mapping) else {}
    return {str(name): Facts(entry if isinstance(entry, Mapping) else {}, str(name)) for name, entry in sorted(found.items())}


def _facts(entry: Facts) -> Facts:
    raw = entry.at("facts")
    return Facts(raw if isinstance(raw, Mapping) else {}, entry.host)


def _host(doc: Facts, name: str, entry: Facts) -> Iterator[Finding]:
    state, seen = entry.text("state"), entry.number("seen_s_ago")
    yield from workload.host_seen(name, state, seen)
    yield from check_host(_facts(entry).raw, name)
    if state not in _AWAY and doc.at("workers") is not None:
        yield from guarded(partial(workload.workers, doc.rows("workers")), _facts(entry), "workers")


def _every(hosts: Entries) -> list[Facts]:
    return [_facts(entry) for entry in hosts.values()]


def _links(hosts: Entries, doc: Facts) -> Iterator[Finding]:
    rows = doc.rows("links")
    rates = links.rates_of(rows)
    yield from links.bandwidth(rates, links.rates_of(doc.rows("baseline")))
    yield from links.round_trips(links.rates_of(rows, "rtt_s"))
    yield from links.unmeasured([name for name, entry in hosts.items() if entry.text("state") not in _AWAY], rates)


def _strangers(hosts: Entries, doc: Facts) -> Iterator[Finding]:
    """Look at workers of hosts without an agent of their own, as those of a simulated fleet."""
    rows = doc.rows("workers")
    for host in sorted({name for row in rows if (name := row.text("host")) is not None} - set(hosts)):
        yield from workload.workers(rows, Facts({}, host))


_BETWEEN: Final[dict[str, Callable[[Entries, Facts], Iterable[Finding]]]] = {
    "versions": lambda hosts, doc: versions.across(_every(hosts), doc.text("head", "host")),
    "workers": _strangers,
    "mtu": lambda hosts, _: network.mtu(_every(hosts)),
    "reach": lambda _, doc: network.reach(doc.rows("reach")),
    "listeners": lambda _, doc: network.listeners(doc.rows("listeners")),
    "links": _links,
}


def _about(finding: Finding, host: str) -> bool:
    """Whether a finding is about a host, one of its cards, or a way to or from it."""
    ends = finding.subject.split(" -> ")
    return any(end == host or end.startswith(f"{host}/") for end in ends)
