"""Messages between processes of one host, over a Unix stream socket.

A message is a small head, a JSON part (``kind``, ``fields``, the sizes of the frames) and the frames as one payload. A payload above
`INLINE_LIMIT` does not pass through the socket: it is written once into a nameless memory file (``memfd``) whose descriptor travels with
the head, and the receiver maps it, so arrays lie in shared pages and nothing is left behind by a process that is killed. Where the
system has no memfd (macOS) payloads go inline.

`Packet` is a message as it travels (the agent passes packets on without reading their frames); `Wire` blocks, `asyncwire` does not.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import select
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

from dgpunet_dask.stagehost.frames import Buffer, aligned

#: Payloads up to this many bytes travel inside the socket.
INLINE_LIMIT: Final = 64 * 1024
#: magic, 1 if the payload is a descriptor, bytes of the JSON part, bytes of the payload.
HEAD: Final = struct.Struct("!4sBxxxIQ")
_MAGIC: Final = b"DGW1"
_ANCILLARY: Final = socket.CMSG_SPACE(array.array("i").itemsize)
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_MEMFD: Final = hasattr(os, "memfd_create")
_MAPPING_HOLDS_FD: Final = sys.version_info < (3, 13)
#: The most pieces of one writev (POSIX promises 16, every system in use has 1024).
_MOST_PIECES: Final = 1024


class Packet:
    """One message as it travels: owns the descriptor of its payload until `close` or `frames`."""

    __slots__ = ("fd", "fields", "inline", "kind", "sizes")

    def __init__(
        self, kind: str, fields: dict[str, Any], sizes: Sequence[int] = (), inline: Buffer = b"", fd: int | None = None
    ) -> None:
        self.kind = kind
        self.fields = fields
        self.sizes = sizes
        self.inline = inline
        self.fd = fd

    @classmethod
    def of(cls, kind: str, fields: dict[str, Any] | None = None, frames: Sequence[Buffer] = (), memfd: bool = _MEMFD) -> Packet:
        """Return a packet with a copy of `frames`: in a memory file if they are large and `memfd` allows, else inline."""
        flat = [memoryview(frame).cast("B") for frame in frames]
        sizes = [frame.nbytes for frame in flat]
        if memfd and sum(sizes) > INLINE_LIMIT:
            return cls(kind, fields or {}, sizes, fd=_memory_file(flat))
        return cls(kind, fields or {}, sizes, inline=b"".join(_padded(flat)))

    @property
    def payload_bytes(self) -> int:
        """The bytes of the payload with its padding."""
        return sum(map(aligned, self.sizes))

    def head(self) -> bytes:
        """Return head and JSON part as bytes."""
        meta = json.dumps([self.kind, self.fields, list(self.sizes)]).encode()
        return HEAD.pack(_MAGIC, self.fd is not None, len(meta), self.payload_bytes) + meta

    def rest(self, head: bytes, sent: int) -> list[Buffer]:
        """Return what is to be sent after the first `sent` bytes of `head`.

        Nothing empty: sending nothing to a peer that has answered and gone is an error too.
        """
        pieces: list[Buffer] = [head[sent:], b"" if self.fd is not None else self.inline]
        return [piece for piece in pieces if len(piece)]

    def frames(self, keep: bool = False) -> list[memoryview]:
        """Return the frames, once, in private writable memory: writing to them changes nobody else's copy.

        Parameters
        ----------
        keep
            Whether they may be held for long, and many of them. Before Python 3.13 a mapping holds a descriptor as long as it
            lives, so that a few hundred kept units would use up a process's descriptors; there such frames are copied.
        """
        if self.fd is None:
            payload = memoryview(self.inline if isinstance(self.inline, bytearray) else bytearray(self.inline))
        else:
            payload = memoryview(_read(self.fd, self.payload_bytes) if keep and _MAPPING_HOLDS_FD else _mapped(self.fd, self.payload_bytes))
            self.close()
        found, offset = [], 0
        for size in self.sizes:
            found.append(payload[offset : offset + size])
            offset += aligned(size)
        return found

    def taken(self) -> Packet:
        """Return this message as another that owns the payload; this one gives it up."""
        taken, self.fd = Packet(self.kind, self.fields, self.sizes, self.inline, self.fd), None
        return taken

    def copy(self, **fields: Any) -> Packet:
        """Return this message with the same payload, not copied, and `fields` changed; each of the two is closed by itself."""
        fd = None if self.fd is None else os.dup(self.fd)
        return Packet(self.kind, {**self.fields, **fields}, self.sizes, self.inline, fd)

    def close(self) -> None:
        """Close the payload's descriptor, if it has one. Mapped frames stay valid."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def parse_head(head: Buffer) -> tuple[bool, int, int]:
    """Return whether a descriptor comes along, the bytes of the JSON part, and the bytes of the payload."""
    magic, has_fd, meta_bytes, payload_bytes = HEAD.unpack(head)
    if magic != _MAGIC:
        raise ConnectionAbortedError("the other side does not speak this protocol")
    return bool(has_fd), meta_bytes, payload_bytes


def parse_packet(meta: Buffer, payload: Buffer, fd: int | None) -> Packet:
    """Return the packet whose JSON part is `meta`."""
    kind, fields, sizes = json.loads(bytes(meta))
    return Packet(kind, fields, sizes, payload, fd)


def received_fd(ancillary: Sequence[tuple[int, int, bytes]]) -> int | None:
    """Return the descriptor in what recvmsg gave, ``None`` without one. It is not inherited by children."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= 4:
            (fd,) = array.array("i", data[:4])
            os.set_inheritable(fd, False)
            return int(fd)
    return None


def rights(fd: int | None) -> list[tuple[int, int, array.array[int]]]:
    """Return the ancillary data that sends `fd`."""
    return [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]


def receive_some(sock: socket.socket, nbytes: int) -> tuple[bytes, int | None]:
    """Return up to `nbytes` and the descriptor that came with them; empty at the end of the stream."""
    data, ancillary, _flags, _address = sock.recvmsg(nbytes, _ANCILLARY, _RECEIVE_FLAGS)
    return data, received_fd(ancillary)


class Wire:
    """A blocking connection. One thread sends and one receives; neither is locked."""

    def __init__(self, sock: socket.socket, memfd: bool = _MEMFD) -> None:
        self._sock = sock
        self._memfd = memfd

    def send(self, kind: str, fields: dict[str, Any] | None = None, frames: Sequence[Buffer] = ()) -> None:
        """Send one message; `frames` may change as soon as this returns.

        Raises
        ------
        OSError
            If the other side is gone.
        """
        self.send_packet(Packet.of(kind, fields, frames, self._memfd))

    def send_packet(self, packet: Packet) -> None:
        """Send `packet` and close it."""
        try:
            head = packet.head()
            sent = self._sock.sendmsg([head], rights(packet.fd))
            for rest in packet.rest(head, sent):
                self._sock.sendall(rest)
        finally:
            packet.close()

    def readable(self, within_s: float) -> bool:
        """Wait up to `within_s` seconds for a message, or for the other side to close; return whether there is something to receive."""
        return bool(select.select([self._sock], [], [], within_s)[0])

    def receive(self) -> Packet | None:
        """Return the next message, ``None`` when the other side closed between messages.

        Raises
        ------
        ConnectionAbortedError
            If it closed in the middle of one.
        """
        first, fd = receive_some(self._sock, HEAD.size)
        if not first:
            return None
        try:
            has_fd, meta_bytes, payload_bytes = parse_head(first + self._exactly(HEAD.size - len(first)))
            meta = self._exactly(meta_bytes)
            return parse_packet(meta, b"" if has_fd else self._exactly(payload_bytes), fd)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise

    def _exactly(self, nbytes: int) -> bytearray:
        content = bytearray(nbytes)
        filled, view = 0, memoryview(content)
        while filled < nbytes:
            got = self._sock.recv_into(view[filled:])
            if got == 0:
                raise ConnectionAbortedError("the other side ended in the middle of a message")
            filled += got
        return content

    def shutdown(self) -> None:
        """End the connection; a thread that waits in `receive` gets ``None``."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; no thread may be using it."""
        self._sock.close()


def _padded(flat: Sequence[memoryview]) -> list[Buffer]:
    pieces: list[Buffer] = []
    for frame in flat:
        pieces.append(frame)
        pieces.append(bytes(aligned(frame.nbytes) - frame.nbytes))
    return pieces


def _memory_file(flat: Sequence[memoryview]) -> int:
    """Return the descriptor of a memory file that holds `flat`, each from a multiple of `ALIGN`."""
    fd = os.memfd_create("dgpunet-frames")
    try:
        os.ftruncate(fd, sum(aligned(frame.nbytes) for frame in flat))
        pieces = [memoryview(piece) for piece in _padded(flat) if len(piece)]
        while pieces:
            written = os.writev(fd, pieces[:_MOST_PIECES])
            pieces = _after(pieces, written)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mapped(fd: int, nbytes: int) -> mmap.mmap:
    options: dict[str, Any] = {} if _MAPPING_HOLDS_FD else {"trackfd": False}
    return mmap.mmap(fd, nbytes, flags=mmap.MAP_PRIVATE, **options)


def _read(fd: int, nbytes: int) -> bytearray:
    content = bytearray(nbytes)
    filled, view = 0, memoryview(content)
    while filled < nbytes:
        got = os.preadv(fd, [view[filled:]], filled)
        if got == 0:
            raise ConnectionAbortedError("the payload is shorter than it should be")
        filled += got
    return content


def _after(pieces: list[memoryview], written: int) -> list[memoryview]:
    """Return what is left of `pieces` after `written` bytes: one call writes at most 2 GiB."""
    index = 0
    while index < len(pieces) and written >= pieces[index].nbytes:
        written -= pieces[index].nbytes
        index += 1
    rest = pieces[index:]
    if rest and written:
        rest[0] = rest[0][written:]
    return rest
