"""The policies in force on a head: read at its start, followed while it runs, given to the scheduler's plugin.

A change counts once its files are right and the cases beside them pass; until then the old policies stay in force, and the head says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.policy_files import layer_of, read_sources
from dgpunet_dask.cluster.policy_watch import Places, Rest, Stamp, check_cases, stamp
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.lint import lint
from dgpunet_dask.placement.policy_file import Source

log = logging.getLogger(__name__)

#: How often the files are looked at. A change is read when two looks in a row show the same.
PERIOD_S: Final = 1.0
#: How often a scheduler that is away is tried again.
RETRY_S: Final = 0.1

Tell = Callable[[Sequence[Source]], Awaitable[Any]]


class Policies:
    """The policies of one head. `tell` gives their texts to the scheduler's plugin; it may fail while the scheduler is away."""

    def __init__(self, places: Places, tell: Tell, clock: Clock | None = None) -> None:
        self.places, self.tell = places, tell
        self.clock = clock or SystemClock()
        self.policy: Policy = NO_POLICY
        self.sources: tuple[Source, ...] = ()
        self.error: DgpunetError | None = None
        self.loaded_at = 0.0
        self._rest = Rest()
        self._told = asyncio.Event()
        self._told.set()  # a scheduler that starts applies no policy, and none is in force
        self._proved: Stamp = ()
        self._turn = asyncio.Lock()

    def load(self) -> None:
        """Read the files for the first time.

        Raises
        ------
        MissingPath, UnreadablePath, MalformedFile, NewerFormat
            With every mistake of every file.
        """
        files = self.places.files()
        self._rest.took(stamp(files))
        self._swap(*read_sources(files))

    def _swap(self, sources: tuple[Source, ...], policy: Policy) -> None:
        if sources != self.sources:
            self._told.clear()
        self.sources, self.policy, self.error = sources, policy, None
        self.loaded_at = self.clock.wall()
        log.info("policy %s is in force, from %s", policy.digest, ", ".join(file for _, file, _ in sources) or "no file")
        for finding in lint(policy):
            log.warning("%s", finding)

    async def run(self) -> None:
        """Follow the files, and a scheduler that starts again, until cancelled."""
        while True:
            await self._tell()
            await asyncio.sleep(PERIOD_S if self.told else RETRY_S)
            async with self._turn:
                now = self._stamp()
                if self._rest.due(now):
                    await self._read(now)

    async def reload(self) -> dict[str, Any]:
        """Read the files now, if they have changed, and return `status`."""
        async with self._turn:
            await self._read(self._stamp())
        await self._tell()
        return self.status()

    def lost(self) -> None:
        """Note that the scheduler has ended: its successor applies no policy until it is told."""
        if self.sources:
            self._told.clear()

    async def settled(self) -> None:
        """Wait until the scheduler's plugin applies the policies in force."""
        await self._told.wait()

    @property
    def told(self) -> bool:
        """Whether the scheduler's plugin applies the policies in force."""
        return self._told.is_set()

    def status(self) -> dict[str, Any]:
        """Return what ``status --json`` says of the policies."""
        return {
            "digest": self.policy.digest,
            "files": [file for _, file, _ in self.sources],
            "error": None if self.error is None else self.error.to_json(),
            "loaded_at": self.loaded_at,
        }

    def _stamp(self) -> Stamp:
        try:
            return stamp(self.places.files())
        except DgpunetError:
            return stamp(self.places.given)

    async def _read(self, now: Stamp) -> None:
        """Read the files, which are `now` like this; a mistake leaves the policies in force as they are."""
        self._rest.took(now)
        try:
            sources, policy = await asyncio.to_thread(self._checked)
        except DgpunetError as error:
            self.error = error
            log.error("the changed policy files are not taken, policy %s stays in force: %s", self.policy.digest, error)
            return
        if sources != self.sources or self.error is not None:
            self._swap(sources, policy)
            await self._tell()

    def _checked(self) -> tuple[tuple[Source, ...], Policy]:
        """Read the files and run their cases: those whose files, and which themselves, have not changed since they passed are not run again."""
        files = self.places.files()
        found = read_sources(files)
        cases = self.places.cases(files)
        written = stamp([*cases, *(file for file in files if layer_of(file) != "generated")])
        if cases and written != self._proved:
            check_cases(cases)
            self._proved = written
        return found

    async def _tell(self) -> None:
        """Give the plugin the policies in force, unless it has them."""
        if self._told.is_set():
            return
        sources = self.sources
        try:
            await self.tell(sources)
        except DgpunetError as error:
            log.debug("the scheduler is away: %s", error)
        except Exception:
            log.exception("the scheduler's plugin did not take the policies; it is told again")
        else:
            if sources is self.sources:
                self._told.set()
