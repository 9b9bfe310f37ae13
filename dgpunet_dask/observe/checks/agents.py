"""What agents say of themselves, and where copies of the head's ledger are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

#: A copy that is older than so many intervals is late, and never before so many seconds.
LATE: Final = 3.0
LATE_LEAST_S: Final = 300.0


def followers(entry: Facts) -> Iterator[Finding]:
    """Whether what an agent does beside its heartbeats has ended lately; it begins again by itself."""
    for row in entry.rows("health", "followers"):
        name, ends, error = row.text("name") or "?", row.number("ends"), row.text("error")
        cure = "see run/logs/agent.log of that host; if it goes on, start its part of the cluster again and please report this"
        told = {"name": name, "ends": ends, "error": error, "ended_s_ago": row.number("ended_s_ago")}
        what = f"what looks after the {name} has ended {ends or 1:g} times and was begun again: {error}"
        yield Check("agent", "system", entry.host).warn(what, cure, **told)


def backup(doc: Facts) -> Iterator[Finding]:
    """Whether a copy of the ledger lies on a second host, and of when it is."""
    told = Facts(doc.at("backup") if isinstance(doc.at("backup"), dict) else {}, doc.text("head", "host") or "head")
    now, every_s = told.number("now"), told.number("every_s")
    if now is None or every_s is None:
        return
    check, late_s = Check("ledger_backup", "system", told.host), max(LATE * every_s, LATE_LEAST_S)
    evidence = {name: told.at(name) for name in ("at", "host", "host_at", "error", "host_error", "others")}
    at, host, there = told.number("at"), told.text("host"), told.number("host_at")
    if told.text("error") is not None:
        yield check.fault(f"the ledger cannot be copied: {told.text('error')}", "see run/logs/head.log on the head's host", **evidence)
    elif at is None:
        yield check.ok("the ledger has not been copied yet", **evidence)
    elif host is None and (told.number("others") or 0) > 0:
        cure = "set `disk: ledger_backup: host:` in config.yaml on the head's host to auto, or to the name of another host"
        yield check.warn("no second host keeps a copy of the ledger: a lost head's disk would take all jobs along", cure, **evidence)
    elif host is None:
        yield check.ok(f"the ledger was copied {_ago(now - at)} ago, on this host, for there is no other", **evidence)
    elif there is None or now - there > late_s:
        since = "has no copy of the ledger yet" if there is None else f"has a copy of the ledger that is {_ago(now - there)} old"
        why = told.text("host_error")
        cure = "see that it is ready in `dgpunet-dask nodes` and has room on its disk; run/logs/agent.log there tells why a fetch failed"
        if there is None and now - at <= late_s and why is None:
            yield check.ok(f"{host} {since}", **evidence)  # it has just been chosen
        else:
            yield check.warn(f"{host} {since}" + (f": {why}" if why else ""), cure, **evidence)
    else:
        yield check.ok(f"{host} has a copy of the ledger that is {_ago(now - there)} old", **evidence)


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
