"""What may stay on a disk and what has to go. Pure: `tidying` looks and removes, `disk` decides when.

Sizes are bytes, times seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: After the floor was reached, work goes on only once so many times as much is free: else it would start and stop with every unit.
RISE: Final = 1.1
#: Logs are cut one by one; with fewer than this each may grow no larger than if there were so many.
LOGS_AT_LEAST: Final = 8


@dataclass(frozen=True, kw_only=True)
class Room:
    """What is free on a disk, and what is to stay free. `low`: no unit is to be started."""

    total_bytes: int
    free_bytes: int
    floor_bytes: int
    low: bool

    @property
    def wanted_bytes(self) -> int:
        """How much has to be freed before work may go on; 0 where it may."""
        return max(0, risen(self.floor_bytes) - self.free_bytes) if self.low else 0


def risen(floor_bytes: int) -> int:
    """Return what has to be free before work goes on after the floor was reached."""
    return int(floor_bytes * RISE)


def room_of(total_bytes: int, free_bytes: int, floor_bytes: int, *, was_low: bool) -> Room:
    """Return the room of a disk that was low before or was not."""
    low = free_bytes < (risen(floor_bytes) if was_low else floor_bytes)
    return Room(total_bytes=total_bytes, free_bytes=free_bytes, floor_bytes=floor_bytes, low=low)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that could be removed.

    Parameters
    ----------
    kind, name
        What it is, and which one; no two are alike in both.
    size
        Of all that would be removed with it.
    used_s
        When it was last in use, so far as is known.
    in_use
        It is now, and stays whatever its size and age.
    """

    kind: str
    name: str
    size: int
    used_s: float
    in_use: bool = False


def to_remove(entries: Iterable[Entry], most: int, now_s: float, *, age_s: float | None = None, rest_s: float = 0.0) -> list[Entry]:
    """Return what has to go, the longest unused first, so that the rest has at most `most` bytes.

    Parameters
    ----------
    age_s
        What was not used for longer goes in any case; ``None``: age alone removes nothing.
    rest_s
        What was used within so many seconds stays: somebody may be about to use it again.
    """
    entries = list(entries)
    free = [e for e in entries if not e.in_use and e.used_s <= now_s - rest_s]
    total, gone = sum(entry.size for entry in entries), []
    for entry in sorted(free, key=lambda e: (e.used_s, e.kind, e.name)):
        aged = age_s is not None and entry.used_s < now_s - age_s
        if aged or (total > most and entry.size > 0):
            gone.append(entry)
            total -= entry.size
    return gone


def log_most(most: int, logs: int) -> int:
    """Return the most bytes of each of `logs` logs, and of the part that is kept when it is cut, so that all have `most` together."""
    return most // (2 * max(LOGS_AT_LEAST, logs))


@dataclass(frozen=True)
class Cut:
    """Which bytes of a file of events stay: the first `head` and the last `tail`."""

    head: int
    tail: int


def events_cut(size: int, most: int) -> Cut | None:
    """Return how to cut a file of `size` bytes that may have `most`; ``None`` where it need not be.

    Half of `most` stays, so that it is not cut again with each event: a part of the beginning, and more of the end.
    """
    return Cut(head=most // 8, tail=most * 3 // 8) if size > most else None
