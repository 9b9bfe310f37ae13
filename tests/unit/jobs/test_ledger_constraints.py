"""Raw SQL cannot bring the ledger's tables into a state that the tables of `jobs.states` do not know."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgpunet_dask.jobs import schema
from dgpunet_dask.jobs.states import ATTEMPT_TRANSITIONS, JOB_TRANSITIONS, UNIT_TRANSITIONS, first_epoch
from tests.unit.jobs.ledgers import commits, held, leased, new_job, running


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection to a ledger with a job that runs (units c committed, l leased, r ready, f failed) and one each of other states."""
    path = tmp_path / "ledger.db"
    with held(path) as one:
        pass_ = running(one, "j")
        commits(one, "c", leased(one, "c", 0))
        leased(one, "l", 1)
        one.offer("j", 2, "r", pass_)
        one.fail("j", "f", leased(one, "f", 3), cause="user", evidence={}, to="failed")
        one.submit([new_job("queued"), new_job("done")])
        one.move("done", "running")
        one.begin_pass("done")
        commits(one, "d", leased(one, "d", 0, "done"), "done")
        one.end_pass("done", 1, 1)
        one.move("done", "done")
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection
    connection.close()


def refused(raw: sqlite3.Connection, sql: str) -> None:
    raw.execute("BEGIN")
    with pytest.raises(sqlite3.IntegrityError):
        raw.execute(sql)
        raw.execute("COMMIT")  # what is deferred is refused here
    raw.rollback()


UNIT = "unit = (SELECT id FROM units WHERE unit_id = '{}')"
#: By what would be wrong.
BROKEN = {
    "a job of no known state": "UPDATE jobs SET state = 'asleep' WHERE job_id = 'queued'",
    "a job that skips a state": "UPDATE jobs SET state = 'done', ended_s = 1 WHERE job_id = 'queued'",
    "a done job that runs again": "UPDATE jobs SET state = 'queued', ended_s = NULL WHERE job_id = 'done'",
    "an ended job without an end": "UPDATE jobs SET state = 'cancelled' WHERE job_id = 'queued'",
    "a job that ends with a live lease": "UPDATE jobs SET state = 'failed', ended_s = 1 WHERE job_id = 'j'",
    "an error of a job that runs": "UPDATE jobs SET error = '{}' WHERE job_id = 'j'",
    "an error of a job that is done": "UPDATE jobs SET error = '{}' WHERE job_id = 'done'",
    "a second job of one id": "INSERT INTO jobs SELECT NULL, job_id, state, workload, digest, params, owner, operates, shared, key, after, array_id,"
    " allow_failed, retry, submitted_s, NULL, NULL, 0, 0, NULL, 0, '{}', NULL FROM jobs WHERE job_id = 'queued'",
    "a job with another id": "UPDATE jobs SET job_id = 'other' WHERE job_id = 'j'",
    "a job that runs and goes": "DELETE FROM jobs WHERE job_id = 'j'",
    "parameters that are no JSON": "UPDATE jobs SET params = '{' WHERE job_id = 'j'",
    "a number in a text": "UPDATE jobs SET exit_code = 'one' WHERE job_id = 'j'",
    "a new unit that is committed": "INSERT INTO units (job, unit_id, number, pass, try_no, state, epoch, results, counts)"
    " SELECT job, 'n', 9, pass, try_no, state, epoch, results, counts FROM units WHERE unit_id = 'c'",
    "a unit of no job": "INSERT INTO units (job, unit_id, number, pass, try_no) VALUES (99, 'n', 9, 1, 1)",
    "a unit twice": "INSERT INTO units (job, unit_id, number, pass, try_no) SELECT job, unit_id, 9, 1, 1 FROM units WHERE unit_id = 'r'",
    "two units at one place": "UPDATE units SET number = 0 WHERE unit_id = 'r'",
    "a unit that goes": "DELETE FROM units WHERE unit_id = 'r'",
    "a unit leased without an attempt": "UPDATE units SET state = 'leased' WHERE unit_id = 'r'",
    "a unit committed without a lease": f"UPDATE units SET state = 'committed', epoch = {first_epoch(1) + 1}, results = '{{}}', counts = '{{}}'"
    " WHERE unit_id = 'r'",
    "a unit committed by a live attempt": f"UPDATE units SET state = 'committed', epoch = {first_epoch(1) + 2}, results = '{{}}', counts = '{{}}'"
    " WHERE unit_id = 'l'",
    "a committed unit without results": "UPDATE units SET results = NULL WHERE unit_id = 'c'",
    "a committed unit that is ready again": "UPDATE units SET state = 'ready', epoch = NULL, results = NULL, counts = NULL WHERE unit_id = 'c'",
    "a committed unit under another epoch": f"UPDATE units SET epoch = {first_epoch(1) + 2} WHERE unit_id = 'c'",
    "a commit of a done job that is taken back": f"UPDATE attempts SET state = 'damaged', cause = 'disk' WHERE {UNIT.format('d')}",
    "a committed unit of a done job that is dropped": "UPDATE units SET state = 'dropped' WHERE unit_id = 'd'",
    "a unit with a live attempt that is ready": "UPDATE units SET state = 'ready' WHERE unit_id = 'l'",
    "a second commit": f"UPDATE attempts SET state = 'committed', ended_s = 1 WHERE {UNIT.format('f')}",
    "a second live lease": f"INSERT INTO attempts (epoch, unit, slot, try_no, leased_s) SELECT {first_epoch(1) + 9}, id, 0, 1, 1 FROM units"
    " WHERE unit_id = 'l'",
    "a third live lease": f"INSERT INTO attempts (epoch, unit, slot, try_no, leased_s) SELECT {first_epoch(1) + 9}, id, 2, 1, 1 FROM units"
    " WHERE unit_id = 'l'",
    "a lease of a committed unit": f"INSERT INTO attempts (epoch, unit, slot, try_no, leased_s) SELECT {first_epoch(1) + 9}, id, 0, 1, 1 FROM units"
    " WHERE unit_id = 'c'",
    "a lease under an earlier boot": "INSERT INTO attempts (epoch, unit, slot, try_no, leased_s) SELECT 9, id, 0, 1, 1 FROM units WHERE unit_id = 'r'",
    "a lease under a later boot": f"INSERT INTO attempts (epoch, unit, slot, try_no, leased_s) SELECT {first_epoch(2)}, id, 0, 1, 1 FROM units"
    " WHERE unit_id = 'r'",
    "an epoch twice": f"INSERT INTO attempts (epoch, unit, slot, try_no, leased_s) SELECT {first_epoch(1) + 1}, id, 0, 1, 1 FROM units"
    " WHERE unit_id = 'r'",
    "a new attempt that is committed": f"INSERT INTO attempts (epoch, unit, slot, state, try_no, leased_s, ended_s) SELECT {first_epoch(1) + 9}, id, 0,"
    " 'committed', 1, 1, 1 FROM units WHERE unit_id = 'r'",
    "an attempt of another unit": f"UPDATE attempts SET unit = (SELECT id FROM units WHERE unit_id = 'r') WHERE {UNIT.format('l')}",
    "an attempt under another epoch": f"UPDATE attempts SET epoch = epoch + 5 WHERE {UNIT.format('l')}",
    "an attempt that goes": f"DELETE FROM attempts WHERE {UNIT.format('f')}",
    "a commit that is gone": f"DELETE FROM attempts WHERE {UNIT.format('c')}",
    "an attempt that ended and has no end": f"UPDATE attempts SET ended_s = NULL WHERE {UNIT.format('f')}",
    "a failed attempt without a cause": f"UPDATE attempts SET cause = NULL WHERE {UNIT.format('f')}",
    "a cause that is none": f"UPDATE attempts SET cause = 'weather' WHERE {UNIT.format('f')}",
    "a boot before the last": "INSERT INTO boots VALUES (1, 1)",
    "a boot that changes": "UPDATE boots SET boot = 9",
    "a boot that goes": "DELETE FROM boots",
}


@pytest.mark.parametrize("what", BROKEN)
def test_raw_sql_is_refused(raw: sqlite3.Connection, what: str) -> None:
    refused(raw, BROKEN[what])


def test_a_late_commit_is_refused_by_the_database_itself(raw: sqlite3.Connection) -> None:
    raw.execute("INSERT INTO boots VALUES (2, 2)")
    refused(raw, f"UPDATE attempts SET state = 'committed', ended_s = 1 WHERE {UNIT.format('l')}")


def condition_of(transitions: dict[str, frozenset[str]], old: str, new: str) -> int:
    with sqlite3.connect(":memory:") as memory:
        rows = memory.execute(f"SELECT {schema.allowed(transitions)} FROM (SELECT ? AS state) AS OLD, (SELECT ? AS state) AS NEW", (old, new))
        (found,) = rows.fetchone()
    memory.close()
    return found


@pytest.mark.parametrize("table", [JOB_TRANSITIONS, UNIT_TRANSITIONS, ATTEMPT_TRANSITIONS], ids=["job", "unit", "attempt"])
def test_the_condition_in_sql_says_what_the_table_says(table) -> None:
    wrong = [(old, new) for old, new in itertools.product(table, table) if bool(condition_of(table, old, new)) != (new in table[old])]
    assert wrong == []


@pytest.mark.parametrize("query", schema.FAULTS.values(), ids=schema.FAULTS)
def test_a_good_ledger_has_no_fault(raw: sqlite3.Connection, query: str) -> None:
    assert raw.execute(query).fetchall() == []


def test_a_fault_that_no_constraint_holds_is_found(raw: sqlite3.Connection) -> None:
    raw.execute(f"UPDATE attempts SET state = 'lost', ended_s = 1 WHERE {UNIT.format('l')}")
    found = {what for what, query in schema.FAULTS.items() if raw.execute(query).fetchall()}
    assert found == {"a leased unit without a live attempt"}
