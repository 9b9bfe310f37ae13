"""The log files of stage hosts: one for each process, of bounded size, read back call by call.

A process appends to its file for as long as it lives, so the file is not renamed but copied and emptied when it is too long. Places in it
are counted from the process's start, so that they stay true when that happens in the middle of a call.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: The most that the log of one process takes on the disk: half of it in the file, half in what was set aside before.
LOG_BYTES: Final = 10 << 20
#: Log files of ended stage hosts that are kept.
LOGS_KEPT: Final = 100
#: The most of one call's output that is passed on: half from its beginning, half from its end.
CALL_BYTES: Final = 64 << 10
#: The most that an error carries.
TAIL_BYTES: Final = 4 << 10
#: What was set aside of ``NAME.log`` is ``NAME.log.1``.
_ASIDE: Final = ".1"


class LogFile:
    """What one stage host has printed. Making the value touches nothing.

    Parameters
    ----------
    path
        The file that the process appends to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dropped = 0
        self._seen = 0

    def place(self) -> int:
        """Return how many bytes the process has printed so far."""
        size = self._size()
        if size < self._seen:  # emptied, by us or by somebody who needed room
            self._dropped += self._seen
        self._seen = size
        return self._dropped + size

    def text(self, since: int, end: int, most: int = CALL_BYTES) -> str:
        """Return what was printed between two places; of more than `most` bytes the beginning and the end, in whole lines."""
        start = max(since, self._dropped)
        if end - start <= most:
            return left_out(start - since) + _text(self._read(start, end))
        head = _to_line_end(self._read(start, start + most // 2))
        tail = _from_line(self._read(end - most // 2, end))
        newline = "" if head.endswith(b"\n") else "\n"
        return _text(head) + newline + left_out(end - since - len(head) - len(tail)) + _text(tail)

    def tail(self, since: int = 0, most: int = TAIL_BYTES) -> str:
        """Return the last bytes, at most `most` of them, that were printed after the place `since`."""
        end = self.place()
        start = max(since, self._dropped)
        if end - start <= most:
            return _text(self._read(start, end))
        return _text(_from_line(self._read(end - most, end)))

    def shorten(self) -> bool:
        """Empty the file if it is too long, once its end is set aside; return whether it was.

        What is printed in between is lost: the process cannot be made to wait.
        """
        if self._size() <= LOG_BYTES // 2:
            return False
        end = self.place()
        aside = self.path.with_name(self.path.name + _ASIDE)
        with contextlib.suppress(OSError):
            aside.write_bytes(self._read(max(self._dropped, end - LOG_BYTES // 2), end))
        with contextlib.suppress(OSError):
            os.truncate(self.path, 0)
        return True

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _read(self, start: int, end: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, start - self._dropped))
                return file.read(end - start)
        except OSError:
            return b""


def left_out(nbytes: int) -> str:
    """Return the line that stands for what is missing of an output; empty where nothing is."""
    return f"[{nbytes} bytes left out; the log on the machine where the stage ran may have them]\n" if nbytes > 0 else ""


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _to_line_end(raw: bytes) -> bytes:
    """Return `raw` up to the end of its last whole line; all of it where it is one line."""
    return raw[: raw.rfind(b"\n") + 1] or raw


def _from_line(raw: bytes) -> bytes:
    """Return `raw` from its first whole line on; all of it where it is one line."""
    return raw[raw.find(b"\n") + 1 :] or raw


def prune_logs(folder: Path, live: Iterable[Path]) -> None:
    """Remove all but the newest `LOGS_KEPT` logs in `folder` that no running process writes."""
    in_use = set(live)
    ended = sorted((p for p in folder.glob("*.log") if p not in in_use), key=lambda p: (p.stat().st_mtime, p.name))
    for path in ended[: max(0, len(ended) - LOGS_KEPT)]:
        path.unlink(missing_ok=True)
        path.with_name(path.name + _ASIDE).unlink(missing_ok=True)
