"""`wire` for an event loop: the same messages, without blocking. Used by the agent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from dgpunet_dask.stagehost.wire import HEAD, Packet, parse_head, parse_packet, receive_some, rights


class AsyncWire:
    """A connection of which one task sends and one receives at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    async def send(self, packet: Packet) -> None:
        """Send `packet` and close it.

        Raises
        ------
        OSError
            If the other side is gone.
        """
        loop = asyncio.get_running_loop()
        try:
            head = packet.head()
            sent = await self._send_rights(head, packet.fd)
            for rest in packet.rest(head, sent):
                await loop.sock_sendall(self._sock, rest)
        finally:
            packet.close()

    async def _send_rights(self, head: bytes, fd: int | None) -> int:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return self._sock.sendmsg([head], rights(fd))
            except BlockingIOError:
                await _ready(self._sock.fileno(), loop.add_writer, loop.remove_writer)

    async def receive(self) -> Packet | None:
        """Return the next message, ``None`` when the other side closed between messages.

        Cancelling it may lose a part of a message: end the connection then.

        Raises
        ------
        ConnectionAbortedError
            If it closed in the middle of one.
        """
        first, fd = await self._receive_rights()
        if not first:
            return None
        try:
            has_fd, meta_bytes, payload_bytes = parse_head(first + await self._exactly(HEAD.size - len(first)))
            meta = await self._exactly(meta_bytes)
            return parse_packet(meta, b"" if has_fd else await self._exactly(payload_bytes), fd)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise

    async def _receive_rights(self) -> tuple[bytes, int | None]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return receive_some(self._sock, HEAD.size)
            except BlockingIOError:
                await _ready(self._sock.fileno(), loop.add_reader, loop.remove_reader)

    async def _exactly(self, nbytes: int) -> bytearray:
        loop = asyncio.get_running_loop()
        content = bytearray(nbytes)
        filled, view = 0, memoryview(content)
        while filled < nbytes:
            got = await loop.sock_recv_into(self._sock, view[filled:])
            if got == 0:
                raise ConnectionAbortedError("the other side ended in the middle of a message")
            filled += got
        return content

    def closed_by_peer(self) -> bool:
        """Whether the other side has closed the connection and nothing is left to read."""
        try:
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection; no task may be using it."""
        self._sock.close()


async def _ready(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    """Wait until the loop's `add` watcher fires for `fd`."""
    fired = asyncio.get_running_loop().create_future()
    add(fd, lambda: None if fired.done() else fired.set_result(None))
    try:
        await fired
    finally:
        remove(fd)
