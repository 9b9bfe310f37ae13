"""Lines of an indexed file: as they are on the disk where the file is still the one that was indexed, else as the index holds them.

A path is looked up among the files of the index and nowhere else, so that no path leads out of the indexed trees. On the disk no link
is followed below a tree's root, folder by folder, and what was read counts only if its digest is the index's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError, MalformedFile, NoSuchFile, NoSuchLines, Problem
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.decode import MAX_BYTES, UndecodableError, decode
from dgpunet_dask.retrieval.discover import Root, folder_name, roots_of
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_files
from dgpunet_dask.retrieval.index import Index, Manifest, open_index
from dgpunet_dask.retrieval.ingest import content_key
from dgpunet_dask.retrieval.modelfiles import first_line
from dgpunet_dask.retrieval.segments import DamagedSegmentError, Segment

#: What is given at once; who wants more asks on from there.
LINES_MOST: Final = 2000
CHARS_MOST: Final = 100_000
#: Other paths with the same file name that an error tells of.
_NAMED: Final = 3
#: How often a segment that goes while it is read is looked for anew.
_REOPEN: Final = 20
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Lines:
    """Lines of a file.

    Parameters
    ----------
    start_line, end_line
        Those that are given; 1-based, inclusive.
    total_lines
        Of the file; as far as the index knows where it is the source.
    source
        ``disk`` or ``index``.
    why
        Why it is the index; ``None`` where it is the disk.
    next_line
        Where to ask on, if more was asked for than is given at once; ``None`` where nothing is missing.
    """

    path: str
    start_line: int
    end_line: int
    total_lines: int
    source: str
    why: str | None
    next_line: int | None
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class OnDiskNoMore(Exception):
    """The file on the disk is not the one that was indexed; the message says why."""


class Held:
    """The files of one version of an index.

    Parameters
    ----------
    index, manifest
        The version; it has to be there while this value is made.
    """

    def __init__(self, index: Index, manifest: Manifest) -> None:
        self.manifest = manifest
        self._name = index.name
        self._files = {row.path: row for row in read_files(index.version(manifest) / FILES)}
        self._segments = [Segment(folder) for folder in index.segments(manifest)]

    def file(self, path: str) -> FileRow:
        """Return what the index knows of a file.

        Raises
        ------
        NoSuchFile
            If it has none of that path; with others that have the same name.
        """
        found = self._files.get(path)
        if found is None:
            name = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
            near = [known for known in self._files if known.rpartition("/")[2] == name][:_NAMED]
            raise NoSuchFile(index=self._name, path=path[:200], hint=f"; it has {', '.join(near)}." if near else ".")
        return found

    def lines(self, row: FileRow) -> list[str]:
        """Return the lines that the index holds of a file, to the last that is not blank. What lies between two chunks is blank."""
        found: dict[int, str] = {}
        segment = next((segment for segment in self._segments if row.key in segment.at), None)
        if segment is not None:  # a file without text is in none
            rows = segment.rows_of(row.key)
            table = segment.chunks.slice(rows.start, len(rows))
            columns = (table.column(name).to_pylist() for name in ("start_line", "end_line", "text"))
            for start, end, text in zip(*columns, strict=True):
                _put(found, start, end, text)
        last = max((number for number, line in found.items() if line.strip()), default=0)
        return [found.get(number, "") for number in range(1, last + 1)]


def _put(lines: dict[int, str], start: int, end: int, text: str) -> None:
    """Add a chunk's lines. Parts of one long line come in order, each as a chunk of that line."""
    if start == end and "\n" not in text:
        lines[start] = lines.get(start, "") + text
        return
    for number, line in enumerate(text.split("\n"), start):
        lines.setdefault(number, line)


class Reader:
    """Reads lines of the indexes of a home, and keeps what it knows of the last index until that has a new version. For one thread at a time."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._held: Held | None = None
        self._last: tuple[str, tuple[str, ...]] | None = None

    def read(self, index: str, path: str, first: int, last: int, by: User = OPERATOR, *, disk: bool = True) -> Lines:
        """Return the lines from `first` to `last` of a file, or as many of them as are given at once.

        Without `disk` it is always the index that they come from.

        Raises
        ------
        NoSuchIndex, NoSuchFile, NoSuchLines
            If there is no such index, or it has no such file, or the file none of these lines.
        MalformedFile
            If the index is damaged.
        """
        for attempt in range(_REOPEN):
            manifest = open_index(self._home, index, by)[1]
            try:
                return self._read(index, manifest, path, (first, last), disk=disk)
            except (OSError, DamagedSegmentError) as error:  # a publication may have taken a segment away meanwhile
                self._last = None
                if attempt == _REOPEN - 1 or Index(self._home, index).manifest() == manifest:
                    raise _damaged(Index(self._home, index).folder, error) from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(self, name: str, manifest: Manifest, path: str, wanted: tuple[int, int], *, disk: bool) -> Lines:
        held = self._opened(name, manifest)
        row = held.file(path)
        why: str | None = "it was asked for from the index"
        try:
            if disk:
                lines, why = on_disk(row, manifest.roots), None
        except OnDiskNoMore as reason:
            why = str(reason)
        if why is not None:
            lines = held.lines(row)
        return _given(path, lines, wanted, why)

    def _opened(self, name: str, manifest: Manifest) -> Held:
        if self._held is None or self._last != (name, manifest.content):
            self._held = Held(Index(self._home, name), manifest)
            self._last = (name, manifest.content)
        return self._held


def _damaged(folder: Path, error: Exception) -> MalformedFile:
    return MalformedFile([Problem(str(folder), 1, 1, f"the index is damaged ({first_line(error)}); submit the tree again, which makes it anew")])


def _given(path: str, lines: Sequence[str], wanted: tuple[int, int], why: str | None) -> Lines:
    first, last = wanted[0], min(wanted[1], len(lines))
    if not 1 <= first <= last:
        raise NoSuchLines(path=path, total=len(lines), first=wanted[0], last=wanted[1])
    end, chars = first - 1, 0
    while end < last and end - first + 1 < LINES_MOST and (end < first or chars + len(lines[end]) < CHARS_MOST):
        chars += len(lines[end]) + 1
        end += 1
    text = "\n".join(lines[first - 1 : end])
    if len(text) > CHARS_MOST:  # one line that is longer by itself
        text = f"{text[:CHARS_MOST]}… ({len(text) - CHARS_MOST} more characters in this line)"
    return Lines(path, first, end, len(lines), "disk" if why is None else "index", why, end + 1 if end < last else None, text)


def on_disk(row: FileRow, roots: Sequence[str]) -> list[str]:
    """Return the lines of an indexed file as they are on the disk now.

    Raises
    ------
    OnDiskNoMore
        If it is not there, leads elsewhere, or is another text by now.
    """
    try:
        data = _bytes_of(row.path, roots_of(roots))
        text = decode(data)
    except DgpunetError as error:
        raise OnDiskNoMore("a tree of the index is not there") from error
    except UndecodableError as error:
        raise OnDiskNoMore("the file on the disk is no text") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in a name
        raise OnDiskNoMore(f"the file on the disk cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if content_key(text, row.language) != row.key:
        raise OnDiskNoMore("the file on the disk has changed since it was indexed")
    lines = text.split("\n")
    return lines[:-1] if len(lines) > 1 and not lines[-1] else lines


def _bytes_of(path: str, roots: Sequence[Root]) -> bytes:
    descriptor = _opened_below(path, roots)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OnDiskNoMore("what is on the disk is no file")
    with open(descriptor, "rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OnDiskNoMore("the file on the disk has grown too large")
    return data


def _opened_below(path: str, roots: Sequence[Root]) -> int:
    """Open an indexed file below its root, one folder after the other, and through no link."""
    root, parts = _place(path, roots)
    if not parts:  # a root that is a file, which its owner named
        return os.open(os.path.realpath(root), _READ)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _READ | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], _READ, dir_fd=folder)
    finally:
        os.close(folder)


def _place(path: str, roots: Sequence[Root]) -> tuple[Path, list[str]]:
    """Return the root that a path of the index lies below, and the names from there; none for a root that is itself the file."""
    for root in roots:
        if not root.path.is_dir() and path == (root.prefix or folder_name(root.path)):
            return root.path, []
        prefix = f"{root.prefix}/" if root.prefix else ""
        parts = path.removeprefix(prefix).split("/")
        if path.startswith(prefix) and root.path.is_dir() and not {"", ".", ".."}.intersection(parts):
            return root.path, parts
    raise OnDiskNoMore("no tree of the index has it")
