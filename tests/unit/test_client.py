"""`Client` against a head that is written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.model.job import JobState, JobStatus

RUNNING = {"seq": 1, "kind": "state", "state": "running"}
LOG = {"seq": 2, "kind": "log", "text": "a traceback"}
FAILED = {"seq": 3, "kind": "state", "state": "failed"}


class FakeHead:
    """Has one job; `ending` happens between an answer without events and the question for the job's state."""

    def __init__(self, state: JobState, ending: Callable[[FakeHead], None] = lambda _: None) -> None:
        self.state = state
        self.ending = ending
        self.told: list[dict[str, Any]] = [RUNNING]
        self.asked = 0

    def events(self, job_id: str, *, since: int, wait_s: float) -> list[dict[str, Any]]:
        self.asked += 1
        return [event for event in self.told if event["seq"] > since]

    def show(self, job_id: str) -> JobStatus:
        self.ending(self)
        return JobStatus(job_id=job_id, workload="w", state=self.state)


def followed(home: Home, monkeypatch: pytest.MonkeyPatch, head: FakeHead) -> list[dict[str, Any]]:
    monkeypatch.setattr(Client, "api", head)
    return list(Client(home=home).events("j"))


def test_events_of_the_last_moment_are_not_missed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(head: FakeHead) -> None:
        head.told = [RUNNING, LOG, FAILED]
        head.state = "failed"

    assert followed(home, monkeypatch, FakeHead("running", end)) == [RUNNING, LOG, FAILED]


def test_a_job_that_a_lost_head_left_without_a_last_event_ends(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    head = FakeHead("lost")
    assert followed(home, monkeypatch, head) == [RUNNING]
    assert head.asked == 3
