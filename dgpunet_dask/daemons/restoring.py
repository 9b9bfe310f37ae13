"""A ledger that is looked through, put back from a copy, or made anew from what lies beside it, while no head runs.

The disk counts where it knows more than a copy: jobs that the copy does not know, units that were committed after it was made, jobs that have
ended since. Their sidecars and result files tell of them, so putting a copy back loses nothing that was committed here. What the copy
alone knows (attempts that failed, what units counted) is kept for all other jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.cluster import backups
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import current_head, start_lock
from dgpunet_dask.daemons.register import supervisor_of
from dgpunet_dask.errors import DamagedFile, MissingPath, UnreadablePath, UsageError
from dgpunet_dask.jobs import lease_steps, rebuild
from dgpunet_dask.jobs.accepting import shipped_digests
from dgpunet_dask.jobs.ledger import Ledger, read_copy
from dgpunet_dask.jobs.ledger_files import note_boot, noted_boot
from dgpunet_dask.jobs.rows import JobRow, Restored
from dgpunet_dask.jobs.schema import FAULTS
from dgpunet_dask.jobs.states import FINAL_STATES, boot_of
from dgpunet_dask.jobs.store import add_workload, pack_workload
from dgpunet_dask.jobs.units import parse_name, result_name
from dgpunet_dask.security.files import private_folder, sync_folder, write_private

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Boots that heads may have had since a copy was made, where nothing here tells how many: none of their epochs is given again.
UNKNOWN_BOOTS: Final = 1 << 16
_TAILS: Final = ("", "-wal", "-shm")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done.

    Parameters
    ----------
    source
        What the ledger was made from.
    at
        When that was so, seconds since 1970; ``None``: now.
    aside
        Where the ledger before lies; ``None``: there was none.
    jobs, units
        How many jobs and committed units the ledger has now.
    from_disk
        Jobs of which the disk knew more than the copy.
    taken_back
        Job and unit of commits whose files are not here.
    boot
        The number of the boot in which this was done.
    missing
        Digests of workloads that unfinished jobs need and that are not here.
    """

    source: Path
    at: float | None
    aside: Path | None
    jobs: int
    units: int
    from_disk: tuple[str, ...] = ()
    taken_back: tuple[tuple[str, str], ...] = ()
    boot: int = 0
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "source": str(self.source), "at": self.at, "aside": None if self.aside is None else str(self.aside), "jobs": self.jobs, "units": self.units,
            "from_disk": list(self.from_disk), "taken_back": len(self.taken_back), "boot": self.boot, "missing": list(self.missing),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a ledger holds, and what is wrong with it: rows of fault, job_id and unit_id."""

    path: Path
    jobs: int
    units: int
    attempts: int
    boot: int
    faults: tuple[Mapping[str, str], ...]


# Looking


def check(path: Path) -> Looked:
    """Look through the ledger at `path`, which stays as it is.

    Raises
    ------
    MissingPath
        If there is none.
    DamagedFile
        If it cannot be read at all, or a head is writing it.
    NewerFormat
        If a newer release wrote it.
    """
    if not path.is_file():
        raise MissingPath(path=path)
    with read_copy(path) as db:
        broken = [{"fault": str(row[0]), "job_id": "", "unit_id": ""} for row in db.execute("PRAGMA integrity_check(100)") if row[0] != "ok"]
        wrong = [{"fault": name, "job_id": str(row[0]), "unit_id": str(row[1])} for name, query in FAULTS.items() for row in db.execute(query)]
        counts = [int(db.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0]) for name in ("jobs", "units", "attempts")]  # noqa: S608  # our own names
        boot = lease_steps.last_boot(db)
    return Looked(path=path, jobs=counts[0], units=counts[1], attempts=counts[2], boot=boot, faults=(*broken, *wrong))


# Changing


@contextlib.contextmanager
def alone(home: Home) -> Iterator[None]:
    """Keep heads from starting under `home` meanwhile.

    Raises
    ------
    UsageError
        If one runs.
    """
    home.ensure()
    with start_lock(home):
        if current_head(home) is not None or supervisor_of(home) is not None:
            raise UsageError(detail=f"A head runs under {home.root}, and the ledger is its own. Stop it first: `dgpunet-dask down`.")
        yield


def restore(home: Home, folder: Path | None = None) -> Outcome:
    """Put a copy in place of the ledger; without `folder` the last one that is whole. The ledger before is set aside.

    Raises
    ------
    UsageError
        If a head runs.
    MissingPath, UnreadablePath
        If there is no copy, or that in `folder` is damaged.
    """
    with alone(home):
        copy = _checked(folder) if folder is not None else _last(home)
        told = backups.about(copy)
        looked = check(copy / backups.LEDGER)
        boot = max(_boots_given(home), looked.boot, int(told.get("boot", 0))) + UNKNOWN_BOOTS
        aside = _put_aside(home)
        try:
            _put_in(home, copy / backups.LEDGER, boot)
            known, taken_back, outcome = asyncio.run(_with_ledger(home, lambda ledger: _merge(ledger, home)))
        except BaseException:
            _take_back(home, aside)
            raise
        _write_sidecars(home, copy)
        return replace(outcome, source=copy, at=backups.made_at(copy), aside=aside, from_disk=known, taken_back=taken_back)


def rebuild_anew(home: Home) -> Outcome:
    """Make the ledger anew from ``jobs/*/job.json`` and the result files. The ledger before is set aside.

    Raises
    ------
    UsageError
        If a head runs.
    """
    with alone(home):
        boot = _boots_given(home) + (0 if noted_boot(home.ledger) else UNKNOWN_BOOTS)
        aside = _put_aside(home)
        note_boot(home.ledger, boot)
        try:
            outcome = asyncio.run(_with_ledger(home, lambda ledger: _rebuilt(ledger, home)))
        except BaseException:
            _take_back(home, aside)
            raise
        return replace(outcome, source=home.jobs, aside=aside)


async def _with_ledger(home: Home, use: Callable[[Ledger], Awaitable[T]]) -> T:
    ledger = Ledger(home.ledger, SystemClock())
    await ledger.open()
    try:
        return await use(ledger)
    finally:
        await ledger.close()


async def _rebuilt(ledger: Ledger, home: Home) -> Outcome:
    await rebuild.rebuild(ledger, home.jobs)
    return await _counted(ledger, home)


async def _counted(ledger: Ledger, home: Home) -> Outcome:
    rows = await ledger.jobs()
    units = sum([(await ledger.counts(row.job_id)).done for row in rows])
    missing = await asyncio.to_thread(_missing, home, {row.digest for row in rows if row.state not in FINAL_STATES and row.digest})
    return Outcome(source=home.jobs, at=None, aside=None, jobs=len(rows), units=units, boot=ledger.boot, missing=missing)


def _missing(home: Home, digests: Collection[str]) -> tuple[str, ...]:
    """Return which workloads are not here; those that come with the product are put in their place."""
    absent = sorted(digest for digest in digests if not (home.workloads / digest).is_dir())
    shipped = shipped_digests() if absent else {}
    for digest in absent:
        if digest in shipped:
            add_workload(home.workloads, digest, pack_workload(shipped[digest]))
    return tuple(digest for digest in absent if digest not in shipped)


async def _merge(ledger: Ledger, home: Home) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], Outcome]:
    """Put in what the disk knows beyond a copy, and take back commits whose files are not here."""
    found = await asyncio.to_thread(lambda: rebuild.plan(rebuild.look(home.jobs)))
    known = {row.job_id: row for row in await ledger.jobs()}
    newer = _with_siblings(found, {row.job_id for row in found.jobs if row.job_id not in known or await _knows_more(ledger, row, known[row.job_id], found)})
    for row in newer:
        if row.job_id in known:
            await _forget(ledger, known[row.job_id])
    if newer:
        await ledger.restore(Restored(tuple(newer), {row.job_id: found.units.get(row.job_id, ()) for row in newer}, found.last_epoch))
    taken_back = await rebuild.reconcile(ledger, lambda job, unit, leaf, epoch: home.jobs / job / "results" / result_name(unit, leaf, epoch))
    return tuple(row.job_id for row in newer), tuple(taken_back), await _counted(ledger, home)


def _with_siblings(found: Restored, newer: set[str]) -> list[JobRow]:
    """Return the jobs of these ids, and those that were submitted with them under one key: the key is made again from all of them."""
    keys = {(row.owner, row.key) for row in found.jobs if row.job_id in newer and row.key is not None}
    return [row for row in found.jobs if row.job_id in newer or (row.owner, row.key) in keys]


async def _knows_more(ledger: Ledger, here: JobRow, copied: JobRow, found: Restored) -> bool:
    """Whether the disk tells of a later state of a job than a copy, or of commits that the copy lacks."""
    if (here.tries, here.state in FINAL_STATES) > (copied.tries, copied.state in FINAL_STATES):
        return True
    committed = {(unit.unit_id, unit.epoch) for unit in await ledger.committed(here.job_id)}
    return copied.state != "done" and any((unit.unit_id, unit.epoch) not in committed for unit in found.units.get(here.job_id, ()))


async def _forget(ledger: Ledger, row: JobRow) -> None:
    if row.state not in FINAL_STATES:
        await ledger.move(row.job_id, "cancelled")
    await ledger.forget(row.job_id)


# Files


def _checked(folder: Path) -> Path:
    """Return the folder of a copy that is whole, wherever it lies and whatever it is called now."""
    if not folder.is_dir():
        raise MissingPath(path=folder)
    try:
        backups.about(folder)
        whole = backups.is_whole(folder) or not backups.is_named(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UnreadablePath(path=folder, why="it is no copy of a ledger") from error
    if not whole:
        raise UnreadablePath(path=folder, why="it is damaged: its files are not what its name says")
    return folder


def _last(home: Home) -> Path:
    for folder in reversed(backups.copies(home)):
        if backups.is_whole(folder):
            return folder
        log.warning("%s is damaged, the copy before it is looked at", folder)
    raise MissingPath(path=home.backups / "*")


def _boots_given(home: Home) -> int:
    """Return the number of the last boot that anything here tells of."""
    return max([noted_boot(home.ledger), _boot_in(home.ledger), *(boot_of(epoch) for epoch in _epochs(home))])


def _boot_in(path: Path) -> int:
    """Return the last boot of a ledger, 0 where that cannot be read: it may be damaged."""
    try:
        return check(path).boot
    except (MissingPath, DamagedFile, UsageError, OSError):
        return 0


def _epochs(home: Home) -> Iterator[int]:
    for file in home.jobs.glob("*/results/*.frames"):
        named = parse_name(file.name)
        if named is not None:
            yield named[2]


def _put_aside(home: Home) -> Path | None:
    """Move the ledger to a folder of its own under ``H/backups``; it is never removed."""
    if not any(home.ledger.with_name(home.ledger.name + tail).exists() for tail in _TAILS):
        return None
    private_folder(home.backups)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = Path(tempfile.mkdtemp(prefix=f"before-{stamp}-", dir=home.backups))
    _move(home.ledger, aside / home.ledger.name)
    return aside


def _take_back(home: Home, aside: Path | None) -> None:
    """Put back what was set aside, since nothing came in its place."""
    for tail in _TAILS:
        home.ledger.with_name(home.ledger.name + tail).unlink(missing_ok=True)
    if aside is not None:
        _move(aside / home.ledger.name, home.ledger)
        aside.rmdir()


def _move(ledger: Path, to: Path) -> None:
    for tail in _TAILS:
        with contextlib.suppress(FileNotFoundError):
            ledger.with_name(ledger.name + tail).rename(to.with_name(to.name + tail))
    for folder in (ledger.parent, to.parent):
        sync_folder(folder)


def _put_in(home: Home, copy: Path, boot: int) -> None:
    """Put a copy where the ledger lies, whole or not at all; the note of its boot comes first."""
    note_boot(home.ledger, boot)
    fd, draft = tempfile.mkstemp(prefix=".ledger-", dir=home.root)  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "wb") as file, copy.open("rb") as source:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(home.ledger)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    sync_folder(home.root)


def _write_sidecars(home: Home, copy: Path) -> None:
    """Write the sidecars of a copy where there are none: the ledger can be made anew from them, too."""
    for raw in _sidecars(copy):
        folder = home.jobs / Path(str(raw.get("job_id"))).name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "job.json").exists():
            write_private(folder / "job.json", json.dumps(raw, indent=1))


def _sidecars(copy: Path) -> Iterable[dict[str, Any]]:
    with (copy / backups.SIDECARS).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
