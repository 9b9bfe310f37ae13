"""Submissions over the API: keys, arrays, what a request may hold, and who asks too often."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons.api import listen
from dgpunet_dask.daemons.api.forms import ARRAY_MAX, KEY_CHARS_MAX
from dgpunet_dask.daemons.api.limits import Rates
from dgpunet_dask.errors import CodeNotAllowed, OverQuota, PathNotAllowed
from dgpunet_dask.jobs.looks import Abandoned
from tests.helpers import until
from tests.unit.daemons.serving import DIGEST, FakeKeys, FakeMembership, Served, make_context

ANN = {"Authorization": "Bearer ann:submitter"}
BOB = {"Authorization": "Bearer bob:submitter"}


class StoppedClock(SystemClock):
    """Time goes on where the test says so."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
async def served(tmp_path):
    ctx = make_context(tmp_path, [], keys=FakeKeys(), membership=FakeMembership(), user="owner", clock=StoppedClock())
    server = listen(ctx)
    yield Served(ctx)
    server.stop()
    await server.close_all_connections()


async def submit(served, request, **headers):
    return await served.ask("POST", "/v1/jobs", json.dumps(request).encode(), **(headers or ANN))


async def test_a_key_that_comes_again_stands_for_the_same_job(served):
    status, job = await submit(served, {"workload": "w", "key": "k"})
    assert (status, job["job_id"], job["owner"]) == (201, "job-1", "ann")
    assert await submit(served, {"workload": "w", "key": "k"}) == (200, job)
    assert await submit(served, {"workload": "w"}, **ANN, **{"Idempotency-Key": "k"}) == (200, job)
    assert await submit(served, {"workload": "w", "key": "k"}, **ANN, **{"Idempotency-Key": "k"}) == (200, job)
    status, other = await submit(served, {"workload": "w", "key": "k"}, **BOB)
    assert (status, other["owner"]) == (201, "bob")
    status, answer = await submit(served, {"workload": "another", "key": "k"})
    assert (status, answer["error"]["code"]) == (409, "key_reused")
    status, answer = await submit(served, {"workload": "w", "key": "k"}, **ANN, **{"Idempotency-Key": "else"})
    assert (status, answer["error"]["code"]) == (409, "http_409")
    assert await submit(served, {"workload": "w", "key": None}, **ANN, **{"Idempotency-Key": "k"}) == (200, job)
    assert len(served.ctx.service.jobs) == 2


async def test_an_array_is_a_job_for_each_set_of_parameters(served):
    asked = {"workload": "w", "params": {"a": 1}, "array": [{"b": 1}, {"b": 2}], "key": "k"}
    status, answer = await submit(served, asked)
    assert (status, answer["array_id"]) == (201, "array-1")
    assert [job["params"] for job in answer["jobs"]] == [{"a": 1, "b": 1}, {"a": 1, "b": 2}]
    assert await submit(served, asked) == (200, answer)
    status, answer = await submit(served, {**asked, "key": None, "array": [{}]})
    assert (status, len(answer["jobs"])) == (201, 1)


async def test_all_that_a_request_says_reaches_the_service(served):
    await served.ctx.service.submit({"workload": "first"})
    asked = {"workload": DIGEST, "params": {"x": [1, None]}, "shared": True, "after": ["job-1"], "allow_failed": 3, "retry": 2.0, "key": "k"}
    assert (await submit(served, asked))[0] == 201
    assert served.ctx.service.requests[-1] == {**asked, "user": "ann", "operates": False}


REFUSED = [
    {}, {"workload": ""}, {"workload": 1}, {"workload": "w", "prams": {}}, {"workload": "w", "params": []}, {"workload": "w", "params": {}, "operates": True},
    {"workload": "w", "shared": 1}, {"workload": "w", "after": "job-1"}, {"workload": "w", "after": ["a/b"]}, {"workload": "w", "after": ["j"] * (ARRAY_MAX + 1)},
    {"workload": "w", "user": "\x00../x"}, {"workload": "w", "user": "../x"}, {"workload": "w", "user": "a\nb"}, {"workload": "w", "allow_failed": -1}, {"workload": "w", "allow_failed": True}, {"workload": "w", "allow_failed": 1.5}, {"workload": "w", "allow_failed": 2**63},
    {"workload": "w", "retry": -1}, {"workload": "w", "retry": "1"}, {"workload": "w", "key": ""}, {"workload": "w", "key": "x" * (KEY_CHARS_MAX + 1)},
    {"workload": "w", "key": "a\x00b"}, {"workload": "w", "key": "a\n"}, {"workload": "w", "key": "\x7f"}, {"workload": "w", "array": []}, {"workload": "w", "array": [1]}, {"workload": "w", "array": [{}] * (ARRAY_MAX + 1)}, {"workload": "w", "user": 7},
    {"workload": "\ud800"}, {"workload": "w", "params": {"x": float("nan")}},
]  # fmt: skip


@pytest.mark.parametrize("asked", REFUSED, ids=lambda asked: json.dumps(asked)[:40])
async def test_what_is_not_understood_is_refused(served, asked):
    status, answer = await submit(served, asked)
    assert status == 400
    assert answer["error"]["message"]
    assert len(answer["error"]["message"]) < 400
    assert not re.search(r"Extra inputs|String should|Input should|pattern|'\"", answer["error"]["message"]), "in our own words"
    assert served.ctx.service.requests == []


@pytest.mark.parametrize("where", [{"params": {"x": float("nan")}}, {"array": [{"x": float("-inf")}]}])
async def test_what_json_has_no_number_for_is_a_bad_value(served, where):
    status, answer = await submit(served, {"workload": "w", **where})
    assert (status, answer["error"]["code"], answer["error"]["exit_code"]) == (400, "bad_value", 2)


async def test_values_of_parameters_pass_as_they_are(served):
    params = {"text": "😀 \u0000 \ud800", "deep": [[[{}]]], "number": 1e300, "int": 2**80, "none": None}
    status, job = await submit(served, {"workload": "w", "params": params})
    assert (status, job["params"]) == (201, params)


async def test_jobs_are_listed_by_state_owner_and_page(served):
    for user in (ANN, BOB, ANN, ANN):
        await submit(served, {"workload": "w", "shared": user is BOB}, **user)
    await served.ctx.service.cancel("job-3")

    async def ids(query, **headers):
        status, answer = await served.ask("GET", f"/v1/jobs?{query}", **(headers or ANN))
        return [job["job_id"] for job in answer] if status == 200 else status

    assert await ids("") == ["job-1", "job-2", "job-3", "job-4"]
    assert await ids("state=cancelled") == ["job-3"]
    assert await ids("owner=bob") == ["job-2"]
    assert await ids("limit=2") == ["job-1", "job-2"]
    assert await ids("limit=1&after_id=job-2&owner=ann") == ["job-3"]
    assert await ids("after_id=job-4") == []
    assert await ids("", **BOB) == ["job-2"]
    assert await ids("after_id=job-1", **BOB) == 404  # that there is such a job is not theirs to know
    for query in ("state=idle", "limit=0", "limit=x", "limit=-1", "after_id=a/b"):
        assert await ids(query) == 400, query


async def test_a_job_that_has_not_ended_well_is_taken_back_by_its_owner(served):
    await submit(served, {"workload": "w", "shared": True})
    await served.ask("POST", "/v1/jobs/job-1/cancel", b"{}", **ANN)
    status, answer = await served.ask("POST", "/v1/jobs/job-1/retry", b"{}", **BOB)
    assert (status, answer["error"]["code"]) == (403, "not_allowed")
    status, job = await served.ask("POST", "/v1/jobs/job-1/retry", b"{}", **ANN)
    assert (status, job["state"], job["exit_code"]) == (200, "queued", 0)
    assert (await served.ask("POST", "/v1/jobs/job-9/retry", b"{}", **ANN))[0] == 404


async def test_progress_and_attempts_are_the_readers(served):
    await submit(served, {"workload": "w"})
    tried = {
        "unit": 7, "epoch": 1 << 33, "device": "a", "host": "h", "state": "failed", "cause": "gpu-oom", "evidence": {"code": "x"},
        "started_s": 1.0, "ended_s": None,
    }  # fmt: skip
    served.ctx.service.tried["job-1"] = [tried]
    assert await served.ask("GET", "/v1/jobs/job-1/attempts", **ANN) == (200, [tried])
    status, answer = await served.ask("GET", "/v1/jobs/job-1/progress", **ANN)
    assert (status, answer["rate_per_s"], answer["units"]["done"]) == (200, None, 0)
    for what in ("attempts", "progress", "events", "explain"):
        assert (await served.ask("GET", f"/v1/jobs/job-1/{what}", **BOB))[0] == 404


async def test_a_user_with_too_much_work_is_told_when_to_ask_again(served):
    served.ctx.service.most = 0
    status, headers, text = await served.fetch("POST", "/v1/jobs", b'{"workload": "w"}', **ANN)
    assert (status, json.loads(text)["error"]["code"], headers["Retry-After"]) == (429, "quota", "8")
    assert "Wait 8 s" in json.loads(text)["error"]["message"], "the text and the header tell the same"


async def test_what_never_fits_is_no_matter_of_waiting(served):
    async def refuses(request, gone):
        raise OverQuota(user="ann", most="3 jobs queued or running", jobs=4)

    served.ctx.service.submit = refuses
    status, headers, text = await served.fetch("POST", "/v1/jobs", b'{"workload": "w"}', **ANN)
    assert (status, json.loads(text)["error"]["code"], headers.get("Retry-After")) == (400, "over_quota", None)


@pytest.mark.parametrize("error", [PathNotAllowed(path="/etc", roots="/srv"), CodeNotAllowed(workload="w")])
async def test_what_a_user_may_not_submit_is_forbidden(served, error):
    async def refuses(request, gone):
        raise error

    served.ctx.service.submit = refuses
    status, answer = await submit(served, {"workload": "w"})
    assert (status, answer["error"]["code"], answer["error"]["message"]) == (403, error.code, error.message)


async def test_code_is_the_operators_to_bring(served):
    path = f"/v1/workloads/{DIGEST}"
    assert (await served.ask("PUT", path, b"tar", **ANN))[0] == 403
    assert served.ctx.service.workloads == {}
    assert (await served.fetch("HEAD", path, **ANN))[0] == 404
    assert (await served.ask("PUT", path, b"tar"))[0] == 201
    assert (await served.fetch("HEAD", path, **ANN))[0] == 200


async def test_who_asks_too_often_waits_and_nobody_else_does(served):
    served.ctx.rates = Rates(per_s=1.0, burst=3)
    assert [(await served.ask("GET", "/v1/jobs", **ANN))[0] for _ in range(4)] == [200, 200, 200, 429]
    _, headers, text = await served.fetch("GET", "/v1/jobs", **ANN)
    assert (headers["Retry-After"], json.loads(text)["error"]["code"]) == ("2", "http_429")
    assert (await served.ask("GET", "/v1/jobs", **BOB))[0] == 200
    assert (await served.ask("GET", "/v1/jobs"))[0] == 200  # this machine's own commands
    served.ctx.clock.now += 1.0
    assert [(await served.ask("GET", "/v1/jobs", **ANN))[0] for _ in range(2)] == [200, 429]


def test_a_bucket_fills_up_to_its_brim_and_the_oldest_is_forgotten():
    rates = Rates(per_s=2.0, burst=4, users=3)
    assert [rates.take("a", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rates.take("a", 0.25) == 0.25
    assert [rates.take("a", 1000.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    for n in range(1000):
        assert rates.take(f"user-{n}", 1000.0) == 0
    assert len(rates._left) == 3


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("state=done&state=failed", "state 'state=done&state=failed' is not valid: it is there more than once; give it once."),
        ("state=foo", "state 'foo' is not valid: it must be 'queued', 'running', 'done', 'failed', 'cancelled' or 'lost'."),
    ],
)
async def test_a_question_that_can_mean_two_things_or_nothing_is_a_bad_value(served, query, told):
    status, found = await served.ask("GET", f"/v1/jobs?{query}")
    assert (status, found["error"]["code"], found["error"]["message"]) == (400, "bad_value", told)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plan"])
async def test_what_a_client_that_left_had_asked_for_is_given_up(served, path):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stand(_, gone):
        begun.set()
        await asyncio.to_thread(until, gone)
        ended.set()
        raise Abandoned

    served.ctx.service.submit = served.ctx.service.plan = stand
    body = b'{"workload": "w"}'
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{served.ctx.port}\r\nAuthorization: Bearer ann:submitter\r\nContent-Type: application/json\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", served.ctx.port)
    writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.wait_for(begun.wait(), 20)
    assert not ended.is_set()
    writer.close()
    await asyncio.wait_for(ended.wait(), 20)


async def test_a_key_that_is_revoked_while_its_request_waits_is_told_nothing(served):
    _, job = await submit(served, {"workload": "w"})
    waiting = asyncio.create_task(served.ask("GET", f"/v1/jobs/{job['job_id']}/events?since=1&wait=30", **ANN))
    while not served.ctx.service.changed._waiters:  # noqa: ASYNC110  # until the question has arrived
        await asyncio.sleep(0.01)
    served.ctx.keys.revoked.add("ann:submitter")
    served.ctx.service.tell(job["job_id"], kind="progress", done=1)
    status, answer = await waiting
    assert (status, answer["error"]["code"]) == (401, "http_401")
