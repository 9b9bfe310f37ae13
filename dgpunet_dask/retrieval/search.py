"""Search over one index: a query to its hits, filtered by path, language and kind of definition."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import MalformedFile, ModelUnavailable, Problem
from dgpunet_dask.retrieval.encoder import Encoder, load_encoder
from dgpunet_dask.retrieval.index import Manifest, open_index
from dgpunet_dask.retrieval.modelfiles import MINILM, find_model, first_line
from dgpunet_dask.retrieval.opened import ALL, DIGITS, Filter, OpenIndex
from dgpunet_dask.retrieval.rank import Ranked, fuse
from dgpunet_dask.retrieval.segments import DamagedSegmentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.rerank import SecondLook
    from dgpunet_dask.retrieval.spread import Spread

    Vector = NDArray[np.float32]

#: Candidates of either kind for one query, and paths: half as many cost some answers their place (bench/retrieval.py), more gain none.
_DEPTH: Final = 200
_PATHS: Final = 100
#: How often a reader looks again when a segment goes between reading its name and opening it.
_REOPEN: Final = 20
#: Up to so many queries are done in numpy before torch would have been imported.
_FEW_QUERIES: Final = 64


@dataclass(frozen=True)
class Hit:
    """A found chunk. `path` is relative to the indexed root, lines are 1-based and inclusive, a higher score is better.

    `kind` and `scope` are of the symbol: what it is (`grammars.KINDS`), and the name of what encloses it; ``None`` where there is none.
    """

    path: str
    start_line: int
    end_line: int
    score: float
    text: str
    symbol: str | None
    language: str
    kind: str | None
    scope: str | None


@dataclass(frozen=True)
class Query:
    """A text to search for, with the caller's own `id` where it came from a file."""

    query: str
    id: Any = None


@dataclass(frozen=True)
class Found:
    """The best chunks for a query, of the index of that name, and the milliseconds that this took."""

    query: Query
    index: str
    ranked: list[Ranked]
    took_ms: float


class Searcher:
    """An index opened with the model that made it."""

    def __init__(self, index: OpenIndex, encoder: Encoder) -> None:
        self.index = index
        self.encoder = encoder

    def search(self, queries: Sequence[Query], k: int, chosen: Filter = ALL, second: SecondLook | None = None) -> Iterator[dict[str, Any]]:
        """Yield one answer a query: index, took_ms, hits; with ``id`` where the query has one, and ``rerank`` where a second look was taken."""
        for found in self.found(queries, k, chosen, second):
            yield answered(found, k, second)

    def found(self, queries: Sequence[Query], k: int, chosen: Filter = ALL, second: SecondLook | None = None) -> Iterator[Found]:
        """Yield what is found for each query: `k` chunks at most, or so many more as a second look wants to see."""
        started = time.perf_counter()
        vectors = self.encoder.encode_queries([q.query for q in queries])
        shared_ms = (time.perf_counter() - started) * 1000 / max(1, len(queries))
        for query, vector in zip(queries, vectors, strict=True):
            started = time.perf_counter()
            ranked = self.ranked(query.query, vector, k if second is None else max(k, second.depth), chosen)
            yield Found(query, self.index.name, ranked, shared_ms + (time.perf_counter() - started) * 1000)

    def ranked(self, query: str, vector: Vector, k: int, chosen: Filter = ALL) -> list[Ranked]:
        """Return the `k` best chunks for a query and its vector, each with the reasons for its place.

        Candidates are the chunks nearest to the vector and those with most of the query's words; the rules of `rank` order them.
        """
        index, depth = self.index, max(_DEPTH, k)
        dense = [index.candidate(place, dense=place.score, lexical=None) for place in index.nearest(vector, depth, chosen)]
        worded = [
            index.candidate(place, dense=index.cosine(place, vector), lexical=place.score) for place in index.worded(query, depth, chosen)
        ]
        return fuse(dense, worded, index.lexical.search_paths(query, _PATHS), query)[:k]


def answered(found: Found, k: int, second: SecondLook | None = None) -> dict[str, Any]:
    """Return the answer to a query, after a second look if one is to be taken; that needs the index no more."""
    started = time.perf_counter()
    ranked, told = (found.ranked, {}) if second is None else second.over(found.ranked, found.query.query)
    hits = [asdict(_hit(one)) for one in ranked[:k]]
    took_ms = round(found.took_ms + (time.perf_counter() - started) * 1000, 3)
    answer: dict[str, Any] = {} if found.query.id is None else {"id": found.query.id}
    answer |= {"index": found.index, "took_ms": took_ms, "hits": hits}
    return answer | ({"rerank": told} if told else {})


def filter_of(asked: Mapping[str, Any]) -> Filter:
    """Return the filter of a request of `request.asked_for`."""
    return Filter(asked["path"], asked["lang"], tuple(asked["kind"]))


def _hit(ranked: Ranked) -> Hit:
    found = ranked.candidate
    score = round(ranked.score, DIGITS)
    return Hit(found.path, found.start_line, found.end_line, score, found.text, found.symbol, found.language, found.kind, found.scope)


def open_searcher(
    home: Home, name: str, queries: int = 1, torch_device: str = "cpu", loaded: Sequence[Encoder] = (), spread: Spread | None = None
) -> Searcher:
    """Open the index `name` and the model it was made with, in the way that is quickest for so many `queries`.

    Of the encoders that are `loaded` already, the one that made the index is used. `spread` is that of `OpenIndex`.

    Raises
    ------
    NoSuchIndex, NewerFormat, MalformedFile
        If the index cannot be read.
    ModelUnavailable
        If its model cannot be loaded, or is another one by now.
    """
    opened = _opened(home, name, spread)
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


def _opened(home: Home, name: str, spread: Spread | None = None) -> OpenIndex:
    for attempt in range(_REOPEN):
        index, manifest = open_index(home, name)
        try:
            return OpenIndex(index, manifest, spread)
        except (DamagedSegmentError, OSError, RuntimeError, ValueError, KeyError) as error:  # what FAISS and Arrow raise
            if attempt == _REOPEN - 1 or index.manifest() == manifest:
                raise _damaged(index.folder, error) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def _damaged(folder: Path, error: Exception) -> MalformedFile:
    return MalformedFile([Problem(str(folder), 1, 1, f"the index is damaged ({first_line(error)}); submit the tree again, which makes it anew")])


__all__ = ["Filter", "Hit", "OpenIndex", "Query", "Searcher", "answered", "filter_of", "open_searcher"]
