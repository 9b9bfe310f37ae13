"""Which workers hold which ranges of the rows of very large segments, and whether that is worth it. Pure.

A scan of all vectors on one core grows with their number. Ranges that lie resident on several workers are scanned at once, so a search takes as long as the
largest share of one core. Who holds a range is found by rendezvous hashing (Thaler & Ravishankar 1998, weighted as by Schindelhauer & Schomaker 2005): a
worker that goes moves the ranges that it held and no others, one that comes takes no more than its share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]
    Rows = NDArray[np.int64]
    #: What a scan found: scores, best first, and the rows that have them.
    Found = tuple[Scores, Rows]

#: Bytes of a float16.
NUMBER_BYTES: Final = 2


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """From when on, and how, the segments of an index are held by workers.

    Parameters
    ----------
    least_rows
        Of smaller indexes a scan takes no longer than the rest of a search.
    shard_rows
        Of one range: 50 MB of 384 numbers each, 6 ms of one core. Smaller segments do not count, and are held by nobody.
    core_rows
        The most that one core scans for a query; beyond it lists of neighbours are quicker (`inverted`).
    copies
        How many workers hold each range, where there are so many.
    """

    least_rows: int = 1 << 18
    shard_rows: int = 1 << 16
    core_rows: int = 100_000
    copies: int = 2


@dataclass(frozen=True, order=True)
class Shard:
    """A range of rows of one segment: `first` and the `rows - 1` after it, each of `dimension` float16 numbers."""

    segment: str
    first: int
    rows: int
    dimension: int

    @property
    def size_bytes(self) -> int:
        """What holding it takes."""
        return self.rows * self.dimension * NUMBER_BYTES

    @property
    def key(self) -> str:
        """Its name among workers."""
        return f"{self.segment}:{self.first}:{self.rows}"


@dataclass(frozen=True)
class Holder:
    """A worker that may hold shards: its `name` outlives its process. `room_bytes` is for all shards together."""

    name: str
    host: str
    cores: int
    room_bytes: int


#: Names of the workers that hold each shard, or are to; of a shard that is not there, none.
Placed = Mapping[Shard, tuple[str, ...]]


def shards_of(segment: str, rows: int, dimension: int, shard_rows: int) -> tuple[Shard, ...]:
    """Cut a segment into ranges of `shard_rows`; the last one may be shorter."""
    return tuple(Shard(segment, first, min(shard_rows, rows - first), dimension) for first in range(0, rows, shard_rows))


def placed(indexes: Iterable[Sequence[Shard]], holders: Collection[Holder], sizes: Sizes) -> dict[Shard, tuple[str, ...]]:
    """Return who is to hold the shards of `indexes`: one after the other, as far as there is room, and only of those that it is worth for."""
    found: dict[Shard, tuple[str, ...]] = {}
    room = {holder.name: holder for holder in holders if holder.room_bytes > 0 and holder.cores > 0}
    for shards in indexes:
        tried, left = _place(shards, room, sizes.copies)
        if worth(shards, tried, {name: holder.cores for name, holder in room.items()}, sizes):
            found, room = found | tried, left
    return found


def _place(shards: Sequence[Shard], room: Mapping[str, Holder], copies: int) -> tuple[dict[Shard, tuple[str, ...]], dict[str, Holder]]:
    """Place every first copy before any second one; return who holds what, and the room that is left."""
    left, found = dict(room), dict[Shard, tuple[str, ...]]()
    ranked = {shard: ranking(shard, room.values()) for shard in shards}
    for _ in range(copies):
        for shard in shards:
            taken = found.get(shard, ())
            chosen = _next(shard, ranked[shard], taken, left)
            if chosen is not None:
                found[shard] = (*taken, chosen)
                left[chosen] = replace(left[chosen], room_bytes=left[chosen].room_bytes - shard.size_bytes)
    return found, left


def _next(shard: Shard, ranked: Sequence[str], taken: tuple[str, ...], left: Mapping[str, Holder]) -> str | None:
    """The best worker that has room: on a host that has no copy yet, if there is one."""
    hosts = {left[name].host for name in taken}
    able = [name for name in ranked if name not in taken and left[name].room_bytes >= shard.size_bytes]
    return next((name for name in able if left[name].host not in hosts), next(iter(able), None))


def ranking(shard: Shard, holders: Iterable[Holder]) -> list[str]:
    """Return the names of `holders` in the order in which they are to hold a shard; each leads in proportion to its cores."""
    return [name for _, name in sorted((_lot(shard, holder), holder.name) for holder in holders)]


def _lot(shard: Shard, holder: Holder) -> float:
    """An exponential of the rate `cores`, the same for the same two names: the least of several is each one's in proportion to its rate."""
    drawn = int.from_bytes(hashlib.blake2b(f"{shard.key}\0{holder.name}".encode(), digest_size=8).digest(), "big")
    return -math.log((drawn + 1) / (2**64 + 1)) / holder.cores


def worth(shards: Sequence[Shard], held: Placed, cores: Mapping[str, int], sizes: Sizes) -> bool:
    """Whether to scan the `shards` of an index where they lie resident: neither a worker's core nor the head, for what nobody holds, has too many rows to scan."""
    rows = sum(shard.rows for shard in shards)
    if rows < sizes.least_rows:
        return False
    there = sum(shard.rows for shard in shards if held.get(shard))
    working = sum(cores.get(name, 0) for name in {name for shard in shards for name in held.get(shard, ())})
    return there > 0 and there <= working * sizes.core_rows and rows - there <= sizes.core_rows


def shared_out(shards: Iterable[Shard], held: Placed, cores: Mapping[str, int], slow: Collection[str] = ()) -> dict[str, list[Shard]]:
    """Return whom to ask for which shards: each from one holder, the one that then has least to scan for each core; `slow` ones last.

    A shard that nobody holds is left out.
    """
    asked: dict[str, list[Shard]] = {}
    rows: dict[str, int] = {}
    # those with the least choice first: else the only holder of one would have been given others as well
    for shard in sorted(shards, key=lambda s: (len(held.get(s, ())), s)):
        able = [name for name in held.get(shard, ()) if cores.get(name)]
        if not able:
            continue
        chosen = min(able, key=lambda name: (name in slow, (rows.get(name, 0) + shard.rows) / cores[name]))
        asked.setdefault(chosen, []).append(shard)
        rows[chosen] = rows.get(chosen, 0) + shard.rows
    return asked


def merged(parts: Iterable[Found], count: int) -> Found:
    """Return the best `count` of what several scans found: highest scores ``(n,)`` first, of equal ones the lower row; fewer where there are fewer."""
    import numpy as np

    parts = list(parts)
    scores = np.concatenate([np.zeros(0, np.float32), *(part[0] for part in parts)])
    rows = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    order = np.lexsort((rows, -scores))[:count]
    return scores[order], rows[order]


def surplus(held: Placed, wanted: Placed, full: Collection[str]) -> Iterator[tuple[str, Shard]]:
    """Yield what workers hold beyond what they should: what nobody should, and what all who should have by now; of those that are `full`, all of it."""
    for shard, names in held.items():
        due = wanted.get(shard, ())
        arrived = set(due) <= set(names)
        yield from ((name, shard) for name in names if name not in due and (arrived or name in full))


def lacking(held: Placed, wanted: Placed) -> dict[str, Shard]:
    """Return of each worker the shard that it should load next: one that nobody holds before others."""
    missing = [(bool(held.get(shard)), shard, name) for shard, names in wanted.items() for name in names if name not in held.get(shard, ())]
    found: dict[str, Shard] = {}
    for _, shard, name in sorted(missing):
        found.setdefault(name, shard)
    return found
