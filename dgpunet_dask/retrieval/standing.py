"""What the version in force of an index knows of its trees, what of that stands where little has changed, and whether anything is new."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgpunet_dask.retrieval.changes import PATHS_MAX, Below, Changes, below, covered, split_skips
from dgpunet_dask.retrieval.discover import Root, overlap, shown
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_table, rows_of, table_of
from dgpunet_dask.retrieval.index import Manifest
from dgpunet_dask.retrieval.lexicon import LEXICAL, usable
from dgpunet_dask.retrieval.segments import DamagedSegmentError, Segment
from dgpunet_dask.retrieval.skips import Skip, read_skips, reading_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

#: So many files that were touched, and are what they were, keep their old stat in the table; each is read again by the next scan.
_TOUCHED_MAX: Final = 64


@dataclass
class Known:
    """What the version in force has, if it was made the same way.

    Parameters
    ----------
    keys
        Contents whose chunks it has.
    by_path, skips
        Files, and what was left out, by their path as shown.
    read_ns
        When the whole trees were read.
    whole
        The version, where nothing of it is missing or damaged: it can stay in force if nothing is new.
    table
        Its files, until `look_into` has made `by_path` of it.
    """

    keys: set[str] = field(default_factory=set)
    by_path: dict[str, FileRow] = field(default_factory=dict)
    skips: dict[str, Skip] = field(default_factory=dict)
    read_ns: int = 0
    whole: Manifest | None = None
    table: pa.Table | None = None

    def look_into(self) -> None:
        """Learn of every file."""
        if self.table is not None:
            self.by_path = {row.path: row for row in rows_of(self.table) if row.key in self.keys or not row.chunks}
            self.table = None


def known_of(version: Path, manifest: Manifest, segments: Sequence[Path], reading: str) -> Known:
    """Return what a version knows whose `segments` these are; a damaged one is removed, and what it held is not known."""
    known = Known(read_ns=int(manifest.read_s * 1e9), whole=manifest)
    for folder in segments:
        try:
            known.keys.update(Segment(folder).keys)
        except DamagedSegmentError as error:
            log.warning("a segment is damaged, and what it held is made anew: %s", error)
            shutil.rmtree(folder)
            known.whole = None
    if reading_of(version) != reading:  # a file's text must be looked at, and may be known all the same
        known.whole = None
        return known
    try:
        known.table = read_table(version / FILES)
    except (OSError, ValueError):
        log.warning("%s cannot be read: every file of the tree is read anew", version / FILES)
        known.whole = None
    skips = list(read_skips(version))
    known.skips = {skip.path: skip for skip in skips}
    if Counter(skip.code for skip in skips) != manifest.skipped or not usable(version / LEXICAL, manifest.files):
        known.whole = None
    return known


@dataclass(frozen=True)
class Standing:
    """A version of which only some paths may be out of date.

    Parameters
    ----------
    below
        These paths, for each root.
    table, skips
        All other files, and what else was left out; they stand.
    inside
        What is known of these paths.
    over
        Code and path of what was left out among the folders above them.
    above
        These folders, as shown.
    """

    below: tuple[Below, ...]
    table: pa.Table
    skips: list[Skip]
    inside: Known
    over: frozenset[tuple[str, str]]
    above: frozenset[str]

    def holds(self, seen: Iterable[tuple[str, str]]) -> bool:
        """Whether the folders above are left out as they were, where a walk has `seen` these: else more has changed than was said."""
        return {(code, path) for code, path in seen if path in self.above} == self.over

    def with_rows(self, rows: Sequence[FileRow]) -> pa.Table:
        """Return the table with what was found at these paths."""
        import pyarrow as pa

        return pa.concat_tables([self.table, table_of(rows)])


def standing(known: Known, changes: Changes, roots: Sequence[Root]) -> Standing | None:
    """Return what stands of a version after `changes`; ``None`` where that cannot be told, and the whole trees have to be walked."""
    if known.whole is None or known.table is None or known.whole.version != changes.since or len(changes.paths) > PATHS_MAX or overlap(roots):
        return None
    places = tuple(_below(root, changes.paths) for root in roots)
    found = tuple(place for place in places if place is not None)
    if len(found) < len(places):
        return None
    paths = [_shown(root, path) for root, place in zip(roots, found, strict=True) for path in sorted(place.paths)]
    above = frozenset(_shown(root, path) for root, place in zip(roots, found, strict=True) for path in place.above if path)
    stay, inside, over = split_skips(known.skips.values(), frozenset(paths), above)
    return _standing(known, found, paths, above, (stay, inside, over))


def _standing(
    known: Known, places: tuple[Below, ...], paths: Sequence[str], above: frozenset[str], skips: tuple[list[Skip], list[Skip], list[Skip]]
) -> Standing:
    import pyarrow.compute as pc

    assert known.table is not None, "it was looked at"
    stay, inside, over = skips
    mask = covered(known.table.column("path"), paths)
    part = Known(known.keys, {row.path: row for row in rows_of(known.table.filter(mask))}, {s.path: s for s in (*inside, *over)}, known.read_ns, known.whole)
    return Standing(places, known.table.filter(pc.invert(mask)), stay, part, frozenset((s.code, s.path) for s in over), above)


def _below(root: Root, paths: Collection[bytes]) -> Below | None:
    return below(os.fsencode(os.path.realpath(root.path)), paths) if root.path.is_dir() else None


def _shown(root: Root, path: bytes) -> str:
    return f"{root.prefix}/{shown(path)}" if root.prefix else shown(path)


@dataclass
class News:
    """Counts what a scan finds to be as it was, touched, or new."""

    rows: int = 0
    skips: int = 0
    touched: int = 0
    new: int = 0

    def row(self, row: FileRow, before: FileRow | None) -> None:
        """Take in a file."""
        self.rows += 1
        if row is before:
            return
        if before is None or (row.key, row.language) != (before.key, before.language):
            self.new += 1
        elif row[:-1] != before[:-1]:
            self.touched += 1

    def skip(self, skip: Skip, before: Skip | None) -> None:
        """Take in what is left out."""
        self.skips += 1
        if before is None or skip[:-1] != before[:-1]:
            self.new += 1
        elif skip != before:
            self.touched += 1

    def none(self, rows: int, skips: int) -> bool:
        """Whether all is as it was where so many files and left out paths were known."""
        return (self.rows, self.skips, self.new) == (rows, skips, 0) and self.touched <= _TOUCHED_MAX
