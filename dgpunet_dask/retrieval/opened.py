"""One version of an index, opened: its chunks by place, and the exact nearest of them to a vector."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval.columns import Texts
from dgpunet_dask.retrieval.exact import exact_scan, exact_scores
from dgpunet_dask.retrieval.filetable import FILES, read_paths
from dgpunet_dask.retrieval.index import Index, Manifest
from dgpunet_dask.retrieval.lexical import LexicalIndex
from dgpunet_dask.retrieval.lexicon import LEXICAL
from dgpunet_dask.retrieval.scans import SCAN, Nearest, open_scan
from dgpunet_dask.retrieval.segments import VECTORS, Segment
from dgpunet_dask.retrieval.signals import Candidate
from dgpunet_dask.retrieval.spread import Source, Spread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
    Rows = NDArray[np.int64]
    Mask = NDArray[np.bool_]

log = logging.getLogger(__name__)

#: Scores are compared and shown to so many digits; below that, sums differ with the batch they were made in.
DIGITS: Final = 6
#: Of a filter that lets less through than this share, only these rows are compared; of any other all are, and the others passed over.
_NARROW: Final = 0.25
#: What the ranking reads of a chunk beside its lines.
_READ: Final = ("symbol", "kind", "scope", "language", "text")


@dataclass(frozen=True)
class Filter:
    """Which chunks count: `path` is a gitignore-style glob, `language` a name in lower case; ``None``: all.

    `kinds`: only chunks that are a part of such a definition (`grammars.KINDS`), any of them; empty: all, also those of no definition.
    """

    path: str | None = None
    language: str | None = None
    kinds: tuple[str, ...] = ()


#: Lets everything through.
ALL: Final = Filter()


class Place(NamedTuple):
    """A chunk as one file has it: the number of its segment, its row there, and the file's path."""

    score: float
    path: str
    segment: int
    row: int


@dataclass(frozen=True)
class _Selection:
    """What a filter lets through: the paths of each file by key, and the rows of each segment (``None``: all that have a path).

    `of_kind`: of each segment, whether a row is of a kind that was asked for; ``None`` where none was.
    """

    chosen: Filter
    paths: dict[str, list[str]]
    rows: Sequence[Rows | None]
    of_kind: Sequence[Mask] | None


class OpenIndex:
    """One version of an index, opened; later publications do not disturb it.

    Parameters
    ----------
    spread
        Gives a segment another form to be searched in, such as one that workers hold; ``None``: each is searched here.

    Raises
    ------
    DamagedSegmentError, OSError, ValueError, RuntimeError
        If something of it cannot be read.
    """

    def __init__(self, index: Index, manifest: Manifest, spread: Spread | None = None) -> None:
        self.name = index.name
        self.manifest = manifest
        self.segments = [_Dense(folder, index.name, spread) for folder in index.segments(manifest)]
        self.paths = read_paths(index.version(manifest) / FILES)
        self.lexical = LexicalIndex(index.version(manifest) / LEXICAL)
        self._at = {key: number for number, segment in enumerate(self.segments) for key in segment.keys}
        self._last: _Selection | None = None

    def nearest(self, vector: Vector, k: int, chosen: Filter = ALL) -> list[Place]:
        """Return the `k` chunks nearest to `vector` ``(dimension,)``, best first; equal scores by path, then line. One thread at a time."""
        selection = self._selected(chosen)
        found = [place for number, _ in enumerate(self.segments) for place in self._nearest_in(number, vector, k, selection)]
        return sorted(found, key=self._order)[:k]

    def worded(self, query: str, count: int, chosen: Filter = ALL) -> list[Place]:
        """Return the `count` chunks that have most of the words of `query`, best first, each for every file that has it."""
        selection = self._selected(chosen)
        keys = None if chosen.path is None and selection.of_kind is None else selection.paths.keys()
        language = None if chosen.language is None else chosen.language.lower()
        found = []
        for hit in self.lexical.search(query, count, language=language, keys=keys, accepts=self._of_kind(selection)):
            number, row = self._row(hit.key, hit.ordinal)
            found += [Place(hit.score, path, number, row) for path in selection.paths.get(hit.key, ())]
        return found

    def _row(self, key: str, ordinal: int) -> tuple[int, int]:
        """Return the segment and the row of a file's n-th chunk."""
        number = self._at[key]
        return number, self.segments[number].rows_of(key).start + ordinal

    def _of_kind(self, selection: _Selection) -> Callable[[str, int], bool] | None:
        """Return whether a file's n-th chunk is of a kind that was asked for: the lexical index does not know kinds."""
        masks = selection.of_kind
        if masks is None:
            return None

        def accepts(key: str, ordinal: int) -> bool:
            number, row = self._row(key, ordinal)
            return bool(masks[number][row])

        return accepts

    def cosine(self, place: Place, vector: Vector) -> float:
        """Return the cosine of a chunk to a vector of length 1."""
        return float(self.segments[place.segment].plain[place.row] @ vector)

    def candidate(self, place: Place, *, dense: float | None, lexical: float | None) -> Candidate:
        """Return a chunk as the ranking sees it."""
        segment, row = self.segments[place.segment], place.row
        symbol, kind, scope, language, text = (column[row] for column in segment.texts)
        position = segment.file_of[row]
        key, ordinal = segment.keys[position], row - segment.firsts[position]
        start, end = segment.starts[row], segment.ends[row]
        return Candidate(key, ordinal, place.path, start, end, symbol, kind, scope, language or "", text or "", dense, lexical)

    def _order(self, place: Place) -> tuple[float, str, int]:
        return -place.score, place.path, self.segments[place.segment].starts[place.row]

    def _nearest_in(self, number: int, vector: Vector, k: int, selection: _Selection) -> list[Place]:
        """The best of one segment; more than `k` where several are equal."""
        segment, rows = self.segments[number], selection.rows[number]
        total = segment.rows if rows is None else len(rows)
        wide = min(total, k + 16)
        while wide:
            scored = segment.nearest(vector, wide, rows)
            found = [Place(score, path, number, row) for score, row in scored for path in selection.paths.get(segment.key_of(row), ())]
            found.sort(key=self._order)
            # complete once a worse score than the last wanted one was seen: no equal one is then left out
            if wide == total or (len(found) > k and scored[-1][0] < found[k - 1].score - 10.0**-DIGITS):
                return found
            wide = min(total, wide * 4)
        return []

    def _selected(self, chosen: Filter) -> _Selection:
        """What a filter lets through; the last one is kept, since many queries come with the same."""
        if self._last is None or self._last.chosen != chosen:
            paths, of_kind = self._chosen_paths(chosen), None
            masks: Sequence[Mask | None] = [None] * len(self.segments)
            if chosen.kinds:
                of_kind = [segment.among("kind", chosen.kinds) for segment in self.segments]
                with_one = {key for segment, mask in zip(self.segments, of_kind, strict=True) for key in segment.keys_with(mask)}
                paths, masks = {key: found for key, found in paths.items() if key in with_one}, of_kind
            rows = [_chosen_rows(s, paths, chosen, mask) for s, mask in zip(self.segments, masks, strict=True)]
            self._last = _Selection(chosen, paths, rows, of_kind)
        return self._last

    def _chosen_paths(self, chosen: Filter) -> dict[str, list[str]]:
        if chosen.path is None:
            return self.paths
        accepts = path_filter(chosen.path)
        kept = {key: [p for p in paths if accepts(p)] for key, paths in self.paths.items()}
        return {key: paths for key, paths in kept.items() if paths}

    def chunk(self, place: Place) -> dict[str, Any]:
        """Return the columns of a chunk."""
        # a slice, since `take` imports pandas first
        row: dict[str, Any] = self.segments[place.segment].chunks.slice(place.row, 1).to_pylist()[0]
        return row


def _chosen_rows(segment: _Dense, paths: dict[str, list[str]], chosen: Filter, of_kind: Mask | None) -> Rows | None:
    """The rows that may be found, where they are few or rows of a file differ; else ``None``, and whatever has no path is passed over."""
    import numpy as np

    files = np.fromiter((key in paths for key in segment.keys), bool, len(segment.keys))
    mask = np.repeat(files, segment.count)
    if chosen.language is not None:
        mask &= segment.among("language", (chosen.language.lower(),))
    if of_kind is not None:
        mask &= of_kind
    all_of_a_file = chosen.language is None and of_kind is None
    return None if all_of_a_file and mask.sum() >= _NARROW * segment.rows else np.flatnonzero(mask)


class _Dense(Segment):
    """A segment whose vectors are searched."""

    def __init__(self, folder: Path, index: str = "", spread: Spread | None = None) -> None:
        import numpy as np

        super().__init__(folder)
        self._exact = exact_scan(folder / VECTORS)
        # memoryviews give Python numbers, and several times as fast as arrays do
        self.starts, self.ends = (memoryview(self.chunks.column(name).to_numpy()) for name in ("start_line", "end_line"))
        self.file_of = np.repeat(np.arange(len(self.keys)), self.count).data
        self.firsts: list[int] = self.first.tolist()
        self.texts = [Texts(self.chunks.column(name)) for name in _READ]
        self.plain = self.vectors.view(np.ndarray)  # rows of a `memmap` cost much more than their bytes
        self._scan = self._opened_scan()
        if spread is not None and self._scan is not None:  # where a scan was of no use to it, one of several parts would be of none
            self._scan = spread(self._source(index), self._scan)

    def _source(self, index: str) -> Source:
        file, offset = self.folder / VECTORS, int(self.vectors.offset)  # type: ignore[attr-defined]  # a `memmap`
        return Source(index, self.folder.name, self.facts.digests.get(VECTORS, ""), file, offset, self.plain, self._exact)

    def _opened_scan(self) -> Nearest | None:
        facts = self.facts.scan
        if facts is None or facts.kind is None:
            return None
        try:
            return open_scan(self.folder / SCAN, self.plain, self._exact, facts)
        except (OSError, RuntimeError, ValueError) as error:  # what FAISS raises
            log.warning("segment %s is searched without its scan, which cannot be read: %s", self.folder.name, error)
            return None

    def among(self, name: str, values: Sequence[str]) -> Mask:
        """Return of each row whether a column has one of `values`."""
        import numpy as np

        column: NDArray[np.object_] = self.chunks.column(name).to_numpy()
        return np.logical_or.reduce([np.asarray(column == value, bool) for value in values])

    def keys_with(self, mask: Mask) -> list[str]:
        """Return the keys of the files that have a row in `mask`."""
        import numpy as np

        return [self.keys[number] for number in np.unique(np.asarray(self.file_of)[mask])]

    def key_of(self, row: int) -> str:
        """Return the key of the file that a row belongs to."""
        return self.keys[self.file_of[row]]

    def nearest(self, vector: Vector, count: int, rows: Rows | None) -> list[tuple[float, int]]:
        """Return the `count` nearest rows, of all or of `rows`, best first. Scores are summed anew, each alone, so that they do not depend on the others."""
        import numpy as np

        if rows is None:
            ids = self._exact(vector, count) if self._scan is None else self._scan.nearest(vector, count)
        else:
            near = np.ascontiguousarray(self.plain[rows], np.float32) @ vector
            ids = rows[np.argpartition(-near, count - 1)[:count]]
        scores = exact_scores(self.plain, ids, vector)
        return sorted(((round(s, DIGITS), i) for s, i in zip(scores.tolist(), ids.tolist(), strict=True)), key=lambda f: (-f[0], f[1]))


def path_filter(pattern: str) -> Callable[[str], bool]:
    """Return whether a path matches a gitignore-style glob: ``*.py`` anywhere, ``/src/`` at the root, ``src/**/test_*``.

    Raises
    ------
    BadValue
        If it is no such glob.
    """
    from pathspec import GitIgnoreSpec

    try:
        spec = GitIgnoreSpec.from_lines([pattern])
    except ValueError as error:
        raise BadValue(what="--path", value=pattern, why=str(error)) from error
    return spec.match_file
