"""`Client` and `AsyncClient` over real sockets: one suite for both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.client import AsyncClient, JobArray, talk
from dgpunet_dask.client.talk import AWAY
from dgpunet_dask.cluster import calls
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import (
    CodeNotAllowed,
    JobLost,
    NoHead,
    NoSuchJob,
    NotAllowed,
    ResultsElsewhere,
    StillRunning,
    TooManyJobs,
    UnknownParameter,
    UsageError,
)
from tests.unit.client.serving import Server


async def settled(server: Server, count: int) -> None:
    """Wait until so many questions wait at the head for events."""
    await server.until(lambda: server.waiting == count)


async def test_submit_follow_and_read(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        job = await client.submit(workload, {"n": 3}, after="job-0", retry=2, allow_failed=1, key="mine")
        assert server.ledger.requests[0].items() >= {"params": {"n": 3, "tags": []}, "after": ["job-0"], "retry": 2, "allow_failed": 1, "key": "mine"}.items()
        waiting = asyncio.create_task(client.wait(job.job_id, 20, (told := []).append))
        await settled(server, 1)
        server.tell(job.job_id, "log", text="hello")
        server.end(job.job_id)
        assert (await waiting).state == "done"
        assert [event["kind"] for event in told] == ["state", "log", "state"]
        assert [event["kind"] async for event in client.events(job.job_id, since=1)] == ["log", "state"]
        assert [event["seq"] for event in await client.history(job.job_id)] == [1, 2, 3]
        assert (await client.progress(job.job_id))["rate_per_s"] == 1.5
        assert [a["state"] for a in await client.attempts(job.job_id)] == ["failed", "committed"]
        assert [j.job_id for j in await client.jobs(state="done")] == [job.job_id]
        assert await client.jobs(state="failed") == []


async def test_an_array_is_one_submission(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        array = await client.submit(workload, {"tags": ["a"]}, array=[{"n": 1}, {}, {"n": 3}])
    assert isinstance(array, JobArray)
    assert [job.job_id for job in array.jobs] == ["job-1", "job-2", "job-3"]
    assert server.ledger.requests[0]["params"] == {"tags": ["a"]}
    assert server.ledger.requests[0]["array"] == [{"n": 1}, {"n": 1}, {"n": 3}]


async def test_a_bad_parameter_is_told_before_anything_is_sent(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        with pytest.raises(UnknownParameter):
            await client.submit(workload, array=[{"m": 1}])
    assert not server.ledger.requests


async def test_a_submission_whose_answer_was_lost_is_one_job(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        server.drop_next = "POST /v1/jobs"
        submitting = asyncio.create_task(client.submit(workload))
        await server.until(lambda: not server.serving)
        server.key = "key-2"  # the next head has another
        await server.start()
        assert (await submitting).job_id == "job-1"
    assert len(server.ledger.requests) == 2
    assert list(server.ledger.jobs) == ["job-1"]
    assert client.said == [AWAY]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("same_port", [False, True])
async def test_waiting_goes_on_with_the_next_head(server: Server, connect: Any, workload: Path, named: bool, same_port: bool) -> None:
    async with connect("local" if named else None) as client:
        job = await client.submit(workload)
        waiting = asyncio.create_task(client.wait(job.job_id, 30, (told := []).append))
        await settled(server, 1)
        await server.kill(forget_port=not same_port)
        server.key = "key-2"
        server.ledger.tell(job.job_id, "log", text="meanwhile")
        await server.start()
        await settled(server, 1)
        server.end(job.job_id)
        assert (await waiting).state == "done"
    assert [event["seq"] for event in told] == [1, 2, 3]
    assert client.said == [AWAY]


async def test_a_job_that_the_next_head_does_not_know_is_lost(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        job = await client.submit(workload)
        waiting = asyncio.create_task(client.wait(job.job_id, 30))
        await settled(server, 1)
        await server.kill()
        server.ledger.jobs.clear()
        await server.start()
        with pytest.raises(JobLost):
            await waiting
        with pytest.raises(NoSuchJob):
            await client.show(job.job_id)


async def test_an_embedded_cluster_has_no_successor(home: Home, connect: Any, workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpunet_dask.daemons.embedded.STOP_S", 0.0)  # the process of this head is the test's own, and stays
    server = Server(home)
    await server.start(embedded=True)
    client = await connect().__aenter__()
    job = await client.submit(workload)
    waiting = asyncio.create_task(client.wait(job.job_id))
    await settled(server, 1)
    await server.kill()
    with pytest.raises(JobLost):
        await waiting
    assert client.said == []
    await client.close()


async def test_waiting_has_an_end(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        job = await client.submit(workload)
        with pytest.raises(StillRunning) as error:
            await client.wait(job.job_id, 0.05)
        assert error.value.exit_code == 101
        assert (await client.cancel(job.job_id)).state == "cancelled"
        assert (await client.retry(job.job_id)).state == "queued"


async def test_refusals_keep_their_class_and_say_when_to_come_again(server: Server, connect: Any, workload: Path) -> None:
    async with connect() as client:
        server.refuse["POST /v1/jobs"] = (429, TooManyJobs(user="ann", most="4 jobs", wait_s=30))
        with pytest.raises(TooManyJobs, match="4 jobs") as error:
            await client.submit(workload)
        assert (error.value.fields["wait_s"], error.value.exit_code) == (30.0, 2)
        digest = next(iter(server.ledger.workloads))
        server.ledger.workloads.clear()
        server.refuse = {f"PUT /v1/workloads/{digest}": (403, NotAllowed(what="PUT", why="it needs an operator's key"))}
        with pytest.raises(CodeNotAllowed, match="words"):
            await client.submit(workload)


async def test_a_cluster_that_does_not_answer_is_told(home: Home, connect: Any) -> None:
    with pytest.raises(NoHead):
        await connect("127.0.0.1:9").__aenter__()


async def test_a_head_that_stands_still_is_not_waited_for_long(server: Server, connect: Any, workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "EVENTS_LATE_S", 0.05)
    monkeypatch.setattr(talk, "POLL_S", 0.05)
    async with connect() as client:
        job = await client.submit(workload)
        server.silent = True
        waiting = asyncio.create_task(client.wait(job.job_id))
        async with asyncio.timeout(20):
            while not client.said:
                await server.asked()
        server.silent = False
        server.end(job.job_id)
        assert (await waiting).state == "done"


# asyncio alone


async def test_two_hundred_wait_at_once_and_survive_a_killed_head(server: Server, workload: Path, home: Home) -> None:
    said: list[str] = []
    async with AsyncClient(home=home, say=said.append) as client:
        array = await client.submit(workload, array=[{"n": n} for n in range(200)])
        waiting = [asyncio.create_task(client.wait(job.job_id)) for job in array.jobs]
        await settled(server, 200)
        await server.kill()
        await server.start()
        await settled(server, 200)
        for job in array.jobs:
            server.ledger.end(job.job_id)
        server.news()
        assert {status.state for status in await asyncio.gather(*waiting)} == {"done"}
    assert said == [AWAY]


async def test_a_wait_that_is_cancelled_leaves_no_connection(server: Server, workload: Path, home: Home) -> None:
    async with AsyncClient(home=home) as client:
        job = await client.submit(workload)
        waiting = [asyncio.create_task(client.wait(job.job_id)) for _ in range(50)]
        await settled(server, 50)
        for task in waiting[:25]:
            task.cancel()
        done, _ = await asyncio.wait(waiting[:25])
        assert all(task.cancelled() for task in done)
        await server.until(lambda: (len(server.open), server.waiting) == (26, 25))  # the lease is open too
        server.end(job.job_id)
        assert {status.state for status in await asyncio.gather(*waiting[25:])} == {"done"}


async def test_events_may_be_left_at_any_moment(server: Server, workload: Path, home: Home) -> None:
    async with AsyncClient(home=home) as client:
        job = await client.submit(workload)
        async for event in client.events(job.job_id):
            assert event["state"] == "running"
            break
        assert (await client.show(job.job_id)).state == "running"


async def test_entering_may_be_cancelled(server: Server, home: Home) -> None:
    entering = asyncio.create_task(AsyncClient(home=home).__aenter__())
    await server.until(lambda: len(server.open) == 1)  # the lease is held
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await server.until(lambda: not server.open)


async def test_a_client_that_was_not_opened_says_so(home: Home) -> None:
    with pytest.raises(UsageError, match="async with"):
        await AsyncClient(home=home).show("j")


async def read(client: Any, job_id: str) -> list[Any]:
    """Return the results that either client gives."""
    found = client.results(job_id)
    return [item async for item in found] if hasattr(found, "__aiter__") else list(await found)


async def test_results_that_are_on_another_host_are_no_empty_answer(server: Server, connect: Any, workload: Path, home: Home) -> None:
    async with connect() as client:
        job = await client.submit(workload)
        server.end(job.job_id)
        with pytest.raises(ResultsElsewhere, match=rf"{home.jobs / job.job_id}.*head's host"):
            await read(client, job.job_id)
        (home.jobs / job.job_id / "results").mkdir(parents=True)
        assert await read(client, job.job_id) == []
