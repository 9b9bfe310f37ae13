"""Time as an argument: whatever needs it takes a `Clock`, so that a test can move it by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

T = TypeVar("T")


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


async def within(limit_s: float, answer: Awaitable[T]) -> T:
    """Return what is awaited. Unlike `asyncio.wait_for` of Python 3.11 it loses no cancellation.

    Raises
    ------
    TimeoutError
        If it takes longer than `limit_s` seconds.
    """
    async with asyncio.timeout(limit_s):
        return await answer
