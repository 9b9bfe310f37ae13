"""What a client does step by step, against a head that is written down."""

from __future__ import annotations

from typing import Any

import pytest

from dgpunet_dask.client import talk
from dgpunet_dask.client.talk import AWAY, RETURN_S, JobOptions, Parcel
from dgpunet_dask.cluster import calls
from dgpunet_dask.errors import (
    BadValue,
    CodeNotAllowed,
    HeadAway,
    JobLost,
    NoHead,
    NoSuchJob,
    NotAllowed,
    OtherUser,
    ReportedError,
    StillRunning,
    TooManyJobs,
    rebuild_error,
)
from dgpunet_dask.model.job import JobState, JobStatus
from tests.unit.client.head import Head, in_turn

RUNNING = {"seq": 1, "kind": "state", "state": "running"}
LOG = {"seq": 2, "kind": "log", "text": "a traceback"}
FAILED = {"seq": 3, "kind": "state", "state": "failed"}
QUEUED = {"seq": 4, "kind": "state", "state": "queued"}
DONE = {"seq": 5, "kind": "state", "state": "done"}
GONE = NoHead(where="here")
WRONG_KEY = NotAllowed(what="Asking", why="it is another key", status=401)


def job(state: JobState) -> JobStatus:
    return JobStatus(job_id="j", workload="w", state=state)


def test_events_go_on_where_they_were_and_end_with_the_job() -> None:
    head = Head(**{"GET events": in_turn([RUNNING], [LOG, FAILED]), "GET j": job("failed")})
    assert head.run(head.job().wait()).state == "failed"
    assert head.told == [RUNNING, LOG, FAILED]
    assert [path for _, path in head.asked if "since" in path] == ["/v1/jobs/j/events?since=0&wait=20.000", "/v1/jobs/j/events?since=1&wait=20.000"]


@pytest.mark.parametrize("job_id", ["", "../../etc", "a b", "x" * 101])
def test_what_can_be_no_id_is_no_job(job_id: str) -> None:
    for ask in (calls.show, calls.cancel, calls.events, calls.progress):
        with pytest.raises(NoSuchJob):
            ask(job_id)


def test_events_of_the_last_moment_are_not_missed() -> None:
    head = Head(**{"GET events": in_turn([RUNNING], [], [LOG], []), "GET j": job("failed")})
    head.run(head.job().events())
    assert head.told == [RUNNING, LOG]


def test_a_job_that_is_tried_again_goes_on_after_its_first_end() -> None:
    head = Head(**{"GET events": in_turn([RUNNING, FAILED], [QUEUED], [DONE]), "GET j": in_turn(job("queued"), job("done"))})
    assert head.run(head.job().wait()).state == "done"
    assert head.told == [RUNNING, FAILED, QUEUED, DONE]


def test_a_past_with_an_end_that_was_not_the_last_is_told_whole() -> None:
    head = Head(**{"GET events": in_turn([RUNNING, FAILED, QUEUED], [DONE]), "GET j": in_turn(job("running"), job("done"))})
    head.run(head.job().events())
    assert head.told == [RUNNING, FAILED, QUEUED, DONE]


def test_a_killed_head_is_waited_for_and_the_events_go_on() -> None:
    head = Head(**{"GET events": in_turn([RUNNING], GONE, GONE, [LOG, FAILED]), "GET j": job("failed")})
    head.away = 12
    assert head.run(head.job().wait()).state == "failed"
    assert head.told == [RUNNING, LOG, FAILED]
    assert head.asked[-2] == ("GET", "/v1/jobs/j/events?since=1&wait=20.000")
    assert head.said == [AWAY, AWAY]  # once for each time; the client says it once for all who wait


def test_a_head_that_does_not_come_back_within_a_minute_has_lost_the_job() -> None:
    head = Head(**{"GET events": GONE})
    head.away = None
    began = head.time()
    with pytest.raises(JobLost) as lost:
        head.run(head.job().wait())
    assert lost.value.exit_code == 104
    assert head.time() - began == pytest.approx(60, abs=1)


def test_of_a_head_that_waits_for_room_the_reason_is_told_once_and_no_job_is_lost() -> None:
    head = Head(**{"GET events": GONE})
    head.away, head.nobody = None, HeadAway(where="here", when="once there is room", full=True, logs="logs")
    with pytest.raises(HeadAway):
        head.run(head.job().wait())
    assert head.said == [AWAY, str(head.nobody)]


def test_the_head_of_an_embedded_cluster_has_no_successor() -> None:
    head = Head(**{"GET events": GONE})
    with pytest.raises(JobLost):
        head.run(head.job(embedded=True).wait())
    assert (head.looks, head.said) == (0, [])


def test_a_job_that_the_successor_does_not_know_is_lost_and_an_unknown_one_is_not_found() -> None:
    head = Head(**{"GET events": in_turn(GONE, NoSuchJob(job_id="j"))})
    with pytest.raises(JobLost):
        head.run(head.job().wait())
    with pytest.raises(NoSuchJob):
        head.run(head.job().wait())


def test_waiting_ends_in_time_also_while_the_head_is_away() -> None:
    head = Head(**{"GET events": GONE})
    head.away = None
    with pytest.raises(StillRunning):
        head.run(head.job(timeout_s=3.0).wait())
    assert head.time() == pytest.approx(1003.0)


def test_waiting_ends_in_time() -> None:
    head = Head(**{"GET j": job("running")})

    def silent(call: calls.Call[Any]) -> list[Any]:
        head.time.at += float(call.path.partition("wait=")[2])
        return []

    head.answers["GET events"] = silent
    with pytest.raises(StillRunning):
        head.run(head.job(timeout_s=45.0).wait())
    assert head.time() == pytest.approx(1045.0)
    assert [path.partition("wait=")[2] for _, path in head.asked if "wait" in path] == ["20.000", "20.000", "5.000"]


def test_a_head_that_has_just_begun_may_know_another_key() -> None:
    head = Head(**{"POST cancel": in_turn(WRONG_KEY, job("cancelled"))})
    head.away = 3
    assert head.run(head.job().ask(calls.cancel("j"))).state == "cancelled"


def test_a_key_that_stays_wrong_is_told_soon() -> None:
    head = Head(**{"POST cancel": WRONG_KEY})
    head.away = None
    began = head.time()
    with pytest.raises(NotAllowed):
        head.run(head.job().ask(calls.cancel("j")))
    assert head.time() - began < 15


def test_where_the_key_is_the_head_s_own_another_head_on_its_port_is_waited_out() -> None:
    head = Head(**{"POST cancel": in_turn(WRONG_KEY, job("cancelled"))})
    head.away = 160
    talk = head.job()
    talk.line.new_key_s = RETURN_S
    assert head.run(talk.ask(calls.cancel("j"))).state == "cancelled"


def test_what_is_refused_is_told_at_once() -> None:
    head = Head(**{"POST cancel": NotAllowed(what="cancelling", why="it is another user's", status=403)})
    with pytest.raises(NotAllowed):
        head.run(head.job().ask(calls.cancel("j")))
    assert head.looks == 0


def test_who_waits_too_often_asks_later_without_waiting_and_misses_nothing() -> None:
    full = ReportedError(exit_code=1, code="http_429", message="64 requests of this user are waiting", reasons=[])
    refused = rebuild_error(full)
    refused.fields["wait_s"] = 2.0
    head = Head(**{"GET events": in_turn(refused, [RUNNING], refused, refused, [DONE]), "GET j": job("done")})
    assert head.run(head.job().wait()).state == "done"
    assert head.told == [RUNNING, DONE]
    assert head.time() == 1006.0
    waits = [path.partition("?")[2] for _, path in head.asked if "events" in path]
    assert waits == [f"since={since}&wait={wait}" for since, wait in ((0, "20.000"), (0, "0.000"), (1, "20.000"), (1, "0.000"), (1, "0.000"))]


def test_a_time_that_is_over_ends_the_wait_of_one_who_is_refused() -> None:
    refused = rebuild_error(ReportedError(exit_code=1, code="http_429", message="too many", reasons=[]))
    refused.fields["wait_s"] = 2.0
    head = Head(**{"GET events": refused})
    with pytest.raises(StillRunning):
        head.run(head.job(timeout_s=5.0).wait())
    assert head.time() == 1005.0


# Submitting


def parcel(*, shipped: bool = False) -> Parcel:
    return Parcel(name="words", digest="ab" * 32, shipped=shipped, pack=lambda: b"tar", params={"a": 1}, user="ann")


class Heads(Head):
    """Notes the requests for jobs."""

    def __init__(self, *jobs: Any, has: bool = True, put: Any = None) -> None:
        digest = "ab" * 32
        super().__init__(**{f"HEAD {digest}": has, f"PUT {digest}": put, "POST jobs": self.submitted})
        self.requests: list[Any] = []
        self.next = in_turn(*(jobs or (job("queued"),)))

    def submitted(self, call: calls.Call[Any]) -> Any:
        self.requests.append(call.body)
        return self.next(call)


def test_files_that_the_head_has_are_not_sent() -> None:
    head = Heads()
    head.run(talk.submit(parcel(), JobOptions(key="k"), head.line()))
    assert [method for method, _ in head.asked] == ["HEAD", "POST"]
    assert head.requests == [{"workload": "ab" * 32, "params": {"a": 1}, "user": "ann", "key": "k"}]


def test_all_options_are_said() -> None:
    head = Heads(has=False)
    options = JobOptions(after=["x"], retry=2, allow_failed=3, key="k", shared=True, array=[{"b": 1}, {"b": 2}])
    head.run(talk.submit(parcel(), options, head.line()))
    assert [method for method, _ in head.asked] == ["HEAD", "PUT", "POST"]
    want = {"after": ["x"], "retry": 2, "allow_failed": 3, "key": "k", "shared": True, "array": [{"b": 1}, {"b": 2}]}
    assert {name: value for name, value in head.requests[0].items() if name in want} == want


def test_after_a_lost_connection_the_same_is_sent_once_more() -> None:
    head = Heads(GONE, job("queued"))
    head.away = 5
    assert head.run(talk.submit(parcel(), JobOptions(key="k"), head.line())) == job("queued")
    assert head.requests[0] == head.requests[1]
    assert head.said == [AWAY]


def test_a_head_that_stays_away_is_told_as_none() -> None:
    head = Heads(GONE)
    head.away = None
    with pytest.raises(NoHead):
        head.run(talk.submit(parcel(), JobOptions(key="k"), head.line()))


def test_a_key_that_may_not_bring_code_submits_shipped_workloads_by_name() -> None:
    refused = NotAllowed(what="PUT", why="it needs an operator's key", status=403)
    head = Heads(has=False, put=refused)
    head.run(talk.submit(parcel(shipped=True), JobOptions(key="k"), head.line()))
    assert head.requests[0]["workload"] == "words"
    with pytest.raises(CodeNotAllowed, match="words brings its own code"):
        head.run(talk.submit(parcel(), JobOptions(key="k"), head.line()))


@pytest.mark.parametrize("error", [TooManyJobs(user="ann", most="4 jobs", wait_s=30), BadValue(what="a", value=1, why="it is")])
def test_what_the_head_refuses_is_not_sent_again(error: Exception) -> None:
    head = Heads(error)
    with pytest.raises(type(error)):
        head.run(talk.submit(parcel(), JobOptions(key="k"), head.line()))
    assert len(head.requests) == 1


def test_the_name_on_this_machine_is_no_wish_where_the_key_is_another_user_s() -> None:
    head = Heads(OtherUser(user="ann"), job("queued"))
    assert head.run(talk.submit(parcel(), JobOptions(key="k"), head.line())) == job("queued")
    assert [request["user"] for request in head.requests] == ["ann", None]


def test_a_plan_says_what_the_job_would_follow() -> None:
    assert asked_of(talk.plan(parcel(), ["a", "b"]))["after"] == ["a", "b"]


def asked_of(steps: Any) -> Any:
    """Return the body of the last call of a talk with a head that has the workload."""
    step = next(steps)
    while step.call.path != "/v1/plan":
        step = steps.send(True)
    return step.call.body
