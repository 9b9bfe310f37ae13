"""A unit that takes far too long gets a copy on another device, and one of the two commits."""

from __future__ import annotations

import pytest

from tests.helpers import until
from tests.integration.jobs.trouble import Trouble

pytestmark = pytest.mark.long


def charged(trouble: Trouble, device: str) -> int:
    workers = trouble.cluster.api().status()["workers"]
    return int(next(worker["charged_mib"] or 0 for worker in workers if worker["device"] == device))


def test_the_first_of_a_slow_unit_and_its_copy_commits_and_the_slow_one_is_charged_until_it_ends(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(9), bad=[8], how="slow")
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed) == ("done", 9, 0), status.error
    assert trouble.results(job_id) == [str(n) for n in range(9)]
    slow, copy = trouble.attempts(job_id, unit=8)
    assert (slow.state, slow.speculative) == ("beaten", False)
    assert (copy.state, copy.speculative) == ("committed", True)
    assert slow.device != copy.device
    assert [e["unit"] for e in trouble.events(job_id, "attempt") if e["state"] == "copied"] == [8]
    on = (trouble.folder / "slow").read_text()
    assert charged(trouble, on) >= 1024, "its call goes on"
    trouble.make("go")
    until(lambda: charged(trouble, on) < 1024, what="the end of the charge")
    assert trouble.ran()["8"] == 2


def test_a_slow_unit_that_ends_before_its_copy_commits_itself(trouble: Trouble) -> None:
    job_id = trouble.submit("Heavy", range(9), bad=[8], how="gate")
    until(lambda: any(e["state"] == "copied" for e in trouble.events(job_id, "attempt")), 60, "the copy")
    trouble.make("go")
    status = trouble.ended(job_id)
    assert (status.state, status.units.done, status.units.failed) == ("done", 9, 0), status.error
    assert sorted(a.state for a in trouble.attempts(job_id, unit=8)) in (["beaten", "committed"], ["committed", "stale"])
    folder = trouble.cluster.home.jobs / job_id / "results"
    until(lambda: len(list(folder.glob("*.frames"))) == 9, what="the loser's file to be taken back")
