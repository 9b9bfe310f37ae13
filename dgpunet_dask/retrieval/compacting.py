"""Merging segments of an index apart from any publication. It may be read, and published into, meanwhile."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DamagedFile, DgpunetError, NotAllowed
from dgpunet_dask.failpoints import hit
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.compaction import due
from dgpunet_dask.retrieval.filetable import FILES, read_paths, read_table
from dgpunet_dask.retrieval.index import Index, Manifest, open_index
from dgpunet_dask.retrieval.publishing import append_segment, held_of
from dgpunet_dask.retrieval.segments import DamagedSegmentError, Segment, SegmentWriter, disk_full_named

log = logging.getLogger(__name__)

#: Where a segment is written until it is in force; no publication looks there.
_APART: Final = "compacting"
#: How often a merge is begun again because a publication took up files meanwhile that it has left out. Then it is given up until the next.
_TRIES: Final = 3


@dataclass(frozen=True)
class Compacted:
    """How many segments and rows an index had before and has now; rows of files that it no longer lists count."""

    segments_before: int
    segments: int
    rows_before: int
    rows: int


def compact(home: Home, name: str, by: User = OPERATOR, *, all_of_it: bool = True) -> Compacted:
    """Merge the segments of an index into one without what is passed over; or only those of which too much is.

    One compaction of an index runs at a time, others wait.

    Raises
    ------
    NoSuchIndex
        If there is none that `by` may read.
    NotAllowed
        If it is another user's.
    DamagedFile, DiskFull
        If a segment cannot be read, or there is no space; the index stays as it is.
    """
    index, manifest = open_index(home, name, by)
    if not by.owns(manifest):
        raise NotAllowed(what=f"compacting the index {name}", why="it is another user's")
    before = after = _size(index, manifest)
    with index.lock("compact"), disk_full_named(index.folder):
        shutil.rmtree(index.folder / _APART, ignore_errors=True)  # of one that was killed: there is no other while this lock is held
        try:
            for _ in range(_TRIES):
                index, manifest = open_index(home, name, by)
                if _merged(index, manifest, all_of_it=all_of_it):
                    after = _size(*open_index(home, name, by))
                    break
        finally:
            shutil.rmtree(index.folder / _APART, ignore_errors=True)
    return Compacted(before[0], after[0], before[1], after[1])


def compact_if_due(home: Home, name: str, by: User = OPERATOR) -> None:
    """Merge the segments of which too much is passed over, if there are any. What goes wrong is told in the log: the index is as good without."""
    try:
        compact(home, name, by, all_of_it=False)
    except DgpunetError as error:
        log.warning("the segments of %s are not merged: %s", name, error)


def _size(index: Index, manifest: Manifest) -> tuple[int, int]:
    return len(manifest.segments), sum(segment.rows for segment in _opened(index.segments(manifest)))


def _opened(folders: Sequence[Path]) -> list[Segment]:
    try:
        return [Segment(folder) for folder in folders]
    except DamagedSegmentError as error:
        raise DamagedFile(path=folders[0].parent, why=error) from error


def _merged(index: Index, manifest: Manifest, *, all_of_it: bool) -> bool:
    """Merge what is to be merged; false where it has to be begun again, since what is listed has changed."""
    keys = read_table(index.version(manifest) / FILES, ("key",)).column("key")
    live = set(keys.to_pylist())
    segments = _opened(index.segments(manifest))
    chosen = [segments[n] for n in due([held_of(s, keys) for s in segments], all_of_them=all_of_it)]
    if not chosen:
        return True
    made = index.folder / _APART / uuid.uuid4().hex
    made.mkdir(parents=True, mode=0o700)
    with SegmentWriter(made) as writer:
        for segment in chosen:
            append_segment(writer, segment, live.__contains__)
        if writer.rows:
            writer.finish()
    hit("compact.merged", index=index.name)
    return _swapped(index, chosen, set(writer.by_key), made)


def _swapped(index: Index, chosen: Sequence[Segment], kept: set[str], made: Path) -> bool:
    """Put the merged segment in the place of those it was made of; false where these are no more, or more of their files are listed by now."""
    gone = {segment.folder.name for segment in chosen}
    with index.lock():
        manifest = index.manifest()
        if manifest is None or not gone <= set(manifest.segments):
            return False
        live = read_paths(index.version(manifest) / FILES).keys()
        if any(key in live and key not in kept for segment in chosen for key in segment.keys):
            return False
        rest = tuple(name for name in manifest.segments if name not in gone)
        index.swap(made if kept else None, replace(manifest, segments=(*rest, *([made.name] if kept else []))))
        return True
