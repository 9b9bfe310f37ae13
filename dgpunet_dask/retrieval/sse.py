"""What a chat model's server streams: server-sent events (WHATWG HTML, 9.2), and OpenAI's chunks in them. Pure.

Bytes are fed as they come, cut anywhere; what is not understood is an error of this side, never of the reader's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

#: One event's data; a chunk of an answer has some hundred bytes.
EVENT_MOST: Final = 1 << 20
#: The data of the last event of OpenAI's streams.
DONE: Final = "[DONE]"

_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # a last CR may be half of a CR LF


class NotUnderstood(ValueError):
    """What came is no such stream; the message says why."""


class Events:
    """Splits a stream of bytes into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._size = 0

    def feed(self, part: bytes) -> list[str]:
        """Return the data of the events that are complete with `part`.

        Raises
        ------
        NotUnderstood
            If one is longer than `EVENT_MOST`, or is not UTF-8.
        """
        *lines, self._rest = _LINE_END.split(self._rest + part)
        self._check(len(self._rest))
        return [data for line in lines if (data := self._line(line)) is not None]

    def _line(self, line: bytes) -> str | None:
        """Take one line; return the data of the event that it ends."""
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._check(len(value))
                self._data.append(_text(value.removeprefix(b" ")))
                self._size += len(value)
            return None
        data, self._data, self._size = self._data, [], 0
        return "\n".join(data) if data else None

    def _check(self, more: int) -> None:
        if self._size + more > EVENT_MOST:
            raise NotUnderstood(f"an event has more than {EVENT_MOST} bytes")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise NotUnderstood("an event is not UTF-8") from error


@dataclass(frozen=True)
class Chunk:
    """A part of an answer.

    Parameters
    ----------
    text
        What it adds.
    finish
        Why the answer ends with it: ``stop``, ``length`` and others; ``None`` where it goes on.
    error
        What the server says went wrong in the middle of it.
    """

    text: str = ""
    finish: str | None = None
    error: str | None = None


def chunk_of(data: str) -> Chunk:
    """Return the part of an answer that an event, or the body of an answer that is not streamed, holds.

    Raises
    ------
    NotUnderstood
        If it is no JSON object.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood("it sent what is not JSON") from error
    if not isinstance(found, dict):
        raise NotUnderstood("it sent JSON that is no object")
    if found.get("error"):
        return Chunk(error=error_of(found))
    choice = _first(found.get("choices"))
    said = choice.get("delta") or choice.get("message")
    text = said.get("content") if isinstance(said, dict) else None
    finish = choice.get("finish_reason")
    return Chunk(text if isinstance(text, str) else "", finish if isinstance(finish, str) else None)


def error_of(found: Any) -> str:
    """Return what an error's JSON says: ``{"error": {"message": ...}}``, ``{"error": "..."}``, ``{"detail": "..."}`` and the like."""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            return error_of(found[name])
    return found if isinstance(found, str) else json.dumps(found)


def _first(choices: Any) -> dict[str, Any]:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
