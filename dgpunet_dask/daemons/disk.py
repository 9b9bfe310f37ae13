"""The disk of a home is kept within what config.yaml says, and whoever starts work hears when there is no room for it.

Use, in a daemon's event loop::

    disk = Disk(home, watch, DiskPorts(in_use=..., ended=..., forget=..., tell=...))
    task = asyncio.create_task(disk.run())
    await disk.room_ok()            # before a unit is leased: waits while the disk is below its floor
    disk.status()                   # for `status`, `doctor` and metrics

Low room stops work, and ends none: jobs wait, and go on by themselves. A head keeps all of its home; an agent on another host caches and
logs there; an agent on the head's host only marks what it uses (`tidies=False`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config import settings
from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch
from dgpunet_dask.daemons import tidying
from dgpunet_dask.daemons.rooms import Entry, Room, room_of, to_remove
from dgpunet_dask.daemons.tidying import EVENTS_ENDED, Caches, EventsCut, Key
from dgpunet_dask.errors import DiskFull, LowDisk
from dgpunet_dask.hardware.system import total_and_free
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.units import shown_bytes

log = logging.getLogger(__name__)

#: How often the disk's room and config.yaml are looked at, and how fresh an answer before a unit has to be.
LOOK_S: Final = 2.0
FRESH_S: Final = 0.1
#: How often files are looked at, also while there is no room.
TIDY_S: Final = 600.0
TIDY_LOW_S: Final = 60.0
#: What was used within this time stays in the caches: a job that was just submitted may be about to use it.
REST_S: Final = 3600.0
#: How long jobs wait for room before they fail; and those of a command that has a cluster of its own, and somebody who looks at it.
ROOM_S: Final = 30.0
EMBEDDED_ROOM_S: Final = 15.0
EVENTS_MOST: Final = 64 << 20


def _nothing() -> Collection[Key]:
    return ()


def _no_tell(kind: str, facts: Mapping[str, Any]) -> None:
    pass


async def _yes(_: str) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class DiskPorts:
    """What the keeper asks and tells.

    Parameters
    ----------
    in_use
        Gives kind (``model``, ``workload``, ``env``) and digest of what live jobs and loaded stages use.
    ended
        Gives the jobs that have ended, with when (seconds since 1970); ``None``: this is not the head's home.
    forget
        Notes that the results of an ended job will be gone, before they are; ``False``: they are wanted after all.
    tell
        Takes ``disk_low`` and ``disk_ok`` with their facts.
    statvfs
        Gives total and free bytes of a path's disk.
    commands
        Gives the programs that run on this machine.
    """

    in_use: Callable[[], Collection[Key]] = _nothing
    ended: Callable[[], Mapping[str, float]] | None = None
    forget: Callable[[str], Awaitable[bool]] = _yes
    tell: Callable[[str, Mapping[str, Any]], None] = _no_tell
    statvfs: Callable[[os.PathLike[str]], tuple[int, int]] = total_and_free
    commands: Callable[[], Iterator[str]] = tidying.commands_running


class Disk:
    """Keeps one home. Making the value touches nothing.

    Parameters
    ----------
    home
        Whose disk it is; its root must be there.
    watch
        The settings; looked at again with each round.
    tidies
        Whether files are cut and removed here; else what is in use is only marked, for another process that does it.
    """

    def __init__(self, home: Home, watch: SettingsWatch, ports: DiskPorts | None = None, *, clock: Clock | None = None, tidies: bool = True) -> None:
        self.home, self.watch, self.ports, self.tidies = home, watch, ports or DiskPorts(), tidies
        self.clock = clock or SystemClock()
        self.caches = Caches(home, self.clock.wall)
        self._room = Room(total_bytes=0, free_bytes=0, floor_bytes=0, low=False)
        self._looked_s = self._tidied_s = float("-inf")
        self._since: float | None = None
        self._risen = asyncio.Event()
        self._turn = asyncio.Lock()
        self._freed = 0

    # Room

    @property
    def limits(self) -> settings.Disk:
        """What config.yaml says."""
        return self.watch.settings.disk

    def room(self) -> Room:
        """Return the room of the disk as it is now; as it was last known where the system does not say, which stops no work by itself."""
        now_s = self.clock.monotonic()
        if now_s - self._looked_s >= FRESH_S:
            self._looked_s = now_s
            try:
                total, free = self.ports.statvfs(self.home.root)
            except OSError as error:
                log.warning("the room on the disk of %s is not known: %s", self.home.root, error)
            else:
                self._look(total, free)
        return self._room

    def _look(self, total: int, free: int) -> None:
        before, self._room = self._room, room_of(total, free, self.limits.floor.of(total), was_low=self._room.low)
        if self._room.low != before.low:
            self._turned(self._room)

    async def room_ok(self) -> None:
        """Return once there is room for work: at once, as a rule."""
        while self.room().low:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._risen.wait()
            except TimeoutError:
                pass

    async def room_within(self, patience_s: float) -> None:
        """Return once there is room for work.

        Raises
        ------
        DiskFull
            If there is none for so many seconds.
        """
        try:
            async with asyncio.timeout(patience_s):
                await self.room_ok()
        except TimeoutError:
            raise DiskFull(path=self.home.root) from None

    def _turned(self, room: Room) -> None:
        """Tell that the disk has become low, or has room again."""
        told = {"path": str(self.home.root), "free": room.free_bytes, "floor": room.floor_bytes, "total": room.total_bytes}
        if room.low:
            self._since = self.clock.wall()
            self._risen.clear()
            self._tidied_s = float("-inf")  # perhaps something can go
            log.error("%s", self.low_disk(room))
            self.ports.tell("disk_low", told)
        else:
            self._since = None
            self._risen.set()
            log.warning("there is room on the disk of %s again: %s", self.home.root, shown_bytes(room.free_bytes))
            self.ports.tell("disk_ok", told)

    def low_disk(self, room: Room) -> LowDisk:
        """Return the error that says so."""
        return LowDisk(path=self.home.root, free=shown_bytes(room.free_bytes), floor=shown_bytes(room.floor_bytes))

    def status(self) -> dict[str, Any]:
        """Return the room, since when it is low, and what is wrong with config.yaml, as JSON."""
        room, wrong = self.room(), self.watch.error
        return {
            "path": str(self.home.root), "total": room.total_bytes, "free": room.free_bytes, "floor": room.floor_bytes, "low": room.low,
            "low_since": self._since, "freed": self._freed, "error": self.low_disk(room).to_json() if room.low else None,
            "settings": {"file": str(self.watch.path), "error": None if wrong is None else wrong.to_json()},
        }  # fmt: skip

    # Files

    async def run(self) -> None:
        """Look and tidy until cancelled. A failure is told and tried again; it ends nothing."""
        while True:
            try:
                await self.step()
            except Exception:
                log.exception("the disk of %s could not be looked after", self.home.root)
            await asyncio.sleep(LOOK_S)

    async def step(self) -> None:
        """Look once, and tidy if it is time to."""
        self.watch.look()
        every_s = TIDY_LOW_S if self.room().low else TIDY_S
        if self.clock.monotonic() - self._tidied_s >= every_s:
            await self.tidy()

    async def tidy(self) -> int:
        """Bring all files within their bounds; return the bytes that were freed."""
        async with self._turn:
            self._tidied_s = self.clock.monotonic()
            if not self.tidies:
                await in_thread(self.caches.mark, set(self.ports.in_use()))
                return 0
            freed = 0
            for part in (self._logs, self._events, self._results, self._caches):
                try:
                    freed += await part()
                except Exception as error:  # one that cannot be tidied keeps no other from it
                    log.warning("the %s under %s could not be tidied: %s: %s", part.__name__.strip("_"), self.home.root, type(error).__name__, error)
            self._freed += freed
            return freed

    async def _logs(self) -> int:
        freed = await in_thread(tidying.cut_logs, self.home.run / "logs", self.limits.logs)
        return freed + await in_thread(tidying.cut_logs, self.home.run / "stagehosts", self.limits.stage_logs)

    async def _events(self) -> int:
        if self.ports.ended is None:
            return 0
        files = await in_thread(lambda: sorted(self.home.jobs.glob("*/events.jsonl")))
        return sum([await self._cut(EventsCut.of(file, EVENTS_MOST)) for file in files])

    async def _cut(self, cut: EventsCut | None) -> int:
        if cut is None:
            return 0
        before = cut.path.stat().st_size
        await in_thread(cut.prepare)
        cut.finish()  # here, on the loop, no event is written meanwhile
        return before - cut.path.stat().st_size

    async def _results(self) -> int:
        if self.ports.ended is None:
            return 0
        ended = dict(self.ports.ended())
        entries = await in_thread(lambda: [tidying.result_entry(self.home.jobs / job_id, job_id, at) for job_id, at in ended.items()])
        gone = to_remove(
            [entry for entry in entries if entry.size], self.limits.results, self.clock.wall(), age_s=86_400.0 * self.limits.results_days
        )
        return sum([await self._remove_results(entry) for entry in gone])

    async def _remove_results(self, entry: Entry) -> int:
        folder = self.home.jobs / entry.name
        if not await self.ports.forget(entry.name):
            return 0
        await in_thread(tidying.remove_results, folder)
        if (folder / "events.jsonl").is_file():
            await self._cut(EventsCut.of(folder / "events.jsonl", EVENTS_ENDED))
        log.info("the results of job %s have gone: %s", entry.name, shown_bytes(entry.size))
        return entry.size

    async def _caches(self) -> int:
        entries = await in_thread(self._cached, set(self.ports.in_use()))
        total = sum(entry.size for entry in entries)
        most = min(self.limits.caches, max(0, total - self.room().wanted_bytes)) if self.room().low else self.limits.caches
        gone = to_remove(entries, most, self.clock.wall(), rest_s=REST_S)
        return sum([await self._remove_cached(entry) for entry in gone])

    def _cached(self, used: set[Key]) -> list[Entry]:
        self.caches.sweep()
        return self.caches.entries(used | tidying.environments_running(self.ports.commands, self.home))

    async def _remove_cached(self, entry: Entry) -> int:
        if (entry.kind, entry.name) in self.ports.in_use() or not await in_thread(self.caches.remove, entry):
            return 0
        log.info("the %s %s was not used for long and has gone: %s", entry.kind, entry.name[:16], shown_bytes(entry.size))
        return entry.size
