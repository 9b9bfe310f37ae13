"""The exact scan over a segment's vectors, and exact scores of chosen rows: what every quicker form is measured by, and falls back to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
    Vectors = NDArray[np.float32]
    Scores = NDArray[np.float64]
    Rows = NDArray[np.int64]

#: Rows that are converted at once.
_ROWS: Final = 4096

#: The exact scan: a vector and a number to the nearest rows.
Exact = Callable[["Vector", int], "Rows"]


def parts_of(vectors: Vectors) -> Iterator[Vectors]:
    """Yield `vectors` ``(rows, dimension)``, which may be mapped, a few thousand rows at once."""
    import numpy as np

    for first in range(0, len(vectors), _ROWS):
        yield np.ascontiguousarray(vectors[first : first + _ROWS], np.float32)


def exact_scores(vectors: Vectors, rows: Rows, vector: Vector) -> Scores:
    """Return the inner products of `rows` of `vectors` with `vector`, each summed alone in float64, so that it does not depend on the others."""
    import numpy as np

    chosen = np.ascontiguousarray(vectors[rows], np.float64)
    return np.einsum("ij,j->i", chosen, vector.astype(np.float64))


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
