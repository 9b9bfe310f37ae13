"""What becomes of leases, step by step in SQL: given, committed, failed, lost. See `jobs.ledger_steps`."""

# ruff: noqa: S608  # statements are put together from our own words; values travel as parameters

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from dgpunet_dask.errors import NoSuchJob
from dgpunet_dask.jobs.ledger_steps import Db, Row, dumped, event, job_row, loaded, put_unit_state
from dgpunet_dask.jobs.rows import AttemptRow
from dgpunet_dask.jobs.states import UnitState

#: Why an attempt ended that an earlier head had started, where another one of its unit gave the result.
_HEAD_GONE: Final = json.dumps({"why": "the head that had started it ended"})
#: A job with more attempts is large.
_LARGE: Final = 1000
_OF_UNIT: Final = "(SELECT id FROM units WHERE job = (SELECT seq FROM jobs WHERE job_id = ?) AND unit_id = ?)"
_ATTEMPT: Final = (
    "SELECT j.job_id, u.unit_id, u.number, a.epoch, a.state, a.slot, a.try_no, a.device, a.host, a.leased_s, a.ended_s, a.seconds, a.adopted,"
    " a.cause, a.evidence, a.started, a.stage FROM attempts a {index}CROSS JOIN units u ON u.id = a.unit CROSS JOIN jobs j ON j.seq = u.job"
)
_BY_EPOCH: Final = _ATTEMPT.format(index="")
_OF_JOB: Final = _BY_EPOCH.partition(" FROM ")[0] + " FROM jobs j CROSS JOIN units u ON u.job = j.seq CROSS JOIN attempts a ON a.unit = u.id"


def _key(db: Db, job_id: str, unit_id: str) -> int:
    row = db.execute(f"SELECT {_OF_UNIT}", (job_id, unit_id)).fetchone()
    if row is None or row[0] is None:
        raise NoSuchJob(job_id=f"{job_id}, unit {unit_id}")
    return int(row[0])


def lease(db: Db, job_id: str, unit_id: str, epoch: int, now: float, *, speculative: bool) -> int:
    """Give an attempt of the unit the lease `epoch`; the constraints refuse what has one already, or has ended."""
    unit = _key(db, job_id, unit_id)
    db.execute(
        "INSERT INTO attempts (unit, epoch, slot, try_no, leased_s)"
        " SELECT units.id, ?, ?, tries, ? FROM units JOIN jobs ON jobs.seq = units.job WHERE units.id = ?",
        (epoch, speculative, now, unit),
    )
    db.execute("UPDATE units SET state = 'leased' WHERE id = ? AND state = 'ready'", (unit,))
    return epoch


def placed(db: Db, job_id: str, unit_id: str, epoch: int, stage: str | None, device: str | None, host: str | None) -> None:
    """Note that an attempt runs, and where; it counts as a start from now on, unless it is counted with the one that took it over."""
    db.execute(
        "UPDATE attempts SET started = 1, stage = ?, device = coalesce(?, device), host = coalesce(?, host)"
        f" WHERE unit = {_OF_UNIT} AND epoch = ? AND state != 'adopted'",
        (stage, device, host, job_id, unit_id, epoch),
    )


def commit(
    db: Db, job_id: str, unit_id: str, epoch: int, results: Mapping[str, str], now: float, *,
    counts: Mapping[str, Any], device: str | None, host: str | None, seconds: float | None, adopted: bool,
    spent: Mapping[str, tuple[str | None, float]] | None = None,
) -> bool:  # fmt: skip
    """Make the results of an attempt the unit's, if its lease lives; else refuse them and say so in the events."""
    unit = _key(db, job_id, unit_id)
    done = db.execute(
        "UPDATE attempts SET state = 'committed', started = 1, device = coalesce(?, device), host = coalesce(?, host), seconds = ?, adopted = ?, ended_s = ?,"
        " evidence = ? WHERE unit = ? AND epoch = ? AND state = 'leased'",
        (device, host, seconds, adopted, now, dumped(spent and {"stages": dict(spent)}), unit, epoch),
    )
    if done.rowcount == 0:
        return _refused(db, job_id, unit_id, unit, epoch, results, now)
    if adopted:
        _adopt(db, unit, epoch, now)
    db.execute(
        "UPDATE attempts SET state = iif(state = 'leased', 'beaten', 'lost'), ended_s = ?, cause = iif(state = 'unknown' AND started, 'system', cause),"
        " evidence = iif(state = 'unknown', ?, evidence) WHERE unit = ? AND state IN ('leased', 'unknown')",
        (now, _HEAD_GONE, unit),
    )
    db.execute(
        "UPDATE units SET state = 'committed', epoch = ?, results = ?, counts = ?, try_no = (SELECT try_no FROM attempts a WHERE a.epoch = ?)"
        " WHERE id = ?",
        (epoch, json.dumps(dict(results)), json.dumps(dict(counts)), epoch, unit),
    )
    return True


def _adopt(db: Db, unit: int, epoch: int, now: float) -> None:
    """The last attempt before `epoch` that was lost from sight went on, and its call is the one that has ended now."""
    db.execute(
        "UPDATE attempts SET state = 'adopted', ended_s = coalesce(ended_s, ?) WHERE unit = ? AND epoch ="
        " (SELECT max(epoch) FROM attempts WHERE unit = ? AND epoch < ? AND state IN ('unknown', 'lost'))",
        (now, unit, unit, epoch),
    )


def _refused(db: Db, job_id: str, unit_id: str, unit: int, epoch: int, results: Mapping[str, str], now: float) -> bool:
    """Note a commit that came too late. One that was made already is no such: its caller has not heard."""
    row = db.execute(
        "SELECT a.state, u.results FROM attempts a JOIN units u ON u.id = a.unit AND u.epoch = a.epoch WHERE a.unit = ? AND a.epoch = ?",
        (unit, epoch),
    ).fetchone()
    if row is not None and row[0] == "committed" and loaded(row[1]) == dict(results):
        return True
    db.execute(
        "UPDATE attempts SET state = 'stale', ended_s = coalesce(ended_s, ?) WHERE unit = ? AND epoch = ? AND state IN ('unknown', 'lost', 'beaten')",
        (now, unit, epoch),
    )
    event(db, now, "refused", job_id, unit_id=unit_id, epoch=epoch)
    return False


def fail(
    db: Db, job_id: str, unit_id: str, epoch: int, now: float, *,
    cause: str, evidence: Mapping[str, Any], device: str | None, host: str | None, to: UnitState, ran: bool = True,
) -> bool:  # fmt: skip
    """End an attempt with an error; the unit goes `to` that state unless another attempt has a live lease. False: it had ended already.

    An attempt under which nothing `ran`, since no device could take it, is lost and not failed.
    """
    unit = _key(db, job_id, unit_id)
    done = db.execute(
        "UPDATE attempts SET state = iif(started OR ?, 'failed', 'lost'), started = (started OR ?), ended_s = ?, cause = ?, evidence = ?,"
        " device = coalesce(?, device), host = coalesce(?, host) WHERE unit = ? AND epoch = ? AND state = 'leased' RETURNING try_no",
        (ran, ran, now, cause, dumped(evidence), device, host, unit, epoch),
    ).fetchall()
    if not done:
        return False
    put_unit_state(db, unit, to, done[0][0])
    if to != "ready":
        event(db, now, to, job_id, unit_id=unit_id, epoch=epoch, cause=cause)
    return True


def lost(db: Db, job_id: str, unit_id: str, epoch: int, now: float, *, cause: str | None, evidence: Mapping[str, Any]) -> bool:
    """End an attempt whose scheduler, worker or head is gone; the unit is ready unless another lease lives. False: it had ended already."""
    unit = _key(db, job_id, unit_id)
    done = db.execute(
        "UPDATE attempts SET state = 'lost', ended_s = ?, cause = ?, evidence = ? WHERE unit = ? AND epoch = ? AND state IN ('leased', 'unknown')"
        " RETURNING try_no",
        (now, cause, dumped(evidence), unit, epoch),
    ).fetchall()
    if done:
        put_unit_state(db, unit, "ready", done[0][0])
    return bool(done)


def damaged(db: Db, job_id: str, unit_id: str, epoch: int, now: float, *, evidence: Mapping[str, Any]) -> bool:
    """Take back a commit whose files are gone or damaged: the unit is ready again. False: that is not its commit, or its job is done."""
    unit = _key(db, job_id, unit_id)
    if job_row(db, job_id).state == "done":  # nothing is computed for it again
        return False
    done = db.execute(
        "UPDATE attempts SET state = 'damaged', cause = 'disk', evidence = ? WHERE unit = ? AND epoch = ? AND state = 'committed'",
        (dumped(evidence), unit, epoch),
    )
    if done.rowcount:
        db.execute("UPDATE units SET state = 'ready', epoch = NULL, results = NULL, counts = NULL WHERE id = ? AND state = 'committed'", (unit,))
        db.execute("UPDATE units SET epoch = NULL, results = NULL, counts = NULL WHERE id = ? AND state = 'dropped'", (unit,))
        event(db, now, "damaged", job_id, unit_id=unit_id, epoch=epoch)
    return bool(done.rowcount)


def unknown(db: Db) -> list[AttemptRow]:
    """Return the attempts that an earlier head leased and of which nothing has been heard since."""
    found = _ATTEMPT.format(index="INDEXED BY attempts_unknown ")
    return [_attempt(row) for row in db.execute(f"{found} WHERE a.state = 'unknown' ORDER BY a.epoch")]


def attempts(db: Db, job_id: str, unit_id: str | None, limit: int) -> list[AttemptRow]:
    """Return the last attempts of a job, or of one of its units, the oldest first."""
    if unit_id is not None:
        sql, given = f"{_BY_EPOCH} WHERE a.unit = {_OF_UNIT}", [job_id, unit_id]
    else:  # of a large job the last ones are found by going back through all attempts; of a small one by going through its units
        sql, given = f"{_BY_EPOCH if _is_large(db, job_id) else _OF_JOB} WHERE j.job_id = ?", [job_id]
    rows = db.execute(f"{sql} ORDER BY a.epoch DESC LIMIT ?", [*given, limit]).fetchall()
    return [_attempt(row) for row in reversed(rows)]


def spent(db: Db, job_id: str) -> dict[str, tuple[int, float]]:
    """Return, for each device, how many calls of the job's committed units ran there, and for how many seconds."""
    of_job = (
        "FROM jobs j CROSS JOIN units u ON u.job = j.seq AND u.state = 'committed' CROSS JOIN attempts a ON a.unit = u.id AND a.state = 'committed'"
    )
    rows = db.execute(
        "SELECT json_extract(s.value, '$[0]') AS device, count(*), total(json_extract(s.value, '$[1]'))"
        f" {of_job} CROSS JOIN json_each(a.evidence, '$.stages') s WHERE j.job_id = ? GROUP BY 1"
        f" UNION ALL SELECT a.device, count(*), total(a.seconds) {of_job} WHERE j.job_id = ? AND a.evidence IS NULL GROUP BY 1",
        (job_id, job_id),
    )
    found: dict[str, tuple[int, float]] = {}
    for device, calls, seconds in rows:
        before = found.get(device, (0, 0.0))
        found[device] = before[0] + calls, before[1] + seconds
    return {device: told for device, told in found.items() if device is not None}


def _is_large(db: Db, job_id: str) -> bool:
    row = db.execute("SELECT attempts FROM tallies WHERE job = (SELECT seq FROM jobs WHERE job_id = ?)", (job_id,)).fetchone()
    return row is not None and int(row[0]) > _LARGE


def _attempt(row: Row) -> AttemptRow:
    *first, slot, try_no, device, host, leased_s, ended_s, seconds, adopted, cause, evidence, started, stage = row
    return AttemptRow._make((*first, bool(slot), try_no, device, host, leased_s, ended_s, seconds, bool(adopted), cause, loaded(evidence), stage, bool(started)))


def boot(db: Db, number: int, now: float) -> None:
    """Begin a boot: all leases of earlier ones are unknown, and their units ready to be leased anew."""
    db.execute("INSERT INTO boots (boot, at_s) VALUES (?, ?)", (number, now))
    db.execute("UPDATE attempts SET state = 'unknown' WHERE state = 'leased'")
    db.execute("UPDATE units SET state = 'ready' WHERE state = 'leased' AND id IN (SELECT unit FROM attempts INDEXED BY attempts_unknown WHERE state = 'unknown')")
    event(db, now, "boot", None, boot=number)


def last_boot(db: Db) -> int:
    """Return the number of the last boot, 0 before the first."""
    return int(db.execute("SELECT coalesce(max(boot), 0) FROM boots").fetchall()[0][0])


def restore_commit(db: Db, job_id: str, number: int, unit_id: str, epoch: int, results: Mapping[str, str], now: float) -> None:
    """Put a committed unit of a job that runs into an empty ledger. Its epoch is of an earlier boot: see `without_boots`."""
    db.execute(
        "INSERT INTO units (job, unit_id, number, pass, try_no) SELECT seq, ?, ?, passes, tries FROM jobs WHERE job_id = ?", (unit_id, number, job_id)
    )
    lease(db, job_id, unit_id, epoch, now, speculative=False)
    commit(db, job_id, unit_id, epoch, results, now, counts={}, device=None, host=None, seconds=None, adopted=False)


@contextmanager
def without_boots(db: Db) -> Iterator[None]:
    """Let epochs of earlier boots be put in, inside one transaction: two triggers are taken away and come back."""
    names = ("attempts_epoch", "attempts_late")
    kept = [db.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", (name,)).fetchall()[0][0] for name in names]
    for name in names:
        db.execute(f"DROP TRIGGER {name}")
    yield
    for sql in kept:
        db.execute(sql)
