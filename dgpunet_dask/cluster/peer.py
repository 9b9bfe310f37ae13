"""The agent's peer port: whether hosts reach one another, how fast, and folders that one has and another needs. Mutual TLS.

A caller shows a certificate of the cluster for a host (role ``node`` or ``head``); users' certificates are refused. One connection carries
requests one after the other (`peer_wire` has the frames, `peer_client` makes them):

===========  =============================  ==========================================================================================
request      fields                         answer
===========  =============================  ==========================================================================================
ping                                        host, wall (seconds since 1970)
probe_ports  ports                          ports: [port, ``open``, ``refused``, ``silent`` or the error], tried at the caller's address
bandwidth    direction, bytes, seconds      ``down``: that many bytes, or fewer when the time is over, then the connection ends;
                                            ``up``: the same from the caller, then bytes, seconds. One at a time per host.
has          kind, digest                   has
files        kind, digest                   files: [name, size, sha256] of each
read         kind, digest, name, offset     size, then the file's bytes from there
===========  =============================  ==========================================================================================

An answer is ``{"ok": {…}}``, or ``{"error": why, "code": word}`` with ``busy``, ``missing``, ``refused`` or ``bad_request``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.peer_wire import BUFFER, CHUNK, MOST_REQUEST, receive, send
from dgpunet_dask.stagehost.folders import FileEntry

log = logging.getLogger(__name__)

#: The roles (the OU of a certificate) that may ask.
ROLES: Final = frozenset({"node", "head"})
#: What a measurement may take of a link.
MOST_BYTES: Final = 1 << 30
MOST_SECONDS: Final = 1.5
_MOST_PORTS: Final = 64
_PIECE: Final = 256 << 10
_RUN_OUT_S: Final = 5.0
#: How long after its time a measurement may be stuck on a link.
_SLACK_S: Final = 1.0


class Shelf(Protocol):
    """The folders that this host can give to others. All are called in a thread, and raise `ValueError` for what is no kind or digest."""

    def has(self, kind: str, digest: str) -> bool:
        """Whether a folder is here."""

    def files(self, kind: str, digest: str) -> list[FileEntry] | None:
        """Return the files of a folder; ``None`` where it is not here."""

    def file(self, kind: str, digest: str, name: str) -> Path | None:
        """Return the path of one of these files, ``None`` for any other name."""


@dataclass(frozen=True)
class Limits:
    """What callers may take.

    Parameters
    ----------
    connections
        At once; more are closed.
    reads
        Files sent at once; others wait.
    idle_s
        How long a connection may be silent between two requests.
    life_s
        How old a connection may become and still ask: one whose certificate has expired meanwhile ends then.
    stall_s
        How long a caller may take no bytes before it is given up.
    probe_s
        How long a port is waited for.
    """

    connections: int = 64
    reads: int = 8
    idle_s: float = 60.0
    life_s: float = 300.0
    stall_s: float = 30.0
    probe_s: float = 2.0


class Refusal(Exception):
    """Why a request is not served: a code of the table above, and words."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class PeerServer:
    """Serves the peer port of one host. Making the value touches nothing.

    Parameters
    ----------
    host
        What this host is called.
    context
        TLS of a server that asks callers for a certificate.
    shelf
        The folders that others may copy.
    measuring
        Held while a bandwidth is measured here; the client of the same agent takes it too.
    revoked
        Tells the serial numbers of certificates with which nobody may ask any more: TLS looks at them when a connection begins alone.
    private
        Gives the folders of the kinds that are not for every host, by kind, for the host that calls.
    """

    def __init__(
        self, host: str, context: ssl.SSLContext, shelf: Shelf, *,
        clock: Clock | None = None, limits: Limits | None = None, measuring: asyncio.Lock | None = None,
        revoked: Callable[[], Collection[str]] = tuple, private: Mapping[str, Callable[[str], Shelf]] | None = None,
    ) -> None:  # fmt: skip
        self.host = host
        self.measuring = measuring or asyncio.Lock()
        self._context = context
        self._shelf = shelf
        self._clock = clock or SystemClock()
        self._limits = limits or Limits()
        self._revoked = revoked
        self._private = private or {}
        self._reads = asyncio.Semaphore(self._limits.reads)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()

    async def start(self, address: str | list[str], port: int) -> int:
        """Listen; return the port, which differs from `port` where that is 0.

        Raises
        ------
        OSError
            If the port is taken.
        """
        assert self._context.verify_mode == ssl.CERT_REQUIRED, "every caller shows a certificate"
        self._server = await asyncio.start_server(
            self._serve, address, port, ssl=self._context, ssl_handshake_timeout=5.0, ssl_shutdown_timeout=2.0, limit=BUFFER
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and end the connections."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "the server runs this in a task"
        self._open.add(task)
        call = _Call(reader, writer, self._limits)
        try:
            if len(self._open) <= self._limits.connections:
                await self._requests(call)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:  # TimeoutError is an OSError, a TLS error too
            log.debug("a peer connection ended: %s", error)
        except asyncio.CancelledError:
            pass  # the server stops; asyncio would report it as the end of a broken callback
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _requests(self, call: _Call) -> None:
        """Answer until the caller closes; one without a role that may ask is told so, and nothing else."""
        subject = subject_of(call.writer)
        if subject.get("organizationalUnitName") not in ROLES:
            log.warning("a peer request with the certificate of %s was refused", subject.get("commonName"))
            await call.refuse(Refusal("refused", "the peer port is for the hosts of the cluster"))
            return
        serial = (call.writer.get_extra_info("peercert") or {}).get("serialNumber")
        ends = self._clock.monotonic() + self._limits.life_s
        while not call.over and self._clock.monotonic() <= ends and (request := await call.next()) is not None:
            if serial in self._revoked():
                log.warning("a peer request with a revoked certificate of %s was refused", subject.get("commonName"))
                return
            try:
                await self._answer(call, request)
            except Refusal as refusal:
                await call.refuse(refusal)

    async def _answer(self, call: _Call, request: Mapping[str, Any]) -> None:
        answers: dict[str, Callable[[_Call, Mapping[str, Any]], Coroutine[Any, Any, None]]] = {
            "ping": self._ping,
            "probe_ports": self._probe_ports,
            "bandwidth": self._bandwidth,
            "has": self._has,
            "files": self._files,
            "read": self._read,
        }
        name = request.get("request")
        answer = answers.get(name) if isinstance(name, str) else None
        if answer is None:
            raise Refusal("bad_request", f"there is no request {str(name)[:40]!r}; run one release on all machines")
        try:
            await answer(call, request)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Refusal("bad_request", str(error)[:200]) from error

    async def _ping(self, call: _Call, _: Mapping[str, Any]) -> None:
        await call.answer({"host": self.host, "wall": self._clock.wall()})

    async def _probe_ports(self, call: _Call, request: Mapping[str, Any]) -> None:
        ports = request["ports"]
        if not isinstance(ports, list) or len(ports) > _MOST_PORTS or not all(_is_port(p) for p in ports):
            raise Refusal("bad_request", f"ports are at most {_MOST_PORTS} numbers from 1 to 65535")
        address = call.writer.get_extra_info("peername")[0]
        found = await asyncio.gather(*(probe(address, port, self._limits.probe_s) for port in ports))
        await call.answer({"ports": [list(pair) for pair in zip(ports, found, strict=True)]})

    async def _bandwidth(self, call: _Call, request: Mapping[str, Any]) -> None:
        direction, most, seconds = request["direction"], int(request["bytes"]), float(request["seconds"])
        if direction not in {"up", "down"} or not 0 < most <= MOST_BYTES or not 0 < seconds <= MOST_SECONDS:
            raise Refusal("bad_request", f"a measurement is up or down, of at most {MOST_BYTES} bytes and {MOST_SECONDS} s")
        if self.measuring.locked():
            raise Refusal("busy", "another measurement runs")
        call.over = True
        async with self.measuring:
            await call.answer({})
            if direction == "down":
                await pour(call.writer, most, seconds, self._clock)
                return
            nbytes, took_s = await drink(call.reader, most, seconds, self._clock)
            await call.answer({"bytes": nbytes, "seconds": took_s})
        await _let_run_out(call.reader)

    def _shelf_for(self, call: _Call, request: Mapping[str, Any]) -> Shelf:
        private = self._private.get(str(request["kind"]))
        return self._shelf if private is None else private(subject_of(call.writer).get("commonName", ""))

    async def _has(self, call: _Call, request: Mapping[str, Any]) -> None:
        kind, digest = request["kind"], request["digest"]
        await call.answer({"has": await _look(self._shelf_for(call, request).has, kind, digest)})

    async def _files(self, call: _Call, request: Mapping[str, Any]) -> None:
        files = await _look(self._shelf_for(call, request).files, request["kind"], request["digest"])
        if files is None:
            raise Refusal("missing", "it is not on this host")
        await call.answer({"files": [list(entry) for entry in files]})

    async def _read(self, call: _Call, request: Mapping[str, Any]) -> None:
        name, offset = request["name"], request["offset"]
        if not isinstance(offset, int) or offset < 0:
            raise Refusal("bad_request", "an offset is a number of bytes")
        path = await _look(self._shelf_for(call, request).file, request["kind"], request["digest"], name)
        if path is None:
            raise Refusal("missing", f"there is no file {str(name)[:80]!r} in it")
        async with self._reads:
            with await _look(path.open, "rb") as file:
                await self._send_file(call, file, offset)

    async def _send_file(self, call: _Call, file: BinaryIO, offset: int) -> None:
        size = file.seek(0, 2)
        left = size - file.seek(min(offset, size))
        await call.answer({"size": left})
        while left:
            piece = await asyncio.to_thread(file.read, min(left, CHUNK))
            if not piece:
                # No refusal: the caller would take it for the bytes that it waits for.
                raise ConnectionAbortedError("a file became shorter while it was sent")
            left -= len(piece)
            call.writer.write(piece)
            async with asyncio.timeout(self._limits.stall_s):
                await call.writer.drain()


class _Call:
    """One connection. `over`: what follows on it are no requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self.reader = reader
        self.writer = writer
        self.over = False
        self._limits = limits

    async def next(self) -> dict[str, Any] | None:
        return await receive(self.reader, MOST_REQUEST, self._limits.idle_s)

    async def answer(self, fields: Mapping[str, Any]) -> None:
        await send(self.writer, {"ok": fields}, self._limits.stall_s)

    async def refuse(self, refusal: Refusal) -> None:
        await send(self.writer, {"error": str(refusal), "code": refusal.code}, self._limits.stall_s)


async def _look(read: Callable[..., Any], *args: Any) -> Any:
    """Return what `read` finds on the disk, in a thread; a fault of the disk is told to the caller."""
    try:
        return await asyncio.to_thread(read, *args)
    except OSError as error:
        raise Refusal("missing", f"it cannot be read: {error.strerror or error}") from error


def subject_of(writer: asyncio.StreamWriter) -> dict[str, str]:
    """Return the subject of the other side's certificate by the names that `ssl` uses; a field that comes twice is left out."""
    certificate = writer.get_extra_info("peercert") or {}
    pairs = [pair for group in certificate.get("subject", ()) for pair in group]
    names = [name for name, _ in pairs]
    return {name: value for name, value in pairs if names.count(name) == 1}


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16


async def probe(address: str, port: int, timeout_s: float) -> str:
    """Return ``open``, ``refused``, ``silent`` (a firewall, or no such host) or the error of a TCP connection to that port."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return "silent"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return error.strerror or str(error)
    writer.transport.abort()
    return "open"


async def pour(writer: asyncio.StreamWriter, most: int, seconds: float, clock: Clock) -> None:
    """Send `most` bytes, or fewer in `seconds`. They look like chance, so that nothing on the way makes them fewer."""
    piece, ends, left = hashlib.shake_256(b"dgpunet").digest(_PIECE), clock.monotonic() + seconds, most
    while left and (now := clock.monotonic()) < ends:
        writer.write(piece[:left])
        left -= min(left, _PIECE)
        async with asyncio.timeout(ends - now + _SLACK_S):
            await writer.drain()


async def _let_run_out(reader: asyncio.StreamReader) -> None:
    """Take what still comes until the caller closes: closing before it would reset the connection, and the answer could be lost."""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_RUN_OUT_S):
            while await reader.read(_PIECE):
                pass


async def drink(reader: asyncio.StreamReader, most: int, seconds: float, clock: Clock) -> tuple[int, float]:
    """Return how many bytes came after the first piece, and in how many seconds: at most `most` and about `seconds`.

    What comes first tells of the round trip and not of the rate. Nothing within `seconds` and another is no bytes in no time.
    """
    try:
        async with asyncio.timeout(seconds + _SLACK_S):
            first = await reader.read(_PIECE)
    except TimeoutError:
        return 0, 0.0
    started = now = clock.monotonic()
    count = 0
    try:
        async with asyncio.timeout(seconds):
            while len(first) + count < most and (piece := await reader.read(_PIECE)):
                count, now = count + len(piece), clock.monotonic()
    except TimeoutError:
        now = clock.monotonic()
    return count, now - started
