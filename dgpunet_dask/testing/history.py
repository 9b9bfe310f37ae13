"""What a ledger and the files beside it say happened, held against what may happen. For tests, after the fact.

The ledger is read from a copy, so its head may be dead, or alive and idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from dgpunet_dask.errors import DamagedFile, NewerFormat
from dgpunet_dask.jobs import lease_steps, ledger_steps, schema
from dgpunet_dask.jobs.commit import TEMPORARY
from dgpunet_dask.jobs.ledger import AttemptRow, JobRow, UnitRow, read_copy
from dgpunet_dask.jobs.ledger_steps import Db
from dgpunet_dask.jobs.rebuild import digest_of
from dgpunet_dask.jobs.states import FINAL_STATES, OPEN, boot_of
from dgpunet_dask.jobs.units import result_name

#: Ends of attempts whose work is the unit's result, in the end.
_USED = frozenset({"committed", "adopted"})


def check_history(ledger: Path, home: Path, *, acknowledged: Mapping[str, str] | None = None) -> list[str]:
    """Return every violation that the ledger and the results under `home` show, one line each.

    Parameters
    ----------
    ledger
        The file.
    home
        ``$DGPUNET_HOME``, for ``jobs/ID/results``.
    acknowledged
        Jobs whose submission was acknowledged, with the states that their clients were told last; ``None``: those in the ledger.
    """
    with read_copy(ledger) as db:
        jobs = {row.job_id: row for row in ledger_steps.jobs(db)}
        faults = [f"job {job_id} was acknowledged and is not in the ledger" for job_id in acknowledged or () if job_id not in jobs]
        faults += [
            f"job {job_id} was told to be {told} and is {jobs[job_id].state}"
            for job_id, told in (acknowledged or {}).items()
            if job_id in jobs and told in FINAL_STATES and jobs[job_id].state != told and jobs[job_id].tries < 2
        ]
        for what, query in schema.FAULTS.items():
            faults += [f"{what}: job {job_id} {unit_id}".rstrip() for job_id, unit_id in db.execute(query)]
        for row in jobs.values():
            faults += [f"job {row.job_id}: {fault}" for fault in _job_faults(db, row, home)]
    return faults


def _job_faults(db: Db, row: JobRow, home: Path) -> Iterator[str]:
    if row.state not in FINAL_STATES:
        yield f"it has no end: it is {row.state}"
    attempts = lease_steps.attempts(db, row.job_id, None, -1)
    yield from (f"{path.name} was left in its folder" for path in (home / "jobs" / row.job_id).rglob(f".*{TEMPORARY}"))
    yield from _late_commits(attempts, _boots(db))
    units = ledger_steps.committed(db, row.job_id, -1, -1)
    commits = Counter(a.unit_id for a in attempts if a.state == "committed")
    yield from (f"unit {unit.unit_id} has {commits[unit.unit_id]} commits" for unit in units if commits[unit.unit_id] != 1)
    if row.state == "done":
        yield from _gaps(units, row, ledger_steps.counts(db, row.job_id).failed)
    folder = home / "jobs" / row.job_id / "results"
    if folder.is_dir() or row.state not in FINAL_STATES:  # the results of ended jobs are cleared away in time, all together
        for unit in units:
            yield from _file_faults(folder, unit)


def _gaps(units: list[UnitRow], row: JobRow, failed: int) -> Iterator[str]:
    """A done job has a commit for each place of its last pass, but for as many as were allowed to fail."""
    if row.passes and row.total is not None and len(units) + failed != row.total:
        yield f"its source gave {row.total} units, {len(units)} are committed and {failed} failed"
    if failed > row.allow_failed:
        yield f"{failed} units failed where {row.allow_failed} may"


def _boots(db: Db) -> dict[int, float]:
    """Return when each boot began that the ledger knows of, by its number."""
    return {int(boot): float(at_s) for boot, at_s in db.execute("SELECT boot, at_s FROM boots")}


def _late_commits(attempts: list[AttemptRow], boots: Mapping[int, float]) -> Iterator[str]:
    """A commit is made by the head that gave its lease, so before the next head began; nothing of its unit is open then."""
    done = {attempt.unit_id for attempt in attempts if attempt.state == "committed"}
    for attempt in attempts:
        boot = boot_of(attempt.epoch)
        over = boots.get(boot + 1) if boot in boots else None
        if attempt.state == "committed" and over is not None and (attempt.ended_s or 0.0) > over:
            yield f"unit {attempt.unit_id} was committed under epoch {attempt.epoch} after the next boot had begun"
        if attempt.state in OPEN and attempt.unit_id in done:
            yield f"unit {attempt.unit_id} is committed, and its attempt {attempt.epoch} is still {attempt.state}"


def _file_faults(folder: Path, unit: UnitRow) -> Iterator[str]:
    for leaf, digest in (unit.results or {}).items():
        file = folder / result_name(unit.unit_id, leaf, unit.epoch or 0)
        try:
            found = digest_of(file)
        except (DamagedFile, NewerFormat, OSError) as error:
            yield f"the result {file.name} cannot be read: {error}"
            continue
        if found != digest:
            yield f"the result {file.name} has the digest {found[:16]}, and {digest[:16]} was committed"


def wasted_attempts(ledger: Path) -> dict[str, int]:
    """Return, by job, how many starts of units gave nothing that was used."""
    with read_copy(ledger) as db:
        ids = [row.job_id for row in ledger_steps.jobs(db)]
        return {job_id: sum(a.started and a.state not in _USED for a in lease_steps.attempts(db, job_id, None, -1)) for job_id in ids}


def attempt_ends(ledger: Path, job_id: str) -> Counter[str]:
    """Return how many attempts of a job ended in which state."""
    with read_copy(ledger) as db:
        return Counter(a.state for a in lease_steps.attempts(db, job_id, None, -1))
