"""Which segments of an index are better one. Pure.

A publication merges along what is small beside it, so that the number of segments grows with the logarithm of the rows and each row is
copied about as often (O'Neil et al., The log-structured merge-tree, 1996). What would take long is left to `due`, which runs apart from publications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: A segment with at most so many times the rows that are written anyway is merged along.
_GROWTH: Final = 2
#: And one with at most so many rows in any case: copying them costs less than one more file to open.
_SMALL: Final = 1024
#: A segment of which a larger share belongs to no file any more is written anew,
_DEAD: Final = 0.3
#: and with a publication where that copies at most so many rows.
_ALONG: Final = 16_384
#: Segments that an index has at most; each costs a search a little.
SEGMENTS_MAX: Final = 12


@dataclass(frozen=True)
class Held:
    """What one segment holds: its rows, and how many of these belong to files that are listed."""

    rows: int
    live: int

    @property
    def wasteful(self) -> bool:
        """Whether too much of it is passed over."""
        return self.live < self.rows * (1 - _DEAD)


def along(segments: Sequence[Held], new: int) -> list[int]:
    """Return the positions of the segments that are merged into one with `new` rows that are to be written anyway."""
    taken = [n for n, held in enumerate(segments) if held.live == 0 or (held.wasteful and held.live <= _ALONG)]
    rows = new + sum(segments[n].live for n in taken)
    for n in sorted(range(len(segments)), key=lambda n: (segments[n].live, n)):
        left = len(segments) - len(taken) + 1
        if n not in taken and rows and (segments[n].live <= max(_SMALL, rows * _GROWTH) or left > SEGMENTS_MAX):
            taken.append(n)
            rows += segments[n].live
    return sorted(taken)


def due(segments: Sequence[Held], *, all_of_them: bool = False) -> list[int]:
    """Return the positions of the segments that are to be merged into one apart from any publication.

    Those of which too much is passed over; with `all_of_them` every one, if that changes anything.
    """
    if all_of_them:
        changes = len(segments) > 1 or any(held.live < held.rows for held in segments)
        return list(range(len(segments))) if changes else []
    return [n for n, held in enumerate(segments) if held.wasteful]
