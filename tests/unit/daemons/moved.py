"""A clock that tests move by hand."""

from __future__ import annotations


class Hand:
    """Tells `now`, by both of its faces."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now
