"""The files of a tree that are worth reading, as git sees them, and the reason for each that is not.

Names are bytes until shown: a name that is not UTF-8 is shown with backslashes and still opened by its bytes. Symbolic links
are never followed, so there are no loops; sockets, pipes and devices are never opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import MissingPath, UnreadablePath
from dgpunet_dask.retrieval.decode import MAX_BYTES, SNIFF_BYTES, UndecodableError, decode, skip_by_text
from dgpunet_dask.retrieval.gitignored import Ignored, ignored_below, is_repository
from dgpunet_dask.retrieval.rules import MACHINERY, VENDORED, language_of, skip_by_name

SKIP_CODES: Final = (
    "ignored", "binary", "generated", "minified", "vendored", "lockfile",
    "too_large", "undecodable", "unreadable", "symlink", "special",
)  # fmt: skip

#: Told of each skip: its code, and the path as shown.
Skipped = Callable[[str, str], None]


@dataclass(frozen=True)
class Root:
    """A tree to walk: `path` on disk, and what its files' shown paths start with (empty for a single root)."""

    path: Path
    prefix: str = ""


@dataclass(frozen=True)
class Entry:
    """A regular file that no name rules out: `path` as shown, `file` to open it by, and its stat."""

    path: str
    file: bytes
    stat: os.stat_result


@dataclass(frozen=True)
class Text:
    """The text of a file and its language."""

    text: str
    language: str


def shown(raw: bytes) -> str:
    r"""Return a path for people and JSON: UTF-8, with other bytes as ``\xff``."""
    return raw.decode("utf-8", "backslashreplace")


def roots_of(paths: Sequence[str | os.PathLike[str]]) -> tuple[Root, ...]:
    """Return the roots of `paths`. One root's files have no prefix; those of several begin with its folder's name.

    Equal names get ``-2``, ``-3``, … in the order given; a path given twice is one root.

    Raises
    ------
    MissingPath
        If a path does not exist.
    """
    known = dict.fromkeys(_existing(Path(os.path.abspath(p))) for p in paths)
    if len(known) == 1:
        return tuple(Root(p) for p in known)
    taken: set[str] = set()
    found = []
    for path in known:
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


def discover(roots: Sequence[Root], skipped: Skipped) -> Iterator[Entry]:
    """Yield the files below `roots` in the order of their names; `skipped` hears of every other entry.

    Raises
    ------
    UnreadablePath
        If a root itself cannot be listed.
    """
    for root in roots:
        prefix = root.prefix + "/" if root.prefix else ""
        if root.path.is_dir():
            yield from _Walk(os.fsencode(root.path), prefix, skipped).entries()
        else:
            yield from _single(root, skipped)


def _single(root: Root, skipped: Skipped) -> Iterator[Entry]:
    """A root that is a file: its path is its own name; being named, it is taken whatever its name or the ignore files say."""
    path = root.prefix or folder_name(root.path)
    found = root.path.stat()
    if stat.S_ISREG(found.st_mode):
        yield Entry(path, os.fsencode(os.path.realpath(root.path)), found)
    else:
        skipped("special", path)


@dataclass(frozen=True)
class _Folder:
    """A folder being walked; `ignored` belongs to the innermost repository around it, whose own path (with a slash) is `base`."""

    path: bytes
    base: bytes
    ignored: Ignored


class _Walk:
    """One root's walk."""

    def __init__(self, root: bytes, prefix: str, skipped: Skipped) -> None:
        self._root = root
        self._prefix = prefix
        self._skipped = skipped

    def entries(self) -> Iterator[Entry]:
        """Yield the root's files, depth first. A stack of its own: a tree may be deeper than Python recurses."""
        try:
            os.scandir(self._root).close()
        except OSError as error:
            raise UnreadablePath(path=shown(self._root), why=error.strerror or str(error)) from error
        stack = [self._children(_Folder(b"", b"", ignored_below(self._root)))]
        while stack:
            folder, child = next(stack[-1], (None, None))
            if folder is None or child is None:
                stack.pop()
                continue
            found = self._entry(folder, child)
            if isinstance(found, Entry):
                yield found
            elif found is not None:
                stack.append(self._children(found))

    def _children(self, folder: _Folder) -> Iterator[tuple[_Folder, os.DirEntry[bytes]]]:
        full = os.path.join(self._root, folder.path)
        try:
            with os.scandir(full) as listing:
                children = sorted(listing, key=lambda c: c.name)
        except OSError:
            self._skip("unreadable", folder.path)
            return
        if folder.path and any(c.name == b".git" for c in children) and is_repository(full):
            folder = _Folder(folder.path, folder.path + b"/", ignored_below(full))
        yield from ((folder, c) for c in children if os.fsdecode(c.name) not in MACHINERY)

    def _entry(self, folder: _Folder, child: os.DirEntry[bytes]) -> Entry | _Folder | None:
        path = folder.path + b"/" + child.name if folder.path else child.name
        try:
            found = child.stat(follow_symlinks=False)
        except OSError:
            self._skip("unreadable", path)
            return None
        is_dir = stat.S_ISDIR(found.st_mode)
        code = self._code(child, found, folder.ignored(path[len(folder.base) :], is_dir))
        if code is not None:
            self._skip(code, path)
            return None
        if is_dir:
            return _Folder(path, folder.base, folder.ignored)
        return Entry(self._prefix + shown(path), os.path.join(self._root, path), found)

    def _code(self, child: os.DirEntry[bytes], found: os.stat_result, is_ignored: bool) -> str | None:
        if is_ignored:
            return "ignored"
        if stat.S_ISLNK(found.st_mode):
            return "symlink"
        name = os.fsdecode(child.name)
        if stat.S_ISDIR(found.st_mode):
            return "vendored" if name in VENDORED or _is_virtual_environment(child.path) else None
        if not stat.S_ISREG(found.st_mode):
            return "special"
        return skip_by_name(name) or ("too_large" if found.st_size > MAX_BYTES else None)

    def _skip(self, code: str, path: bytes) -> None:
        self._skipped(code, self._prefix + shown(path))


def _is_virtual_environment(folder: bytes) -> bool:
    return os.path.exists(os.path.join(folder, b"pyvenv.cfg"))


def read_text(entry: Entry) -> Text | str:
    """Return the text of `entry`, or the skip code that its content earns it. At most `MAX_BYTES` are read."""
    try:
        data = _read(entry.file)
    except OSError:
        return "unreadable"
    if isinstance(data, str):
        return data
    try:
        text = decode(data)
    except UndecodableError as reason:
        return reason.code
    language = language_of(entry.path, text)
    return skip_by_text(text, language) or Text(text, language)


def _read(file: bytes) -> bytes | str:
    # O_NONBLOCK: were the file swapped for a pipe since the walk, opening it must not hang; O_NOFOLLOW: nor lead elsewhere
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb", buffering=0) as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "special"
        head = opened.read(SNIFF_BYTES)
        if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
            return "binary"  # not worth reading the rest
        data = head + _rest(opened, MAX_BYTES + 1 - len(head))
    return data if len(data) <= MAX_BYTES else "too_large"


def _rest(opened: FileIO, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := opened.read(limit)):  # a raw file may give less than asked
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
