"""Frames of the peer port: the length of a JSON object (4 bytes, big-endian), then the object; bulk bytes follow as they are.

Everything is bounded: lengths before anything is kept, waits by a timeout. What does not fit is a `ValueError`.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any, Final

#: The default of the port.
PORT: Final = 8788
#: The longest request, and the longest answer: a list of files.
MOST_REQUEST: Final = 64 << 10
MOST_ANSWER: Final = 16 << 20
#: Bulk bytes are read, hashed and written in pieces of this many.
CHUNK: Final = 1 << 20
#: How many bytes of a connection are kept before its sender must wait.
BUFFER: Final = 1 << 20

_HEAD: Final = struct.Struct(">I")


async def send(writer: asyncio.StreamWriter, message: Mapping[str, Any], timeout_s: float) -> None:
    """Send one object.

    Raises
    ------
    OSError, TimeoutError
        If the other side is gone, or does not read.
    """
    content = json.dumps(message).encode()
    writer.write(_HEAD.pack(len(content)) + content)
    async with asyncio.timeout(timeout_s):
        await writer.drain()


async def receive(reader: asyncio.StreamReader, most: int, timeout_s: float) -> dict[str, Any] | None:
    """Return the next object, ``None`` where the other side closed between two.

    Raises
    ------
    ValueError
        If it is longer than `most` bytes, or no JSON object.
    asyncio.IncompleteReadError, OSError, TimeoutError
        If the connection ended in the middle of one, or nothing came in time.
    """
    async with asyncio.timeout(timeout_s):
        try:
            head = await reader.readexactly(_HEAD.size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        (length,) = _HEAD.unpack(head)
        if length > most:
            raise ValueError(f"a message of {length} bytes is longer than {most}")
        content = await reader.readexactly(length)
    try:
        message = json.loads(content)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")  # noqa: TRY004  # one class for all that does not fit
    return message
