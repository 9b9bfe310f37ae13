"""The head's part in copies of its ledger: when one is made, and which other host keeps it.

A copy is made every so often (``disk: ledger_backup: every``) and soon after jobs have ended, at most once a minute. It lies under
``H/backups`` of the head's own host, which helps against a damaged file, and is offered to one other host, which helps against a lost
machine. `cluster.backups` has the folders and how they travel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.cluster import backups
from dgpunet_dask.cluster.backups import Offer
from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.model.job import FINAL_STATES
from dgpunet_dask.security.files import private_folder

if TYPE_CHECKING:
    from dgpunet_dask.jobs.service import JobService

log = logging.getLogger(__name__)

#: How often it is looked whether a copy is due, and how far apart copies are at least, jobs ending or not.
LOOK_S: Final = 2.0
LEAST_S: Final = 60.0
#: What stands for the choice of the head in the settings.
AUTO: Final = "auto"


def _no_hosts() -> Collection[str]:
    return ()


def _no_row(_: str) -> Mapping[str, Any] | None:
    return None


@dataclass(frozen=True, kw_only=True)
class BackingPorts:
    """What copies are made from, and who there is to keep them.

    Parameters
    ----------
    copy
        Copies the ledger to a file.
    boot
        Gives the number of the ledger's boot.
    serving
        Whether there is a ledger to be copied now.
    unfinished
        Gives the jobs that have not ended.
    ended
        Gives the jobs that have, with when.
    hosts
        Gives the other hosts of the cluster that could fetch a copy now.
    kept
        Gives what a host says it keeps: name, at, error; ``None`` where it says nothing.
    """

    copy: Callable[[Path], Awaitable[None]]
    boot: Callable[[], int]
    serving: Callable[[], bool]
    unfinished: Callable[[], Awaitable[Collection[str]]]
    ended: Callable[[], Mapping[str, float]]
    hosts: Callable[[], Collection[str]] = _no_hosts
    kept: Callable[[str], Mapping[str, Any] | None] = _no_row


def ports_of(service: Callable[[], JobService | None]) -> BackingPorts:
    """Return the ports to a head's jobs; `service` gives them once there are some."""

    def jobs() -> JobService:
        found = service()
        assert found is not None, "asked only while `serving`"
        return found

    async def copy(into: Path) -> None:
        await jobs().ledger.backup(into)

    async def unfinished() -> Collection[str]:
        return [status.job_id for status in await jobs().list() if status.state not in FINAL_STATES]

    return BackingPorts(
        copy=copy, boot=lambda: jobs().ledger.boot, serving=lambda: service() is not None and jobs().ledger.boot > 0,
        unfinished=unfinished, ended=lambda: jobs().ended(),
    )  # fmt: skip


class Backing:
    """Makes copies of one head's ledger and offers the last. Making the value touches nothing.

    Parameters
    ----------
    home, host
        Of the head.
    settings
        What its owner wants.
    """

    def __init__(self, home: Home, host: str, settings: SettingsWatch, ports: BackingPorts, clock: Clock) -> None:
        self.home, self.host, self.settings, self.ports, self.clock = home, host, settings, ports, clock
        self.offer: Offer | None = None
        self.error: str | None = None
        self._tried_s = self.clock.monotonic()  # a head that starts has other things to do first
        self._copied_s: float | None = None
        self._ended: tuple[int, float] | None = None

    async def run(self) -> None:
        """Make copies until cancelled. One that cannot be made is told, and tried again."""
        self.offer = await in_thread(backups.read_offer, self.home)
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.step()
            except (DgpunetError, OSError, ValueError) as error:
                if str(error) != self.error:
                    log.error("the ledger could not be copied: %s", error)
                self.error = str(error)

    async def step(self) -> None:
        """Make a copy if one is due, and choose who keeps it."""
        if not self.ports.serving():
            return
        now_s, ended = self.clock.monotonic(), self._ends()
        every_s = self.settings.settings.disk.ledger_backup.every_s
        least_s = min(LEAST_S, every_s)
        due = self._copied_s is None or ended != self._ended or now_s - self._copied_s >= every_s
        if due and now_s - self._tried_s >= least_s:
            self._tried_s = now_s
            await self._copy()
            self._copied_s, self._ended, self.error = now_s, ended, None
        await self._choose()

    def _ends(self) -> tuple[int, float]:
        ended = self.ports.ended()
        return len(ended), max(ended.values(), default=0.0)

    async def _copy(self) -> None:
        at = self.clock.wall()
        await in_thread(private_folder, self.home.backups)
        draft = self.home.backups / f".making-{self.ports.boot()}"
        await in_thread(_emptied, draft)
        await self.ports.copy(draft / backups.LEDGER)
        told = {"at": at, "host": self.host, "boot": self.ports.boot()}
        jobs = sorted(await self.ports.unfinished())
        made = await in_thread(lambda: backups.make(draft, told, self._sidecars(jobs)))
        await self._put(replace(made, host=None if self.offer is None else self.offer.host))
        await in_thread(backups.prune, self.home, [made.name])
        log.debug("the ledger was copied as %s: %d bytes", made.name, made.size)

    def _sidecars(self, jobs: Sequence[str]) -> list[str]:
        texts = []
        for job_id in jobs:
            with contextlib.suppress(FileNotFoundError):  # the ledger has it all the same
                texts.append((self.home.jobs / job_id / "job.json").read_text(encoding="utf-8"))
        return texts

    async def _choose(self) -> None:
        """Offer the last copy to the host that is to keep it."""
        if self.offer is None:
            return
        host = second_host(self.settings.settings.disk.ledger_backup.host, self.host, self.ports.hosts(), self.offer.host)
        if host != self.offer.host:
            log.info("copies of the ledger go to %s", host or "no other host")
            await self._put(replace(self.offer, host=host))

    async def _put(self, offer: Offer) -> None:
        await in_thread(backups.write_offer, self.home, offer)
        self.offer = offer

    # What others ask

    def offered_to(self, host: str) -> dict[str, Any] | None:
        """Return what a host's next heartbeat is answered: the copy that it shall fetch, ``None`` where that is not for it."""
        return asdict(self.offer) if self.offer is not None and self.offer.host == host else None

    def status(self) -> dict[str, Any]:
        """Return where the ledger's copies are and of when, as JSON; times in seconds since 1970."""
        offer = self.offer
        kept = self.ports.kept(offer.host) if offer is not None and offer.host is not None else None
        return {
            "at": None if offer is None else offer.at,
            "name": None if offer is None else offer.name,
            "error": self.error,
            "every_s": self.settings.settings.disk.ledger_backup.every_s,
            "now": self.clock.wall(),
            "wanted": self.settings.settings.disk.ledger_backup.host,
            "others": len(self.ports.hosts()),
            "host": None if offer is None else offer.host,
            "host_at": _number(kept, "at"),
            "host_error": _text(kept, "error"),
        }


def second_host(wanted: str, head: str, ready: Collection[str], present: str | None) -> str | None:
    """Return the host that keeps copies: the one that was named, else the present one while it is there, else the first by name.

    ``None`` where there is none, or the head's own was named.
    """
    if wanted != AUTO:
        return None if wanted == head else wanted
    others = {host for host in ready if host != head}
    return present if present in others else min(others, default=None)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def _number(row: Mapping[str, Any] | None, key: str) -> float | None:
    found = None if row is None else row.get(key)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _text(row: Mapping[str, Any] | None, key: str) -> str | None:
    found = None if row is None else row.get(key)
    return found[:300] if isinstance(found, str) and found else None
