"""The list of what an ingestion left out: after a line that says how files were read, one line of JSON a path.

``["binary", "img/logo.png", "", [70, 1, 1, 9]]`` is code, path, why, and the stat of a file that had to be read to be left out: as long
as that stays, the next ingestion need not read it again.

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
#: How files of code are read. Changes whenever the same file would give another text or code; a list without that line is of this one.
CODE_READING: Final = "code-1"
#: What content alone earns a file, so that it holds as long as the content.
_OF_CONTENT: Final = frozenset(("binary", "undecodable", "generated", "minified", "too_large", "no_text", "malformed", "encrypted"))
#: Reading stops at a line longer than any that is written.
_LINE_MAX: Final = 64 << 10


class Skip(NamedTuple):
    """A path that is not in the index: its code, and what there is to say beyond it (often nothing).

    `stat` is size, mtime_ns, ctime_ns and inode of a file that was read; empty for what need not be, or must be again.
    """

    code: str
    path: str
    why: str = ""
    stat: tuple[int, ...] = ()

    @property
    def reason(self) -> str:
        """Code and why as a reader states them."""
        return f"{self.code}: {self.why}" if self.why else self.code


def skip_of(reason: str, path: str, stat: tuple[int, ...] = ()) -> Skip:
    """Return the skip that a reader's `reason` states: a code, or a code, a colon and why (``fetch_failed: 404 Not Found``).

    `stat` is that of a file which was read; it is kept where the content alone decided.
    """
    code, _, why = reason.partition(": ")
    return Skip(code, path, why, stat if code in _OF_CONTENT else ())


class SkipList:
    """Writes the list of what was left out by one way of reading. Making the value touches nothing; `close` completes it."""

    def __init__(self, folder: Path, reading: str = CODE_READING, rows_max: int = ROWS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._head = json.dumps({"reading": reading}) + "\n"
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
        self._opened().write(line)
        self._rows[skip.code] = rows + 1
        self._bytes_left -= len(line)

    def close(self) -> None:
        """Leave a list that is whole, of one line where nothing was skipped."""
        self._opened().close()
        self._file = None

    def _opened(self) -> IO[str]:
        if self._file is None:
            self._file = self._path.open("w", encoding="ascii")
            self._file.write(self._head)
        return self._file


def reading_of(folder: Path) -> str:
    """Return how the files of a segment were read."""
    try:
        with (folder / SKIPPED).open("rb") as opened:
            return str(json.loads(opened.readline(_LINE_MAX))["reading"])
    except (OSError, ValueError, TypeError, KeyError):
        return CODE_READING


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
                row = json.loads(line)
                if isinstance(row, dict):
                    continue
                found, where, why, *stat = [*row, ""] if len(row) == 2 else row
                skip = Skip(str(found), str(where), str(why), tuple(map(int, *stat)) if stat else ())
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
