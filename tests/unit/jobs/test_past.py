"""Jobs beside the ledger: what a later head finds, and what is cleared away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.errors import DiskFull
from dgpunet_dask.jobs import past
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.model.job import UnitCounts

ROW = JobRow(job_id="j", workload="w", digest="d" * 64, owner="ann", submitted_s=100.0, after=("x",), key="k")


def record(folder: Path, row: JobRow = ROW, **counts: int) -> JobRecord:
    return past.record_of(row, UnitCounts(**counts), folder, SystemClock())


def test_a_job_of_an_earlier_head_is_as_it_was(tmp_path: Path) -> None:
    found = record(tmp_path, JobRow(**{**vars(ROW), "state": "failed", "ended_s": 107.5, "exit_code": 100}), done=3, attempts=5)
    status = found.now()
    assert (status.state, status.seconds, status.exit_code, status.owner) == ("failed", 7.5, 100, "ann")
    assert (status.units.done, status.units.attempts) == (3, 5)


def test_its_events_are_counted_on_also_behind_a_half_written_line(tmp_path: Path) -> None:
    first = record(tmp_path)
    first.emit("a")
    first.emit("b")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"seq": 3, "ki')
    later = record(tmp_path)
    later.emit("c")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["seq"] == 3
    assert json.loads(lines[-1])["kind"] == "c"


def test_a_clock_that_was_set_back_makes_no_job_shorter_than_nothing(tmp_path: Path) -> None:
    assert record(tmp_path, JobRow(**{**vars(ROW), "state": "done", "ended_s": 90.0})).now().seconds == 0.0


def test_the_sidecar_holds_all_that_the_ledger_does(tmp_path: Path) -> None:
    past.save(record(tmp_path, done=2))
    raw = json.loads((tmp_path / "job.json").read_text())
    assert JobRow.from_json(raw) == ROW
    assert raw["units"]["done"] == 2


@pytest.mark.parametrize("state", ["done", "failed"])
def test_units_that_the_ledger_has_lost_are_counted_as_the_sidecar_says(tmp_path: Path, state: str) -> None:
    ended = JobRow(**{**vars(ROW), "state": state, "ended_s": 107.5, "total": 120, "tries": 1, "passes": 1})
    past.save(record(tmp_path, ended, total=120, done=118, failed=2, attempts=125))
    rebuilt = JobRow(**{**vars(ended), "passes": 0})
    assert vars(record(tmp_path, rebuilt, total=120).now().units) == {"total": 120, "done": 118, "reused": 0, "failed": 2, "attempts": 125}
    assert record(tmp_path, rebuilt, total=120, done=119, failed=1).now().units.done == 119  # what the ledger knows counts
    running = JobRow(**{**vars(rebuilt), "state": "running", "ended_s": None})
    assert record(tmp_path, running).now().units.done == 0


@pytest.mark.parametrize("text", ["", "[]", '{"units": 7, "state": "done"}', '{"units": {"done": "x"}, "state": "done"}'])
def test_a_sidecar_that_cannot_be_read_changes_no_count(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert record(tmp_path, JobRow(**{**vars(ROW), "state": "done", "ended_s": 107.5, "total": 3})).now().units == UnitCounts()


def test_a_sidecar_that_finds_no_room_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise DiskFull(path=path)

    monkeypatch.setattr(past, "commit_text", full)
    past.save(record(tmp_path))


@pytest.mark.parametrize(("state", "gathered", "kept"), [("done", True, False), ("done", False, True), ("failed", True, True), ("cancelled", False, True)])
def test_what_retry_or_the_client_needs_stays(tmp_path: Path, state: str, gathered: bool, kept: bool) -> None:
    for name in ("results", "scratch"):
        (tmp_path / name).mkdir()
    if gathered:
        (tmp_path / "result.frames").touch()
    past.clear_up(record(tmp_path, JobRow(**{**vars(ROW), "state": state})))
    assert (tmp_path / "results").exists() == kept
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("state", ["done", "running"])
def test_what_a_killed_head_was_writing_and_removing_goes_with_the_next(tmp_path: Path, state: str) -> None:
    names = (".job.json.77.tmp", "job.json", "result.frames", "results/.ab.leaf.1.frames.77.tmp", "results/ab.leaf.1.frames", "scratch/x")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    past.sweep([record(tmp_path, JobRow(**{**vars(ROW), "state": state, "ended_s": 101.0 if state == "done" else None}))])
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    of_running = {"results/ab.leaf.1.frames", "scratch/x"} if state == "running" else set()
    assert left == {"job.json", "result.frames"} | of_running


def test_a_job_is_bound_to_its_command_until_its_head_stays(tmp_path: Path) -> None:
    past.bind(tmp_path)
    assert past.is_bound(tmp_path)
    past.unbind(tmp_path)
    past.unbind(tmp_path)
    assert not past.is_bound(tmp_path)
