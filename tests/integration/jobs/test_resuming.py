"""Jobs go on when the head, the scheduler or a worker is killed, and when they are tried again: what is committed is not computed again."""

from __future__ import annotations

import os
import signal

import pytest

from tests.integration.jobs.trouble import Trouble

pytestmark = pytest.mark.long
COUNT = 24


def once_each(trouble: Trouble, job_id: str, count: int = COUNT) -> None:
    committed = [a.number for a in trouble.attempts(job_id) if a.state == "committed"]
    assert sorted(committed) == list(range(count))
    assert trouble.results(job_id) == [str(n) for n in range(count)]


@pytest.mark.parametrize("kind", ["Heavy", "Light"])
@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_a_killed_scheduler_or_worker_fails_nothing(trouble: Trouble, role: str, kind: str) -> None:
    job_id = trouble.submit(kind, range(COUNT), bad=range(COUNT), how="brief")
    trouble.done(job_id, 3)
    os.kill(trouble.cluster.roles()[role][0].pid, signal.SIGKILL)
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed) == ("done", COUNT, 0), status.error
    once_each(trouble, job_id)
    trouble.cluster.ready(4)


def test_the_next_head_goes_on_and_computes_nothing_again(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(COUNT), bad=range(COUNT), how="brief")
    trouble.done(job_id, 5)
    os.kill(trouble.cluster.pid("head"), signal.SIGKILL)
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed, status.units.reused) == ("done", COUNT, 0, 0), status.error
    once_each(trouble, job_id)
    assert set(trouble.ran().values()) == {1}, "what was under way went on without a head"
    assert trouble.events(job_id, "resumed")
    trouble.cluster.ready(4)


def test_what_the_source_gives_no_more_is_not_in_the_result(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", [0, 1, 2, 3, "last"], bad=["last"], how="gate")
    trouble.done(job_id, 4)
    trouble.wait_for("at-gate")
    trouble.numbers([1, 9, 3, "last"])
    os.kill(trouble.cluster.pid("head"), signal.SIGKILL)
    trouble.make("go")
    status = trouble.ended(job_id)
    assert (status.state, status.units.total, status.units.done) == ("done", 4, 4), status.error
    assert trouble.results(job_id) == ["1", "9", "3", "last"]
    assert trouble.ran()["1"] == trouble.ran()["3"] == 1
    trouble.cluster.ready(4)


def test_equal_inputs_are_units_of_their_own(trouble: Trouble) -> None:
    job_id = trouble.submit("Light", [7, 7, 8, 7])
    status = trouble.ended(job_id)
    assert (status.state, status.units.total, status.units.done) == ("done", 4, 4)
    assert trouble.results(job_id) == ["7", "7", "8", "7"]


def test_a_failed_job_that_is_tried_again_keeps_what_it_has_committed(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(6), bad=[5], how="raise")
    failed = trouble.ended(job_id)
    assert failed.state == "failed"
    trouble.make("mended")
    trouble.cluster.asked(lambda api: api.retry(job_id))
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed, status.error) == ("done", 6, 0, None)
    assert status.units.reused == failed.units.done
    once_each(trouble, job_id, 6)


def test_a_cancelled_job_that_is_tried_again_keeps_what_it_has_committed(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", [0, 1, 2, 3], bad=[3], how="gate")
    trouble.done(job_id, 3)
    trouble.wait_for("at-gate")
    assert trouble.cluster.asked(lambda api: api.cancel(job_id)).state == "cancelled"
    trouble.make("go")
    trouble.cluster.asked(lambda api: api.retry(job_id))
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.reused) == ("done", 4, 3), status.error
    assert [trouble.ran()[n] for n in "012"] == [1, 1, 1]


def test_a_job_is_tried_again_by_itself_and_keeps_what_it_has_committed(trouble: Trouble) -> None:
    job_id = trouble.submit("Light", range(6), bad=[2], how="raise", retry=2)
    status = trouble.ended(job_id)
    assert status.state == "failed"
    assert trouble.ran()["2"] == 3
    assert max(count for number, count in trouble.ran().items() if number != "2") <= 3
    assert len(trouble.events(job_id, "again")) == 2
