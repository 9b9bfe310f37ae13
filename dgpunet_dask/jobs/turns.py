"""Turns: what concerns the same thing happens one after the other, and everything else at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """A lock for each name that anybody holds or waits for, in the order in which they came."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, name: Hashable | None) -> AsyncIterator[None]:
        """Wait for one's turn under a name; without one there is nothing to wait for."""
        if name is None:
            yield
            return
        lock, users = self._held.get(name, (asyncio.Lock(), 0))
        self._held[name] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._held.pop(name)
            if users > 1:
                self._held[name] = lock, users - 1
