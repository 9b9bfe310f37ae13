"""Jobs between the ledger, the head's memory and the folder of each."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.errors.fullness import SHORTAGES
from dgpunet_dask.jobs.commit import TEMPORARY, commit_text
from dgpunet_dask.jobs.record import JobRecord, last_seq
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.jobs.sidecar import FORMAT_VERSION
from dgpunet_dask.model.job import FINAL_STATES, JobStatus, UnitCounts

log = logging.getLogger(__name__)

#: Lies in the folder of a job that ends with the command that brought it: its cluster is that command's own.
BOUND: Final = "bound"


def status_of(row: JobRow, counts: UnitCounts) -> JobStatus:
    """Return a job of the ledger as its user sees it."""
    seconds = 0.0 if row.ended_s is None else max(0.0, row.ended_s - row.submitted_s)
    return JobStatus(
        job_id=row.job_id, workload=row.workload, state=row.state, params=row.params, units=counts, metrics=row.metrics, seconds=seconds,
        submitted_at=row.submitted_s, error=row.error, exit_code=row.exit_code, owner=row.owner, shared=row.shared,
    )  # fmt: skip


def record_of(row: JobRow, counts: UnitCounts, folder: Path, clock: Clock) -> JobRecord:
    """Return the record of a job of an earlier head. Reads the end of its events."""
    return JobRecord(status_of(row, counts_of(row, counts, folder)), folder, clock, row, seq=last_seq(folder))


def counts_of(row: JobRow, counts: UnitCounts, folder: Path) -> UnitCounts:
    """Return the unit counts of a job: those of the ledger, or those that its sidecar has kept of its end.

    A ledger that was made anew does not know the units of jobs that have ended and whose results were cleared away.
    """
    if row.state not in FINAL_STATES or (row.total is not None and counts.done + counts.failed >= row.total):
        return counts
    try:
        raw = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        kept = UnitCounts(**{name: value for name, value in raw["units"].items() if name in vars(counts)})
        more = raw["state"] == row.state and kept.done + kept.failed > counts.done + counts.failed
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return counts
    return kept if more else counts


def save(record: JobRecord) -> None:
    """Write a job beside the ledger, from where that can be made again. A full disk costs only that."""
    try:
        text = json.dumps({"version": FORMAT_VERSION, **record.job.to_json(), "units": record.counted.to_json(), "leaves": list(record.leaves)}, indent=1)
        commit_text(record.folder / "job.json", text)
    except (OSError, *SHORTAGES) as error:
        log.warning("the record of job %s cannot be written: %s", record.status.job_id, error)


def clear_up(record: JobRecord) -> None:
    """Remove what a job that has ended needs no more. What is committed stays for `jobs retry`, unless the job is done with it."""
    shutil.rmtree(record.folder / "scratch", ignore_errors=True)
    if record.status.state == "done" and (record.folder / "result.frames").is_file():
        shutil.rmtree(record.folder / "results", ignore_errors=True)


def sweep(records: Iterable[JobRecord]) -> None:
    """Remove what a head that was killed has left in jobs' folders: files that it was writing, and what it was about to remove."""
    for record in records:
        if record.final:
            clear_up(record)
        for folder in (record.folder,) if record.final else (record.folder, record.folder / "results"):
            for path in folder.glob(f".*{TEMPORARY}"):
                with contextlib.suppress(OSError):  # it stays until the next head begins
                    path.unlink()


def bind(folder: Path) -> None:
    """Note that the job in `folder` ends with its command."""
    (folder / BOUND).touch()


def is_bound(folder: Path) -> bool:
    """Whether the job in `folder` ends with its command."""
    return (folder / BOUND).exists()


def unbind(folder: Path) -> None:
    """Note that the cluster of the job in `folder` stays."""
    (folder / BOUND).unlink(missing_ok=True)
