"""Listens to all that hosts send: to one another over the bridge, to themselves over loopback, and to whatever lies beyond."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from struct import unpack
from types import TracebackType
from typing import Self

from dgpunet_dask.testing.netns import SUBNET, Lan
from tests.acceptance.realcluster.inside import inside

_ALL = 0x0003
_OUTGOING = 4
_SEEN = 160
_BUFFER = 64 << 20
_RCVBUFFORCE = 33
_SOL_PACKET, _STATISTICS = 263, 6
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP, _UDP, _IGMP, _ICMPV6, _OPTIONS = 6, 17, 2, 58, 0
_SYN, _ACK = 0x02, 0x10
HOME = IPv4Network(f"{SUBNET}.0/24")
#: A handshake record of TLS, and an alert: what may come first in either direction.
_TLS_FIRST = (b"\x16\x03", b"\x15\x03")

End = tuple[str, int]
Flow = tuple[End, End]


@dataclass
class Heard:
    """What went over the wire.

    Parameters
    ----------
    first
        The first bytes of each direction of a TCP connection whose beginning was heard.
    begun, opened
        Those connections in both directions, and from who opened them to whom.
    strange
        Packets that no cluster has to send: to other networks, over other protocols, or a question for a gateway.
    """

    first: dict[Flow, bytes] = field(default_factory=dict)
    begun: set[Flow] = field(default_factory=set)
    opened: set[Flow] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)
    packets: int = 0
    dropped: int = 0

    def ports(self) -> set[int]:
        """Return the ports to which connections were opened and something was said."""
        return {flow[1][1] for flow in self.opened if flow in self.first}

    def clear(self) -> dict[Flow, bytes]:
        """Return the connections that did not begin with TLS."""
        return {flow: data for flow, data in self.first.items() if not data.startswith(_TLS_FIRST)}


class Wiretap:
    """Hears all hosts of a LAN for the length of a ``with``; `gateway` stands for everything beyond, and no one is there.

    Each host is given a route by way of it, so that what a process tries to send away comes out of the host instead of failing inside.
    """

    def __init__(self, lan: Lan, gateway: str = f"{SUBNET}.250") -> None:
        self.lan, self.gateway, self.heard = lan, gateway, Heard()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        for host in self.lan.hosts.values():
            neighbour = ["ip", "neigh", "replace", self.gateway, "lladdr", "02:00:00:00:00:fa", "dev", "eth0", "nud", "permanent"]
            host.run(neighbour, check=True)
            host.run(["ip", "route", "replace", "default", "via", self.gateway], check=True)
            self._listen(host.namespace, "lo", self._local)
        self._listen(self.lan.bridge, None, self._between)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for ear in self._sockets:
            self.heard.dropped += unpack("II", ear.getsockopt(_SOL_PACKET, _STATISTICS, 8))[1]
            ear.close()
        for host in self.lan.hosts.values():
            host.run(["ip", "route", "del", "default"])

    def _listen(self, namespace: str, interface: str | None, take) -> None:
        def opened() -> socket.socket:
            ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            ear.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
            if interface is not None:
                ear.bind((interface, _ALL))
            ear.settimeout(0.2)
            return ear

        ear = inside(namespace, opened)
        self._sockets.append(ear)
        thread = threading.Thread(target=self._hear, args=(ear, take), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _hear(self, ear: socket.socket, take) -> None:
        while not self._stop.is_set():
            try:
                data, where = ear.recvfrom(_SEEN)
            except TimeoutError:
                continue
            if where[2] != _OUTGOING:  # each packet once: as it comes in
                self.heard.packets += 1
                take(data)

    def _local(self, data: bytes) -> None:
        """Over loopback TCP is nobody's business; a name server would be asked by UDP."""
        kind = unpack("!H", data[12:14])[0]
        if kind == _IPV4 and data[23] == _UDP:
            self.heard.strange.append(f"loopback, UDP: {data[26:34].hex()} {data[34:38].hex()}")

    def _between(self, data: bytes) -> None:
        kind = unpack("!H", data[12:14])[0]
        if kind == _IPV4:
            self._ipv4(data[14:])
        elif kind == _ARP:
            self._known(IPv4Address(data[38:42]), "ARP")
        elif kind == _IPV6 and _ICMPV6 in (data[20], data[54] if data[20] == _OPTIONS else None):
            return  # the kernel looks for neighbours, and tells which groups it hears
        else:
            self.heard.strange.append(f"protocol {kind:#x}: {data[14:60].hex()}")

    def _known(self, address: IPv4Address, what: str) -> None:
        if address not in HOME or str(address) == self.gateway:
            self.heard.strange.append(f"{what} to {address}")

    def _ipv4(self, packet: bytes) -> None:
        head, protocol, source, target = (packet[0] & 15) * 4, packet[9], IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        if protocol == _IGMP:
            return
        if protocol != _TCP:
            self.heard.strange.append(f"protocol {protocol} from {source} to {target}: {packet[head:head + 40]!r}")
            return
        self._known(target, f"TCP from {source}")
        segment = packet[head:]
        ports, flags, offset = unpack("!HH", segment[:4]), segment[13], (segment[12] >> 4) * 4
        flow: Flow = ((str(source), ports[0]), (str(target), ports[1]))
        if flags & _SYN:
            self.heard.begun.add(flow)
            self.heard.opened |= set() if flags & _ACK else {flow}
            self.heard.first.pop(flow, None)
        length = unpack("!H", packet[2:4])[0] - head - offset
        if length > 0 and flow in self.heard.begun and flow not in self.heard.first:
            self.heard.first[flow] = segment[offset : offset + 8]
