"""A segment whose vectors are scanned by others, in ranges that these hold resident, and which finds what the exact scan finds whatever they do.

They are asked through a function: what is behind it (`daemons.sharding`) is not known here. A range that is not answered for is scanned here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dgpunet_dask.retrieval.scans import Nearest, certain
from dgpunet_dask.retrieval.shards import Shard, merged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.exact import Exact, Rows, Vector, Vectors
    from dgpunet_dask.retrieval.shards import Found

    Near = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """Where the exact vectors of a segment lie, as any process of this host may map them: float32, row by row from `offset` on.

    `digest` tells the file from any other, whatever they are called; `index` is for people.
    """

    index: str
    segment: str
    digest: str
    file: Path
    offset: int
    vectors: Vectors
    exact: Exact


#: Asks for the best `count` of each shard that somebody holds; rows count from the segment's first. What nobody answers in time is not there.
#: ``None``: too little is held for that to be worth it.
AskShards = Callable[["Vector", int], "tuple[tuple[Shard, ...], Mapping[Shard, Found]] | None"]
#: Makes of a segment, and the form that it has by itself, another one.
Spread = Callable[[Source, "Nearest | None"], "Nearest | None"]


class Spreading:
    """A segment that is asked where it is held, and by itself (`own`, else the exact scan) where that is not worth it."""

    def __init__(self, source: Source, own: Nearest | None, ask: AskShards) -> None:
        self.source = source
        self._own, self._ask = own, ask
        self._here = 0

    @property
    def fell_back(self) -> int:
        """How often the exact scan was asked instead."""
        return self._here + (0 if self._own is None else self._own.fell_back)

    def nearest(self, vector: Vector, count: int) -> Rows:
        """Return the `count` nearest rows to `vector` ``(dimension,)``, in no order."""
        try:
            found = certain(partial(self._search, vector), self.source.vectors, vector, count)
        except _NotSpreadError:
            return self.source.exact(vector, count) if self._own is None else self._own.nearest(vector, count)
        if found is None:
            self._here += 1
            return self.source.exact(vector, count)
        return found

    def _search(self, vector: Vector, count: int) -> tuple[Near, Rows]:
        answer = self._ask(vector, count)
        if answer is None:
            raise _NotSpreadError
        shards, found = answer
        parts = [found[shard] if shard in found else scanned(self.source.vectors, shard, vector, count) for shard in shards]
        return merged(parts, count)


class _NotSpreadError(Exception):
    """Too little of the segment is held."""


def scanned(vectors: Vectors, shard: Shard, vector: Vector, count: int) -> Found:
    """Return the best `count` rows of one range of the exact vectors, with their scores in float32."""
    import numpy as np

    scores = np.asarray(vectors[shard.first : shard.first + shard.rows]) @ vector
    best = np.argpartition(-scores, min(count, len(scores)) - 1)[:count]
    best = best[np.lexsort((best, -scores[best]))]
    return scores[best], best.astype(np.int64) + shard.first
