"""What a new version of an index is made of: the segments in force, one more with what is new, and a table of the files."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.failpoints import hit
from dgpunet_dask.retrieval.compaction import Held, along
from dgpunet_dask.retrieval.filetable import FILES, read_table, with_chunks, write_table
from dgpunet_dask.retrieval.index import Draft, Index, Manifest
from dgpunet_dask.retrieval.lexicon import LEXICAL, write_lexicon
from dgpunet_dask.retrieval.segments import DamagedSegmentError, Segment, SegmentWriter
from dgpunet_dask.retrieval.skips import keep_skips
from dgpunet_dask.retrieval.vectorcache import Filler

if TYPE_CHECKING:
    import pyarrow as pa

#: What a scan leaves in its job's folder for the publication: the files that it found, and links to segments.
LISTING: Final = "listing.parquet"
BASE: Final = "base"


class Merge:
    """Writes one version: of a job's new rows, of what is in force, and of rows that were in force when the trees were scanned.

    Parameters
    ----------
    manifest
        What is known of the new version before it is written.
    units
        New rows: ``{"chunks": an Arrow stream of `chunk_schema`, "vectors": (n, d) float32}``, and what was embedded for them.
    folder
        What the scan has left: the listing of the new version's files, the list of what it left out, and the segments that it counts on.
    """

    def __init__(
        self,
        index: Index,
        manifest: Manifest,
        units: Iterable[dict[str, Any]],
        folder: Path,
        clock: Clock,
    ) -> None:
        self.chunks = self.embedded = self.tokens = 0
        self.wasteful = False
        self._index = index
        self._manifest = manifest
        self._units = units
        self._folder = folder
        self._files = read_table(folder / LISTING)
        self._clock = clock
        self._filler = Filler(index.home)

    def write(self, draft: Draft) -> Manifest:
        """Fill the draft, as `Index.publish` asks.

        Raises
        ------
        DamagedSegmentError
            If rows that are counted on cannot be read.
        """
        self._live = self._files.column("key")
        live = set(self._live.to_pylist())
        segments = self._in_force(draft.before)
        counts = {key: n for segment in segments for key, n in zip(segment.keys, segment.count.tolist(), strict=True)}
        segments, made = self._added(draft, segments, live, counts)
        listed = with_chunks(self._files, counts)
        files = write_table(draft.version / FILES, listed)
        keep_skips(self._folder, draft.version)
        self._write_lexicon(draft, segments, made)
        self.chunks = sum(listed.column("chunks").to_pylist())
        held = [held_of(segment, self._live) for segment in (*segments, *made)]
        self.wasteful = any(part.wasteful for part in held)
        dimension = next((s.facts.dimension for s in (*segments, *made)), 0)
        tokens = sum(_tokens(segment, self._live) for segment in (*segments, *made))
        facts = {"files": files, "chunks": sum(part.live for part in held), "tokens": tokens, "dimension": dimension}
        names = tuple(s.folder.name for s in segments)
        rest = {"version": uuid.uuid4().hex, "segments": names, "published_s": self._clock.wall()}
        return Manifest(**{**asdict(self._manifest), **facts, **rest})

    def _write_lexicon(self, draft: Draft, segments: Sequence[Segment], made: Sequence[Segment]) -> None:
        base = before = None
        if draft.before is not None and draft.before.recipe == self._manifest.recipe:
            try:
                before = read_table(self._index.version(draft.before) / FILES, ("path", "key"))
                base = self._index.version(draft.before) / LEXICAL
            except (OSError, ValueError):  # a damaged table: the scan has told of it
                before = None
        write_lexicon(draft.version / LEXICAL, base, before, self._files, (*segments, *made))

    def _in_force(self, before: Manifest | None) -> list[Segment]:
        """Open what is in force; another recipe's rows are of no use, nor is a segment that is damaged."""
        found = []
        for folder in self._index.segments(before) if before is not None and before.recipe == self._manifest.recipe else ():
            try:
                found.append(Segment(folder))
            except DamagedSegmentError:
                continue  # the scan has told of it; what it held is among the new rows
        return found

    def _added(
        self, draft: Draft, segments: list[Segment], live: set[str], counts: dict[str, int]
    ) -> tuple[list[Segment], list[Segment]]:
        """Write what is new, with the segments that are better merged with it; return those that stay and those that were made."""
        folder = draft.new_segment()
        with SegmentWriter(folder) as writer:
            for unit in self._units:
                self._append_unit(writer, unit, live, counts)
            self._filler.flush()
            for segment in map(Segment, self._base_beside(segments)):
                append_segment(writer, segment, lambda key: key in live and key not in counts and key not in writer.by_key)
            new = writer.rows
            merged = [segments[n] for n in along([held_of(s, self._live) for s in segments], new)]
            for segment in merged:
                append_segment(writer, segment, live.__contains__)
            counts |= writer.by_key
            stay = [s for s in segments if s not in merged]
            if not writer.rows:
                draft.made.remove(folder.name)
                return stay, []
            hit("index.merging", index=self._index.name)
            writer.finish()
        return stay, [Segment(folder)]

    def _base_beside(self, segments: Sequence[Segment]) -> list[Path]:
        """Return what the scan counts on beside what is in force, whose rows are there anyway."""
        there = {segment.folder.name for segment in segments}
        return [folder for folder in sorted((self._folder / BASE).glob("*")) if folder.name not in there]

    def _append_unit(self, writer: SegmentWriter, unit: dict[str, Any], live: set[str], counts: dict[str, int]) -> None:
        """Add what a unit brings, but for files that are listed no more, or that another job has brought meanwhile."""
        import numpy as np
        import pyarrow as pa

        with pa.ipc.open_stream(unit["chunks"]) as stream:
            table: pa.Table = stream.read_all()
        fresh = unit["embedded"]
        self.embedded += int(fresh.sum())
        self.tokens += int(table.column("tokens").to_numpy()[fresh].sum())
        self._filler.add(unit["space"], unit["digests"][fresh], unit["vectors"][fresh])
        keys = table.column("key").to_pylist()
        wanted = {key for key in keys if key in live and key not in counts and key not in writer.by_key}
        mask = np.fromiter((key in wanted for key in keys), bool, len(keys))
        if mask.all():
            writer.append(table, unit["vectors"])
        elif mask.any():
            writer.append(table.filter(pa.array(mask)), np.ascontiguousarray(unit["vectors"][mask]))


def held_of(segment: Segment, live: pa.ChunkedArray) -> Held:
    """Return what a segment holds where only the files with the keys `live` are listed."""
    return Held(segment.rows, int(segment.count[segment.listed(live)].sum()))


def append_segment(writer: SegmentWriter, segment: Segment, wanted: Callable[[str], bool]) -> None:
    """Copy the chunks of the files whose key is `wanted`."""
    for chunks, vectors in segment.part(wanted):
        writer.append(chunks, vectors)


def _tokens(segment: Segment, live: pa.ChunkedArray) -> int:
    """Return the tokens of the chunks of the files `live` in a segment; each file's rows count once."""
    import numpy as np

    return int(segment.chunks.column("tokens").to_numpy()[np.repeat(segment.listed(live), segment.count)].sum())
