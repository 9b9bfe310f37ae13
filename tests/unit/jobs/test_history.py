"""The checker of histories finds what must not have happened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dgpunet_dask.jobs.units import result_name
from dgpunet_dask.stagehost.frames import pack, write_frames
from dgpunet_dask.testing.history import attempt_ends, check_history, wasted_attempts
from tests.unit.jobs.ledgers import held, new_job

UNITS = [f"{n:032x}" for n in range(3)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give a home with a good history: one job, whose second unit was lost once and whose third was taken over."""
    with held(tmp_path / "ledger.db") as one:
        one.submit([new_job()])
        one.move("j", "running")
        pass_ = one.begin_pass("j")
        for number, unit in enumerate(UNITS):
            one.offer("j", number, unit, pass_)
            for _ in range(min(number, 1)):
                one.placed("j", unit, epoch := one.lease("j", unit), "h/cpu")
                one.lost("j", unit, epoch, evidence={})
            epoch = one.lease("j", unit)
            digest = _result(tmp_path, unit, epoch)
            one.commit("j", unit, epoch, {"leaf": digest}, counts={}, adopted=number == 2)
        one.end_pass("j", pass_, 3)
        one.move("j", "done")
    return tmp_path


def _result(home: Path, unit: str, epoch: int, content: str = "x") -> str:
    folder = home / "jobs" / "j" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return write_frames(folder / result_name(unit, "leaf", epoch), pack([content]))


def check(home: Path, **named: object) -> list[str]:
    return check_history(home / "ledger.db", home, **named)


def spoil(home: Path, *statements: str) -> None:
    """Change the ledger behind its triggers' back."""
    with sqlite3.connect(home / "ledger.db") as raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            raw.execute(statement)
    raw.close()


def test_a_good_history_has_no_fault(home: Path) -> None:
    assert check(home) == []
    assert check(home, acknowledged={"j": "done"}) == []
    assert wasted_attempts(home / "ledger.db") == {"j": 1}
    assert attempt_ends(home / "ledger.db", "j") == {"committed": 3, "lost": 1, "adopted": 1}


def test_a_ledger_is_left_as_it_is(home: Path) -> None:
    before = {f.name: f.read_bytes() for f in home.iterdir() if f.is_file()}
    check(home)
    assert {f.name: f.read_bytes() for f in home.iterdir() if f.is_file()} == before


def test_a_file_that_was_never_finished(home: Path) -> None:
    (home / "jobs" / "j" / "results" / ".ab.leaf.1.frames.77.tmp").touch()
    assert check(home) == ["job j: .ab.leaf.1.frames.77.tmp was left in its folder"]


def test_an_acknowledged_job_that_is_gone(home: Path) -> None:
    assert check(home, acknowledged={"k": "queued"}) == ["job k was acknowledged and is not in the ledger"]


def test_a_job_that_was_told_to_be_something_else(home: Path) -> None:
    assert check(home, acknowledged={"j": "failed"}) == ["job j was told to be failed and is done"]


def test_a_job_without_end(home: Path) -> None:
    with held(home / "ledger.db") as one:
        one.submit([new_job("k")])
    assert check(home) == ["job k: it has no end: it is queued"]


def test_a_missing_an_altered_and_another_result(home: Path) -> None:
    files = sorted((home / "jobs" / "j" / "results").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    _result(home, UNITS[2], int(files[2].name.split(".")[2], 16), "y")
    faults = check(home)
    assert [fault.split(": ")[1].split(" ", 3)[3][:14] for fault in faults] == ["cannot be read", "cannot be read", "has the digest"]


def test_results_that_were_cleared_away_are_no_fault(home: Path) -> None:
    for file in (home / "jobs" / "j" / "results").iterdir():
        file.unlink()
    (home / "jobs" / "j" / "results").rmdir()
    assert check(home) == []


#: What is done behind the constraints' back, and what is said of it.
SPOILT = {
    "it has no end: it is running": ["UPDATE jobs SET state = 'running', ended_s = NULL"],
    "its source gave 4 units, 3 are committed and 0 failed": ["UPDATE jobs SET total = 4"],
    "has 2 commits": ["DROP INDEX attempts_committed", "UPDATE attempts SET state = 'committed', started = 1 WHERE state = 'lost'"],
    "has 0 commits": [f"UPDATE attempts SET state = 'lost' WHERE state = 'committed' AND unit = (SELECT id FROM units WHERE unit_id = '{UNITS[0]}')"],
    "after the next boot had begun": ["INSERT INTO boots VALUES (2, 999.0)"],
    "an open attempt of a job that does not run": ["UPDATE attempts SET state = 'unknown', ended_s = NULL WHERE state = 'lost'"],
    "is still unknown": ["UPDATE attempts SET state = 'unknown', ended_s = NULL WHERE state = 'lost'"],
    "a tally that does not agree with the units": ["UPDATE tallies SET done = 9"],
    "neither committed, failed nor dropped": [f"UPDATE units SET state = 'ready', epoch = NULL, results = NULL, counts = NULL WHERE unit_id = '{UNITS[0]}'"],
    "1 units failed where 0 may": [
        f"UPDATE units SET state = 'failed', epoch = NULL, results = NULL, counts = NULL WHERE unit_id = '{UNITS[0]}'", "UPDATE tallies SET failed = 1, done = 2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("said", SPOILT)
def test_a_spoilt_history_is_told(home: Path, said: str) -> None:
    spoil(home, *SPOILT[said])
    assert [fault for fault in check(home) if said in fault]
