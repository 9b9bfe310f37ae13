"""In which order the units of one job that wait for the same devices get their turn: the longest first, within reason. Pure.

All of them ask for the same stages, so that no estimate tells them apart; what tells of a unit's length before it has run is how much there
is of it. A long unit that starts last keeps a job waiting alone at its end (Graham 1969, LPT), so larger ones go first. None is passed by
more than a window's later ones: a unit that never got its turn would keep its place in flight, and its result, to the end of the job.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LongestFirst:
    """Gives the units of one job their turns, in the order of the source. `largest` is the most bytes that a unit had so far."""

    largest: int = 1

    def turn(self, number: int, size: int, window: int) -> int:
        """Return the turn of a unit; the lowest is served first.

        Parameters
        ----------
        number
            Its place in the source's order.
        size
            What the source gave of it, in bytes.
        window
            How many later units may pass one that has no size at all: those that are in flight at once.
        """
        self.largest = max(self.largest, size)
        return number - window * size // self.largest
