"""The files of a tree that are worth reading, as git sees them, and the reason for each that is not.

Names are bytes until shown: a name that is not UTF-8 is shown with backslashes and still opened by its bytes. Symbolic links
are never followed, so there are no loops; sockets, pipes and devices are never opened.

The walk is the part of a submission that every file costs again, changed or not: a file takes one `lstat`, a folder none, what git
ignores comes in one list, and `.dgpunetignore` is matched only below a folder that has one.
"""

from __future__ import annotations

import errno
import itertools
import operator
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from dgpunet_dask.errors import MissingPath, UnreadablePath
from dgpunet_dask.retrieval.changes import Below
from dgpunet_dask.retrieval.decode import MAX_BYTES, SNIFF_BYTES, UndecodableError, decode, skip_by_text
from dgpunet_dask.retrieval.gitignored import OWN, Ignored, OwnIgnored, ignored_below, is_repository, own_above
from dgpunet_dask.retrieval.rules import MACHINERY, VENDORED, language_of, skip_by_name

SKIP_CODES: Final = (
    "ignored", "binary", "generated", "minified", "vendored", "lockfile",
    "too_large", "undecodable", "unreadable", "symlink", "special",
)  # fmt: skip

#: Told of each skip: its code, and the path as shown.
Skipped = Callable[[str, str], None]
#: Says which code a regular file's name and size earn it, ``None`` for one to be read.
Judge = Callable[[str, int], str | None]
_MACHINERY: Final = frozenset(os.fsencode(name) for name in MACHINERY)
_OWN: Final = OWN.encode()


@dataclass(frozen=True)
class Root:
    """A tree to walk: `path` on disk, and what its files' shown paths start with (empty for a single root)."""

    path: Path
    prefix: str = ""


class Entry(NamedTuple):
    """A regular file that no name rules out: `path` as shown, `file` to open it by, and its stat."""

    path: str
    file: bytes
    stat: os.stat_result


@dataclass(frozen=True)
class Text:
    """The text of a file, its language, and its title where it has one and it was looked for."""

    text: str
    language: str
    title: str | None = None


def shown(raw: bytes) -> str:
    r"""Return a path for people and JSON: UTF-8, with other bytes as ``\xff``."""
    return raw.decode("utf-8", "backslashreplace")


def roots_of(paths: Sequence[str | os.PathLike[str]]) -> tuple[Root, ...]:
    """Return the roots of `paths`. One root's files have no prefix; those of several begin with its folder's name.

    Equal names get ``-2``, ``-3``, … in the order given; what is given twice, by a link too, is one root under its first name.

    Raises
    ------
    MissingPath
        If a path does not exist.
    """
    known: dict[str, Path] = {}
    for path in (_existing(Path(os.path.abspath(p))) for p in paths):
        known.setdefault(os.path.realpath(path), path)
    if len(known) == 1:
        return tuple(Root(p) for p in known.values())
    taken: set[str] = set()
    found = []
    for path in known.values():
        name = _free_name(folder_name(path), taken)
        taken.add(name)
        found.append(Root(path, name))
    return tuple(found)


def folder_name(path: Path) -> str:
    """Return the name that a root goes by; the file system's own root is ``root``."""
    return shown(os.fsencode(path.name)) or "root"


def _existing(path: Path) -> Path:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingPath(path=path) from error
    except OSError as error:
        raise UnreadablePath(path=path, why=error.strerror or str(error)) from error
    return path


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def judge_code(name: str, size: int) -> str | None:
    """Return the skip code of a file of a code tree by its name and size, ``None`` for one to be read."""
    return skip_by_name(name) or ("too_large" if size > MAX_BYTES else None)


def discover(
    roots: Sequence[Root], skipped: Skipped, judge: Judge = judge_code, only: Sequence[Below | None] | None = None
) -> Iterator[Entry]:
    """Yield the files below `roots` in the order of their names; `skipped` hears of every other entry.

    Where one root lies in another, what both hold belongs to the first of them.

    Parameters
    ----------
    only
        For each root the paths below which it is looked, by the same rules; ``None``: all of it.

    Raises
    ------
    UnreadablePath
        If a root itself cannot be listed.
    """
    seen: set[bytes] | None = set() if overlap(roots) else None
    for root, below in zip(roots, only or [None] * len(roots), strict=True):
        if below is not None and not below.paths:
            continue
        found = _Walk(root, skipped, judge, seen, below).entries() if root.path.is_dir() else _single(root, skipped)
        for entry in found:
            if seen is None or _new(entry.file, seen):
                yield entry


def overlap(roots: Sequence[Root]) -> bool:
    """Whether any root lies in another."""
    real = sorted(os.path.join(os.path.realpath(root.path), "") for root in roots)
    return any(later.startswith(first) for first, later in itertools.pairwise(real))


def _new(path: bytes, seen: set[bytes]) -> bool:
    before = len(seen)
    seen.add(path)
    return len(seen) > before


def _single(root: Root, skipped: Skipped) -> Iterator[Entry]:
    """A root that is a file: its path is its own name; being named, it is taken whatever its name or the ignore files say."""
    path = root.prefix or folder_name(root.path)
    found = root.path.stat()
    if stat.S_ISREG(found.st_mode):
        yield Entry(path, os.fsencode(os.path.realpath(root.path)), found)
    else:
        skipped("special", path)


class _Folder(NamedTuple):
    """A folder being walked.

    `ignored` belongs to the innermost repository around it, of whose own path `base` characters, with the slash, are to be left out. Not
    `whole`: only some of what it holds is looked at.
    """

    path: bytes
    base: int
    ignored: Ignored
    own: OwnIgnored
    whole: bool = True


class _Walk:
    """One root's walk."""

    def __init__(self, root: Root, skipped: Skipped, judge: Judge, seen: set[bytes] | None, only: Below | None) -> None:
        self._shown_root = root.path
        self._root = os.fsencode(os.path.realpath(root.path))
        self._prefix = root.prefix + "/" if root.prefix else ""
        self._skipped = skipped
        self._judge = judge
        self._seen = seen
        self._only = only

    def entries(self) -> Iterator[Entry]:
        """Yield the root's files, depth first. A stack of its own: a tree may be deeper than Python recurses."""
        try:
            os.scandir(self._root).close()
        except OSError as error:
            raise UnreadablePath(path=self._shown_root, why=error.strerror or str(error)) from error
        stack = [iter(self._children(_Folder(b"", 0, ignored_below(self._root), own_above(self._root), self._only is None)))]
        while stack:
            for found in stack[-1]:
                if isinstance(found, _Folder):
                    stack.append(iter(self._children(found)))
                    break
                yield found
            else:
                stack.pop()

    def _children(self, folder: _Folder) -> list[Entry | _Folder]:
        full = os.path.join(self._root, folder.path)
        try:
            with os.scandir(full) as listing:
                children = sorted(listing, key=_name)
        except OSError:
            self._skip("unreadable", folder.path)
            return []
        names = {child.name for child in children}
        if self._only is not None and not folder.whole:
            children = [child for child in children if self._only.leads_to(_joined(folder.path, child.name))]
        if folder.path and b"pyvenv.cfg" in names:
            self._skip("vendored", folder.path)
            return []
        folder = self._with_its_rules(folder, full, names)
        return [found for child in children if child.name not in _MACHINERY and (found := self._entry(folder, child)) is not None]

    def _with_its_rules(self, folder: _Folder, full: bytes, names: set[bytes]) -> _Folder:
        if folder.path and b".git" in names and is_repository(full):
            folder = folder._replace(base=len(folder.path) + 1, ignored=ignored_below(full))
        return folder._replace(own=folder.own.within(full)) if _OWN in names else folder

    def _entry(self, folder: _Folder, child: os.DirEntry[bytes]) -> Entry | _Folder | None:
        path = _joined(folder.path, child.name)
        try:
            is_dir = child.is_dir(follow_symlinks=False)
            found = None if is_dir else child.stat(follow_symlinks=False)
        except OSError:
            self._skip("unreadable", path)
            return None
        if (folder.ignored and folder.ignored(path[folder.base :], is_dir)) or (folder.own and folder.own(child.path, is_dir)):
            code: str | None = "ignored"
        else:
            code = self._code(child.name, found)
        if code is not None:
            self._skip(code, path)
            return None
        whole = folder.whole or (self._only is not None and path in self._only.paths)
        return folder._replace(path=path, whole=whole) if found is None else Entry(self._prefix + shown(path), child.path, found)

    def _code(self, name: bytes, found: os.stat_result | None) -> str | None:
        """The code of an entry that is not ignored; without a stat it is a folder."""
        if found is None:
            return "vendored" if os.fsdecode(name) in VENDORED else None
        if stat.S_ISREG(found.st_mode):
            return self._judge(name.decode("utf-8", "surrogateescape"), found.st_size)
        return "symlink" if stat.S_ISLNK(found.st_mode) else "special"

    def _skip(self, code: str, path: bytes) -> None:
        if self._seen is None or _new(os.path.join(self._root, path), self._seen):
            self._skipped(code, self._prefix + shown(path))


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


_name: Final = operator.attrgetter("name")


def read_text(entry: Entry) -> Text | str:
    """Return the text of `entry`, or the skip code that its content earns it. At most `MAX_BYTES` are read."""
    data = read_bytes(entry.file, MAX_BYTES)
    if isinstance(data, str):
        return data
    try:
        text = decode(data)
    except UndecodableError as reason:
        return reason.code
    language = language_of(entry.path, text)
    return skip_by_text(text, language) or Text(text, language)


def open_regular(file: bytes) -> FileIO:
    """Open a file for reading that is a regular one and no link, whatever it was when it was found.

    Raises
    ------
    OSError
        Also where it is something else by now.
    """
    # O_NONBLOCK: were the file swapped for a pipe since the walk, opening it must not hang; O_NOFOLLOW: nor lead elsewhere
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    opened = FileIO(descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        opened.close()
        raise _NoFileError(errno.EINVAL, "not a regular file")
    return opened


class _NoFileError(OSError):
    """It is a pipe, a device or a folder by now."""


def read_bytes(file: bytes, bytes_max: int) -> bytes | str:
    """Return what a file of text holds, or the skip code that it earns before it is decoded. At most `bytes_max` are read."""
    try:
        with open_regular(file) as opened:
            head = opened.read(SNIFF_BYTES)
            if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
                return "binary"  # not worth reading the rest
            data = head + _rest(opened, bytes_max + 1 - len(head))
    except _NoFileError:
        return "special"
    except OSError:
        return "unreadable"
    return data if len(data) <= bytes_max else "too_large"


def _rest(opened: FileIO, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := opened.read(limit)):  # a raw file may give less than asked
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
