"""The vectors of a large segment once more in a form that is looked through first, so that few are read in full.

A flat scan of float32 is bound by memory. With 16 bits a number it takes a third of the time; what it finds is scored anew from the exact
vectors. The rounding is known, so a bound of the error is as well, and with it whether the exact best can lie among what was not scored anew.
Then more are, and where that does not help either the exact scan decides. So what is found is what the exact scan finds.

From a quarter of a million rows on they are kept in lists as well, of which a query reads some (`inverted`): what is found then is most of what the
exact scan finds. Which form a segment gets depends on its size; whether it keeps it, and how many lists are read, on what `measured` finds for some of its own
vectors and for points between them. All of it is written into ``segment.json``. Of the 16-bit formats float16 is as quick as bfloat16, with a quarter of the error. 8 bits are no quicker: their error is
so large that several times as many must be scored anew (100,000 rows of 384 numbers: 18 ms in all, where float16 takes 8).

Layout: a FAISS ``IndexScalarQuantizer`` of FAISS's own making, with the codes written behind its header, so that they are never held whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from dgpunet_dask.retrieval.exact import Exact, exact_scores, parts_of
from dgpunet_dask.retrieval.inverted import Inverted, lists_for, write_inverted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.exact import Rows, Vector, Vectors

    Near = NDArray[np.float32]

SCAN: Final = "scan.faiss"
#: The forms there are.
FP16: Final = "fp16"
IVF: Final = "ivf"
#: Below so many rows a flat scan takes less than a millisecond.
_FROM: Final = 1 << 13
#: From so many on a scan of all takes as long as the rest of a search, some 20 ms.
_LISTS_FROM: Final = 1 << 18
#: Of the exact best, so many must be found, by form, and so few of the queries may fall back to the exact scan; else the segment has no such scan.
RECALL: Final[Mapping[str, float]] = {FP16: 0.999, IVF: 0.99}
EXACT_SHARE: Final = 0.1
#: What is measured: so many best of so many queries. A search asks for about as many (`search._DEPTH`).
AT: Final = 216
QUERIES: Final = 32
#: Of an inverted file's lists, the fewest that are tried to be read, and the largest part: beyond it a scan of all is as quick.
_PROBES: Final = 8
_MOST_LISTS: Final = 4
#: How often more are scored anew before the exact scan is asked, and how many times as many.
_WIDENED: Final = 2
_WIDER: Final = 4
#: Half the distance of neighbouring float16 is at most so much of the number, or of the least normal one (2**-14) below it.
_HALF_ULP: Final = 2.0**-11
_TINY: Final = 2.0**-25
#: float32 sums of unit vectors are off by less.
_SUMS: Final = 3e-5
#: Where FAISS writes the number of vectors: after a fourcc and the dimension.
_COUNT_AT: Final = 8


@dataclass(frozen=True)
class ScanFacts:
    """What ``segment.json`` says of a segment's scan.

    Parameters
    ----------
    kind
        ``fp16`` or ``ivf``; ``None`` where none was worth keeping, so that the exact vectors are scanned.
    recall, exact_share
        Of the exact best `at` of `queries` vectors, the share that was found, and the share of queries that took the exact scan.
    probes
        How many lists a query reads; ``None`` where there are none.
    """

    kind: str | None
    recall: float
    exact_share: float
    at: int = AT
    queries: int = QUERIES
    probes: int | None = None


class Nearest(Protocol):
    """A form of a segment's vectors that is asked for the nearest."""

    @property
    def fell_back(self) -> int:
        """How often the exact scan was asked instead."""

    def nearest(self, vector: Vector, count: int) -> Rows:
        """Return the `count` nearest rows, in no order."""


def kinds_for(rows: int) -> Sequence[str]:
    """Return which forms are tried for a segment of so many rows, the quickest first; none for a small one."""
    return (IVF, FP16) if rows >= _LISTS_FROM else (FP16,) if rows >= _FROM else ()


def write_scan(file: BinaryIO, vectors: Vectors, kind: str = FP16) -> None:
    """Write `vectors` ``(rows, dimension)``, which may be mapped, in a form."""
    if kind == IVF:
        write_inverted(file, vectors, lists_for(len(vectors)))
        return
    file.write(_header(*vectors.shape))
    file.writelines(part.astype("<f2").tobytes() for part in parts_of(vectors))


def open_scan(file: Path, vectors: Vectors, exact: Exact, facts: ScanFacts) -> Nearest:
    """Open what was written, as `facts` tell; its errors are those of `Scan` and `Inverted`."""
    return Scan(file, vectors, exact) if facts.kind == FP16 else Inverted(file, vectors, exact, facts.probes or _PROBES)


def _header(rows: int, dimension: int) -> bytes:
    """What FAISS writes of such an index without vectors, with the counts of those that follow."""
    import faiss

    empty = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    made = bytearray(faiss.serialize_index(empty).tobytes())
    struct.pack_into("<q", made, _COUNT_AT, rows)
    struct.pack_into("<Q", made, len(made) - 8, rows * dimension * 2)
    return bytes(made)


class Scan:
    """A scan that is read.

    Parameters
    ----------
    file
        What was written.
    vectors
        The exact vectors, mapped.
    exact
        Asked where the scan cannot tell.

    Raises
    ------
    ValueError, RuntimeError, OSError
        If the file is not what it was written as.
    """

    def __init__(self, file: Path, vectors: Vectors, exact: Exact) -> None:
        import faiss

        self.fell_back = 0
        self._vectors, self._exact = vectors, exact
        self._index = index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        alike = isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        if not alike or (index.ntotal, index.d) != vectors.shape:
            raise ValueError(f"{file.name} does not hold the vectors of its segment")

    def nearest(self, vector: Vector, count: int) -> Rows:
        """Return the `count` nearest rows to `vector` ``(dimension,)``, as the exact scan would, in no order."""
        found = certain(partial(self._search, vector), self._vectors, vector, count)
        if found is None:
            self.fell_back += 1
            return self._exact(vector, count)
        return found

    def _search(self, vector: Vector, count: int) -> tuple[Near, Rows]:
        near, found = self._index.search(vector[None, :], count)
        return near[0], found[0]


def certain(search: Callable[[int], tuple[Near, Rows]], vectors: Vectors, vector: Vector, count: int) -> Rows | None:
    """Return the `count` nearest rows, in no order, from what a scan with 16 bits a number finds.

    Parameters
    ----------
    search
        Asked for so many rows: gives their scores, best first, and them.

    Returns
    -------
    Rows or None
        ``None`` where the scan cannot tell, or the exact one is as quick.
    """
    import numpy as np

    rows, scored, error = len(vectors), count + max(64, count // 2), _error(vector)
    for _ in range(_WIDENED + 1):
        if scored > rows // 4:  # for so many the exact scan is as quick
            return None
        near, found = search(scored)
        scores = exact_scores(vectors, found, vector)
        best = np.argpartition(-scores, count - 1)[:count]
        if scores[best].min() >= float(near[-1]) + error:
            return np.asarray(found[best], np.int64)
        scored *= _WIDER
    return None


def _error(vector: Vector) -> float:
    """By how much a score of the scan differs from the exact one at most."""
    import numpy as np

    length, total = float(np.linalg.norm(vector)), float(np.abs(vector).sum())
    # of unit vectors: by Cauchy-Schwarz the errors in proportion sum to no more than that of the lengths
    return 1.01 * _HALF_ULP * length + _TINY * total + _SUMS * max(1.0, length)


def measured(folder: Path, vectors: Vectors, exact: Exact, facts: ScanFacts) -> ScanFacts:
    """Ask the scan in `folder` for what is nearest to some vectors, and return `facts` with how well it did."""
    return next(_measurements(folder, vectors, exact, (facts,)))


def worth(folder: Path, vectors: Vectors, exact: Exact, kind: str) -> ScanFacts:
    """Measure what was just written; of an inverted file, with twice as many lists read until enough is found."""
    most = lists_for(len(vectors)) // _MOST_LISTS
    probes = [None] if kind == FP16 else [n for n in (_PROBES << k for k in range(most.bit_length())) if n <= most] or [most or 1]
    found = None
    for found in _measurements(folder, vectors, exact, [ScanFacts(kind, 0.0, 0.0, probes=n) for n in probes]):
        if kept(found):
            break
    assert found is not None
    return found


def _measurements(folder: Path, vectors: Vectors, exact: Exact, forms: Sequence[ScanFacts]) -> Iterator[ScanFacts]:
    import numpy as np

    at = min(AT, len(vectors))
    asked = list(_asked(vectors))
    best = [float(np.sort(exact_scores(vectors, exact(vector, at), vector))[0]) for vector in asked]
    for facts in forms:
        scan = open_scan(folder / SCAN, vectors, exact, facts)
        # of several equal ones at the end either will do
        hit = [int((exact_scores(vectors, scan.nearest(vector, at), vector) >= least - 1e-6).sum()) for vector, least in zip(asked, best, strict=True)]
        recall = round(sum(hit) / (at * QUERIES), 6)
        yield replace(facts, recall=recall, exact_share=scan.fell_back / QUERIES, at=at)


def _asked(vectors: Vectors) -> Iterator[Vector]:
    """Yield some vectors, evenly, and as many points between two of them: questions lie between what they ask for."""
    import numpy as np

    rows = np.linspace(0, len(vectors) - 1, QUERIES).astype(int)
    some = np.ascontiguousarray(vectors[rows], np.float32)
    for number, vector in enumerate(some):
        middle = vector + some[(number + QUERIES // 2 + 1) % QUERIES] * (number % 2)
        length = float(np.linalg.norm(middle))
        yield middle / length if length > 0 else vector


def kept(facts: ScanFacts) -> bool:
    """Whether a scan is as good as it must be."""
    return facts.kind is not None and facts.recall >= RECALL[facts.kind] and facts.exact_share <= EXACT_SHARE


def facts_of(raw: Mapping[str, Any] | None) -> ScanFacts | None:
    """Return what ``segment.json`` says of a scan; one of an older release says nothing."""
    return None if raw is None else ScanFacts(**{f.name: raw[f.name] for f in fields(ScanFacts) if f.name != "probes" or "probes" in raw})
