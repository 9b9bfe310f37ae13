"""A ledger that is lost is made again from sidecars and result files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import KeyReused
from dgpunet_dask.jobs.rebuild import Found, Result, digest_of, look, plan, rebuild, reconcile, whole_units
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.jobs.units import result_name
from dgpunet_dask.stagehost.frames import pack, write_frames
from dgpunet_dask.testing.history import check_history
from tests.unit.jobs.ledgers import Held, held, new_job

UNITS = [f"{n:032x}" for n in range(4)]


def result(home: Path, job_id: str, unit_id: str, epoch: int, leaf: str = "leaf", content: Any = "x") -> str:
    """Write a result file and return its digest."""
    folder = home / "jobs" / job_id / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return write_frames(folder / result_name(unit_id, leaf, epoch), pack([content]))


def sidecar(home: Path, row: JobRow, **more: Any) -> None:
    folder = home / "jobs" / row.job_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps({"version": 2, **row.to_json(), **more}))


def work(one: Held, home: Path, job_id: str, units: list[str], leaves: tuple[str, ...] = ("leaf",)) -> dict[str, int]:
    """Take units of a job that runs through, their files with them; return their epochs."""
    pass_ = one.begin_pass(job_id)
    epochs = {}
    for number, unit in enumerate(units):
        one.offer(job_id, number, unit, pass_)
        epochs[unit] = one.lease(job_id, unit)
        digests = {leaf: result(home, job_id, unit, epochs[unit], leaf, f"{unit}{leaf}") for leaf in leaves}
        one.commit(job_id, unit, epochs[unit], digests, counts={"n": 1})
    one.end_pass(job_id, pass_, len(units))
    return epochs


def again(one: Held, home: Path) -> Any:
    return one.loop.run_until_complete(rebuild(one.ledger, home / "jobs"))


def lose(home: Path) -> None:
    for file in home.glob("ledger.db*"):
        if file.name != "ledger.db.boot":
            file.unlink()


@pytest.fixture
def lost(tmp_path: Path) -> dict[str, JobRow]:
    """Leave a home whose ledger is gone: jobs of every state, and return them as they were."""
    with held(tmp_path / "ledger.db") as one:
        one.submit([new_job("done", key="k", owner="ann", params={"a": 1}), new_job("never", after=("done",), key="k", owner="ann")])
        one.submit([new_job("running", submitted_s=2.0, allow_failed=1), new_job("failed", submitted_s=3.0), new_job("again", submitted_s=4.0)])
        for job_id in ("done", "running", "failed", "again"):
            one.move(job_id, "running")
        work(one, tmp_path, "done", UNITS, ("leaf", "other"))
        one.move("done", "done", metrics={"n": 4})
        work(one, tmp_path, "running", UNITS[:2])
        one.move("failed", "failed", error={"code": "x"}, exit_code=100)
        work(one, tmp_path, "again", UNITS[:1])
        one.move("again", "cancelled", error={"code": "cancelled"}, exit_code=103)
        one.move("again", "queued")
        rows = {row.job_id: row for row in one.jobs()}
        for row in rows.values():
            sidecar(tmp_path, row)
    lose(tmp_path)
    return rows


def test_jobs_and_committed_units_are_as_they_were(tmp_path: Path, lost: Mapping[str, JobRow]) -> None:
    with held(tmp_path / "ledger.db") as one:
        assert one.jobs() == []
        again(one, tmp_path)
        found = {row.job_id: row for row in one.jobs()}
        assert list(found) == ["done", "never", "running", "failed", "again"]
        assert found == {**lost, "failed": replace(lost["failed"], passes=0)}
        assert [u.unit_id for u in one.committed("done")] == UNITS
        assert [set(u.results) for u in one.committed("done")] == [{"leaf", "other"}] * 4
        assert [u.unit_id for u in one.committed("running")] == UNITS[:2]
        assert one.faults() == []
    assert [f for f in check_history(tmp_path / "ledger.db", tmp_path) if "it has no end" not in f] == []


def test_the_work_goes_on_where_it_was(tmp_path: Path, lost: Mapping[str, JobRow]) -> None:
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        pass_ = one.begin_pass("running")
        assert [one.offer("running", n, u, pass_).state for n, u in enumerate(UNITS)] == ["committed", "committed", "ready", "ready"]
        assert one.lease("running", UNITS[2]) > max(u.epoch for u in one.committed("running"))
        assert one.move("again", "running").tries == lost["again"].tries + 1
        assert one.offer("again", 0, UNITS[0], one.begin_pass("again")).state == "committed"


def test_the_number_of_the_last_boot_may_be_lost_too(tmp_path: Path, lost: Mapping[str, JobRow]) -> None:
    for note in ("ledger.db.boot", "last-boot"):
        (tmp_path / note).unlink()
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        taken = {unit.epoch for job_id in lost for unit in one.committed(job_id)}
        one.submit([new_job("later", submitted_s=9.0)])
        one.move("later", "running")
        assert min(work(one, tmp_path, "later", UNITS).values()) > max(taken)
        pass_ = one.begin_pass("running")
        one.offer("running", 2, UNITS[2], pass_)
        assert one.lease("running", UNITS[2]) > max(taken)
        assert one.faults() == []
        here = one.ledger.boot
    with held(tmp_path / "ledger.db") as one:
        assert one.ledger.boot == here + 1


def test_a_key_still_stands_for_its_submission(tmp_path: Path, lost: Mapping[str, JobRow]) -> None:
    same = [new_job("x", key="k", owner="ann", params={"a": 1}), new_job("y", after=("done",), key="k", owner="ann")]
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        assert [row.job_id for row in one.submit(same)] == ["done", "never"]
        with pytest.raises(KeyReused):
            one.submit([new_job("x", key="k", owner="ann", params={"a": 2})])


def test_a_damaged_or_missing_file_takes_its_unit_with_it(tmp_path: Path, lost: Mapping[str, JobRow]) -> None:
    first, second = sorted((tmp_path / "jobs" / "running" / "results").iterdir())
    first.write_bytes(first.read_bytes()[:-40])
    (tmp_path / "jobs" / "done" / "results" / f"{UNITS[0]}.other.0.frames").write_bytes(b"")
    next((tmp_path / "jobs" / "done" / "results").glob(f"{UNITS[1]}.other.*")).unlink()
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        assert [u.unit_id for u in one.committed("running")] == [UNITS[1]]
        assert second.is_file()
        assert one.job("done").state == "done"
        assert one.committed("done") == []
        assert one.faults() == []


def test_a_done_job_whose_results_were_cleared_away_stays_done(tmp_path: Path) -> None:
    row = JobRow(**vars(new_job("j")), state="done", started_s=1.0, ended_s=2.0, tries=1, passes=1, total=3)
    sidecar(tmp_path, row)
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        assert one.job("j") == replace(row, passes=0)
        assert one.faults() == []


def test_what_a_release_without_a_ledger_left_is_taken_over(tmp_path: Path) -> None:
    old = {
        "version": 1, "workload": "w", "params": {"a": 1}, "units": {"total": 3, "done": 3, "reused": 0, "failed": 0, "attempts": 3},
        "metrics": {"n": 3}, "seconds": 5.0, "error": None, "exit_code": 0, "owner": "ann", "shared": True,
    }  # fmt: skip
    for job_id, state, at in (("b", "done", 20.0), ("a", "running", 10.0)):
        (tmp_path / "jobs" / job_id).mkdir(parents=True)
        (tmp_path / "jobs" / job_id / "job.json").write_text(json.dumps({**old, "job_id": job_id, "state": state, "submitted_at": at}))
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        a, b = one.jobs()
        assert (a.job_id, a.state, a.exit_code, a.error["code"]) == ("a", "lost", 104, "lost")
        assert (b.state, b.submitted_s, b.ended_s, b.total, b.metrics, b.owner, b.shared, b.params) == (
            "done", 20.0, 25.0, 3, {"n": 3}, "ann", True, {"a": 1},
        )  # fmt: skip
        assert one.faults() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"job_id": "x"}', "{\x00"])
def test_a_sidecar_that_cannot_be_read_is_passed_over(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    sidecar(tmp_path, JobRow(**vars(new_job("good"))))
    (tmp_path / "jobs" / "bad").mkdir()
    (tmp_path / "jobs" / "bad" / "job.json").write_text(text)
    with held(tmp_path / "ledger.db") as one:
        again(one, tmp_path)
        assert [row.job_id for row in one.jobs()] == ["good"]
    assert "bad" in caplog.text


def test_looking_finds_only_what_is_a_result(tmp_path: Path) -> None:
    sidecar(tmp_path, JobRow(**vars(new_job("j"))))
    digest = result(tmp_path, "j", UNITS[0], 7)
    folder = tmp_path / "jobs" / "j" / "results"
    (folder / ".x.tmp").write_bytes(b"x")
    (folder / "0.frames").write_bytes(b"x")
    (folder / result_name(UNITS[1], "leaf", 8)).write_bytes(b"x")
    (found,) = look(tmp_path / "jobs")
    assert found.results == (Result(UNITS[0], "leaf", 7, digest),)
    assert found.damaged == (result_name(UNITS[1], "leaf", 8),)
    assert digest_of(folder / result_name(UNITS[0], "leaf", 7)) == digest


def test_a_job_does_not_wait_for_one_that_is_gone() -> None:
    row = JobRow(**vars(new_job("j", after=("gone", "k"))))
    restored = plan([Found(row.to_json()), Found(JobRow(**vars(new_job("k", submitted_s=0.5))).to_json())])
    assert [(r.job_id, r.after) for r in restored.jobs] == [("k", ()), ("j", ("k",))]


results = st.lists(
    st.builds(Result, st.sampled_from(["u", "v", "w"]), st.sampled_from(["a", "b"]), st.integers(1, 5), st.sampled_from(["d1", "d2"])),
    unique_by=lambda r: r[:3], max_size=20,
)  # fmt: skip


@given(results, st.sampled_from([None, ["a"], ["a", "b"]]))
def test_a_unit_is_whole_under_one_epoch_and_the_last_one_counts(found, leaves) -> None:
    wanted = set(leaves or {r.leaf for r in found})
    units = whole_units(found, leaves)
    by_lease = {(r.unit_id, r.epoch): {s.leaf for s in found if s[0] == r.unit_id and s[2] == r.epoch} for r in found}
    good = {key for key, there in by_lease.items() if wanted <= there}
    assert {(u.unit_id, u.epoch) for u in units} == {(u, max(e for v, e in good if v == u)) for u, _ in good}
    assert [u.epoch for u in units] == sorted(u.epoch for u in units)
    for unit in units:
        assert unit.results == {r.leaf: r.digest for r in found if (r.unit_id, r.epoch) == (unit.unit_id, unit.epoch)}


def test_commits_whose_files_are_gone_are_taken_back(tmp_path: Path) -> None:
    def file_of(job_id: str, unit_id: str, leaf: str, epoch: int) -> Path:
        return tmp_path / "jobs" / job_id / "results" / result_name(unit_id, leaf, epoch)

    with held(tmp_path / "ledger.db") as one:
        one.submit([new_job("j"), new_job("ended")])
        for job_id in ("j", "ended"):
            one.move(job_id, "running")
            epochs = work(one, tmp_path, job_id, UNITS)
            file_of(job_id, UNITS[1], "leaf", epochs[UNITS[1]]).unlink()
        one.move("ended", "done")
        assert one.loop.run_until_complete(reconcile(one.ledger, file_of)) == [("j", UNITS[1])]
        assert [u.unit_id for u in one.committed("j")] == [UNITS[0], *UNITS[2:]]
        assert one.unit("j", UNITS[1]).state == "ready"
        assert len(one.committed("ended")) == 4
