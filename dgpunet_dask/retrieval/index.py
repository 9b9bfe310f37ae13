"""An index: a folder with a manifest that names the version in force, and the ways to publish, list, share and remove.

A version is a table of files (``versions/ID/``) and segments (``segments/ID/``), which versions share: a new one adds a segment with what is
new, and leaves what it does not list any more to be passed over. It becomes visible by replacing ``manifest.json``, which is atomic.
Whatever fails before leaves the old version in force, and what it left behind goes with the next publication. Publishers and removers
of one index take turns by a file lock that the kernel frees when its holder dies. Readers take no lock: they hold their files open, and
open again if one went between reading its name and it.

An index belongs to who published it first, and only its owner and operators publish into it, share and remove it. Whoever can read the
files of the home is bound by none of this: it holds for those who come through the head.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import (
    BadName,
    DgpunetError,
    MalformedFile,
    NewerFormat,
    NoSuchIndex,
    NotAllowed,
    Problem,
    UnreadablePath,
    did_you_mean,
)
from dgpunet_dask.failpoints import hit
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.segments import disk_full_named
from dgpunet_dask.security.files import sync_folder

FORMAT_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a file system takes 255 bytes, and more is put around a name


@dataclass(frozen=True)
class Manifest:
    """One version of an index.

    Parameters
    ----------
    version, segments
        Folder below ``versions/``, and folders below ``segments/``.
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
    reconciled_s
        When they were last read as a whole, and not only where something was said to have changed; ``None`` for one of an older release.
    owner, shared
        Who published it first, ``None`` for one of an older release, which is the operators'; and whether every user may search it.
    """

    version: str
    segments: tuple[str, ...]
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
    owner: str | None = None
    shared: bool = False
    reconciled_s: float | None = None

    @property
    def recipe(self) -> tuple[str, int | None, int]:
        """What must agree for a row to be reused."""
        return self.model_digest, self.truncate_dim, self.chunker

    @property
    def read_s(self) -> float:
        """When the whole trees were read last; seconds since 1970 UTC."""
        return self.scanned_s if self.reconciled_s is None else self.reconciled_s

    @property
    def content(self) -> tuple[str, ...]:
        """What names all that it consists of: equal for two manifests that are read from the same files."""
        return self.version, *self.segments


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


@dataclass
class Draft:
    """What is written for a new version, and the version in force before it.

    Parameters
    ----------
    folder
        Empty, and removed in the end.
    before
        ``None`` where there was none.
    made
        Names of the segments that were written into it.
    """

    folder: Path
    before: Manifest | None
    made: list[str] = field(default_factory=list)

    @property
    def version(self) -> Path:
        """Where the new version's table of files is to be written."""
        return self.folder / "version"

    def segment(self, name: str) -> Path:
        """Return where the segment `name` is written."""
        return self.folder / name

    def new_segment(self) -> Path:
        """Return an empty folder for one more segment, which belongs to the version from now on."""
        self.made.append(uuid.uuid4().hex)
        folder = self.segment(self.made[-1])
        folder.mkdir(mode=0o700)
        return folder


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

    def seen(self, by: User) -> Manifest | None:
        """Return the version in force if `by` may read it; one that is damaged is there for operators alone, since its owner is not known."""
        try:
            manifest = self.manifest()
        except DgpunetError:
            if by.operates:
                raise
            return None
        return manifest if manifest is not None and by.sees(manifest) else None

    def segments(self, manifest: Manifest) -> list[Path]:
        """Return the folders of the segments that `manifest` names."""
        return [self.folder / "segments" / name for name in manifest.segments]

    def version(self, manifest: Manifest) -> Path:
        """Return the folder with the table of files of `manifest`."""
        return self.folder / "versions" / manifest.version

    @contextmanager
    def lock(self, right: str = "index") -> Iterator[None]:
        """Wait for, and hold, the only right to change this index; or another `right`. The kernel lets go when the holder dies."""
        locks = self.home.root / "locks"
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(locks / f"{right}-{self.name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def publish(self, write: Callable[[Draft], Manifest], by: User = OPERATOR, *, shared: bool = False) -> Manifest:
        """Make a new version visible: `write` fills a draft, durably, and returns its manifest.

        What the draft holds is added to the segments that the returned manifest names. The first owner stays the owner, and what was shared
        stays shared.

        Raises
        ------
        NotAllowed
            If the index is another user's; nothing is written then.
        DiskFull
            If there is no space; the old version stays in force.
        """
        with self.lock(), disk_full_named(self.folder):
            before = self.check_publisher(by)
            self.sweep()
            try:
                draft = Draft(self.folder / "drafts" / uuid.uuid4().hex, before)
                draft.version.mkdir(parents=True, mode=0o700)
                manifest = write(draft)
                hit("index.drafted", index=self.name)
                owner = by.name if before is None or before.owner is None else before.owner
                kept = replace(manifest, owner=owner, shared=shared or (before is not None and before.shared))
                return self._in_force(draft, kept)
            finally:
                self.sweep()

    def confirm(self, version: str, found: Manifest, by: User = OPERATOR, *, shared: bool = False) -> Manifest | None:
        """Say that the trees were `found` as they were when `version` was made; ``None`` if that is not in force any more, and nothing is changed.

        Raises
        ------
        NotAllowed
            If the index is another user's.
        """
        with self.lock(), disk_full_named(self.folder):
            before = self.check_publisher(by)
            if before is None or before.version != version:
                return None
            scanned_s, read_s = max(found.scanned_s, before.scanned_s), max(found.read_s, before.read_s)
            made = replace(before, shared=shared or before.shared, scanned_s=scanned_s, reconciled_s=read_s)
            self._replace_manifest(made)
            return made

    def swap(self, made: Path | None, manifest: Manifest) -> None:
        """Move a segment that was made apart, if any, to where it stays, and put `manifest`, which names it, in force. Only under the lock."""
        if made is not None:
            sync_folder(made)
            made.rename(self.folder / "segments" / made.name)
            sync_folder(self.folder / "segments")
        hit("compact.moved", index=self.name)
        self._replace_manifest(manifest)
        hit("compact.named", index=self.name)
        self.sweep()

    def _in_force(self, draft: Draft, manifest: Manifest) -> Manifest:
        """Move what a draft holds to where it stays, and name it."""
        for made, kind, name in ((draft.version, "versions", manifest.version), *((draft.segment(n), "segments", n) for n in draft.made)):
            (self.folder / kind).mkdir(exist_ok=True, mode=0o700)
            sync_folder(made)
            made.rename(self.folder / kind / name)
            sync_folder(self.folder / kind)
        published = replace(manifest, segments=(*manifest.segments, *draft.made))
        hit("index.moved", index=self.name)
        self._replace_manifest(published)
        hit("index.named", index=self.name)
        return published

    def check_publisher(self, by: User) -> Manifest | None:
        """Return the version in force, which `by` may replace; ``None`` where there is none.

        Raises
        ------
        NotAllowed
            If it is another user's.
        """
        try:
            manifest = self.manifest()
        except DgpunetError as error:
            if by.operates:
                raise
            why = "it is damaged, and an operator has to remove it; choose another name with `--set index=NAME`"
            raise NotAllowed(what=f"publishing into the index {self.name}", why=why) from error
        if manifest is not None and not by.owns(manifest):
            why = "it is another user's; choose another name with `--set index=NAME`"
            raise NotAllowed(what=f"publishing into the index {self.name}", why=why)
        return manifest

    def share(self, by: User = OPERATOR, *, shared: bool = True) -> Manifest:
        """Let every user read the index, or its owner and operators alone; return its version in force. Waits for a publisher.

        Raises
        ------
        NoSuchIndex
            If there is none that `by` may read.
        NotAllowed
            If it is another user's.
        """
        if self.seen(by) is None:  # without a lock: asking for what never was leaves nothing behind
            raise no_such_index(self.home, self.name, by)
        with self.lock(), disk_full_named(self.folder):
            manifest = self._to_change(by, "sharing")
            if manifest.shared != shared:
                manifest = replace(manifest, shared=shared)
                self._replace_manifest(manifest)
            return manifest

    def _to_change(self, by: User, doing: str) -> Manifest:
        """Return the version in force, which has to be there and theirs."""
        manifest = self.seen(by)
        if manifest is None:
            raise no_such_index(self.home, self.name, by)
        if not by.owns(manifest):
            raise NotAllowed(what=f"{doing} the index {self.name}", why="it is another user's")
        return manifest

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
        keep = set() if manifest is None else {manifest.version, *manifest.segments}
        for kind in ("drafts", "segments", "versions"):
            for leftover in (self.folder / kind).glob("*"):
                if leftover.name not in keep:
                    shutil.rmtree(leftover, ignore_errors=True)
        (self.folder / f"{MANIFEST}.tmp").unlink(missing_ok=True)

    def remove(self, by: User = OPERATOR) -> None:
        """Remove the index once no publisher is at work; an operator also what cannot be read any more.

        Raises
        ------
        NoSuchIndex
            If there is none that `by` may read.
        NotAllowed
            If it is another user's.
        """
        if not self.folder.is_dir():  # without a lock: asking for what never was leaves nothing behind
            raise no_such_index(self.home, self.name, by)
        if not by.operates:
            self._to_change(by, "removing")  # without a lock: whoever may not must not learn by waiting that it is being published
        with self.lock():
            if not self.folder.is_dir():
                raise no_such_index(self.home, self.name, by)
            if not by.operates:
                self._to_change(by, "removing")
            # first out of sight at once, then file by file
            trash = self.home.root / f"removed-{uuid.uuid4().hex}"
            self.folder.rename(trash)
            for leftover in self.home.root.glob("removed-*"):
                shutil.rmtree(leftover, ignore_errors=True)


def open_index(home: Home, name: str, by: User = OPERATOR) -> tuple[Index, Manifest]:
    """Return an index that `by` may read, and its version in force.

    Raises
    ------
    NoSuchIndex, NewerFormat, MalformedFile
    """
    index = Index(home, name)
    manifest = index.seen(by) if _NAME.fullmatch(name) else None
    if manifest is None:
        raise no_such_index(home, name, by)
    return index, manifest


def no_such_index(home: Home, name: str, by: User = OPERATOR) -> NoSuchIndex:
    """Return the error that names the nearest index that `by` may read: another's name must not tell that it is there."""
    return NoSuchIndex(name=name, hint=did_you_mean(name, index_names(home, by)) or ".")


def index_names(home: Home, by: User = OPERATOR) -> list[str]:
    """Return the names of all indexes that `by` may read, in order; to operators also those that are damaged."""
    names = sorted(f.parent.name for f in home.indexes.glob(f"*/{MANIFEST}"))
    return names if by.operates else [name for name in names if Index(home, name).seen(by) is not None]


def _parsed(file: Path, raw: Any) -> Manifest:
    found = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(found, int):
        raise _damaged(file, "it states no format version")
    if found > FORMAT_VERSION:
        raise NewerFormat(path=file, found=found, known=FORMAT_VERSION)
    if found == 1:  # one segment that held its files as well: nobody opens it any more, but it has an owner
        raw = {**raw, "version": raw.get("segment"), "segments": []}
    fields = {k: v for k, v in raw.items() if k in Manifest.__dataclass_fields__}
    try:
        manifest = Manifest(**{**fields, **{name: tuple(fields.get(name, ())) for name in ("roots", "segments")}})
    except TypeError as error:
        raise _damaged(file, str(error)) from error
    wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(manifest, name), kind)]
    wrong += [name for name, ids in (("version", (manifest.version,)), ("segments", manifest.segments)) if not all(map(_is_id, ids))]
    if wrong:
        raise _damaged(file, f"the value of {', '.join(wrong)} is not of its kind")
    return manifest


def _is_id(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch("[0-9a-f]{32}", name) is not None


#: What is read out of a manifest has to be one of these.
_KINDS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("version", "model", "model_digest"), str),
    **dict.fromkeys(("dimension", "chunker", "files", "chunks", "tokens"), int),
    **dict.fromkeys(("scanned_s", "published_s"), int | float),
    "truncate_dim": int | None,
    "skipped": dict,
    "owner": str | None,
    "reconciled_s": int | float | None,
    "shared": bool,
}


def _damaged(file: Path, why: str) -> MalformedFile:
    return MalformedFile([Problem(str(file), 1, 1, f"not an index manifest ({why}); remove the index and submit again")])
