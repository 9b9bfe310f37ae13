"""The list of what an ingestion left out: one line of JSON a path, ``["binary", "img/logo.png", ""]``: code, path, why.

The counts of an index are whole whatever happens. The list beside them is bounded, for a tree may hold millions of links: of each code
the first `ROWS_MAX` paths are kept, together at most `BYTES_MAX`. How many are missing is the difference to the counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple

#: The list's name in a job's folder and in a segment.
SKIPPED: Final = "skipped.jsonl"
#: Paths of one code: more than anybody reads, and what one code takes cannot crowd out another.
ROWS_MAX: Final = 10_000
BYTES_MAX: Final = 32 << 20
#: Reading stops at a line longer than any that is written.
_LINE_MAX: Final = 64 << 10


class Skip(NamedTuple):
    """A path that is not in the index: its code, and what there is to say beyond it (often nothing)."""

    code: str
    path: str
    why: str = ""


def skip_of(reason: str, path: str) -> Skip:
    """Return the skip that a reader's `reason` states: a code, or a code, a colon and why (``fetch_failed: 404 Not Found``)."""
    code, _, why = reason.partition(": ")
    return Skip(code, path, why)


class SkipList:
    """Writes the list. Use it as a context manager; making the value touches nothing."""

    def __init__(self, folder: Path, rows_max: int = ROWS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._path = folder / SKIPPED
        self._rows_max, self._bytes_left = rows_max, bytes_max
        self._rows: dict[str, int] = {}
        self._file: IO[str] | None = None

    def add(self, skip: Skip) -> None:
        """Write `skip` down, unless the list is full."""
        rows = self._rows.get(skip.code, 0)
        line = json.dumps(list(skip)) + "\n"  # ASCII: one byte a character
        if rows >= self._rows_max or len(line) > min(self._bytes_left, _LINE_MAX):
            return
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
        self._file.write(line)
        self._rows[skip.code] = rows + 1
        self._bytes_left -= len(line)

    def close(self) -> None:
        """Leave a list that is whole, empty where nothing was skipped."""
        if self._file is None:
            self._path.write_bytes(b"")
        else:
            self._file.close()
            self._file = None


def read_skips(folder: Path, code: str | None = None) -> Iterator[Skip]:
    """Yield what the list in `folder` (a segment) holds, of one `code` or of all, in the order in which it was found.

    Nothing for a segment of a release that kept no list. A damaged line ends it: the list is for people, and the counts are elsewhere.
    """
    try:
        opened = (folder / SKIPPED).open("rb")
    except OSError:
        return
    with opened:
        while line := opened.readline(_LINE_MAX + 1):
            try:
                skip = Skip(*map(str, json.loads(line)))
            except (ValueError, TypeError):
                return
            if code is None or skip.code == code:
                yield skip


def keep_skips(folder: Path, segment: Path) -> None:
    """Copy the list of a job's `folder` into a `segment` that is being written, durably; one that is missing is left out."""
    try:
        with (folder / SKIPPED).open("rb") as source, (segment / SKIPPED).open("xb") as kept:
            shutil.copyfileobj(source, kept)
            kept.flush()
            os.fsync(kept.fileno())
    except FileNotFoundError:
        pass
