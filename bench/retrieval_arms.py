"""The arms of bench/retrieval.py over one pool of chunks, and what is measured of their rankings."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix

from dgpunet_dask.retrieval.lexical import LexicalChunk, LexicalIndex, LexicalWriter
from dgpunet_dask.retrieval.rank import Ranked, fuse
from dgpunet_dask.retrieval.signals import Candidate

#: Candidates of each kind that are ranked, ours and the fusion's alike; a truth beyond them counts as not found.
DEPTH = 200
PATHS = 100
RRF_K = 60
_SPLIT = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


@dataclass(frozen=True)
class Pool:
    """All chunks of a corpus with their vectors; `numbers` finds one by file and ordinal."""

    chunks: list[Candidate]
    vectors: np.ndarray
    numbers: dict[tuple[str, int], int]


def pool_of(chunks: Sequence[Any], vectors: np.ndarray) -> Pool:
    """Make the pool of `Chunk` values whose keys are paths."""
    counts: Counter[str] = Counter()
    found = []
    for chunk in chunks:
        more = {name: getattr(chunk, name, None) for name in ("kind", "scope")}
        found.append(Candidate(chunk.key, counts[chunk.key], chunk.key, chunk.start_line, chunk.end_line, chunk.symbol,
                               language=chunk.language, text=chunk.text, dense=None, lexical=None, **more))  # fmt: skip
        counts[chunk.key] += 1
    return Pool(found, vectors, {(c.key, c.ordinal): n for n, c in enumerate(found)})


class Bm25:
    """BM25 as Lucene computes it (k1 = 1.2, b = 0.75), exact, over any way to split a text."""

    def __init__(self, texts: Sequence[str], split: Callable[[str], list[str]]) -> None:
        self._split = split
        counts = [Counter(split(t)) for t in texts]
        self._columns = {term: n for n, term in enumerate(sorted({t for c in counts for t in c}))}
        rows = np.repeat(np.arange(len(counts)), [len(c) for c in counts])
        columns = np.array([self._columns[t] for c in counts for t in c])
        tf = np.array([n for c in counts for n in c.values()], float)
        lengths = np.array([sum(c.values()) for c in counts], float)
        df = np.bincount(columns, minlength=len(self._columns))
        idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
        weight = tf / (tf + 1.2 * (0.25 + 0.75 * lengths[rows] / lengths.mean())) * idf[columns]
        self._weights = csc_matrix((weight, (rows, columns)), shape=(len(texts), len(self._columns)))

    def scores(self, query: str) -> np.ndarray:
        wanted = [self._columns[t] for t in self._split(query) if t in self._columns]
        return np.asarray(self._weights[:, wanted].sum(axis=1)).ravel()


def split_spaces(text: str) -> list[str]:
    return text.lower().split()


def split_identifiers(text: str) -> list[str]:
    return [part.lower() for part in _SPLIT.findall(text)]


def top(scores: np.ndarray, k: int = DEPTH) -> list[int]:
    """Return the indices of the best `k` scores, equal ones in order."""
    k = min(k, len(scores))
    least = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= least)
    return [int(n) for n in candidates[np.argsort(-scores[candidates], kind="stable")][:k]]


def reciprocal(rankings: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""
    scores: Counter[int] = Counter()
    for ranking in rankings:
        for place, n in enumerate(ranking, 1):
            scores[n] += 1 / (RRF_K + place)  # type: ignore[assignment]  # Counter adds any number
    return sorted(scores, key=lambda n: (-scores[n], n))


class Ours:
    """The lexical index, and the rules over its hits and the dense ones."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._pool = pool
        with LexicalWriter(folder) as writer:
            writer.add(LexicalChunk(c.key, c.ordinal, c.text, c.symbol, c.scope, c.language) for c in pool.chunks)
            writer.add_paths((path, path) for path in dict.fromkeys(c.path for c in pool.chunks))
            writer.finish()
        self.index = LexicalIndex(folder)

    def candidates(self, query: str, cosines: np.ndarray) -> tuple[list[Candidate], list[Candidate], list[tuple[float, str, str]]]:
        """Return the dense and the lexical candidates, all with their cosine, and the paths."""
        known = self._pool.chunks
        dense = [known[n].with_scores(float(cosines[n]), None) for n in top(cosines)]
        hits = [(self._pool.numbers[h.key, h.ordinal], h.score) for h in self.index.search(query, DEPTH)]
        return dense, [known[n].with_scores(float(cosines[n]), score) for n, score in hits], self.index.search_paths(query, PATHS)

    def ranked(self, query: str, cosines: np.ndarray) -> list[Ranked]:
        return fuse(*self.candidates(query, cosines), query)

    def numbers(self, ranked: Sequence[Ranked]) -> list[int]:
        return [self._pool.numbers[r.candidate.key, r.candidate.ordinal] for r in ranked]


def fusion_alone(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return the ranking as it would be without any rule but the two of the fusion."""
    return sorted(ranked, key=lambda r: -(r.why.get("dense", 0.0) + r.why.get("lexical", 0.0)))


def best_cover(pool: Pool, by_path: dict[str, list[int]], path: str, start: int, end: int) -> int | None:
    """Return the chunk that holds most lines of a span; the first of equal ones."""
    overlap = {n: min(end, pool.chunks[n].end_line) - max(start, pool.chunks[n].start_line) + 1 for n in by_path.get(path, ())}
    return max((n for n in overlap if overlap[n] > 0), key=lambda n: (overlap[n], -n), default=None)


def places(rankings: Sequence[Sequence[int]], truths: Sequence[set[int]]) -> np.ndarray:
    """Return the place of the first true chunk of each ranking, from 1; infinity where there is none."""
    found = (next((place for place, n in enumerate(r, 1) if n in t), math.inf) for r, t in zip(rankings, truths, strict=True))
    return np.array(list(found))


def measured(found: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """NDCG@10, MRR and recall of the best placed answer of each question, with the 95% interval of the first from 2,000 bootstrap samples."""
    gains = gain(found)
    draws = np.random.default_rng(seed).integers(0, len(gains), (2000, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), (0.025, 0.975))
    return {
        "ndcg_at_10": round(float(gains.mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)],
        "mrr": round(float((1 / found).mean()), 4),
        "recall_at_1": round(float((found <= 1).mean()), 4), "recall_at_10": round(float((found <= 10).mean()), 4),
    }  # fmt: skip


def gain(found: np.ndarray) -> np.ndarray:
    """Return NDCG@10 of each question."""
    return np.where(found <= 10, 1 / np.log2(1 + np.minimum(found, 10)), 0.0)
