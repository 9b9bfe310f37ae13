"""The hosts of a cluster as the head knows them: who belongs, who was heard of when, what is held back. Pure: the caller brings the time.

A host is *ready* while its agent's heartbeats come. An operator holds it back (`cordoned`: nothing new; `draining`: nothing new, and its
workers leave once they are done or the deadline has passed; `drained`). Silence makes it *lost*, an agent that said goodbye *stopped*.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from dgpunet_dask.errors import NewerFormat

Hold = Literal["cordoned", "draining", "drained"]
NodeState = Literal["joining", "ready", "cordoned", "draining", "drained", "refused", "stopped", "lost"]

VERSION: Final = 1
#: Agents are heard of this often.
BEAT_S: Final = 2.0
#: A host that says nothing for so long is lost: four beats may fail, and a cut cable is known well within 15 s.
LOST_S: Final = 10.0
#: Cards that are no longer in a host, and whose names are kept free for them.
GONE_KEPT: Final = 16
#: States of a host that runs no workers, and why.
_WITHOUT_WORKERS: Final = frozenset({"joining", "drained", "refused", "stopped"})
_NUMBERED: Final = re.compile(r"(.+)-\d+")


@dataclass(frozen=True, kw_only=True)
class Node:
    """What is kept of a host across restarts of the head.

    Parameters
    ----------
    cards
        Device name by the card's UUID: names are unique in the fleet, and stay with the card.
    gone
        The same of cards that were here, the last of which keep their names: one that fell off its bus comes back under its own.
    forced
        Whether it was let in although its versions differ.
    hold, hold_until, hold_why
        What an operator, or a fault, holds back; when draining ends whatever runs (seconds since 1970); and why.
    """

    host: str
    address: str
    roles: tuple[str, ...] = ()
    joined_at: float = 0.0
    cards: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    forced: bool = False
    peer_port: int = 0
    hold: Hold | None = None
    hold_until: float | None = None
    hold_why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the last heartbeat of a host said, and when that was by the head's monotonic clock.

    `refused`: why it may run no workers; `unreachable`: which of its ports cannot be reached from the head, and why.
    """

    at_s: float
    boot: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    facts_digest: str = ""
    workers: Sequence[Mapping[str, Any]] = ()
    stagehosts: Sequence[Mapping[str, Any]] = ()
    health: Mapping[str, Any] = field(default_factory=dict)
    listeners: Sequence[Mapping[str, Any]] = ()
    left: bool = False
    refused: str | None = None
    unreachable: str | None = None

    @classmethod
    def overdue(cls, began_s: float, now_s: float) -> Seen | None:
        """Return what stands for a host that an earlier head knew and this one, begun at `began_s`, has waited for long enough."""
        return cls(at_s=began_s) if now_s - began_s > LOST_S else None


def state_of(node: Node, seen: Seen | None, now_s: float) -> NodeState:
    """Return the state of a host at `now_s` of the head's monotonic clock."""
    if seen is None:
        return node.hold or "joining"
    if seen.left:
        return "stopped"
    if now_s - seen.at_s > LOST_S:
        return "lost"
    if seen.refused is not None:
        return "refused"
    return node.hold or "ready"


def name_cards(known: Mapping[str, str], taken: Iterable[str], cards: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return a device name for each card: the one it had, else the first free ``MODEL-N`` of the fleet.

    Parameters
    ----------
    known
        Names by UUID that this host's cards have.
    taken
        Names of other hosts' cards.
    cards
        UUID and the name that its own host would give each card, such as ``rtx3090-0``.
    """
    used = {*taken, *(known[uuid] for uuid, _ in cards if uuid in known)}
    names: dict[str, str] = {}
    for uuid, wish in cards:
        names[uuid] = known[uuid] if uuid in known else _free(wish, used)
        used.add(names[uuid])
    return names


def renamed(node: Node, others: Iterable[Node], cards: Sequence[tuple[str, str]]) -> Node:
    """Return `node` with these cards, by UUID and the name that the host itself would give each; those that it had are kept in `gone`."""
    taken = [name for other in others if other.host != node.host for name in (*other.cards.values(), *other.gone.values())]
    known = {**node.gone, **node.cards}
    present = {uuid for uuid, _ in cards}
    gone = dict([(uuid, name) for uuid, name in known.items() if uuid not in present][-GONE_KEPT:])
    return replace(node, cards=name_cards(known, [*taken, *gone.values()], list(dict(cards).items())), gone=gone)


def _free(wish: str, used: set[str]) -> str:
    found = _NUMBERED.fullmatch(wish)
    base = found[1] if found else wish
    return next(name for number in range(len(used) + 1) if (name := f"{base}-{number}") not in used)


def held_devices(nodes: Iterable[Node], full: Collection[str] = ()) -> dict[str, str]:
    """Return what placement must leave alone: state by device name. `full`: hosts whose disks have no room for work."""
    held: dict[str, str] = {}
    for node in nodes:
        if node.hold is not None or node.host in full:
            state = "cordoned" if node.hold in (None, "cordoned") else "draining"
            held |= dict.fromkeys([*node.cards.values(), f"{node.host}/cpu"], state)
    return held


def drained(node: Node, busy: bool, now: float) -> bool:
    """Whether the workers of a draining host may leave now, at `now` seconds since 1970."""
    return node.hold == "draining" and (not busy or (node.hold_until is not None and now >= node.hold_until))


def node_row(node: Node, seen: Seen | None, now_s: float, devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one entry of ``nodes --json``; `devices` are those of the host as placement sees them."""
    found = seen or Seen(at_s=0.0)
    workers = {worker["device"]: worker for worker in found.workers}
    facts, state = found.facts, state_of(node, seen, now_s)
    return {
        "host": node.host,
        "state": state,
        "why": found.refused or node.hold_why,
        "address": node.address,
        "roles": list(node.roles),
        "seen_s_ago": None if seen is None else round(max(0.0, now_s - seen.at_s), 1),
        "unreachable": found.unreachable,
        "devices": [{**device, "state": _shown(device["state"], state), **_worker(workers.get(str(device["name"])))} for device in devices],
        "stagehosts": [dict(row) for row in found.stagehosts],
        "software": facts.get("software"),
        "interface": facts.get("interface"),
        "health": dict(found.health),
        "drain_until": node.hold_until,
    }


def _shown(device: str, host: NodeState) -> str:
    """Return the state of a device: one without a worker is lost only where its host should run one."""
    return host if device == "lost" and host in _WITHOUT_WORKERS else device


def absent(name: str, host: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a device that placement does not see; `card`: what its host told of it."""
    return {"name": name, "host": host, "model": card.get("model"), "vram_mib": card.get("vram_mib"), "charged_mib": 0, "state": "lost"}


def _worker(worker: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "worker_pid": None if worker is None else worker.get("pid"),
        "worker_state": None if worker is None else worker.get("state"),
        "restarts": None if worker is None else worker.get("restarts"),
    }


@dataclass(frozen=True)
class Roll:
    """All hosts, and the number of heads that this cluster has had (`epoch`)."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    epoch: int = 0

    def put(self, node: Node) -> Roll:
        """Return this with `node` in it."""
        return replace(self, nodes={**self.nodes, node.host: node})

    def without(self, host: str) -> Roll:
        """Return this without a host."""
        return replace(self, nodes={name: node for name, node in self.nodes.items() if name != host})

    def to_json(self) -> str:
        """Return the text of ``nodes.json``."""
        rows = [asdict(self.nodes[name]) for name in sorted(self.nodes)]
        return json.dumps({"version": VERSION, "epoch": self.epoch, "nodes": rows}, indent=1)


def roll_from(text: str, path: object = "nodes.json") -> Roll:
    """Return what `Roll.to_json` gave.

    Raises
    ------
    NewerFormat
        If a newer release wrote it.
    ValueError
        If it is damaged.
    """
    raw = json.loads(text)
    try:
        if raw["version"] > VERSION:
            raise NewerFormat(path=path, found=raw["version"], known=VERSION)
        nodes = [Node(**{**row, "roles": tuple(row["roles"]), "cards": dict(row["cards"])}) for row in raw["nodes"]]
        return Roll({node.host: node for node in nodes}, int(raw["epoch"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is damaged ({error})") from error
