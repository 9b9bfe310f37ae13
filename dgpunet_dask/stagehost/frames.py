"""Lists of items as frames: pickle protocol 5 with large buffers apart, and the file format they are committed in.

A file is::

    magic (8 bytes) | version u32 | count u32 | size u64 × count | frames, each from a multiple of 64 bytes | BLAKE2b-256 of all before

in network byte order. The digest at the end makes a torn or altered file known before a byte of it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from dgpunet_dask.errors import DamagedFile, NewerFormat

#: What `pickle` and the socket take: bytes, bytearray, memoryview.
Buffer = bytes | bytearray | memoryview

#: Buffers below this stay inside the pickle: a frame of their own costs more than copying them.
SMALL_BUFFER: Final = 4096
#: Frames start at multiples of this, so that arrays are aligned for every vector unit.
ALIGN: Final = 64
FORMAT_VERSION: Final = 1

_MAGIC: Final = b"DGPUFRM\n"
_HEAD: Final = struct.Struct("!8sII")
_DIGEST_BYTES: Final = 32


def pack(items: list[Any]) -> list[Buffer]:
    """Return `items` as frames: the pickle first, then each large buffer as it lies in memory, not copied.

    The frames share memory with the items; send or copy them before the items change.
    """
    buffers: list[Buffer] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: only pickle itself can walk it
            return True
        if raw.nbytes < SMALL_BUFFER:
            return True
        buffers.append(raw)
        return False

    head = pickle.dumps(items, protocol=5, buffer_callback=keep_inside)
    return [head, *buffers]


def unpack(frames: Sequence[Buffer]) -> list[Any]:
    """Return the items of `frames`. Arrays lie in the frames' own memory: writable where the frames are."""
    items: list[Any] = pickle.loads(frames[0], buffers=frames[1:])
    return items


def nbytes_of(frames: Sequence[Buffer]) -> int:
    """Return the bytes of all frames together."""
    return sum(memoryview(frame).nbytes for frame in frames)


def packed_size(item: Any) -> int:
    """Return the bytes that `item` takes when packed, without copying its large buffers."""
    apart = 0

    def count(buffer: pickle.PickleBuffer) -> bool:
        nonlocal apart
        try:
            apart += buffer.raw().nbytes
        except BufferError:
            return True
        return False

    return len(pickle.dumps(item, protocol=5, buffer_callback=count)) + apart


def aligned(offset: int) -> int:
    """Return the first multiple of `ALIGN` at or after `offset`."""
    return -(-offset // ALIGN) * ALIGN


def write_frames(file: BinaryIO | str | os.PathLike[str], frames: Sequence[Buffer]) -> str:
    """Write `frames` to `file` and return the digest (hex) that stands at its end.

    Parameters
    ----------
    file
        A binary file open for writing, or a path to create. Making it durable (fsync, rename) is the caller's.

    Raises
    ------
    OSError
        As the file system gives it.
    """
    flat = [memoryview(frame).cast("B") for frame in frames]
    with _opened(file, "wb") as out:
        hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for piece in _layout(flat):
            hashed.update(piece)
            out.write(piece)
        out.write(hashed.digest())
    return hashed.hexdigest()


def _layout(flat: Sequence[memoryview]) -> Iterator[Buffer]:
    """Yield what precedes the digest: head, sizes, then padding and bytes of each frame."""
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, len(flat)) + struct.pack(f"!{len(flat)}Q", *(f.nbytes for f in flat))
    yield head
    offset = len(head)
    for frame in flat:
        yield bytes(aligned(offset) - offset)
        yield frame
        offset = aligned(offset) + frame.nbytes


def read_frames(file: BinaryIO | str | os.PathLike[str]) -> list[memoryview]:
    """Return the frames of `file`, in writable memory of their own.

    Raises
    ------
    DamagedFile
        If the file is cut short, longer than it says, or its digest differs.
    NewerFormat
        If a newer release wrote it.
    """
    with _opened(file, "rb") as source:
        content = bytearray(source.read()) if isinstance(source, io.BytesIO) else _read_all(source)
        name = str(getattr(source, "name", "frames"))
    sizes = _checked_sizes(name, content)
    view, offset, frames = memoryview(content), _HEAD.size + 8 * len(sizes), []
    for size in sizes:
        start = aligned(offset)
        frames.append(view[start : start + size])
        offset = start + size
    return frames


def _read_all(source: BinaryIO) -> bytearray:
    content = bytearray(os.fstat(source.fileno()).st_size - source.tell())
    filled, view = 0, memoryview(content)
    while filled < len(content):
        got = source.readinto(view[filled:])  # type: ignore[attr-defined]  # every binary file has it, the protocol does not say so
        if not got:
            break
        filled += got
    return content


def _checked_sizes(name: str, content: bytearray) -> tuple[int, ...]:
    """Return the sizes of the frames after checking magic, version, length and digest."""
    if len(content) < _HEAD.size + _DIGEST_BYTES:
        raise DamagedFile(path=name, why="it is cut short")
    magic, version, count = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise DamagedFile(path=name, why="it is no file of frames")
    if version > FORMAT_VERSION:
        raise NewerFormat(path=name, found=version, known=FORMAT_VERSION)
    body = memoryview(content)[:-_DIGEST_BYTES]
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != content[-_DIGEST_BYTES:]:
        raise DamagedFile(path=name, why="its digest does not match its content")
    sizes: tuple[int, ...] = struct.unpack_from(f"!{count}Q", content, _HEAD.size)
    return sizes


@contextmanager
def _opened(file: BinaryIO | str | os.PathLike[str], mode: str) -> Iterator[BinaryIO]:
    if isinstance(file, str | os.PathLike):
        with Path(file).open(mode) as opened:
            yield opened  # type: ignore[misc]  # binary by `mode`
    else:
        yield file
