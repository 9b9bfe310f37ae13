"""What a head knows of its hosts, put in the layout of `facts`. Pure.

An agent tells its head what placement needs, seldom, and how its cards are, often. Where it sends all that `collect.collect_local` gathers
too (``doctor``), that counts before both.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from dgpunet_dask.observe.facts import Facts


def facts_of_entry(entry: Facts, reports: tuple[Facts, ...] = ()) -> dict[str, Any]:
    """Return the facts of one host.

    Parameters
    ----------
    entry
        Its entry of the document: ``facts``, ``health``, ``doctor``, ``clock_offset_s``.
    reports
        What agents have reported: rows of host, kind, and for errors (Xid) uuid, xid, at, severity, meaning.
    """
    told = Facts(_mapping(entry.at("facts")), entry.host)
    known = _of_a_node(told) if told.at("fleet") is not None else dict(told.raw)
    names = {uuid: row.at("name") for row in Facts(known, entry.host).rows("cards") if (uuid := row.text("uuid")) is not None}
    known |= _mapping(entry.at("doctor"))
    cards = known.get("cards")
    if isinstance(cards, list):
        health = _mapping(entry.at("health", "cards"))
        known["cards"] = [*(_with_health(_named(card, "name", names), health) for card in cards), *_fallen(cards, health)]
    if entry.rows("health", "canary"):
        known.setdefault("canary", entry.at("health", "canary"))
    if isinstance(known.get("canary"), list):
        known["canary"] = [_named(row, "device", names) for row in known["canary"]]
    if isinstance(entry.at("health", "disk"), Mapping):
        known.setdefault("disk", [entry.at("health", "disk")])
    offset = entry.number("clock_offset_s")
    if offset is not None:
        known["clock"] = {**_mapping(known.get("clock")), "offset_s": offset}
    events = [dict(row.raw) for row in reports if row.number("xid") is not None and row.text("host") == entry.host]
    return known | ({"xid": _once([*Facts(known, entry.host).rows("xid"), *(Facts(row, entry.host) for row in events)])} if events else {})


def _of_a_node(told: Facts) -> dict[str, Any]:
    """Return what an agent tells placement, in our layout."""
    devices = [row for row in told.rows("fleet", "devices") if row.text("kind") != "cpu"]
    host = next(iter(told.rows("fleet", "hosts")), Facts({}, told.host))
    arches = next((row.at("runtime_arches") for row in devices), None)
    interface = _mapping(told.at("interface"))
    return {
        "cards": [{**row.raw, "index": index} for index, row in enumerate(devices)],
        "software": {**_mapping(told.at("software")), **({} if arches is None else {"torch_arches": arches})},
        "network": {
            "interfaces": [{**interface, "up": True, "addresses": [interface.get("address")]}] if interface else [],
            "chosen": {"interface": interface.get("name"), **{key: interface.get(key) for key in ("address", "why", "warning")}},
        },
        "power": {"source": host.at("power"), "battery": host.at("battery")},
    }  # fmt: skip


def _named(row: Any, key: str, names: Mapping[str, Any]) -> Any:
    """Return a card under its name in the cluster: its own host counts its cards by itself."""
    name = names.get(str(row.get("uuid"))) if isinstance(row, Mapping) else None
    return row if name is None else {**row, key: name}


def _once(events: list[Facts]) -> list[dict[str, Any]]:
    """Return the last of the errors of each number and card: the kernel's log and an agent tell the same ones."""
    return list({(str(row.at("uuid")), str(row.at("xid"))): dict(row.raw) for row in events}.values())


def _with_health(card: Any, health: Mapping[str, Any]) -> Any:
    if not isinstance(card, Mapping):
        return card
    return {**card, **_mapping(health.get(str(card.get("uuid"))))}


def _fallen(cards: list[Any], health: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cards that the agent has seen, and that are not among its host's any more: they fell off the bus."""
    here = {str(card.get("uuid")) for card in cards if isinstance(card, Mapping)}
    gone = ((uuid, _mapping(row)) for uuid, row in health.items() if uuid not in here)
    return [{"uuid": uuid, **row} for uuid, row in gone if row.get("present") is False]


def workers_of(doc: Facts, entries: Mapping[str, Facts]) -> tuple[Facts, ...]:
    """Return the rows of ``status --json``, else those that the agents keep."""
    if doc.at("workers") is not None:
        return doc.rows("workers")
    return tuple(Facts({**row.raw, "host": name}, name) for name, entry in entries.items() for row in entry.rows("workers"))


def reach_of(doc: Facts, entries: Mapping[str, Facts]) -> tuple[Facts, ...]:
    """Return which ports were tried, and those of hosts that the head cannot reach."""
    head = doc.text("head", "host") or "head"
    shut = [(name, entry.text("unreachable")) for name, entry in entries.items()]
    rows = ({"src": head, "dst": name, "port": None, "what": "agent", "ok": False, "why": why} for name, why in shut if why is not None)
    return (*doc.rows("reach"), *(Facts(row, head) for row in rows))


def links_of(doc: Facts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of what was measured lately and rows of the baseline; a table of links has both, and several rates, in one row."""
    now, before = [], [dict(row.raw) for row in doc.rows("baseline")]
    for row in doc.rows("links"):
        rates = row.at("rates")
        good = [rate for rate in rates if isinstance(rate, int | float)] if isinstance(rates, list) else []
        now.append({**row.raw, "bytes_per_s": statistics.median(good) if good else row.at("bytes_per_s")})
        if row.number("baseline") is not None:
            before.append({"src": row.at("src"), "dst": row.at("dst"), "bytes_per_s": row.at("baseline")})
    return now, before


def _mapping(found: Any) -> dict[str, Any]:
    return dict(found) if isinstance(found, Mapping) else {}
