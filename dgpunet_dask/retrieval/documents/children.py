"""Asks the reading processes (`child`), one for each thread that asks, and ends those that take too long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from dgpunet_dask.retrieval.documents.child import MEMORY_BYTES
from dgpunet_dask.retrieval.documents.texts import SkippedError

#: A process that has read so many documents is replaced: what libraries leak goes with it.
_DOCUMENTS: Final = 200
_COMMAND: Final = (sys.executable, "-m", "dgpunet_dask.retrieval.documents.child", str(MEMORY_BYTES))


class Children:
    """The reading processes. Use it as a context manager; a process is started when a thread first asks.

    Parameters
    ----------
    seconds
        What one document may take.
    """

    def __init__(self, seconds: float, command: Sequence[str] = _COMMAND) -> None:
        self._seconds = seconds
        self._command = command
        self._mine = threading.local()
        self._all: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, file: bytes, kind: str, charset: str | None = None) -> dict[str, Any]:
        """Return the text, language and title of a file.

        Raises
        ------
        SkippedError
            With the code that the document earns; `timeout` if it took too long.
        """
        child: _Child | None = getattr(self._mine, "child", None)
        if child is None or child.spent:
            child = self._mine.child = self._started(child)
        request = {"file": os.fsdecode(file), "kind": kind, "charset": charset, "seconds": self._seconds}
        answer = child.ask(request, self._seconds)
        if "skip" in answer:
            code, _, why = answer["skip"].partition(": ")
            raise SkippedError(code, why)
        return answer

    def _started(self, before: _Child | None) -> _Child:
        with self._lock:
            if self._closed:
                raise SkippedError("unreadable", "the reading was ended")
            child = _Child(self._command)
            self._all.add(child)
            if before is not None:
                self._all.discard(before)
        if before is not None:
            before.end()
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, also under threads that ask them; none is started from now on."""
        with self._lock:
            self._closed = True
            children, self._all = self._all, set()
        for child in children:
            child.end()


class _Child:
    """One process. Only one thread asks it; `end` may be called by another."""

    def __init__(self, command: Sequence[str]) -> None:
        root = str(Path(__file__).parents[3])  # of the package: this process may have found it in a way of its own
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True, encoding="ascii"
        )
        self._asked = 0
        self.spent = False

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return its answer.

        Raises
        ------
        SkippedError
            `timeout`, or `malformed` if the document ended the process.
        """
        expired = threading.Event()
        timer = threading.Timer(seconds, self._expire, (expired,))
        timer.daemon = True
        timer.start()
        try:
            line = self._exchange(json.dumps(request) + "\n")
        finally:
            timer.cancel()
        self._asked += 1
        self.spent = self._asked >= _DOCUMENTS or expired.is_set() or not line.endswith("\n")
        if line.endswith("\n"):
            answer: dict[str, Any] = json.loads(line)
            self.spent = self.spent or "memory" in answer.get("skip", "")  # what is left of it is in pieces
            return answer
        if expired.is_set():
            raise SkippedError("timeout", f"it took longer than {seconds:g} s to read")
        raise SkippedError("malformed", f"it ended the process that read it ({self._process.wait()})")

    def _exchange(self, request: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def _expire(self, expired: threading.Event) -> None:
        expired.set()
        self._process.kill()

    def end(self) -> None:
        """End the process, whatever it does, and wait for it."""
        self.spent = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None  # both are pipes
            try:
                pipe.close()
            except BrokenPipeError:
                pass
