"""What runs on the machines: other people's use of the cards, workers, lost hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dgpunet_dask.observe.checks.cards import card_subject
from dgpunet_dask.observe.facts import Facts
from dgpunet_dask.observe.finding import Check, Finding

#: A desktop without open programs takes about this much, MiB.
FOREIGN_MIB: Final = 512
#: Agents report every two seconds.
SEEN_S: Final = 10.0
#: States of a worker that is there on purpose.
_IN_ORDER: Final = frozenset({"running", "cordoned", "draining", "paused"})


def foreign_memory(card: Facts) -> Iterator[Finding]:
    """Whether programs that are not ours hold memory of a card, and which."""
    if not isinstance(card.at("processes"), list | tuple):
        return
    check = Check("foreign_memory", "workload", card_subject(card))
    others = [row for row in card.rows("processes") if row.flag("ours") is False]
    held = sum(row.number("mib") or 0 for row in others)
    listed = [{"pid": row.at("pid"), "name": row.text("name"), "mib": row.number("mib")} for row in others]
    if held > FOREIGN_MIB:
        names = ", ".join(f"{row['name'] or 'unnamed'} (pid {row['pid']}, {_mib(row['mib'])})" for row in listed)
        cure = "end them if they are not wanted; placement works around them, and `reserve` of the card in the fleet file keeps room for good"
        yield check.warn(f"{held:g} MiB are held by programs that are not ours: {names}", cure, processes=listed)
    else:
        what = f"{held:g} MiB are held by programs that are not ours" if others else "nobody else uses it"
        yield check.ok(what, processes=listed)


def _mib(size: float | None) -> str:
    return "size hidden" if size is None else f"{size:g} MiB"


def workers(rows: tuple[Facts, ...], facts: Facts) -> Iterator[Finding]:
    """Whether each card of a host has its worker; `rows` are those of ``status --json``."""
    mine = [row for row in rows if row.text("host") == facts.host]
    on_cards = [row for row in mine if not (row.text("device") or "").endswith("/cpu")]
    check = Check("worker", "workload", facts.host)
    down = [row for row in mine if row.text("state") not in _IN_ORDER]
    cards = [card for card in facts.rows("cards") if card.flag("present") is not False]
    for row in down:
        what = f"the worker of {row.text('device')} is {row.text('state')}"
        cure = "the agent starts it again; if it stays away, its log is in $DGPUNET_HOME/run/logs on that host"
        yield check.fault(what, cure, worker=row.text("name"), state=row.text("state"))
    if len(on_cards) < len(cards):
        what = f"{len(cards)} cards, and {len(on_cards)} workers on them"
        cure = "the log of the missing worker is in $DGPUNET_HOME/run/logs on that host; `dgpunet-dask nodes` shows its restarts"
        yield check.fault(what, cure, cards=[card.text("uuid") for card in cards], workers=[row.text("device") for row in on_cards])
    elif mine and not down:
        yield check.ok(f"all {len(mine)} workers are there", workers=[row.text("device") for row in mine])


def host_seen(host: str, state: str | None, seen_s_ago: float | None) -> Iterator[Finding]:
    """Whether a host's agent reports."""
    if state is None and seen_s_ago is None:
        return
    check = Check("host", "network", host)
    told = {"state": state, "seen_s_ago": seen_s_ago}
    if state == "stopped":
        cure = "`dgpunet-dask join` on it starts it again; `dgpunet-dask remove-node` on the head puts it out for good"
        yield check.warn("its part of the cluster was stopped in good order", cure, **told)
    elif state == "lost" or (seen_s_ago is not None and seen_s_ago > SEEN_S):
        ago = "" if seen_s_ago is None else f" for {seen_s_ago:.0f} s"
        cure = "see whether it is on and reachable (`ping`), then `systemctl status` or the agent's log on it; it comes back by itself"
        yield check.fault(f"nothing has been heard of it{ago}", cure, **told)
    else:
        yield check.ok(f"reports{'' if state in (None, 'running', 'ready') else f', and is {state}'}", **told)
