"""Bodies of requests, within bounds of size and time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from dgpunet_dask.daemons.api.answers import SHOWN_CHARS, Refused
from dgpunet_dask.errors import BadValue
from dgpunet_dask.jobs.looks import Abandoned

#: A body has this long, and a long one besides as long as it takes at the slowest rate.
BODY_S: Final = 60.0
SLOWEST_BYTES_PER_S: Final = 256 << 10


def check_length(headers: Headers, most: int, what: str) -> None:
    """Refuse a body that says it is longer than `most` bytes, before any of it is read."""
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "Content-Length is not a number", close=True)
    if int(length[:20]) > most:
        raise _too_long(most, what)


def _too_long(most: int, what: str) -> Refused:
    size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
    return Refused(413, f"{what} may have {size} at most")


async def pieces(receive: Receive, most: int, what: str) -> AsyncIterator[bytes]:
    """Yield a body piece by piece; 413 once it is longer than `most` bytes, 408 where it takes too long.

    Raises
    ------
    ClientDisconnect
        If the client is gone before its end.
    """
    size, more = 0, True
    ends = asyncio.get_running_loop().time() + BODY_S + most / SLOWEST_BYTES_PER_S
    while more:
        try:
            async with asyncio.timeout_at(ends):
                message = await receive()
        except TimeoutError:
            raise Refused(408, "the body takes too long", close=True) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > most:
            raise _too_long(most, what)
        yield piece


async def json_object(headers: Headers, receive: Receive, most: int) -> bytes:
    """Return a body that is a JSON object in JSON's own notation; an empty one stands for an empty object."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send application/json")
    check_length(headers, most, "a body")
    body = b"".join([piece async for piece in pieces(receive, most, "a body")]) or b"{}"
    try:
        found = json.loads(body, parse_constant=_bad_number, object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)  # Python's NaN and Infinity


def _bad_number(text: str) -> NoReturn:
    raise BadValue(what="the number", value=text, why="JSON has none of that name; write one that is not infinite")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, unless it has a key twice: only one of the two would count, and which one is not for a reader to guess."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadValue(what="the key", value=key[:SHOWN_CHARS], why="an object of the body has it more than once; give it once")
        found[key] = value
    return found


def again(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read already, and after that what `receive` gives."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return left.pop() if left else await receive()

    return given


@asynccontextmanager
async def leaving(receive: Receive) -> AsyncIterator[Callable[[], bool]]:
    """Give what tells, from any thread, whether the client is gone. For a request whose body has been read.

    Work that is given up (`Abandoned`) ends the request, as there is nobody to answer.
    """
    gone = threading.Event()

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    waiting = asyncio.create_task(wait())
    try:
        yield gone.is_set
    except Abandoned:
        raise ClientDisconnect from None
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def json_of(text: str) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("too deep") from error
