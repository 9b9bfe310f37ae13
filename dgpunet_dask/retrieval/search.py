"""Exact search over one index: the query's vector against every chunk's, filtered by path and language, ties in a fixed order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadValue, MalformedFile, ModelUnavailable, Problem
from dgpunet_dask.retrieval.encoder import Encoder, load_encoder
from dgpunet_dask.retrieval.index import Manifest, open_index
from dgpunet_dask.retrieval.modelfiles import MINILM, find_model, first_line
from dgpunet_dask.retrieval.segments import CHUNKS, VECTORS, read_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Rows = NDArray[np.int64]

#: Scores are compared and shown to so many digits; below that, sums differ with the batch they were made in.
_DIGITS: Final = 6
#: How often a reader looks again when a segment goes between reading its name and opening it.
_REOPEN: Final = 20
#: Up to so many queries are done in numpy before torch would have been imported.
_FEW_QUERIES: Final = 64


@dataclass(frozen=True)
class Hit:
    """A found chunk. `path` is relative to the indexed root, lines are 1-based and inclusive, a higher score is better."""

    path: str
    start_line: int
    end_line: int
    score: float
    text: str
    symbol: str | None
    language: str


@dataclass(frozen=True)
class Query:
    """A text to search for, with the caller's own `id` where it came from a file."""

    query: str
    id: Any = None


@dataclass(frozen=True)
class Filter:
    """Which chunks count: `path` is a gitignore-style glob, `language` a name in lower case; ``None``: all."""

    path: str | None = None
    language: str | None = None


class OpenIndex:
    """One version of an index, opened; later publications do not disturb it."""

    def __init__(self, name: str, manifest: Manifest, folder: Path) -> None:
        import faiss
        import pyarrow.parquet as pq

        self.name = name
        self.manifest = manifest
        self._table = pq.ParquetFile(folder / CHUNKS)
        self._vectors = faiss.read_index(str(folder / VECTORS), faiss.IO_FLAG_MMAP_IFC)
        columns = self._table.read(["key", "language", "start_line"])
        self._keys: list[str] = columns.column("key").to_pylist()
        self._languages: list[str] = columns.column("language").to_pylist()
        self._starts: list[int] = columns.column("start_line").to_pylist()
        if len(self._keys) != self._vectors.ntotal or self._vectors.d != (manifest.dimension or self._vectors.d):
            raise ValueError("its chunks and vectors do not belong together")
        self._last: tuple[Filter, dict[str, list[str]], Rows | None] | None = None
        self._paths: dict[str, list[str]] = {}
        for row in read_files(folder):
            self._paths.setdefault(row.key, []).append(row.path)

    def search(self, vectors: Vectors, k: int, chosen: Filter = Filter()) -> list[list[Hit]]:
        """Return the `k` best hits for each of the query `vectors` ``(queries, dimension)``. One thread at a time."""
        _, paths, rows = self._selected(chosen)
        return [self._hits(found) for found in self._ranked(vectors, k, paths, rows)]

    def _selected(self, chosen: Filter) -> tuple[Filter, dict[str, list[str]], Rows | None]:
        """What a filter lets through; the last one is kept, since many queries come with the same."""
        if self._last is None or self._last[0] != chosen:
            paths = self._chosen_paths(chosen)
            self._last = (chosen, paths, self._chosen_rows(paths, chosen))
        return self._last

    def _chosen_paths(self, chosen: Filter) -> dict[str, list[str]]:
        if chosen.path is None:
            return self._paths
        accepts = path_filter(chosen.path)
        kept = {key: [p for p in paths if accepts(p)] for key, paths in self._paths.items()}
        return {key: paths for key, paths in kept.items() if paths}

    def _chosen_rows(self, paths: dict[str, list[str]], chosen: Filter) -> Rows | None:
        """The rows that may be found; ``None`` for all."""
        import numpy as np

        if chosen == Filter():
            return None
        language = chosen.language.lower() if chosen.language else None
        rows = (n for n, key in enumerate(self._keys) if key in paths and language in (None, self._languages[n]))
        return np.fromiter(rows, np.int64)

    def _ranked(
        self, vectors: Vectors, k: int, paths: dict[str, list[str]], rows: Rows | None
    ) -> Iterator[list[tuple[float, str, int]]]:
        """Yield for each query ``(score, path, row)``, best first; equal scores by path, then line."""
        total = len(self._keys) if rows is None else len(rows)
        for vector in vectors:
            found: list[tuple[float, str, int]] = []
            wide = min(total, k + 16)
            while wide:
                scored = self._nearest(vector, wide, rows)
                found = sorted(
                    ((s, p, r) for s, r in scored for p in paths[self._keys[r]]), key=lambda f: (-f[0], f[1], self._starts[f[2]])
                )
                # complete once a worse score than the last wanted one was seen: no equal one is then left out
                if wide == total or (len(found) > k and scored[-1][0] < found[k - 1][0] - 10.0**-_DIGITS):
                    break
                wide = min(total, wide * 4)
            yield found[:k]

    def _nearest(self, vector: Vectors, count: int, rows: Rows | None) -> list[tuple[float, int]]:
        """The `count` nearest rows, best first. Scores are summed anew, each alone, so that they do not depend on the others."""
        import faiss
        import numpy as np

        selector = None if rows is None else faiss.IDSelectorBatch(rows)
        parameters = None
        if selector is not None:
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]  # FAISS's wrapper takes it
        _, found = self._vectors.search(vector[None, :], count, params=parameters)
        ids = found[0][found[0] >= 0]
        near = self._vectors.reconstruct_batch(ids).astype(np.float64)
        scores = np.einsum("ij,j->i", near, vector.astype(np.float64))
        return sorted(((round(float(s), _DIGITS), int(i)) for s, i in zip(scores, ids, strict=True)), key=lambda f: (-f[0], f[1]))

    def _hits(self, ranked: Sequence[tuple[float, str, int]]) -> list[Hit]:
        rows = self._read([row for _, _, row in ranked])
        return [
            Hit(path, found["start_line"], found["end_line"], score, found["text"], found["symbol"], found["language"])
            for score, path, row in ranked
            if (found := rows[row])
        ]

    def _read(self, rows: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Read the wanted rows, each row group that holds one once."""
        import numpy as np

        wanted = sorted(set(rows))
        sizes = [self._table.metadata.row_group(g).num_rows for g in range(self._table.num_row_groups)]
        ends = np.cumsum(sizes)
        found: dict[int, dict[str, Any]] = {}
        groups = np.searchsorted(ends, wanted, side="right")
        for group in sorted({int(g) for g in groups}):
            table = self._table.read_row_group(group)
            first = int(ends[group]) - sizes[group]
            # slices, since `take` imports pandas first
            found |= {r: table.slice(r - first, 1).to_pylist()[0] for r, g in zip(wanted, groups, strict=True) if g == group}
        return found


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


class Searcher:
    """An index opened with the model that made it."""

    def __init__(self, index: OpenIndex, encoder: Encoder) -> None:
        self.index = index
        self.encoder = encoder

    def search(self, queries: Sequence[Query], k: int, chosen: Filter = Filter()) -> Iterator[dict[str, Any]]:
        """Yield one answer a query: index, took_ms, hits; with ``id`` where the query has one."""
        started = time.perf_counter()
        vectors = self.encoder.encode_queries([q.query for q in queries])
        shared_ms = (time.perf_counter() - started) * 1000 / max(1, len(queries))
        for query, vector in zip(queries, vectors, strict=True):
            started = time.perf_counter()
            hits = self.index.search(vector[None, :], k, chosen)[0]
            took_ms = round(shared_ms + (time.perf_counter() - started) * 1000, 3)
            answer: dict[str, Any] = {} if query.id is None else {"id": query.id}
            yield answer | {"index": self.index.name, "took_ms": took_ms, "hits": [asdict(h) for h in hits]}


def open_searcher(home: Home, name: str, queries: int = 1, torch_device: str = "cpu", loaded: Sequence[Encoder] = ()) -> Searcher:
    """Open the index `name` and the model it was made with, in the way that is quickest for so many `queries`.

    Of the encoders that are `loaded` already, the one that made the index is used.

    Raises
    ------
    NoSuchIndex, NewerFormat, MalformedFile
        If the index cannot be read.
    ModelUnavailable
        If its model cannot be loaded, or is another one by now.
    """
    opened = _opened(home, name)
    manifest = opened.manifest
    encoder = next((encoder for encoder in loaded if _made(encoder, manifest)), None)
    encoder = encoder or _encoder(manifest, home.root / "cache", queries, torch_device)
    if encoder.files.digest != manifest.model_digest:
        raise ModelUnavailable(model=manifest.model, why="its files changed since the index was made; submit the tree again")
    return Searcher(opened, encoder)


def _made(encoder: Encoder, manifest: Manifest) -> bool:
    wanted = (manifest.model, manifest.model_digest, manifest.dimension)
    return (encoder.files.name, encoder.files.digest, encoder.dimension) == wanted


def _encoder(manifest: Manifest, cache: Path, queries: int, torch_device: str) -> Encoder:
    if manifest.model == MINILM and queries <= _FEW_QUERIES:
        from dgpunet_dask.retrieval.bert_numpy import NumpyMinilm

        return NumpyMinilm(find_model(MINILM, cache), manifest.truncate_dim)
    return load_encoder(manifest.model, torch_device, truncate_dim=manifest.truncate_dim, precision="fp32", cache=cache)


def _opened(home: Home, name: str) -> OpenIndex:
    for attempt in range(_REOPEN):
        index, manifest = open_index(home, name)
        try:
            return OpenIndex(name, manifest, index.segment(manifest))
        except (OSError, RuntimeError, ValueError, KeyError) as error:  # FAISS raises RuntimeError, Arrow ValueError and KeyError
            if attempt == _REOPEN - 1 or index.manifest() == manifest:
                raise _damaged(index.segment(manifest), error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _damaged(segment: Path, error: Exception) -> MalformedFile:
    return MalformedFile([Problem(str(segment), 1, 1, f"the index is damaged ({first_line(error)}); submit the tree again, which makes it anew")])
