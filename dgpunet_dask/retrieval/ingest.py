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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadName, DamagedFile
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.changes import Changes
from dgpunet_dask.retrieval.chunk import CHUNKER_VERSION
from dgpunet_dask.retrieval.discover import Entry, Root, Skipped, Text, discover, folder_name, read_text
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_table, table_of, write_table
from dgpunet_dask.retrieval.index import Index, Manifest, check_index_name
from dgpunet_dask.retrieval.modelfiles import ModelFiles
from dgpunet_dask.retrieval.publishing import BASE, LISTING, Merge
from dgpunet_dask.retrieval.rows import space_of
from dgpunet_dask.retrieval.segments import DamagedSegmentError, disk_full_named
from dgpunet_dask.retrieval.skips import CODE_READING, Skip, SkipList, skip_of
from dgpunet_dask.retrieval.standing import Known, News, Standing, known_of, standing

log = logging.getLogger(__name__)

SUMMARY: Final = "listing.json"
#: A file written within so many seconds before it was read may have changed again within one tick of its clock; it is read anew.
_RACY_NS: Final = 2_000_000_000

#: Adds 1, or a number, to a metric of the job.
Count = Callable[..., None]
#: Finds the files of the roots, and tells what it skips.
Walk = Callable[[Sequence[Root], Skipped], Iterable[Entry]]
#: Gives a file's text, or the reason to skip it, as `skip_of` takes it.
Reader = Callable[[Entry], Text | str]


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
    def shown_roots(self) -> tuple[str, ...]:
        """The trees as a manifest names them."""
        return tuple(os.fsencode(root.path).decode("utf-8", "backslashreplace") for root in self.roots)

    @property
    def space(self) -> str:
        """What must agree for a text's vector to be reused."""
        return space_of(self.model.digest, self.truncate_dim)


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

    With `changes` only what these name is walked, where all else can be known from the version in force: it is the one that they speak of,
    made in the same way from the same trees. Otherwise the whole trees are.
    """

    def __init__(
        self, plan: Plan, home: Home, folder: Path, count: Count, clock: Clock | None = None, *,
        walk: Walk = discover, read: Reader | None = None, reading: str = CODE_READING, changes: Changes | None = None,
    ) -> None:  # fmt: skip
        self._walk, self._read, self._reading = walk, read or read_text, reading
        self._skips = SkipList(folder, reading)
        self._plan = plan
        self._index = Index(home, plan.index)
        self._folder = folder
        self._count = count
        self._clock = clock or SystemClock()
        self._changes = changes
        self._skipped: dict[str, int] = {}
        self._known = Known()
        self._standing: Standing | None = None
        self._news = News()

    def entries(self) -> list[Entry]:
        """Walk the trees and return their files; those known by their stat come without need to be read.

        Raises
        ------
        NotAllowed
            If the index is another user's; nothing was read then.
        """
        self._started_s = self._clock.wall()
        self._base = self._pin_base()
        with disk_full_named(self._folder):
            found = self._changed_entries()
            return list(self._walk(self._plan.roots, self._skip)) if found is None else found

    def _changed_entries(self) -> list[Entry] | None:
        """Walk where something has changed; ``None`` where the whole trees have to be walked."""
        self._standing = None if self._changes is None else standing(self._known, self._changes, self._plan.roots)
        if self._standing is None:
            self._known.look_into()
            return None
        seen: list[tuple[str, str]] = []
        found = list(discover(self._plan.roots, lambda code, path: seen.append((code, path)), only=self._standing.below))
        if not self._standing.holds(seen):
            self._standing = None
            self._known.look_into()
            return None
        self._known = self._standing.inside
        for skip in self._standing.skips:
            self._add_skip(skip)
        for code, path in seen:
            self._skip(code, path)
        return found

    def unread(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of `entries` that `files` will read, in their order."""
        return [e for e in entries if self._unchanged(e) is None and self._skipped_before(e) is None]

    def unknown(self, entries: Sequence[Entry]) -> int:
        """How many of `entries` will have to be read."""
        return len(self.unread(entries))

    def files(self, entries: Iterable[Entry]) -> Iterator[SourceFile]:
        """Yield the files whose text the version in force does not have, each text once."""
        rows: list[FileRow] = []
        for entry in entries:
            row, source = self._row(entry)
            if row is None:
                continue
            rows.append(row)
            if source is not None:
                self._known.keys.add(source.key)
                yield source
        with disk_full_named(self._folder):
            self._skips.close()
            listing = table_of(rows) if self._standing is None else self._standing.with_rows(rows)
            self._count("files", len(listing))
            (self._folder / LISTING).unlink(missing_ok=True)
            write_table(self._folder / LISTING, listing, passing=True)  # a source that is begun anew writes it again
            self._write_summary(len(listing))

    def _skip(self, reason: str, path: str, stat: tuple[int, ...] = ()) -> None:
        skip = skip_of(reason, path, stat)
        self._news.skip(skip, self._known.skips.get(path))
        self._add_skip(skip)

    def _add_skip(self, skip: Skip) -> None:
        self._skipped[skip.code] = self._skipped.get(skip.code, 0) + 1
        self._count(f"skipped.{skip.code}")
        self._skips.add(skip)

    def _row(self, entry: Entry) -> tuple[FileRow | None, SourceFile | None]:
        same = self._unchanged(entry)
        if same is not None:
            self._news.row(same, same)
            return same, None
        text = self._skipped_before(entry) or self._read(entry)
        if not isinstance(text, Text):
            self._skip(text, entry.path, _stat_of(entry))
            return None, None
        key = content_key(text.text, text.language)
        stat = entry.stat
        row = FileRow(entry.path, key, text.language, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        self._news.row(row, self._known.by_path.get(entry.path))
        return row, None if key in self._known.keys else SourceFile(entry.path, key, text.text, text.language, self._plan.space)

    def _unchanged(self, entry: Entry) -> FileRow | None:
        """Return the known row of a file whose stat did not change since it was read, as git's index does."""
        row = self._known.by_path.get(entry.path)
        return row if row is not None and (row.size, row.mtime_ns, row.ctime_ns, row.inode) == _stat_of(entry) and self._settled(entry) else None

    def _skipped_before(self, entry: Entry) -> str | None:
        """Return why a file was left out, if it was read for that and did not change since."""
        skip = self._known.skips.get(entry.path)
        return skip.reason if skip is not None and skip.stat == _stat_of(entry) and self._settled(entry) else None

    def _settled(self, entry: Entry) -> bool:
        """Whether a file's times lie so far back that it cannot have changed again unnoticed."""
        return max(entry.stat.st_mtime_ns, entry.stat.st_ctime_ns) < self._known.read_ns - _RACY_NS

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
            self._known = known_of(self._index.version(manifest), manifest, sorted(base.glob("*")), self._reading)
        if manifest.roots != self._plan.shown_roots:
            self._known.whole = None
        return bool(self._known.keys)

    def _write_summary(self, files: int) -> None:
        plan, before = self._plan, self._known.whole
        read_s = self._started_s if self._standing is None or before is None else before.read_s
        manifest = Manifest(
            version="", segments=(), model=plan.model.name, model_digest=plan.model.digest, dimension=0, truncate_dim=plan.truncate_dim,
            chunker=CHUNKER_VERSION, roots=plan.shown_roots, files=files, skipped=self._skipped, scanned_s=self._started_s, reconciled_s=read_s,
        )  # fmt: skip
        same = before is not None and self._news.none(len(self._known.by_path), len(self._known.skips))
        told = {"index": plan.index, "base": self._base, "same_as": before.version if same and before is not None else None}
        temporary = self._folder / f"{SUMMARY}.tmp"
        temporary.write_text(json.dumps({**told, "manifest": asdict(manifest)}), "utf-8")
        temporary.replace(self._folder / SUMMARY)


def _stat_of(entry: Entry) -> tuple[int, int, int, int]:
    """What has to be as it was for a file to be taken for unchanged."""
    stat = entry.stat
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


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
    wasteful
        Whether so much of a segment is passed over that it had better be merged.
    """

    name: str
    manifest: Manifest | None
    chunks: int
    embedded: int
    tokens: int
    wasteful: bool = False

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

    A tree that is as it was publishes nothing; its version stays in force, and is told to be of now. One without any text publishes nothing; where an index is already, its new version is empty, as the tree is.
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
    if first is None and summary["same_as"] is not None:
        made = index.confirm(summary["same_as"], manifest, by, shared=shared)
        if made is not None:
            chunks = read_table(index.version(made) / FILES, ("chunks",)).column("chunks")
            return Published(index.name, made, sum(chunks.to_pylist()), 0, 0)
    new = itertools.chain(() if first is None else (first,), with_rows)
    merge = Merge(index, manifest, new, folder, clock or SystemClock())
    try:
        made = index.publish(merge.write, by, shared=shared)
    except DamagedSegmentError as error:
        raise DamagedFile(path=index.folder, why=error) from error
    return Published(index.name, made, merge.chunks, merge.embedded, merge.tokens, merge.wasteful)


__all__ = ["Plan", "Published", "Scan", "SourceFile", "content_key", "index_name", "publish"]
