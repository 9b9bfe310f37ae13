"""The vectors of a large segment once more with fewer bits: compared with a query first, so that few are read in full.

A flat scan of float32 is bound by memory. With 16 bits a number it takes a third of the time; what it finds is scored anew from the exact
vectors. The rounding is known, so a bound of the error is as well, and with it whether the exact best can lie among what was not scored anew.
Then more are, and where that does not help either the exact scan decides. So what is found is what the exact scan finds.

Which form a segment gets depends on its size alone; whether it keeps it, on what `measured` finds on some of its own vectors. Both are written
into ``segment.json``. Of the 16-bit formats float16 is as quick as bfloat16, with a quarter of the error. 8 bits are no quicker: their error is
so large that several times as many must be scored anew (100,000 rows of 384 numbers: 18 ms in all, where float16 takes 8). An inverted file
(IVF) would be, and has no such bound.

Layout: a FAISS ``IndexScalarQuantizer`` of FAISS's own making, with the codes written behind its header, so that they are never held whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
    Vectors = NDArray[np.float32]
    Scores = NDArray[np.float64]
    Rows = NDArray[np.int64]

SCAN: Final = "scan.faiss"
#: The forms there are.
FP16: Final = "fp16"
#: Below so many rows a flat scan takes less than a millisecond.
_FROM: Final = 1 << 13
#: Of the exact best, so many must be found, and so few of the queries may fall back to the exact scan; else the segment has no scan.
RECALL: Final = 0.999
EXACT_SHARE: Final = 0.1
#: What is measured: so many best of so many queries. A search asks for about as many (`search._DEPTH`).
AT: Final = 216
QUERIES: Final = 32
#: Rows that are converted at once.
_ROWS: Final = 4096
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

#: The exact scan: a vector and a number to the nearest rows.
Exact = Callable[["Vector", int], "Rows"]


@dataclass(frozen=True)
class ScanFacts:
    """What ``segment.json`` says of a segment's scan.

    Parameters
    ----------
    kind
        ``fp16``; ``None`` where it was not worth keeping, so that the exact vectors are scanned.
    recall, exact_share
        Of the exact best `at` of `queries` vectors of the segment, the share that was found, and the share of queries that took the exact scan.
    """

    kind: str | None
    recall: float
    exact_share: float
    at: int = AT
    queries: int = QUERIES


def kind_for(rows: int) -> str | None:
    """Return which form a segment of so many rows gets; ``None``: none, it is small."""
    return FP16 if rows >= _FROM else None


def write_scan(file: BinaryIO, vectors: Vectors) -> None:
    """Write `vectors` ``(rows, dimension)``, which may be mapped."""
    file.write(_header(*vectors.shape))
    file.writelines(part.astype("<f2").tobytes() for part in _parts(vectors))


def _header(rows: int, dimension: int) -> bytes:
    """What FAISS writes of such an index without vectors, with the counts of those that follow."""
    import faiss

    empty = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    made = bytearray(faiss.serialize_index(empty).tobytes())
    struct.pack_into("<q", made, _COUNT_AT, rows)
    struct.pack_into("<Q", made, len(made) - 8, rows * dimension * 2)
    return bytes(made)


def _parts(vectors: Vectors) -> Iterator[Vectors]:
    import numpy as np

    for first in range(0, len(vectors), _ROWS):
        yield np.ascontiguousarray(vectors[first : first + _ROWS], np.float32)


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
        import numpy as np

        rows, scored, error = len(self._vectors), count + max(64, count // 2), _error(vector)
        for _ in range(_WIDENED + 1):
            if scored > rows // 4:  # for so many the exact scan is as quick
                break
            near, found = self._index.search(vector[None, :], scored)
            scores = exact_scores(self._vectors, found[0], vector)
            best = np.argpartition(-scores, count - 1)[:count]
            if scores[best].min() >= float(near[0][-1]) + error:
                return np.asarray(found[0][best], np.int64)
            scored *= _WIDER
        self.fell_back += 1
        return self._exact(vector, count)


def _error(vector: Vector) -> float:
    """By how much a score of the scan differs from the exact one at most."""
    import numpy as np

    length, total = float(np.linalg.norm(vector)), float(np.abs(vector).sum())
    # of unit vectors: by Cauchy-Schwarz the errors in proportion sum to no more than that of the lengths
    return 1.01 * _HALF_ULP * length + _TINY * total + _SUMS * max(1.0, length)


def exact_scores(vectors: Vectors, rows: Rows, vector: Vector) -> Scores:
    """Return the inner products of `rows` of `vectors` with `vector`, each summed alone in float64, so that it does not depend on the others."""
    import numpy as np

    chosen = np.ascontiguousarray(vectors[rows], np.float64)
    return np.einsum("ij,j->i", chosen, vector.astype(np.float64))


def measured(folder: Path, vectors: Vectors, exact: Exact) -> ScanFacts:
    """Ask the scan in `folder` for what is nearest to some of `vectors`, and return how well it did."""
    import numpy as np

    at = min(AT, len(vectors))
    scan = Scan(folder / SCAN, vectors, exact)
    found, asked = 0.0, np.linspace(0, len(vectors) - 1, QUERIES).astype(int)
    for row in asked:
        vector = np.ascontiguousarray(vectors[row], np.float32)
        scores, wanted = (np.sort(exact_scores(vectors, rows, vector)) for rows in (scan.nearest(vector, at), exact(vector, at)))
        found += float((scores >= wanted[0] - 1e-6).sum()) / at  # of several equal ones at the end either will do
    return ScanFacts(FP16, round(found / QUERIES, 6), scan.fell_back / QUERIES, at)


def kept(facts: ScanFacts) -> bool:
    """Whether a scan is as good as it must be."""
    return facts.recall >= RECALL and facts.exact_share <= EXACT_SHARE


def facts_of(raw: Mapping[str, Any] | None) -> ScanFacts | None:
    """Return what ``segment.json`` says of a scan; one of an older release says nothing."""
    return None if raw is None else ScanFacts(**{f.name: raw[f.name] for f in fields(ScanFacts)})


def exact_scan(file: Path) -> Exact:
    """Return the exact scan over a segment's flat FAISS file, which is mapped.

    Raises
    ------
    RuntimeError
        If FAISS cannot read it.
    """
    import faiss
    import numpy as np

    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)

    def nearest(vector: Vector, count: int) -> Rows:
        found = index.search(vector[None, :], count)[1][0]
        return np.asarray(found[found >= 0], np.int64)

    return nearest
