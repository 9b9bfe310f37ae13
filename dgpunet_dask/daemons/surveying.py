"""What the head tries when `doctor` asks: the documented ports, from the head to each host and back, and how far the clocks are apart.

Before a host has joined, only whether its ports are reached from the head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.cluster.config import ClusterConfig, Ports
from dgpunet_dask.cluster.nodes import Node
from dgpunet_dask.cluster.peer import probe
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.errors import DgpunetError

#: How long one port may take to answer.
TRY_S: Final = 2.0
_WHY: Final = {"refused": "refused", "silent": "timeout"}


@dataclass(frozen=True)
class Survey:
    """What was found: rows of ``reach`` (src, dst, port, what, ok, why), and seconds that each host's clock is ahead of the head's."""

    reach: Sequence[Mapping[str, Any]]
    offsets: Mapping[str, float]


async def survey(client: PeerClient, config: ClusterConfig, nodes: Sequence[Node]) -> Survey:
    """Try all hosts at once."""
    found = await asyncio.gather(*(_host(client, config, node) for node in nodes))
    return Survey([row for rows, _ in found for row in rows], {n.host: o for n, (_, o) in zip(nodes, found, strict=True) if o is not None})


async def knock(config: ClusterConfig, host: str, address: str) -> list[Mapping[str, Any]]:
    """Try the first port of each kind of a machine that has not joined. One that is refused is well: nothing listens yet, and nothing is between."""
    ports = Ports()  # other ones are chosen after joining
    wanted = [(ports.peer, "agent"), (ports.workers, "workers"), (ports.nannies, "nannies")]
    found = await asyncio.gather(*(probe(address, port, TRY_S) for port, _ in wanted))
    return [
        _row(config.host, host, port, what, "open" if state == "refused" else state)
        for (port, what), state in zip(wanted, found, strict=True)
    ]


async def _host(client: PeerClient, config: ClusterConfig, node: Node) -> tuple[list[Mapping[str, Any]], float | None]:
    there = await asyncio.gather(*(_there(config, node, port, what) for port, what in _ports_of(node, config)))
    peer = Peer(node.host, node.address, node.peer_port)
    try:
        ping = await client.ping(peer)
        back = await client.probe_ports(peer, [config.ports.scheduler, config.ports.api])
    except DgpunetError:
        return list(there), None
    names = {config.ports.scheduler: "scheduler", config.ports.api: "API"}
    return [*there, *(_row(node.host, config.host, port, names[port], state) for port, state in back.items())], ping.offset_s


def _ports_of(node: Node, config: ClusterConfig) -> list[tuple[int, str]]:
    """Return the ports that this host's daemons listen on: its agent's, and one for each device's worker and each card's nanny."""
    names = sorted([*node.cards.values(), f"{node.host}/cpu"])
    workers = [(config.ports.workers + number, f"worker of {name}") for number, name in enumerate(names)]
    nannies = [(config.ports.nannies + number, f"nanny of {name}") for number, name in enumerate(names) if name in node.cards.values()]
    return [(node.peer_port, "agent"), *workers, *nannies]


async def _there(config: ClusterConfig, node: Node, port: int, what: str) -> Mapping[str, Any]:
    return _row(config.host, node.host, port, what, await probe(node.address, port, TRY_S))


def _row(src: str, dst: str, port: int, what: str, state: str) -> Mapping[str, Any]:
    return {"src": src, "dst": dst, "port": port, "what": what, "ok": state == "open", "why": None if state == "open" else _WHY.get(state, state)}
