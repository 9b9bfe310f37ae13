"""A ledger made again from what lies beside it: the sidecar ``job.json`` of each job, and its result files, whose names say unit and epoch.

What no file tells is lost: attempts that failed, events, counts of single units, and units that had failed; those are tried again. Of a unit
with results of several epochs the last one counts, as it would have if its commit was the last thing before the ledger was lost.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from dgpunet_dask.errors import DamagedFile, JobLost, NewerFormat
from dgpunet_dask.jobs.ledger import Ledger
from dgpunet_dask.jobs.rows import FoundUnit, JobRow, Restored
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.jobs.units import parse_name
from dgpunet_dask.model.job import FINAL_STATES
from dgpunet_dask.stagehost.frames import read_frames

log = logging.getLogger(__name__)

_DIGEST_BYTES: Final = 32
#: Jobs whose committed units still count.
_GOES_ON: Final = frozenset({"queued", "running", "failed", "cancelled", "lost"})


class Result(NamedTuple):
    """A result file that was found whole."""

    unit_id: str
    leaf: str
    epoch: int
    digest: str


@dataclass(frozen=True)
class Found:
    """What one job's folder holds. `damaged` names the result files that are not whole."""

    sidecar: Mapping[str, Any]
    results: tuple[Result, ...] = ()
    damaged: tuple[str, ...] = ()


def plan(found: Iterable[Found]) -> Restored:
    """Return what goes into the new ledger.

    A job of an older release that had not ended is lost: nothing says how to go on with it. So is one whose sidecar lacks what is needed.
    """
    pairs = sorted(((_job(one.sidecar), one) for one in found), key=lambda pair: (pair[0].submitted_s, pair[0].job_id))
    last_epoch = max((result.epoch for _, one in pairs for result in one.results), default=0)
    known = {row.job_id for row, _ in pairs}
    rows = tuple(replace(row, after=tuple(job for job in row.after if job in known)) for row, _ in pairs)
    units = {row.job_id: whole_units(one.results, one.sidecar.get("leaves")) for row, one in pairs}
    units = {row.job_id: units[row.job_id] for row in rows if row.state != "done" or _enough(row, units[row.job_id])}
    return Restored(tuple(_started(row, units.get(row.job_id, ())) for row in rows), units, last_epoch)


def _enough(row: JobRow, units: Sequence[FoundUnit]) -> bool:
    """Whether these can be all units of a done job; its results may have been cleared away, and its outcome is elsewhere then."""
    return row.total is not None and row.total - row.allow_failed <= len(units) <= row.total


def whole_units(results: Sequence[Result], leaves: Sequence[str] | None) -> tuple[FoundUnit, ...]:
    """Return the units of which every leaf is there under one epoch, in the order of their epochs.

    Parameters
    ----------
    leaves
        The stages whose results are committed; ``None``: those that any result names.
    """
    wanted = set(leaves) if leaves else {result.leaf for result in results}
    by_lease: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for result in results:
        by_lease[result.unit_id, result.epoch][result.leaf] = result.digest
    last: dict[str, FoundUnit] = {}
    for (unit_id, epoch), digests in sorted(by_lease.items(), key=lambda item: item[0][1]):
        if wanted <= digests.keys():
            last[unit_id] = FoundUnit(unit_id, epoch, digests)
    return tuple(sorted(last.values(), key=lambda unit: unit.epoch))


def _job(raw: Mapping[str, Any]) -> JobRow:
    """Return the job of a sidecar; of an older release, which had no ledger, with what that wrote."""
    if "submitted_s" in raw:
        return JobRow.from_json(raw)
    submitted_s = float(raw.get("submitted_at", 0.0))
    row = JobRow.from_json({"digest": "", **raw, "submitted_s": submitted_s})
    if row.state not in FINAL_STATES:
        lost = JobLost(job_id=row.job_id)
        row = replace(row, state="lost", error=lost.to_json(), exit_code=lost.exit_code)
    units = raw.get("units") or {}
    return replace(row, ended_s=submitted_s + float(raw.get("seconds", 0.0)), total=units.get("total"))


def _started(row: JobRow, units: Sequence[FoundUnit]) -> JobRow:
    """A job with units has a try and a pass to which they belong; one without, of an ended job, tells of no pass."""
    if units:
        row = replace(row, total=len(units)) if row.state == "done" else row  # those that failed, as they might, left nothing
        return replace(row, tries=max(row.tries, 1), passes=max(row.passes, 1))
    return replace(row, passes=0) if row.state in FINAL_STATES else row


def look(jobs: Path) -> Iterator[Found]:
    """Yield what each folder of ``$DGPUNET_HOME/jobs`` holds; a sidecar that cannot be read is told and passed over."""
    for file in sorted(jobs.glob("*/job.json")):
        try:
            sidecar = json.loads(file.read_text(encoding="utf-8"))
            _job(sidecar)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, and its job is left out: %s", file, error)
            continue
        results, damaged = _results(file.parent / "results") if sidecar.get("state") in _GOES_ON | {"done"} else ((), ())
        yield Found(sidecar, results, damaged)


def _results(folder: Path) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    good, damaged = [], []
    for file in sorted(folder.glob("*.frames")) if folder.is_dir() else []:
        if (named := parse_name(file.name)) is None:
            continue
        try:
            good.append(Result(*named, digest_of(file)))
        except (DamagedFile, NewerFormat, OSError) as error:
            log.warning("a result is left out and computed anew: %s", error)
            damaged.append(file.name)
    return tuple(good), tuple(damaged)


def digest_of(file: Path) -> str:
    """Return the digest (hex) of a file of frames, after checking that its content has it.

    Raises
    ------
    DamagedFile, NewerFormat, OSError
        If it is not whole, of a newer release, or cannot be read.
    """
    read_frames(file)
    with file.open("rb") as opened:
        opened.seek(-_DIGEST_BYTES, 2)
        return opened.read().hex()


async def rebuild(ledger: Ledger, jobs: Path) -> Restored:
    """Put into a `fresh` ledger what lies under ``$DGPUNET_HOME/jobs``; return what that was."""
    restored = plan(await in_thread(lambda: list(look(jobs))))
    await ledger.restore(restored)
    return restored


async def reconcile(ledger: Ledger, file_of: Callable[[str, str, str, int], Path]) -> list[tuple[str, str]]:
    """Take back commits of jobs that may go on whose files are not there, as after a ledger was put back from a copy.

    Parameters
    ----------
    file_of
        Gives the file of a job's id, unit, leaf and epoch.

    Returns
    -------
    list
        Job and unit of each commit that was taken back.
    """
    gone: list[tuple[str, str]] = []
    for row in await ledger.jobs():
        for unit in await ledger.committed(row.job_id) if row.state in _GOES_ON else ():
            epoch = unit.epoch or 0
            missing = [leaf for leaf in unit.results or () if not file_of(row.job_id, unit.unit_id, leaf, epoch).is_file()]
            if missing and await ledger.damaged(row.job_id, unit.unit_id, epoch, evidence={"missing": missing}):
                gone.append((row.job_id, unit.unit_id))
    return gone
