"""What the ledger does, step by step in SQL. Each function is one operation inside a transaction that `jobs.ledger` begins and ends.

Times are seconds since 1970. A function that finds what it was told to be otherwise raises `ValueError`: its caller has lost count.
"""

# ruff: noqa: S608  # statements are put together from our own words; values travel as parameters

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final, Protocol

from dgpunet_dask.errors import KeyReused, NoSuchJob
from dgpunet_dask.jobs.rows import ENDED_BY, JobRow, NewJob, UnitRow
from dgpunet_dask.jobs.states import FINAL_STATES, JOB_TRANSITIONS, UnitState
from dgpunet_dask.model.job import JobState, UnitCounts

Row = tuple[Any, ...]


class Rows(Protocol):
    """What a statement gives."""

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""

    def fetchone(self) -> Row | None:
        """Return the next row."""

    def fetchall(self) -> list[Row]:
        """Return all rows that are left."""

    def __iter__(self) -> Iterator[Row]: ...


class Db(Protocol):
    """What the steps ask of the database."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Rows:
        """Run one statement."""


JOB_COLUMNS: Final = (
    "job_id", "state", "workload", "digest", "params", "owner", "operates", "shared", "key", "after", "array_id", "allow_failed", "retry",
    "submitted_s", "started_s", "ended_s", "tries", "passes", "error", "exit_code", "metrics", "total",
)  # fmt: skip
NEW_COLUMNS: Final = (
    "job_id", "workload", "digest", "params", "owner", "operates", "shared", "key", "after", "array_id", "allow_failed", "retry", "submitted_s",
)  # fmt: skip
_JOB: Final = f"SELECT {', '.join(JOB_COLUMNS)} FROM jobs"
_JSON: Final = frozenset({"params", "after", "error", "metrics"})
_FLAGS: Final = frozenset({"operates", "shared"})
#: The unit of a job's id and a unit's id.
_UNIT: Final = "(SELECT id FROM units WHERE job = (SELECT seq FROM jobs WHERE job_id = ?) AND unit_id = ?)"
_ATTEMPTS_OF: Final = "(SELECT count(*) FROM attempts a WHERE a.unit = units.id AND a.started)"
_UNIT_COLUMNS: Final = f"unit_id, number, state, epoch, results, counts, {_ATTEMPTS_OF}, units.try_no"


# Jobs


def submit(db: Db, jobs: Sequence[NewJob]) -> list[JobRow]:
    """Add jobs that were submitted together, or return those that the same submission has made before."""
    first = jobs[0]
    if first.key is None:
        return [_insert(db, job) for job in jobs]
    content = ",".join(job.content() for job in jobs)
    found = db.execute("SELECT content, jobs FROM keys WHERE owner = ? AND key = ?", (first.owner or "", first.key)).fetchone()
    if found is None:
        ids = json.dumps([job.job_id for job in jobs])
        db.execute("INSERT INTO keys (owner, key, content, jobs) VALUES (?, ?, ?, ?)", (first.owner or "", first.key, content, ids))
        return [_insert(db, job) for job in jobs]
    before: list[str] = json.loads(found[1])
    if found[0] != content:
        raise KeyReused(key=first.key, job_id=before[0])
    return [job_row(db, job_id) for job_id in before]


def _insert(db: Db, job: NewJob) -> JobRow:
    for other in job.after:
        if db.execute("SELECT 1 FROM jobs WHERE job_id = ?", (other,)).fetchone() is None:
            raise NoSuchJob(job_id=other)
    values = [_stored(name, getattr(job, name)) for name in NEW_COLUMNS]
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO jobs ({', '.join(NEW_COLUMNS)}) VALUES ({marks})", values)
    return job_row(db, job.job_id)


def restore_job(db: Db, row: JobRow) -> None:
    """Put a job into an empty ledger as it was; it runs, unless it was never begun, until `restore_end`."""
    _insert(db, replace(row, after=()))
    after = json.dumps(list(row.after))
    db.execute("UPDATE jobs SET after = ? WHERE job_id = ?", (after, row.job_id))
    if row.key is not None:
        content = NewJob(**{f.name: getattr(row, f.name) for f in fields(NewJob)}).content()
        db.execute(
            "INSERT INTO keys (owner, key, content, jobs) VALUES (?, ?, ?, json_array(?)) ON CONFLICT DO UPDATE SET"
            " content = content || ',' || excluded.content, jobs = json_insert(jobs, '$[#]', ?)",
            (row.owner or "", row.key, content, row.job_id, row.job_id),
        )
    if row.state != "queued" or row.tries:
        db.execute(
            "UPDATE jobs SET state = 'running', started_s = ?, tries = ?, passes = ?, metrics = ?, total = ? WHERE job_id = ?",
            (row.started_s, max(1, row.tries), row.passes, json.dumps(dict(row.metrics)), row.total, row.job_id),
        )


def restore_end(db: Db, row: JobRow) -> None:
    """Take a restored job to the state that it had reached."""
    if row.state == "queued" and row.tries:  # it waits to be tried again
        db.execute("UPDATE jobs SET state = 'cancelled', ended_s = 0 WHERE job_id = ?", (row.job_id,))
        db.execute("UPDATE jobs SET state = 'queued', ended_s = NULL, started_s = NULL WHERE job_id = ?", (row.job_id,))
    elif row.state in FINAL_STATES:
        ended_s = row.submitted_s if row.ended_s is None else row.ended_s
        db.execute(
            "UPDATE jobs SET state = ?, ended_s = ?, error = ?, exit_code = ? WHERE job_id = ?",
            (row.state, ended_s, dumped(row.error), row.exit_code, row.job_id),
        )


def _stored(name: str, value: Any) -> Any:
    return json.dumps(list(value) if name == "after" else value) if name in _JSON and value is not None else value


def _job(row: Row) -> JobRow:
    values = dict(zip(JOB_COLUMNS, row, strict=True))
    for name in _JSON:
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    return JobRow(**{**values, "after": tuple(values["after"])})


def job(db: Db, job_id: str) -> JobRow | None:
    """Return a job, ``None`` where there is none of that id."""
    row = db.execute(f"{_JOB} WHERE job_id = ?", (job_id,)).fetchone()
    return None if row is None else _job(row)


def job_row(db: Db, job_id: str) -> JobRow:
    """Return a job.

    Raises
    ------
    NoSuchJob
        If there is none.
    """
    found = job(db, job_id)
    if found is None:
        raise NoSuchJob(job_id=job_id)
    return found


def jobs(db: Db) -> list[JobRow]:
    """Return all jobs, in the order in which they were accepted."""
    return [_job(row) for row in db.execute(f"{_JOB} ORDER BY seq")]


def move(
    db: Db, job_id: str, state: JobState, now: float, *, error: Mapping[str, Any] | None, exit_code: int, metrics: Mapping[str, Any] | None
) -> JobRow:
    """Take a job to another state. Where it ends, its open attempts end as lost and their units are ready."""
    before = job_row(db, job_id)
    if state not in JOB_TRANSITIONS[before.state]:
        raise ValueError(f"job {job_id} cannot go from {before.state} to {state}")
    if state in FINAL_STATES:
        end_open(db, job_id, now, f"the job is {state}")
    starts = state == "running"
    db.execute(
        "UPDATE jobs SET state = ?, started_s = ?, ended_s = ?, tries = tries + ?, error = ?, exit_code = ?, metrics = coalesce(?, metrics)"
        " WHERE job_id = ?",
        (
            state, now if starts else None if state == "queued" else before.started_s, now if state in FINAL_STATES else None, starts,
            dumped(error), exit_code, dumped(metrics), job_id,
        ),
    )  # fmt: skip
    event(db, now, "job", job_id, state=state, **({} if error is None else {"error": dict(error)}))
    return job_row(db, job_id)


def again(db: Db, job_id: str, now: float, *, error: Mapping[str, Any], exit_code: int) -> JobRow:
    """Take a job that has failed to its next try."""
    move(db, job_id, "failed", now, error=error, exit_code=exit_code, metrics=None)
    move(db, job_id, "queued", now, error=None, exit_code=0, metrics=None)
    return move(db, job_id, "running", now, error=None, exit_code=0, metrics=None)


def end_open(db: Db, job_id: str, now: float, why: str) -> None:
    """End the open attempts of a job as lost, its live ones and those of earlier heads. That is no failure of theirs, and their evidence says so."""
    evidence = json.dumps({"why": why, ENDED_BY: "job"})
    units: set[int] = set()
    for index, state in (("live", "leased"), ("unknown", "unknown")):
        found = db.execute(
            f"SELECT a.unit FROM attempts a INDEXED BY attempts_{index} CROSS JOIN units u ON u.id = a.unit CROSS JOIN jobs j ON j.seq = u.job"
            f" WHERE a.state = '{state}' AND j.job_id = ?",
            (job_id,),
        )
        units.update(row[0] for row in found)
    for unit in units:
        db.execute(
            "UPDATE attempts SET state = 'lost', ended_s = ?, evidence = ? WHERE unit = ? AND state IN ('leased', 'unknown')",
            (now, evidence, unit),
        )
        db.execute("UPDATE units SET state = 'ready' WHERE id = ? AND state = 'leased'", (unit,))


def forget(db: Db, job_id: str, now: float) -> None:
    """Remove a job that has ended, with all that is known of it."""
    gone = job_row(db, job_id)
    if gone.state not in FINAL_STATES:
        raise ValueError(f"job {job_id} is {gone.state}")
    db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
    db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
    if gone.key is not None:
        _forget_key(db, gone)
    event(db, now, "forgotten", None, job=job_id)


def _forget_key(db: Db, gone: JobRow) -> None:
    """A key stands for its jobs as long as there is one of them."""
    if db.execute("SELECT 1 FROM jobs WHERE key = ? AND owner IS ?", (gone.key, gone.owner)).fetchone() is None:
        db.execute("DELETE FROM keys WHERE owner = ? AND key = ?", (gone.owner or "", gone.key))


# Units


def begin_pass(db: Db, job_id: str) -> int:
    """Begin to run a job's source from its beginning; return the number of the pass."""
    row = db.execute("UPDATE jobs SET passes = passes + 1, total = NULL WHERE job_id = ? AND state = 'running' RETURNING passes, seq", (job_id,))
    found = row.fetchall()
    if not found:
        raise ValueError(f"job {job_id} is {job_row(db, job_id).state}, not running")
    db.execute("UPDATE tallies SET reused = 0 WHERE job = ?", (found[0][1],))
    return int(found[0][0])


def offer(db: Db, job_id: str, number: int, unit_id: str, pass_: int) -> UnitRow:
    """Take a unit that the source gave, and return what is known of it.

    Raises
    ------
    ValueError
        If the source has ended in this pass: the job would be done with one unit in place of another.
    """
    seq, tries = _running(db, job_id, pass_)
    if db.execute("SELECT total FROM jobs WHERE seq = ?", (seq,)).fetchall()[0][0] is not None:
        raise ValueError(f"job {job_id}: its source has ended in pass {pass_}")
    row = db.execute(
        "INSERT INTO units (job, unit_id, number, pass, try_no) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (job, unit_id) DO UPDATE SET number = excluded.number, pass = excluded.pass, state = CASE"
        " WHEN state IN ('failed', 'quarantined') AND try_no < excluded.try_no THEN 'ready'"
        " WHEN state = 'dropped' THEN iif(epoch IS NULL, 'ready', 'committed') ELSE state END"
        f" RETURNING {_UNIT_COLUMNS}",
        (seq, unit_id, number, pass_, tries),
    ).fetchall()[0]
    if row[2] == "committed" and row[7] < tries:
        db.execute("UPDATE tallies SET reused = reused + 1 WHERE job = ?", (seq,))
    return _unit(row)


def _running(db: Db, job_id: str, pass_: int) -> tuple[int, int]:
    """Return the job's place in the table and its try, after checking that it runs and that `pass_` is its present one."""
    row = db.execute("SELECT seq, tries, state, passes FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        raise NoSuchJob(job_id=job_id)
    if row[2] != "running" or row[3] != pass_ or pass_ < 1:
        raise ValueError(f"job {job_id} is {row[2]} in pass {row[3]}; this is of pass {pass_}")
    return int(row[0]), int(row[1])


def _unit(row: Row) -> UnitRow:
    unit_id, number, state, epoch, results, counts, attempts, try_no = row
    return UnitRow(unit_id, number, state, epoch, loaded(results), loaded(counts) or {}, attempts, try_no)


def end_pass(db: Db, job_id: str, pass_: int, total: int, now: float) -> None:
    """Note that the source has ended after `total` units; what it did not give is dropped."""
    seq, _ = _running(db, job_id, pass_)
    given = db.execute("SELECT count(*) FROM units WHERE job = ? AND pass = ?", (seq, pass_)).fetchall()[0][0]
    if given != total:
        raise ValueError(f"job {job_id}: {given} units were offered in pass {pass_}, not {total}")
    old = f"job = {seq} AND pass < {pass_}"
    db.execute(
        "UPDATE attempts SET state = 'lost', ended_s = ?, evidence = ? WHERE state IN ('leased', 'unknown')"
        f" AND unit IN (SELECT id FROM units WHERE {old})",
        (now, json.dumps({"why": "the source gives the unit no more", ENDED_BY: "source"})),
    )
    db.execute(f"UPDATE units SET state = 'ready' WHERE {old} AND state = 'leased'")
    db.execute(f"UPDATE units SET state = 'dropped' WHERE {old} AND state != 'dropped'")
    db.execute("UPDATE jobs SET total = ? WHERE seq = ?", (total, seq))


def committed(db: Db, job_id: str, after: int, limit: int) -> list[UnitRow]:
    """Return committed units of the last pass with numbers above `after`, in their order."""
    rows = db.execute(
        f"SELECT {_UNIT_COLUMNS} FROM units WHERE (job, pass) = (SELECT seq, passes FROM jobs WHERE job_id = ?)"
        " AND state = 'committed' AND number > ? ORDER BY number LIMIT ?",
        (job_id, after, limit),
    )
    return [_unit(row) for row in rows]


def unit(db: Db, job_id: str, unit_id: str) -> UnitRow | None:
    """Return one unit, ``None`` where there is none."""
    row = db.execute(f"SELECT {_UNIT_COLUMNS} FROM units WHERE id = {_UNIT}", (job_id, unit_id)).fetchone()
    return None if row is None else _unit(row)


def counts(db: Db, job_id: str) -> UnitCounts:
    """Return how many units of a job are where."""
    row = db.execute(
        "SELECT total, done, reused, failed, attempts FROM jobs JOIN tallies ON tallies.job = jobs.seq WHERE job_id = ?", (job_id,)
    ).fetchone()
    if row is None:
        raise NoSuchJob(job_id=job_id)
    return UnitCounts(total=row[0], done=row[1], reused=row[2], failed=row[3], attempts=row[4])


# Events


def event(db: Db, now: float, kind: str, job_id: str | None, **facts: Any) -> None:
    """Note what happened."""
    db.execute("INSERT INTO events (at_s, job_id, kind, facts) VALUES (?, ?, ?, ?)", (now, job_id, kind, json.dumps(facts)))


def events(db: Db, job_id: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the last events of a job, or of all, the oldest first."""
    where, given = ("", ()) if job_id is None else ("WHERE job_id = ?", (job_id,))
    rows = db.execute(f"SELECT seq, at_s, job_id, kind, facts FROM events {where} ORDER BY seq DESC LIMIT ?", (*given, limit)).fetchall()
    return [{"seq": seq, "time": at_s, "job_id": of, "kind": kind, **json.loads(facts)} for seq, at_s, of, kind, facts in reversed(rows)]


def was_restored(db: Db) -> bool:
    """Whether what other ledgers have left was looked for."""
    return db.execute("SELECT 1 FROM events WHERE kind = 'rebuilt'").fetchone() is not None


def dumped(value: Mapping[str, Any] | None) -> str | None:
    """Return JSON text, ``None`` for ``None``."""
    return None if value is None else json.dumps(dict(value))


def loaded(text: str | None) -> Any:
    """Return what `dumped` wrote."""
    return None if text is None else json.loads(text)


def put_unit_state(db: Db, unit_key: int, state: UnitState, try_no: int) -> None:
    """Take a unit to `state` unless one of its attempts has a live lease."""
    db.execute(
        "UPDATE units SET state = ?, try_no = ? WHERE id = ? AND state = 'leased'"
        " AND NOT EXISTS (SELECT 1 FROM attempts WHERE unit = units.id AND state = 'leased')",
        (state, try_no, unit_key),
    )
