"""Asking other hosts' peer ports; see `peer` for the requests."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.peer import MOST_BYTES, MOST_SECONDS, drink, pour
from dgpunet_dask.cluster.peer_wire import BUFFER, CHUNK, MOST_ANSWER, PORT, receive, send
from dgpunet_dask.errors import PeerBusy, PeerFailed

#: How long a host may take to answer, and to be connected.
ANSWER_S: Final = 10.0
#: Looking through a folder of weights that nobody has looked through before takes long.
LISTING_S: Final = 600.0
_PINGS: Final = 3


@dataclass(frozen=True)
class Peer:
    """A host of the cluster and where its peer port answers. `is_head`: it is the head's host, which others spare."""

    host: str
    address: str
    port: int = PORT
    is_head: bool = False

    @property
    def where(self) -> str:
        """Address and port in words."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Ping:
    """The shortest round trip, and how far the peer's clock is ahead of ours, in seconds; the latter is known to half a round trip."""

    host: str
    rtt_s: float
    offset_s: float


class PeerLink:
    """One connection to a peer. Made by `PeerClient.link`."""

    def __init__(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.reader = reader
        self.writer = writer

    async def ask(self, request: str, timeout_s: float = ANSWER_S, **fields: Any) -> dict[str, Any]:
        """Return the fields of the answer.

        Raises
        ------
        PeerFailed
            If there is none, or the peer refuses.
        """
        with _named(self.peer, request):
            await send(self.writer, {"request": request, **fields}, timeout_s)
            return await self.answer(request, timeout_s)

    async def answer(self, request: str, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the fields of the next answer on the connection. Raises as `ask` does."""
        with _named(self.peer, request):
            found = await receive(self.reader, MOST_ANSWER, timeout_s)
        if found is None:
            raise failed(self.peer, request, "it closed the connection")
        if isinstance(found.get("ok"), dict):
            return dict(found["ok"])
        kind = PeerBusy if found.get("code") == "busy" else PeerFailed
        raise kind(host=self.peer.host, address=self.peer.where, request=request, why=str(found.get("error", "no reason was given"))[:300])

    async def read(self, size: int, take: Callable[[bytes], Awaitable[None]], stall_s: float) -> None:
        """Give the next `size` bytes to `take`, piece by piece. Raises as `ask` does; what `take` raises passes through."""
        while size:
            with _named(self.peer, "read"):
                async with asyncio.timeout(stall_s):
                    piece = await self.reader.readexactly(min(size, CHUNK))
            size -= len(piece)
            await take(piece)


class PeerClient:
    """Asks the peer ports of other hosts. Making the value touches nothing.

    Parameters
    ----------
    context
        TLS of a client with this host's certificate; a peer must show one for the name of its host.
    measuring
        The lock of this host's `PeerServer`, so that one measurement runs here at a time.
    """

    def __init__(self, context: ssl.SSLContext, *, clock: Clock | None = None, measuring: asyncio.Lock | None = None) -> None:
        self._context = context
        self._clock = clock or SystemClock()
        self._measuring = measuring or asyncio.Lock()

    @asynccontextmanager
    async def link(self, peer: Peer) -> AsyncIterator[PeerLink]:
        """Connect to `peer`.

        Raises
        ------
        PeerFailed
            If it cannot be reached, or shows no certificate of the cluster for its name.
        """
        with _named(peer, "connect"):
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_connection(
                    peer.address, peer.port, ssl=self._context, server_hostname=peer.host, limit=BUFFER, ssl_shutdown_timeout=2.0
                )
        try:
            yield PeerLink(peer, reader, writer)
        finally:
            writer.transport.abort()

    async def ping(self, peer: Peer, times: int = _PINGS) -> Ping:
        """Return round trip and clock offset, from the fastest of `times` pings on one connection. Raises as `link` does."""
        found = []
        async with self.link(peer) as link:
            for _ in range(times):
                began, wall = self._clock.monotonic(), self._clock.wall()
                answer = await link.ask("ping")
                rtt_s = self._clock.monotonic() - began
                with _named(peer, "ping"):
                    found.append(Ping(str(answer["host"]), rtt_s, float(answer["wall"]) - (wall + rtt_s / 2)))
        return min(found, key=lambda p: p.rtt_s)

    async def probe_ports(self, peer: Peer, ports: Iterable[int]) -> dict[int, str]:
        """Return how each port of this host looks from `peer`: ``open``, ``refused``, ``silent`` or an error. Raises as `link` does."""
        async with self.link(peer) as link:
            answer = await link.ask("probe_ports", ports=sorted(ports))
        with _named(peer, "probe_ports"):
            return {int(port): str(state) for port, state in answer["ports"]}

    async def bandwidth(
        self, peer: Peer, direction: str = "up", nbytes: int = 256 << 20, seconds: float = MOST_SECONDS
    ) -> float | None:
        """Return the bytes per second from here to `peer` (``up``) or from there to here (``down``), under TLS.

        ``None`` where too little came to tell. At most `nbytes` and about `seconds` are spent.

        Raises
        ------
        PeerBusy
            If a measurement runs here or there.
        PeerFailed
            As `link`.
        """
        if self._measuring.locked():
            raise PeerBusy(host=peer.host, address=peer.where, request="bandwidth", why="a measurement runs on this host")
        nbytes, seconds = min(nbytes, MOST_BYTES), min(seconds, MOST_SECONDS)
        async with self._measuring, self.link(peer) as link:
            await link.ask("bandwidth", direction=direction, bytes=nbytes, seconds=seconds)
            with _named(peer, "bandwidth"):
                if direction == "down":
                    count, took_s = await drink(link.reader, nbytes, seconds, self._clock)
                else:
                    count, took_s = await self._upload(link, nbytes, seconds)
        return count / took_s if count > 0 and took_s > 0 else None

    async def _upload(self, link: PeerLink, nbytes: int, seconds: float) -> tuple[int, float]:
        """Send until the peer says what came of it: on a slow link that is before all has been sent."""
        answer = asyncio.ensure_future(link.answer("bandwidth", seconds + ANSWER_S))
        pouring = asyncio.ensure_future(pour(link.writer, nbytes, seconds, self._clock))
        try:
            found = await answer
        finally:
            pouring.cancel()
            answer.cancel()
            await asyncio.gather(pouring, answer, return_exceptions=True)
        return int(found["bytes"]), float(found["seconds"])

    async def has(self, peer: Peer, kind: str, digest: str) -> bool:
        """Whether `peer` has that folder. Raises as `link` does."""
        async with self.link(peer) as link:
            return (await link.ask("has", kind=kind, digest=digest)).get("has") is True


@contextmanager
def _named(peer: Peer, request: str) -> Iterator[None]:
    """Turn whatever a connection raises into `PeerFailed` that names peer and request."""
    try:
        yield
    except TimeoutError as error:
        raise failed(peer, request, "no answer came in time") from error
    except asyncio.IncompleteReadError as error:
        raise failed(peer, request, "it closed the connection") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise failed(peer, request, _why(error)) from error


def _why(error: Exception) -> str:
    """Return the error in words, without numbers and addresses that the message has anyway."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error})"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def failed(peer: Peer, request: str, why: str) -> PeerFailed:
    """Return the error that names peer and request."""
    return PeerFailed(host=peer.host, address=peer.where, request=request, why=why)
