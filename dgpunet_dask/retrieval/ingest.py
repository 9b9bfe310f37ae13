"""What lies between a tree and the next version of its index: which files are known, the listing, and what the new version is made of.

The two ends of an ingestion share a folder: `Scan` leaves there the listing of the tree and, by hard links, the segments whose
rows it counts on, so that neither a publication nor a removal in between can take them away; `publish` reads both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadName, DamagedFile
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.chunk import CHUNKER_VERSION
from dgpunet_dask.retrieval.discover import Entry, Root, Text, discover, folder_name, read_text
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_files, read_table, write_files
from dgpunet_dask.retrieval.index import Index, Manifest, check_index_name
from dgpunet_dask.retrieval.modelfiles import ModelFiles
from dgpunet_dask.retrieval.publishing import Merge
from dgpunet_dask.retrieval.rows import space_of
from dgpunet_dask.retrieval.segments import DamagedSegmentError, Segment, disk_full_named

log = logging.getLogger(__name__)

LISTING: Final = "listing.parquet"
SUMMARY: Final = "listing.json"
BASE: Final = "base"
#: A file written within so many seconds before it was read may have changed again within one tick of its clock; it is read anew.
_RACY_NS: Final = 2_000_000_000

#: Adds to a metric of the job.
Count = Callable[[str], None]


@dataclass(frozen=True)
class SourceFile:
    """A file to be cut and embedded.

    `key` is the digest of its text and language: equal files have one, wherever they lie. `space` tells what will embed it (`rows.space_of`).
    """

    path: str
    key: str
    text: str
    language: str
    space: str


@dataclass(frozen=True)
class Plan:
    """What an ingestion is to make.

    Parameters
    ----------
    index
        Name of the index.
    roots
        The trees.
    model, truncate_dim
        What embeds them.
    by
        Who publishes: another user's index is neither read nor changed.
    """

    index: str
    roots: tuple[Root, ...]
    model: ModelFiles
    truncate_dim: int | None = None
    by: User = OPERATOR

    @property
    def recipe(self) -> tuple[str, int | None, int]:
        """What must agree for rows to be reused."""
        return self.model.digest, self.truncate_dim, CHUNKER_VERSION

    @property
    def space(self) -> str:
        """What must agree for a text's vector to be reused."""
        return space_of(self.model.digest, self.truncate_dim)


@dataclass
class _Known:
    """What the version in force has, if it was made the same way."""

    keys: set[str] = field(default_factory=set)
    by_path: dict[str, FileRow] = field(default_factory=dict)
    scanned_ns: int = 0


def index_name(name: str | None, roots: Sequence[Root]) -> str:
    """Return the index's name: as given, else that of the first root's folder.

    Raises
    ------
    BadName
        If it is not allowed; a folder's name may hold what an index's may not.
    """
    if name is not None:
        return check_index_name(name)
    derived = folder_name(roots[0].path)
    try:
        return check_index_name(derived)
    except BadName:
        raise BadName(name=derived, what="an index (it is the folder's; set another with `--set index=NAME`)") from None


def content_key(text: str, language: str) -> str:
    """Return the digest by which a file's chunks are known: of its text, and of its language, which decides where it is cut."""
    return hashlib.blake2b(f"{language}\0{text}".encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


class Scan:
    """Reads the trees of a plan.

    `entries` walks them; `files` then yields what must be embedded and leaves listing, summary and base in `folder`.
    """

    def __init__(self, plan: Plan, home: Home, folder: Path, count: Count, clock: Clock | None = None) -> None:
        self._plan = plan
        self._index = Index(home, plan.index)
        self._folder = folder
        self._count = count
        self._clock = clock or SystemClock()
        self._skipped: dict[str, int] = {}
        self._known = _Known()

    def entries(self) -> list[Entry]:
        """Walk the trees and return their files; those known by their stat come without need to be read.

        Raises
        ------
        NotAllowed
            If the index is another user's; nothing was read then.
        """
        self._started_s = self._clock.wall()
        self._base = self._pin_base()
        return list(discover(self._plan.roots, self._skip))

    def unknown(self, entries: Sequence[Entry]) -> int:
        """How many of `entries` will have to be read."""
        return sum(self._unchanged(e) is None for e in entries)

    def files(self, entries: Iterable[Entry]) -> Iterator[SourceFile]:
        """Yield the files whose text the version in force does not have, each text once."""
        rows: list[FileRow] = []
        for entry in entries:
            row, source = self._row(entry)
            if row is None:
                continue
            rows.append(row)
            self._count("files")
            if source is not None:
                self._known.keys.add(source.key)
                yield source
        with disk_full_named(self._folder):
            (self._folder / LISTING).unlink(missing_ok=True)
            write_files(self._folder / LISTING, rows)
            self._write_summary(len(rows))

    def _skip(self, code: str, _path: str) -> None:
        self._skipped[code] = self._skipped.get(code, 0) + 1
        self._count(f"skipped.{code}")

    def _row(self, entry: Entry) -> tuple[FileRow | None, SourceFile | None]:
        same = self._unchanged(entry)
        if same is not None:
            return same, None
        text = read_text(entry)
        if not isinstance(text, Text):
            self._skip(text, entry.path)
            return None, None
        key = content_key(text.text, text.language)
        stat = entry.stat
        row = FileRow(entry.path, key, text.language, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        return row, None if key in self._known.keys else SourceFile(entry.path, key, text.text, text.language, self._plan.space)

    def _unchanged(self, entry: Entry) -> FileRow | None:
        """Return the known row of a file whose stat did not change since it was read, as git's index does."""
        row, stat = self._known.by_path.get(entry.path), entry.stat
        if row is None or (row.size, row.mtime_ns, row.ctime_ns, row.inode) != (
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
            stat.st_ino,
        ):
            return None
        return row if max(row.mtime_ns, row.ctime_ns) < self._known.scanned_ns - _RACY_NS else None

    def _pin_base(self) -> bool:
        """Link the segments in force into the folder and learn what they have; false where nothing can be reused."""
        base = self._folder / BASE
        shutil.rmtree(base, ignore_errors=True)
        with self._index.lock():
            manifest = self._index.check_publisher(self._plan.by)
            base.mkdir()
            if manifest is None or manifest.recipe != self._plan.recipe:
                return False
            for segment in self._index.segments(manifest):
                _link(segment, base / segment.name)
            for folder in sorted(base.glob("*")):
                self._know_segment(folder)
            self._know_files(self._index.version(manifest) / FILES)
        self._known.scanned_ns = int(manifest.scanned_s * 1e9)
        return bool(self._known.keys)

    def _know_segment(self, folder: Path) -> None:
        try:
            self._known.keys.update(Segment(folder).keys)
        except DamagedSegmentError as error:
            log.warning("a segment is damaged, and what it held is made anew: %s", error)
            shutil.rmtree(folder)

    def _know_files(self, table: Path) -> None:
        try:
            self._known.by_path = {row.path: row for row in read_files(table) if row.key in self._known.keys or not row.chunks}
        except (OSError, ValueError):
            log.warning("%s cannot be read: every file of the tree is read anew", table)

    def _write_summary(self, files: int) -> None:
        plan = self._plan
        manifest = Manifest(
            version="", segments=(), model=plan.model.name, model_digest=plan.model.digest, dimension=0, truncate_dim=plan.truncate_dim,
            chunker=CHUNKER_VERSION, roots=tuple(os.fsencode(r.path).decode("utf-8", "backslashreplace") for r in plan.roots),
            files=files, skipped=self._skipped, scanned_s=self._started_s,
        )  # fmt: skip
        temporary = self._folder / f"{SUMMARY}.tmp"
        temporary.write_text(json.dumps({"index": plan.index, "base": self._base, "manifest": asdict(manifest)}), "utf-8")
        temporary.replace(self._folder / SUMMARY)


def _link(segment: Path, into: Path) -> None:
    into.mkdir()
    for file in segment.iterdir() if segment.is_dir() else ():
        try:
            os.link(file, into / file.name)
        except OSError:  # a file system without hard links
            shutil.copy2(file, into / file.name)


@dataclass(frozen=True)
class Published:
    """The numbers of a publication.

    Parameters
    ----------
    name
        Of the index.
    manifest
        The new version; ``None`` where there was no text and no index, so nothing was published.
    chunks
        Over all files: one that several files share counts in each.
    embedded, tokens
        What was embedded for it.
    """

    name: str
    manifest: Manifest | None
    chunks: int
    embedded: int
    tokens: int

    @property
    def index(self) -> str | None:
        """The index's name, ``None`` where nothing was published."""
        return self.name if self.manifest else None

    @property
    def reused(self) -> int:
        """Chunks that cost no embedding."""
        return self.chunks - self.embedded


def publish(
    folder: Path, home: Home, units: Iterable[dict[str, Any]], clock: Clock | None = None, *, by: User = OPERATOR, shared: bool = False
) -> Published:
    """Publish the version that a scan has listed, of `units` (items of `rows.packed`) and of what is reused; keep the new vectors for others.

    A tree without any text publishes nothing; where an index is already, its new version is empty, as the tree is.
    With `shared` every user may search the index from now on; without, that stays as it is.

    Raises
    ------
    NotAllowed
        If another user has published an index of this name meanwhile.
    DiskFull, DamagedFile
        If there is no space, or the rows to reuse cannot be read; the old version stays in force.
    """
    summary = json.loads((folder / SUMMARY).read_text("utf-8"))
    raw = summary["manifest"]
    manifest = Manifest(**{**raw, "segments": (), "roots": tuple(raw["roots"])})
    index = Index(home, summary["index"])
    with_rows = (unit for unit in units if len(unit["vectors"]))
    first = next(with_rows, None)
    if first is None and not summary["base"] and index.manifest() is None:
        return Published(index.name, None, 0, 0, 0)
    new = itertools.chain(() if first is None else (first,), with_rows)
    merge = Merge(index, manifest, new, read_table(folder / LISTING), lambda: [Segment(part) for part in sorted((folder / BASE).glob("*"))], clock or SystemClock())
    try:
        made = index.publish(merge.write, by, shared=shared)
    except DamagedSegmentError as error:
        raise DamagedFile(path=index.folder, why=error) from error
    return Published(index.name, made, merge.chunks, merge.embedded, merge.tokens)


__all__ = ["Plan", "Published", "Scan", "SourceFile", "content_key", "index_name", "publish"]
