"""Units that cannot be done: what raises, what kills its process, what hangs, on two hosts."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.helpers import until
from tests.integration.jobs.trouble import Trouble

pytestmark = pytest.mark.long


def test_a_unit_that_raises_fails_its_job_at_once_and_its_log_says_where(trouble: Trouble) -> None:
    status = trouble.ended(trouble.submit("Heavy", range(500), bad=[0], how="raise"))
    assert (status.state, status.exit_code, status.units.failed) == ("failed", 100, 1)
    assert status.error is not None
    assert status.error["code"] == "stage_failed"
    assert trouble.ran()["0"] == 1, "it would raise again"
    assert len(trouble.ran()) < 500, "the rest is not waited for"
    logs = [e["text"] for e in trouble.events(status.job_id, "log")]
    assert any("Traceback" in text and 'raise ValueError(f"number' in text for text in logs)


def test_units_that_raise_are_counted_where_the_job_may_lose_them(trouble: Trouble) -> None:
    job_id = trouble.submit("Light", range(6), bad=[1, 4], how="raise", allow_failed=2)
    status = trouble.ended(job_id)
    assert (status.state, status.error, status.units.failed, status.units.done) == ("done", None, 2, 4)
    assert trouble.results(job_id) == ["0", "2", "3", "5"]
    logs = [e for e in trouble.events(job_id, "log") if "Traceback" in e["text"]]
    assert sorted(e["unit"] for e in logs) == [1, 4]
    (attempt,) = trouble.attempts(job_id, unit=1)
    assert attempt.state == "failed"


def test_one_more_than_may_be_lost_is_too_many(trouble: Trouble) -> None:
    status = trouble.ended(trouble.submit("Light", range(6), bad=[1, 3, 4], how="raise", allow_failed=2))
    assert status.state == "failed"


@pytest.mark.parametrize("kind", ["Heavy", "Light"])
@pytest.mark.parametrize(("how", "cause"), [("memory", "host-oom"), ("import", "version"), ("reset", "network"), ("raise", "data")])
def test_what_a_stage_raises_has_the_cause_that_its_class_tells(trouble: Trouble, kind: str, how: str, cause: str) -> None:
    job_id = trouble.submit(kind, range(3), bad=[2], how=how, allow_failed=1)
    trouble.ended(job_id)
    (attempt,) = trouble.attempts(job_id, unit=2)
    assert attempt.cause in ({"data", "user"} if cause == "data" else {cause}), attempt.evidence  # whether others have passed by then is chance


@pytest.mark.parametrize("kind", ["Heavy", "Light"])
def test_a_disk_that_a_stage_fills_is_told_as_that(trouble: Trouble, kind: str) -> None:
    job_id = trouble.submit(kind, range(2), bad=[1], how="full")
    until(lambda: [a for a in trouble.attempts(job_id, unit=1) if a.state == "failed"], 60, "a failed attempt")
    trouble.cluster.asked(lambda api: api.cancel(job_id))
    attempt = trouble.attempts(job_id, unit=1)[0]
    assert attempt.cause == "disk"
    assert "a disk that stage work wrote to" in (attempt.evidence or {})["message"]
    trouble.ended(job_id)


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
def test_a_unit_that_ends_its_process_is_tried_on_another_host_and_set_aside(trouble: Trouble, how: str) -> None:
    job_id = trouble.submit("Heavy", range(8), bad=[2], how=how)
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed) == ("failed", 7, 1)
    assert status.error is not None
    assert status.error["code"] == "units_failed"
    assert "Unit 2 was given up" in status.error["message"]
    attempts = trouble.attempts(job_id, unit=2)
    assert [a.state for a in attempts] == ["failed"] * 2
    assert {a.device for a in attempts} == {"a0", "b0"}
    assert {a.host for a in attempts} == {"one", "two"}
    evidence = attempts[-1].evidence or {}
    assert evidence["error_code"] == "stage_host_lost"
    assert evidence.get("exit_signal") == (None if how == "exit" else how)
    assert evidence.get("exit_status") == (7 if how == "exit" else None)
    assert trouble.ran()["2"] == 2


def test_a_job_may_lose_poison(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(4), bad=[1], how="exit", allow_failed=1)
    status = trouble.ended(job_id)
    assert (status.state, status.exit_code, status.units.failed) == ("done", 0, 1)
    assert trouble.results(job_id) == ["0", "2", "3"]


def test_a_hung_unit_is_ended_at_its_deadline_and_set_aside(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(4), bad=[1], how="hang", stage={"deadline": "1s"}, allow_failed=1)
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed) == ("done", 3, 1)
    attempts = trouble.attempts(job_id, unit=1)
    assert [(a.evidence or {})["error_code"] for a in attempts] == ["stage_hung"] * 2
    assert {a.host for a in attempts} == {"one", "two"}


def test_a_stage_host_that_stands_still_is_killed_long_before_its_deadline_and_its_unit_done_again(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(4), bad=[1], how="gate", stage={"deadline": "600s"})
    trouble.wait_for("at-gate")
    (stopped,) = [int(pid) for number, _, pid in trouble.lines() if number == "1"]
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: not psutil.pid_exists(stopped), 60)
    trouble.make("go")  # not before: a copy of the unit on the other host might be done sooner
    status = trouble.ended(job_id)
    assert (status.state, status.units.done) == ("done", 4)
    assert trouble.results(job_id) == ["0", "1", "2", "3"]
    lost = trouble.attempts(job_id, unit=1)[0]
    evidence = lost.evidence or {}
    assert (lost.state, evidence["error_code"], evidence["exit_signal"]) == ("failed", "stage_host_lost", "SIGKILL")
    assert "a signal had stopped it" in evidence["how"]


def test_a_light_unit_that_ends_its_worker_is_set_aside_and_no_other_is_lost(trouble: Trouble) -> None:
    job_id = trouble.submit("Light", range(12), bad=[5], how="exit", allow_failed=1)
    status = trouble.ended(job_id, 240)
    assert (status.state, status.units.done, status.units.failed) == ("done", 11, 1), status.error
    assert trouble.results(job_id) == [str(n) for n in range(12) if n != 5]
    last = trouble.attempts(job_id, unit=5)[-1]
    assert (last.evidence or {})["error_code"] == "worker_killed"
    until(lambda: trouble.cluster._running() >= 4, 60, "the workers' return")
