"""Serves an ASGI application with uvicorn's protocols inside the loop of the head: several listeners, no signals, no process of its own.

What uvicorn leaves open is bounded here: how long a client may take to ask, and not to read what it asked for, how long a body that
nobody reads is let in, and how many connections there are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h11
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from dgpunet_dask.daemons.api.accepting import Accepting
from dgpunet_dask.daemons.api.callers import Certificate
from dgpunet_dask.daemons.api.limits import CONNECTIONS_MAX, Sockets, sockets_of
from dgpunet_dask.hardware.system import file_limits

log = logging.getLogger(__name__)

#: A connection without a request ends after so long; one that has begun to send a request has to be done with its head sooner.
IDLE_S: Final = 120.0
HEAD_S: Final = 30.0
#: What is sent on to a request that has been answered is let in for so long, so that a client that writes first reads the answer.
LINGER_S: Final = 2.0
#: A client that takes none of its answer is let go after so long.
UNREAD_S: Final = 60.0
#: How long requests that run are waited for once their connections are closed.
ENDING_S: Final = 1.0
HEAD_BYTES_MAX: Final = 32 << 10
MESSAGE_BYTES_MAX: Final = 16 << 20
BACKLOG: Final = 1024


@dataclass
class Connection:
    """What requests of one connection have in common; it is ``state["connection"]`` of their scope.

    Parameters
    ----------
    certificate
        The peer's, which the listener has verified; ``None`` without one.
    requests
        How many there have been.
    """

    certificate: Certificate | None = None
    requests: int = 0


class HttpProtocol(H11Protocol):
    """One connection: tells requests about the peer's certificate, and ends where it is only held open."""

    since: float = 0.0
    most: int = CONNECTIONS_MAX
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _phase: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        """Begin: the first request has to come soon."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": Connection(transport.get_extra_info("peercert") or None)}
        self.since = self.loop.time()
        self._within("head", HEAD_S)
        if len(self.connections) > self.most:
            self._make_room()

    def _make_room(self) -> None:
        """End the oldest idle connection of the address that has most of those, at once: TLS's farewell takes a while, and its descriptor.

        Hosts of this cluster stay. One that is ended is among the connections until the loop's next turn, and counts no more.
        """
        open_ = [one for one in self.connections if isinstance(one, HttpProtocol) and not one.transport.is_closing()]
        idle = [one for one in open_ if one.is_idle and one.certificate is None]
        crowd = Counter(one.address for one in idle)
        if idle and len(open_) > self.most:
            min(idle, key=lambda one: (-crowd[one.address], one.since)).transport.abort()

    @property
    def certificate(self) -> Certificate | None:
        """The peer's, which the listener has verified; ``None`` without one."""
        found: Connection = self.app_state["connection"]
        return found.certificate

    @property
    def address(self) -> str:
        """The peer's address."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._within(None)
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._look()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over."""
        self._within(None)
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form in which everything is refused."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # an answer has begun
            return
        told = {"code": "http_400", "message": msg, "reasons": [], "exit_code": 1}
        body = json.dumps({"error": told}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _look(self) -> None:
        """Set the time that what comes next may take."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._within(None)
        elif state is h11.IDLE:
            begun = bool(self.conn.trailing_data[0])
            self._within("head" if begun or self.cycle is None else "idle", HEAD_S if begun else IDLE_S)
        elif state is h11.SEND_BODY and self.is_idle:
            self._within("linger", LINGER_S)
        else:
            self._within(None)

    def _within(self, phase: str | None, seconds: float = 0.0) -> None:
        """End the connection if it is in the same phase after `seconds`."""
        if phase == self._phase:
            return
        self._phase = phase
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if phase is None else self.loop.call_later(seconds, self.transport.close)


class ApiServer:
    """An application on some listening sockets, from now on until it is told to stop. Belongs to the running loop.

    Parameters
    ----------
    sockets
        Bound; they are the server's from now on.
    context
        For TLS.
    bounds
        How many sockets it may hold; ``None``: what the process's limit of open files leaves.
    """

    def __init__(
        self, app: ASGIApp, sockets: Sequence[socket.socket], context: ssl.SSLContext | None = None, bounds: Sockets | None = None
    ) -> None:
        self._config = Config(
            app, http=HttpProtocol, ws="websockets-sansio", ws_max_size=MESSAGE_BYTES_MAX, lifespan="off", interface="asgi3", log_config=None,
            log_level=logging.ERROR, access_log=False, proxy_headers=False, server_header=False, date_header=False,
            timeout_keep_alive=int(IDLE_S), h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()
        self._loop = asyncio.get_running_loop()
        self._bounds = bounds or sockets_of(file_limits().soft)
        self._accepting = Accepting(self._protocol, context, self._bounds)
        for sock in sockets:
            sock.listen(BACKLOG)  # who connects before the loop comes to it waits, and is not refused
            self._accepting.listen(sock)

    def _protocol(self) -> HttpProtocol:
        protocol = HttpProtocol(self._config, self._state, {}, self._loop)
        protocol.most = min(CONNECTIONS_MAX, self._bounds.connections)
        return protocol

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._state.connections)

    def stop(self) -> None:
        """Take no more connections."""
        self._accepting.stop()

    async def close_all_connections(self) -> None:
        """End all connections: what has been answered is sent, what runs is told that its caller is gone."""
        await self._accepting.end()
        for connection in list(self._state.connections):
            connection.transport.close()
        await asyncio.sleep(0)
        if running := set(self._state.tasks):
            _, late = await asyncio.wait(running, timeout=ENDING_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.abort()
