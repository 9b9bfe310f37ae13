"""What is in a folder that travels between hosts: its files, their digests, and the one digest that names the whole.

=========  =============================================  ==================================================================
kind       files                                          digest (SHA-256, hex)
=========  =============================================  ==================================================================
workload   all but caches and links that lead out of it   over names, lengths and contents
model      all but hidden ones; links are followed        over the lines ``name sha256`` of all files in order, so that a list
                                                          of files can be told from a wrong one before any of them has come
=========  =============================================  ==================================================================
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from dgpunet_dask.errors import BadWorkload

Kind = Literal["workload", "model"]
KINDS: Final[tuple[Kind, ...]] = ("workload", "model")

#: A workload is code and settings; data belongs in parameters. The limit keeps a mistaken folder from being shipped.
MAX_BYTES: Final = 64 << 20
#: The most bytes and files of one folder of each kind: what a host takes from another.
MOST_BYTES: Final[Mapping[Kind, int]] = {"workload": MAX_BYTES, "model": 1 << 40}
MOST_FILES: Final = 10_000

_LEFT_OUT: Final = frozenset({"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME_BYTES: Final = 1000
_PART_BYTES: Final = 255


class FileEntry(NamedTuple):
    """One file of a folder: its relative name with ``/``, its bytes, and the SHA-256 (hex) of its content."""

    name: str
    size: int
    sha256: str


def checked(kind: Any, digest: Any) -> tuple[Kind, str]:
    """Return both if there is such a kind and `digest` is 64 hex digits, so that they can never name another path.

    Raises
    ------
    ValueError
        Otherwise.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind {str(kind)[:40]!r}; known: {', '.join(KINDS)}")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{str(digest)[:80]!r} is no digest: it has 64 hexadecimal digits")
    return kind, digest


def workload_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative name and path of each file, sorted, without caches and links that lead out of the folder."""
    for base, dirs, names in os.walk(folder):
        dirs[:] = sorted(d for d in dirs if d not in _LEFT_OUT)
        for name in sorted(names):
            path = Path(base, name)
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                yield path.relative_to(folder).as_posix(), path


def workload_digest(folder: Path) -> str:
    """Return the SHA-256 (hex) over names, lengths and contents of the workload's files.

    Raises
    ------
    BadWorkload
        If the files are larger than `MAX_BYTES` together.
    """
    hashed, size = hashlib.sha256(b"dgpunet-workload-1\n"), 0
    for name, path in workload_files(folder):
        size += path.stat().st_size
        if size > MAX_BYTES:
            raise BadWorkload(workload=str(folder), why=f"its files are larger than {MAX_BYTES >> 20} MiB; give data as a parameter")
        content = path.read_bytes()
        hashed.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        hashed.update(content)
    return hashed.hexdigest()


def model_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative name and path of each file of a model, sorted, without hidden files and folders.

    Links are followed: in a hub's cache every file is one.
    """
    for base, dirs, names in os.walk(folder):
        dirs[:] = sorted(d for d in dirs if not d.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(base, name)
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def files_of(kind: Kind, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative name and path of each file of a folder of that kind."""
    return workload_files(folder) if kind == "workload" else model_files(folder)


def uncounted(kind: Kind, folder: Path) -> str | None:
    """Return the name of a file in `folder` that its digest does not count, such as a compiled module; ``None`` without any.

    What others give must hold none: it would be run without having been checked.
    """
    counted = {path for _, path in files_of(kind, folder)}
    others = sorted(path for path in folder.rglob("*") if path not in counted and (path.is_symlink() or not path.is_dir()))
    return others[0].relative_to(folder).as_posix() if others else None


def entries_of(kind: Kind, folder: Path) -> list[FileEntry]:
    """Return the files of `folder` with their digests: all of it is read.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    return [FileEntry(name, path.stat().st_size, file_sha256(path)) for name, path in files_of(kind, folder)]


def file_sha256(file: Path) -> str:
    """Return the SHA-256 (hex) of the file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def tree_digest(entries: Iterable[FileEntry]) -> str:
    """Return the digest of a model: SHA-256 (hex) over the sorted lines ``name sha256``."""
    lines = "\n".join(f"{e.name} {e.sha256}" for e in sorted(entries))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def checked_entries(kind: Kind, listed: Any) -> list[FileEntry]:
    """Return the files that another host lists, once each can only lie inside the folder and all of them are within the limits.

    Raises
    ------
    ValueError
        If a name leads out of the folder, comes twice or is also a folder of another, or the list is too long or no list.
    """
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not 0 < len(listed) <= MOST_FILES:
        raise ValueError(f"a folder has 1 to {MOST_FILES} files")
    entries = [_entry(raw) for raw in listed]
    names = {e.name for e in entries}
    inner = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    if len(names) < len(entries) or names & inner:
        raise ValueError("a name comes twice")
    if sum(e.size for e in entries) > MOST_BYTES[kind]:
        raise ValueError(f"the files are larger than {MOST_BYTES[kind] >> 20} MiB")
    return entries


def _entry(raw: Any) -> FileEntry:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or len(raw) != len(FileEntry._fields):
        raise ValueError("a file is told as [name, size, sha256]")
    name, size, sha256 = raw
    if not (isinstance(name, str) and is_inner(name)):
        raise ValueError(f"{str(name)[:80]!r} is no name of a file in the folder")
    if not (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        raise ValueError(f"{name[:80]!r} has no size")
    if not (isinstance(sha256, str) and _DIGEST.fullmatch(sha256)):
        raise ValueError(f"{name[:80]!r} has no digest")
    return FileEntry(name, size, sha256)


def is_inner(name: str) -> bool:
    """Whether `name` is a plain relative name with ``/`` that cannot lead out of its folder."""
    if not name or len(name) > _NAME_BYTES or any(letter < " " or letter == "\x7f" for letter in name):
        return False
    try:
        parts = [os.fsencode(part) for part in name.split("/")]
    except UnicodeEncodeError:
        return False
    return all(part not in {b"", b".", b".."} and len(part) <= _PART_BYTES for part in parts)
