"""The head's side of the decision log: what the scheduler's plugin notes is drained and written to files, batch by batch.

The log never harms the head: where it cannot be written, as on a full disk, decisions are left out of it and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from dgpunet_dask.cluster.decisions import DecisionFiles
from dgpunet_dask.errors import DgpunetError

log = logging.getLogger(__name__)

#: How often the plugin is asked.
PERIOD_S: Final = 1.0

Ask = Callable[[int], Awaitable[Mapping[str, Any]]]


class Recording:
    """Writes the decision log of one head. `ask` gives the plugin's lines after a number (`plugins.journal.Journal.since`)."""

    def __init__(self, files: DecisionFiles, ask: Ask) -> None:
        self.files, self.ask = files, ask
        self.missing = 0
        self._seen = 0

    def lost(self) -> None:
        """Note that the scheduler has ended: its successor counts from the beginning."""
        self._seen = 0

    async def run(self) -> None:
        """Drain and write until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.drain()

    async def drain(self) -> None:
        """Write all that the plugin has noted since the last time."""
        try:
            while (found := await self.ask(self._seen))["lines"]:
                self._seen = int(found["seq"])
                if found["dropped"]:
                    self._miss(int(found["dropped"]), "they were asked for too late")
                await self._write(list(found["lines"]))
        except DgpunetError as error:
            log.debug("the scheduler is away: %s", error)

    async def _write(self, lines: list[str]) -> None:
        try:
            await asyncio.to_thread(self.files.append, lines)
        except OSError as error:
            self._miss(len(lines), str(error))

    def _miss(self, count: int, why: str) -> None:
        self.missing += count
        log.warning("%d records are missing from the decision log (%d by now): %s", count, self.missing, why)
