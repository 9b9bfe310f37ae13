"""What a thread prints, told apart from what the other threads of its process print: for stages that run in the calling process.

Only what goes through ``sys.stdout`` and ``sys.stderr`` is seen; it goes on to where it went before, too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, TextIO

from dgpunet_dask.stagehost.logs import CALL_BYTES, left_out

_HALF: Final = CALL_BYTES // 2


class Printed:
    """The beginning and the end of a text that grows."""

    def __init__(self) -> None:
        self._head = self._tail = ""
        self._cut = 0

    def write(self, text: str) -> None:
        """Add `text`."""
        room = _HALF - len(self._head) if not self._tail else 0
        self._head += text[:room]
        self._tail += text[room:]
        if len(self._tail) > 2 * _HALF:  # not at each write: a stage may print letter by letter
            self._cut += len(self._tail) - _HALF
            self._tail = self._tail[-_HALF:]

    @property
    def text(self) -> str:
        """All of it, with a note of how much is missing in the middle."""
        over = max(0, len(self._tail) - _HALF)
        return self._head + left_out(self._cut + over) + self._tail[over:]


class _ByThread:
    """A stream that also gives each thread's text to that thread's `Printed`."""

    def __init__(self, stream: TextIO, printed: threading.local) -> None:
        self._stream, self._printed = stream, printed

    def write(self, text: str) -> int:
        mine = getattr(self._printed, "text", None)
        if mine is not None:
            mine.write(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Watch:
    """Replaces the process's streams while any thread listens to itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listening = 0
        self._printed = threading.local()
        self._before: tuple[TextIO, TextIO] | None = None

    @contextmanager
    def listening(self) -> Iterator[Printed]:
        mine = self._printed.text = Printed()
        self._count(1)
        try:
            yield mine
        finally:
            self._count(-1)
            self._printed.text = None

    def _count(self, change: int) -> None:
        with self._lock:
            self._listening += change
            if self._before is None:
                self._before = sys.stdout, sys.stderr
                sys.stdout, sys.stderr = (_ByThread(stream, self._printed) for stream in self._before)
            elif not self._listening:
                (sys.stdout, sys.stderr), self._before = self._before, None


_watch = _Watch()


def printed() -> AbstractContextManager[Printed]:
    """Return a context in which the calling thread's prints are noted; it gives their `Printed`."""
    return _watch.listening()
