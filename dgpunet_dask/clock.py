"""Time as an argument: whatever needs it takes a `Clock`, so that a test can move it by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the product asks of time. Both are in seconds."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""


class SystemClock:
    """The machine's own time."""

    #: Seconds since boot. Asked several times for each task, hence the bare function.
    monotonic = staticmethod(time.monotonic)
    #: Seconds since 1970-01-01 UTC.
    wall = staticmethod(time.time)
