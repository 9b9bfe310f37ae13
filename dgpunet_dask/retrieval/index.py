"""An index: a folder with a manifest that names the one segment in force, and the ways to publish, list and remove.

A new version becomes visible by replacing ``manifest.json``, which is atomic. Whatever fails before leaves the old version in
force, and what it left behind goes with the next publication. Publishers and removers of one index take turns by a file lock
that the kernel frees when its holder dies. Readers take no lock: they hold their files open, and open again if a segment went
between reading its name and it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadName, MalformedFile, NewerFormat, NoSuchIndex, Problem, UnreadablePath, did_you_mean
from dgpunet_dask.retrieval.segments import disk_full_named, sync_folder

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a file system takes 255 bytes, and more is put around a name


@dataclass(frozen=True)
class Manifest:
    """One version of an index.

    Parameters
    ----------
    segment
        Folder below ``segments/``.
    model, model_digest, dimension, truncate_dim, chunker
        What made the vectors; rows are reused only where all of it agrees.
    roots
        The trees it was made from.
    files, chunks, tokens
        What it holds. A chunk that several files share counts once here.
    skipped
        How many entries of the trees are not in it, by skip code.
    scanned_s, published_s
        When the trees were read, and when it became visible; seconds since 1970 UTC.
    """

    segment: str
    model: str
    model_digest: str
    dimension: int
    truncate_dim: int | None
    chunker: int
    roots: tuple[str, ...] = ()
    files: int = 0
    chunks: int = 0
    tokens: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    scanned_s: float = 0.0
    published_s: float = 0.0

    @property
    def recipe(self) -> tuple[str, int | None, int]:
        """What must agree for a row to be reused."""
        return self.model_digest, self.truncate_dim, self.chunker


def check_index_name(name: str) -> str:
    """Return `name` if an index may have it.

    Raises
    ------
    BadName
        Otherwise.
    """
    if not _NAME.fullmatch(name):
        raise BadName(name=name, what="an index")
    return name


class Index:
    """The folder of one index under a home; it need not exist yet. Making the value touches nothing."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.folder = home.indexes / name

    def manifest(self) -> Manifest | None:
        """Return the version in force, ``None`` if there is none.

        Raises
        ------
        NewerFormat, MalformedFile, UnreadablePath
            If this release cannot read it.
        """
        file = self.folder / MANIFEST
        try:
            raw = json.loads(file.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise _damaged(file, str(error)) from error
        except OSError as error:
            raise UnreadablePath(path=file, why=error.strerror or str(error)) from error
        return _parsed(file, raw)

    def segment(self, manifest: Manifest) -> Path:
        """Return the folder of the segment that `manifest` names."""
        return self.folder / "segments" / manifest.segment

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait for, and hold, the only right to change this index. The kernel lets go when the holder dies."""
        locks = self.home.root / "locks"
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(locks / f"index-{self.name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def publish(self, write: Callable[[Path], Manifest]) -> Manifest:
        """Make a new version visible: `write` fills an empty folder, durably, and returns its manifest (`segment` is set here).

        Raises
        ------
        DiskFull
            If there is no space; the old version stays in force.
        """
        with self.lock(), disk_full_named(self.folder):
            segments = self.folder / "segments"
            segments.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.sweep()
            temporary = segments / f"tmp-{uuid.uuid4().hex}"
            temporary.mkdir(mode=0o700)
            try:
                manifest = write(temporary)
                name = uuid.uuid4().hex
                temporary.rename(segments / name)
                sync_folder(segments)
                published = Manifest(**{**asdict(manifest), "segment": name, "roots": manifest.roots})
                self._replace_manifest(published)
            finally:
                self.sweep()
            return published

    def _replace_manifest(self, manifest: Manifest) -> None:
        temporary = self.folder / f"{MANIFEST}.tmp"
        with temporary.open("w", encoding="utf-8") as opened:
            json.dump({"format": FORMAT_VERSION, **asdict(manifest)}, opened, indent=1)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(self.folder / MANIFEST)
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def sweep(self) -> None:
        """Remove what no version needs: old segments, and what killed publishers left. Only under the lock."""
        manifest = self.manifest()
        keep = manifest.segment if manifest else None
        for leftover in (self.folder / "segments").glob("*"):
            if leftover.name != keep:
                shutil.rmtree(leftover, ignore_errors=True)
        (self.folder / f"{MANIFEST}.tmp").unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the index once no publisher is at work.

        Raises
        ------
        NoSuchIndex
            If there is none.
        """
        if not self.folder.is_dir():  # without a lock: asking for what never was leaves nothing behind
            raise no_such_index(self.home, self.name)
        with self.lock():
            if not self.folder.is_dir():
                raise no_such_index(self.home, self.name)
            # first out of sight at once, then file by file
            trash = self.home.root / f"removed-{uuid.uuid4().hex}"
            self.folder.rename(trash)
            for leftover in self.home.root.glob("removed-*"):
                shutil.rmtree(leftover, ignore_errors=True)


def open_index(home: Home, name: str) -> tuple[Index, Manifest]:
    """Return an index and its version in force.

    Raises
    ------
    NoSuchIndex, NewerFormat, MalformedFile
    """
    index = Index(home, name)
    manifest = index.manifest() if _NAME.fullmatch(name) else None
    if manifest is None:
        raise no_such_index(home, name)
    return index, manifest


def no_such_index(home: Home, name: str) -> NoSuchIndex:
    """Return the error that names the nearest index there is."""
    return NoSuchIndex(name=name, hint=did_you_mean(name, index_names(home)))


def index_names(home: Home) -> list[str]:
    """Return the names of all indexes, in order."""
    return sorted(f.parent.name for f in home.indexes.glob(f"*/{MANIFEST}"))


def size_bytes(index: Index, manifest: Manifest) -> int:
    """Return the bytes on disk of the version in force."""
    return sum(f.stat().st_size for f in index.segment(manifest).glob("*"))


def _parsed(file: Path, raw: Any) -> Manifest:
    found = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(found, int):
        raise _damaged(file, "it states no format version")
    if found > FORMAT_VERSION:
        raise NewerFormat(path=file, found=found, known=FORMAT_VERSION)
    fields = {k: v for k, v in raw.items() if k in Manifest.__dataclass_fields__}
    try:
        manifest = Manifest(**{**fields, "roots": tuple(fields.get("roots", ()))})
    except TypeError as error:
        raise _damaged(file, str(error)) from error
    wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(manifest, name), kind)]
    if wrong or not re.fullmatch("[0-9a-f]{32}", manifest.segment):
        raise _damaged(file, f"the value of {', '.join(wrong) or 'segment'} is not of its kind")
    return manifest


#: What is read out of a manifest has to be one of these.
_KINDS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("segment", "model", "model_digest"), str),
    **dict.fromkeys(("dimension", "chunker", "files", "chunks", "tokens"), int),
    **dict.fromkeys(("scanned_s", "published_s"), int | float),
    "truncate_dim": int | None,
    "skipped": dict,
}


def _damaged(file: Path, why: str) -> MalformedFile:
    return MalformedFile([Problem(str(file), 1, 1, f"not an index manifest ({why}); remove the index and submit again")])
