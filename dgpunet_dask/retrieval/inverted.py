"""The vectors of a very large segment in lists of neighbours, of which a query reads a few: an inverted file (Sivic & Zisserman 2003; FAISS, Johnson et al. 2017).

A scan of all vectors grows with their number; this grows with its root. What lies in a list that was not read is not found, and no bound tells of it: so
how many lists are read is measured when the file is written (`scans.measured`), and written beside the recall that it gave.

Layout: a FAISS ``IndexIVFScalarQuantizer`` (float16, inner product) of FAISS's own making, with the lists written behind its header one by one, so that they
are never held whole.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dgpunet_dask.retrieval.exact import Exact, exact_scores, parts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.exact import Rows, Vector, Vectors

    Lists = NDArray[np.int64]

#: Vectors that the centre of a list is found from, and how often: FAISS asks for 39 at least.
_TRAINED_ON: Final = 40
_ROUNDS: Final = 10
#: Where FAISS writes the number of vectors: after a fourcc and the dimension.
_COUNT_AT: Final = 8
#: What FAISS writes of lists that are all empty, after their number and the size of a code: how many are not, each by its number and size.
_EMPTY: Final = struct.pack("<4sQ", b"sprs", 0)


def lists_for(rows: int) -> int:
    """Return how many lists so many vectors are kept in: a power of two near four times their root (FAISS's own advice)."""
    return 1 << max(0, (16 * rows).bit_length() // 2)


def write_inverted(file: BinaryIO, vectors: Vectors, lists: int) -> None:
    """Write `vectors` ``(rows, dimension)``, which may be mapped, in so many lists.

    Raises
    ------
    ValueError
        If FAISS writes such an index in another way than it is known to.
    """
    import faiss
    import numpy as np

    index = _trained(vectors, lists)
    owners = np.concatenate([index.quantizer.assign(part, 1)[:, 0] for part in parts_of(vectors)])
    sizes = np.bincount(owners, minlength=lists)
    empty = bytearray(faiss.serialize_index(index).tobytes())
    if not empty.endswith(_EMPTY):
        raise ValueError("this FAISS writes inverted files in a way that is not known here")
    struct.pack_into("<q", empty, _COUNT_AT, len(vectors))
    file.write(empty[: -len(_EMPTY)])
    file.write(_sizes(sizes))
    order, first = np.argsort(owners, kind="stable"), 0
    for size in sizes.tolist():
        rows = order[first : first + size]
        file.write(np.asarray(vectors[rows], "<f2").tobytes())
        file.write(rows.astype("<i8").tobytes())
        first += size


def _trained(vectors: Vectors, lists: int) -> Any:
    import faiss
    import numpy as np

    dimension = vectors.shape[1]
    kept = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dimension), dimension, lists, kept, faiss.METRIC_INNER_PRODUCT, False)
    index.cp.niter, index.cp.spherical, index.cp.max_points_per_centroid = _ROUNDS, True, _TRAINED_ON
    some = np.linspace(0, len(vectors) - 1, min(len(vectors), lists * _TRAINED_ON)).astype(int)
    index.train(np.ascontiguousarray(vectors[some], np.float32))
    return index


def _sizes(sizes: Lists) -> bytes:
    """Write the lists' sizes as FAISS does: all of them, or those of the ones that hold something where these are no more than half."""
    import numpy as np

    held = np.flatnonzero(sizes)
    if 2 * len(held) > len(sizes):
        return struct.pack("<4sQ", b"full", len(sizes)) + sizes.astype("<u8").tobytes()
    pairs = np.stack([held, sizes[held]], axis=1)
    return struct.pack("<4sQ", b"sprs", pairs.size) + pairs.astype("<u8").tobytes()


class Inverted:
    """An inverted file that is read.

    Parameters
    ----------
    file
        What was written.
    vectors
        The exact vectors, mapped: what is found is scored anew by them.
    exact
        Asked where the lists that are read hold too few.
    probes
        How many lists a query reads.

    Raises
    ------
    ValueError, RuntimeError, OSError
        If the file is not what it was written as.
    """

    def __init__(self, file: Path, vectors: Vectors, exact: Exact, probes: int) -> None:
        import faiss

        self.fell_back = 0
        self._vectors, self._exact = vectors, exact
        index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        alike = isinstance(index, faiss.IndexIVFScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        if not alike or (index.ntotal, index.d) != vectors.shape:
            raise ValueError(f"{file.name} does not hold the vectors of its segment")
        index.nprobe = probes
        self._index = index

    def nearest(self, vector: Vector, count: int) -> Rows:
        """Return the `count` nearest rows to `vector` ``(dimension,)`` of the lists that are read, in no order."""
        import numpy as np

        scored = count + max(64, count // 2)
        if scored <= len(self._vectors) // 4:  # for so many the exact scan is as quick
            found = self._index.search(vector[None, :], scored)[1][0]
            found = found[found >= 0]
            if len(found) >= count:
                scores = exact_scores(self._vectors, found, vector)
                return np.asarray(found[np.argpartition(-scores, count - 1)[:count]], np.int64)
        self.fell_back += 1
        return self._exact(vector, count)
