"""Takes connections of a listening socket and sees them through TLS's handshake, of which few may be under way: who connects and says
nothing takes no descriptor from the head's own work, and no place from others.

asyncio's own accept knows no bound before a handshake's end, and tells each time of many that the process may open no more files.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from dgpunet_dask.daemons.api.limits import Sockets

log = logging.getLogger(__name__)

#: How long TLS's handshake may take, and its end.
HANDSHAKE_S: Final = 15.0
GOODBYE_S: Final = 5.0
#: So many connections are taken before others in the loop have their turn.
AT_ONCE: Final = 32
#: How long nothing is taken after the system refused a descriptor, and how often that is told.
REST_S: Final = 1.0
TELL_S: Final = 60.0


class Accepting:
    """Connections on their way to a server, in the running loop.

    Parameters
    ----------
    protocol
        Makes the protocol of a connection that is ready.
    context
        For TLS.
    bounds
        How many handshakes may be under way. Where there is one too many, the oldest of the address that has most ends: a good client is
        done within milliseconds.
    """

    def __init__(self, protocol: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext | None, bounds: Sockets) -> None:
        self._protocol, self._context, self._bounds = protocol, context, bounds
        self._loop = asyncio.get_running_loop()
        self._pending: dict[asyncio.Task[None], str] = {}  # with the address of each, the oldest first
        self._of = Counter[str]()
        self._sockets: set[socket.socket] = set()
        self._told_s = float("-inf")

    @property
    def pending(self) -> int:
        """How many handshakes are under way."""
        return len(self._pending)

    def listen(self, sock: socket.socket) -> None:
        """Take connections of `sock` from now on."""
        sock.setblocking(False)
        self._sockets.add(sock)
        self._loop.add_reader(sock, self._take, sock)

    def stop(self) -> None:
        """Take no more connections, and close the sockets; handshakes go on."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    async def end(self) -> None:
        """End the handshakes that are under way."""
        ending = list(self._pending)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _take(self, sock: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                taken, address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._rest(sock, error)
                return
            taken.setblocking(False)
            self._begin(taken, str(address[0]))

    def _begin(self, taken: socket.socket, address: str) -> None:
        task = self._loop.create_task(self._ready(taken))
        self._pending[task] = address
        self._of[address] += 1
        task.add_done_callback(lambda done: self._ended(done, taken))
        if self._context is not None:  # else there is nothing to wait for
            self._make_room(address)

    async def _ready(self, taken: socket.socket) -> None:
        timed: dict[str, Any] = {}
        if self._context is not None:
            timed = {"ssl": self._context, "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": GOODBYE_S}
        await self._loop.connect_accepted_socket(self._protocol, taken, **timed)

    def _ended(self, task: asyncio.Task[None], taken: socket.socket) -> None:
        self._forget(task)
        if task.cancelled():
            taken.close()  # it may not have begun
        elif (error := task.exception()) is not None:
            taken.close()
            log.debug("a connection came to nothing: %s", error)

    def _forget(self, task: asyncio.Task[None]) -> None:
        if (address := self._pending.pop(task, None)) is not None:
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]

    def _make_room(self, address: str) -> None:
        if self._of[address] > self._bounds.of_address:
            self._end_oldest(address)
        elif len(self._pending) > self._bounds.pending:
            self._end_oldest(self._of.most_common(1)[0][0])

    def _end_oldest(self, address: str) -> None:
        task = next(task for task, of in self._pending.items() if of == address)
        self._forget(task)
        task.cancel()

    def _rest(self, sock: socket.socket, error: OSError) -> None:
        """Leave those who wait to the kernel for a while: the system refuses, and would do so again at once."""
        if self._loop.time() - self._told_s >= TELL_S:
            self._told_s = self._loop.time()
            log.error("no connection can be taken for now: %s", error)
        if self._pending:
            self._end_oldest(self._of.most_common(1)[0][0])
        self._loop.remove_reader(sock)
        self._loop.call_later(REST_S, self._resume, sock)

    def _resume(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self.listen(sock)
