"""What is wrong between machines: all hosts' facts, links and listeners at once. Pure.

The document is that of ``GET /v1/doctor``::

    head       {host: NAME}
    hosts      {NAME: {state: "ready", seen_s_ago: 1.2, doctor: {...}, facts: {...}, health: {cards: {UUID: {...}}, canary: [...], disk: {path, total, free, floor, low},
                       backup: {name, at, error}, followers: [{name, ends, error, ended_s_ago}]},
                       workers: [{device, state}], unreachable: why, clock_offset_s: how far ahead of the head's}}
               `doctor` is what `collect.collect_local` gathered there; without it, `entries` reads what agents tell their head anyway
    links      [{src, dst, rates | bytes_per_s, rtt_s, at, baseline}]      each direction by itself
    baseline   [{src, dst, bytes_per_s}]                                   what the links once did, where not in the rows above
    reach      [{src, dst, port, what, ok, why: refused|timeout|no_route}] documented ports, tried from src
    listeners  [{host, address, port, what, protection: mutual-tls|tls+key|key|none}]
    workers    [{name, host, device, state}]                               as in ``status --json``
    backup     {at, name, error, every_s, now, wanted, others, host, host_at, host_error}   of the head's ledger; times since 1970
    reports    [{host, kind: "card_fault", uuid, xid, at, severity, meaning}]

Each of them may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dgpunet_dask.observe.checks import agents, links, network, versions, workload
from dgpunet_dask.observe.entries import facts_of_entry, links_of, reach_of, workers_of
from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Finding
from dgpunet_dask.observe.local import check_host, guarded

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
    found = [finding for name, host in hosts.items() for finding in _host(name, host)]
    for name, between in _BETWEEN.items():
        found += guarded(partial(between, hosts), doc, name)
    return found if only is None else [finding for finding in found if _about(finding, only)]


@dataclass(frozen=True)
class Host:
    """One host: its entry of the document, and its facts."""

    entry: Facts
    facts: Facts

    @property
    def away(self) -> bool:
        """Whether it is out of the cluster."""
        return self.entry.text("state") in _AWAY


Hosts = Mapping[str, Host]


def _hosts(doc: Facts) -> dict[str, Host]:
    found, reports = doc.at("hosts"), doc.rows("reports")
    entries = {str(name): Facts(entry if isinstance(entry, Mapping) else {}, str(name)) for name, entry in _items(found)}
    return {name: Host(entry, Facts(facts_of_entry(entry, reports), name)) for name, entry in entries.items()}


def _items(found: Any) -> list[tuple[Any, Any]]:
    return sorted(found.items(), key=lambda item: str(item[0])) if isinstance(found, Mapping) else []


def _host(name: str, host: Host) -> Iterator[Finding]:
    yield from workload.host_seen(name, host.entry.text("state"), host.entry.number("seen_s_ago"))
    yield from guarded(agents.followers, host.entry, "followers")
    yield from check_host(host.facts.raw, name)


def _every(hosts: Hosts) -> list[Facts]:
    return [host.facts for host in hosts.values()]


def _entries(hosts: Hosts) -> dict[str, Facts]:
    return {name: host.entry for name, host in hosts.items()}


def _workers(hosts: Hosts, doc: Facts) -> Iterator[Finding]:
    """Look at the workers of each host; also of those without an agent of their own, as in a simulated fleet."""
    rows = workers_of(doc, _entries(hosts))
    for host in hosts.values():
        if not host.away and (doc.at("workers") is not None or host.entry.at("workers") is not None):
            yield from workload.workers(rows, host.facts)
    for name in sorted({known for row in rows if (known := row.text("host")) is not None} - set(hosts)):
        yield from workload.workers(rows, Facts({}, name))


def _links(hosts: Hosts, doc: Facts) -> Iterator[Finding]:
    now, before = (tuple(Facts(row, "head") for row in rows) for rows in links_of(doc))
    rates = links.rates_of(now)
    yield from links.bandwidth(rates, links.rates_of(before))
    yield from links.round_trips(links.rates_of(now, "rtt_s"))
    yield from links.unmeasured([name for name, host in hosts.items() if not host.away], rates)


_BETWEEN: Final[dict[str, Callable[[Hosts, Facts], Iterable[Finding]]]] = {
    "versions": lambda hosts, doc: versions.across(_every(hosts), doc.text("head", "host")),
    "workers": _workers,
    "mtu": lambda hosts, _: network.mtu(_every(hosts)),
    "reach": lambda hosts, doc: network.reach(reach_of(doc, _entries(hosts))),
    "listeners": lambda _, doc: network.listeners(doc.rows("listeners")),
    "links": _links,
    "backup": lambda _, doc: agents.backup(doc),
}


def _about(finding: Finding, host: str) -> bool:
    """Whether a finding is about a host, one of its cards, or a way to or from it."""
    ends = finding.subject.split(" -> ")
    return any(end == host or end.startswith(f"{host}/") for end in ends)
