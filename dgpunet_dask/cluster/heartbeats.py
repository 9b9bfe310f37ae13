"""What a host may say in a heartbeat. Pure.

Whoever has a host's certificate may send anything. What is let in is kept, shown to everybody and told to other hosts, so it must be of
the kinds and within the sizes that the rest of the head goes by: one host's nonsense must not spoil the view of all.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.errors import BadValue, JoinRefused
from dgpunet_dask.hardware.software import Software, compare_software, software_from

#: More of each than any machine has.
CARDS_MAX: Final = 128
ROLES_MAX: Final = 32
ROWS_MAX: Final = 1024
REPORTS_MAX: Final = 200
WORD_MAX: Final = 256
_CARD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat, checked.

    `facts` is ``None`` where the host did not send them; `crl` is the digest of the list that it has; `spool` is what its reports' numbers count in.
    """

    address: str
    peer_port: int
    boot: str
    roles: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None
    facts_digest: str = ""
    workers: Rows = ()
    stagehosts: Rows = ()
    health: Mapping[str, Any]
    listeners: Rows = ()
    reports: Rows = ()
    spool: str = ""
    crl: str | None = None


def beat_from(body: Mapping[str, Any]) -> Beat:
    """Return what a request's body says.

    Raises
    ------
    BadValue
        If a part is missing, of another kind, or larger than any true host's; what the host said before stays.
    """
    _check_finite(body)
    return Beat(
        address=_address(body.get("address")),
        peer_port=_number("peer_port", body.get("peer_port"), 1 << 16),
        boot=_word("boot", body.get("boot")),
        roles=texts_of(body, "roles", ROLES_MAX),
        facts=_facts(body.get("facts") or None),
        facts_digest=_word("facts_digest", body["facts_digest"]) if body.get("facts_digest") else "",
        workers=_workers(body.get("workers")),
        stagehosts=_rows("stagehosts", body.get("stagehosts"), "stage"),
        health=_mapping("health", body.get("health") or {}),
        listeners=_rows("listeners", body.get("listeners")),
        reports=_reports(body.get("reports")),
        spool=_word("spool", body.get("spool") or body.get("boot")),
        crl=None if body.get("crl") is None else _word("crl", body.get("crl")),
    )


def refusal(mine: Software, facts: Mapping[str, Any] | None) -> str | None:
    """Return why a host with these facts may run no workers beside a head with the software `mine`, ``None`` if it may."""
    software = None if facts is None else facts.get("software")
    if not isinstance(software, Mapping):
        return None
    refused = [str(skew) for skew in compare_software(mine, software_from(software)) if skew.level == "refuse"]
    return "; ".join(refused) or None


def differences(mine: Software, theirs: object, *, force: bool) -> list[str]:
    """Return what differs on a host that wants to join and may work; what cannot is returned as well if it is to be let in by `force`.

    Raises
    ------
    JoinRefused
        With each difference that keeps it out.
    """
    if not isinstance(theirs, Mapping):
        return []
    skews = [skew for skew in compare_software(mine, software_from(theirs)) if skew.level != "ok"]
    refused = [str(skew) for skew in skews if skew.level == "refuse"]
    if refused and not force:
        raise JoinRefused(host=str(theirs.get("host", "this host")), why="; ".join(refused))
    return [str(skew) for skew in skews]


def texts_of(body: Mapping[str, Any], name: str, most: int = ROLES_MAX) -> tuple[str, ...]:
    """Return a list of texts of a request's body, empty where there is none.

    Raises
    ------
    BadValue
        If it is something else, or longer than `most`.
    """
    return tuple(_word(name, text) for text in _listed(name, body.get(name), most))


def _check_finite(body: Mapping[str, Any]) -> None:
    """See to it that what is told on is JSON to others too: Python reads and writes numbers that it does not have."""
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        raise BadValue(what="heartbeat", value="nan or infinity", why="its numbers must be finite") from None


def _workers(value: object) -> Rows:
    rows = _rows("workers", value, "device")
    for row in rows:
        if row.get("pid") is not None:
            _number("pid", row["pid"], 1 << 32)
    return rows


def _facts(facts: object) -> Mapping[str, Any] | None:
    """See to it that facts have the parts that the head itself reads."""
    if facts is None:
        return None
    found = _mapping("facts", facts)
    for pair in _listed("cards", found.get("cards"), CARDS_MAX):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadValue(what="cards", value=_short(pair), why="each is a UUID and a name")
        _word("uuid", pair[0])
        if not isinstance(pair[1], str) or not _CARD.fullmatch(pair[1]):
            raise BadValue(what="name of a card", value=_short(pair[1]), why="use letters, digits, dot, underscore and hyphen, 64 at most")
    fleet = _mapping("fleet", found.get("fleet") or {})
    for device in _rows("devices", fleet.get("devices")):
        if device.get("uuid") is not None:
            _word("uuid", device["uuid"])
    return found


def _reports(value: object) -> Rows:
    reports = _rows("reports", value, "kind", most=REPORTS_MAX)
    for report in reports:
        _number("number of a report", report.get("n"), 1 << 53)
    return reports


def _rows(what: str, value: object, name: str | None = None, most: int = ROWS_MAX) -> Rows:
    """Return a list of mappings, each with a text under `name`."""
    rows = [_mapping(what, row) for row in _listed(what, value, most)]
    if name is not None:
        for row in rows:
            _word(f"{name} in {what}", row.get(name))
    return rows


def _listed(what: str, value: object, most: int) -> Sequence[Any]:
    found = () if value is None else value
    if not isinstance(found, list | tuple) or len(found) > most:
        raise BadValue(what=what, value=_short(value), why=f"it must be a list of {most} entries at most")
    return found


def _mapping(what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadValue(what=what, value=_short(value), why="it must be an object")
    return value


def _word(what: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= WORD_MAX:
        raise BadValue(what=what, value=_short(value), why=f"it must be a text of {WORD_MAX} characters at most")
    return value


def _number(what: str, value: object, end: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < end:
        raise BadValue(what=what, value=_short(value), why=f"it must be a whole number from 1 to {end - 1}")
    return value


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(_word("address", value)))
    except ValueError:
        raise BadValue(what="address", value=_short(value), why="it must be an IP address") from None


def _short(value: object) -> str:
    return str(value)[:80]
