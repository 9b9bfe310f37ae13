"""The jobs of a head whose agent and scheduler do not answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DiskFull, KeyReused, NoSuchJob, UsageError
from dgpunet_dask.jobs.admission import RUNNING_MAX
from dgpunet_dask.jobs.service import JobService
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.model.owner import User
from tests.unit.jobs.services import FakeScheduler, begun, one, reached, service, settings, stored


@pytest.fixture
def digest(home: Home, tmp_path: Path) -> str:
    return stored(home, tmp_path / "workload")


# Ends


async def test_a_job_that_is_ended_before_its_first_step_is_ended(home: Home, digest: str) -> None:
    async with begun(service(home)) as jobs:
        job = await one(jobs, digest)
        status = await jobs.cancel(job.job_id)
        assert (status.state, status.exit_code) == ("cancelled", 103)
        assert [e["state"] for e in await jobs.events(job.job_id, 0, 30)] == ["cancelled"]


async def test_a_job_may_be_cancelled_by_several_at_once(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        job = await one(jobs, digest)
        await reached(jobs, job.job_id, "running")
        found = await asyncio.gather(*(jobs.cancel(job.job_id) for _ in range(3)))
        assert [status.state for status in found] == ["cancelled"] * 3
        assert [e["state"] for e in await jobs.events(job.job_id, 0, 30)] == ["running", "cancelled"]


async def test_a_job_that_was_cancelled_before_its_first_step_can_be_retried(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        job = await one(jobs, digest)
        await jobs.cancel(job.job_id)
        await asyncio.gather(*(jobs.retry(job.job_id) for _ in range(3)))
        await reached(jobs, job.job_id, "running")


async def test_a_job_that_waits_may_be_cancelled_by_several_at_once(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        first = await one(jobs, digest)
        job = await one(jobs, digest, after=[first.job_id])
        found = await asyncio.gather(*(jobs.cancel(job_id) for job_id in (job.job_id, first.job_id, job.job_id)))
        assert [status.state for status in found] == ["cancelled"] * 3


async def test_a_job_that_waits_for_others_names_them(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        first = await one(jobs, digest)
        await reached(jobs, first.job_id, "running")
        job = await one(jobs, digest, after=[first.job_id])
        assert (await jobs.progress(job.job_id))["waits_for"] == [{"job_id": first.job_id, "state": "running"}]
        assert (await jobs.progress(first.job_id))["waits_for"] == []
        await jobs.cancel(job.job_id)
        assert await jobs.waits_for(job.job_id) == []


async def test_the_stages_of_a_job_are_told_also_after_its_end_as_long_as_its_workload_is_there(home: Home, digest: str) -> None:
    async with begun(service(home)) as jobs:
        job = await one(jobs, digest)
        await reached(jobs, job.job_id, "failed")
        assert (await jobs.progress(job.job_id))["all_stages"] == ["read"]
        (home.workloads / digest / "job.yaml").unlink()
        assert (await jobs.progress(job.job_id))["all_stages"] is None


async def test_a_plan_after_a_job_that_is_not_there_is_refused_as_the_job_would_be(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        request = {"workload": digest, "operates": True, "after": ["none"]}
        for ask in (jobs.plan, jobs.submit):
            with pytest.raises(NoSuchJob):
                await ask(request)


async def test_a_job_that_is_cancelled_between_two_tries_ends_there(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpunet_dask.jobs.driving.RETRY_S", 600.0)
    async with begun(service(home)) as jobs:
        job = await one(jobs, digest, retry=5)
        seen = 0
        told: Sequence[Any] = []
        while not any(event["kind"] == "again" for event in told):
            told = await jobs.events(job.job_id, seen, 30)
            seen = told[-1]["seq"]
        assert (await jobs.cancel(job.job_id)).state == "cancelled"
        row = await jobs.ledger.job(job.job_id)
        assert row is not None
        assert row.state == "cancelled"


async def test_without_an_agent_a_job_fails_and_says_so(home: Home, digest: str) -> None:
    async with begun(service(home)) as jobs:
        status = await reached(jobs, (await one(jobs, digest)).job_id, "failed")
        assert status.exit_code == 100
        assert status.error is not None
        assert "agent" in status.error["message"]


async def test_a_sidecar_that_finds_no_room_keeps_no_job_from_ending(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise DiskFull(path=path)

    monkeypatch.setattr("dgpunet_dask.jobs.past.commit_text", full)
    async with begun(service(home)) as jobs:
        job = await one(jobs, digest)
        assert (await jobs.cancel(job.job_id)).state == "cancelled"


async def test_a_job_whose_end_finds_no_room_in_the_ledger_ends_once_there_is(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, room = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr("dgpunet_dask.jobs.persisting.FULL_WAIT_S", 0.0)
    jobs = service(home)
    moves, full = jobs.ledger.move, True

    async def move(job_id: str, state: Any, **more: Any) -> Any:
        if state == "failed" and full:
            raise DiskFull(path="ledger.db")
        return await moves(job_id, state, **more)

    async def wait() -> None:
        asked.set()
        await room.wait()

    monkeypatch.setattr(jobs.ledger, "move", move)
    object.__setattr__(jobs.ports, "room", wait)
    async with begun(jobs):
        job = await one(jobs, digest)
        await asyncio.wait_for(asked.wait(), 10)
        assert (await jobs.show(job.job_id)).state == "running"
        full = False
        room.set()
        assert (await reached(jobs, job.job_id, "failed")).exit_code == 100


async def test_a_job_without_hope_whose_end_finds_no_room_keeps_no_other_from_beginning(
    home: Home, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = service(home, driven=False)
    moves, full = jobs.ledger.move, True

    async def move(job_id: str, state: Any, **more: Any) -> Any:
        if state == "failed" and full:
            raise DiskFull(path="ledger.db")
        return await moves(job_id, state, **more)

    monkeypatch.setattr(jobs.ledger, "move", move)
    async with begun(jobs):
        first = await one(jobs, digest)
        hopeless = await one(jobs, digest, after=[first.job_id])
        await jobs.cancel(first.job_id)
        other = await one(jobs, digest)
        await reached(jobs, other.job_id, "running")
        assert (await jobs.show(hopeless.job_id)).state == "queued"
        full = False
        await jobs.cancel(other.job_id)
        assert ((await reached(jobs, hopeless.job_id, "failed")).error or {})["code"] == "dependency_failed"


@pytest.mark.parametrize("ends", ["done", "failed"])
async def test_a_job_that_is_cancelled_while_it_ends_has_one_end(
    home: Home, digest: str, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    jobs = service(home)
    ending, moves = asyncio.Event(), jobs.ledger.move

    async def move(job_id: str, state: Any, **more: Any) -> Any:
        done = await moves(job_id, state, **more)
        if state == ends:  # on the disk already, and nobody has heard
            ending.set()
            await asyncio.sleep(0)
        return done

    async def at_once(_: Any) -> None:
        pass

    monkeypatch.setattr(jobs.ledger, "move", move)
    if ends == "done":
        monkeypatch.setattr(jobs.driver, "_run", at_once)
    async with begun(jobs):
        job = await one(jobs, digest)
        await asyncio.wait_for(ending.wait(), 10)
        assert (await jobs.cancel(job.job_id)).state == ends
        row = await jobs.ledger.job(job.job_id)
        assert row is not None
        assert row.state == ends


# What the next head finds


async def test_a_job_keeps_its_owner_over_a_restart(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        mine = await one(jobs, digest, user="ann", shared=True)
        assert (mine.owner, mine.shared) == ("ann", True)
        assert (await one(jobs, digest)).owner is None
    async with begun(service(home, driven=False)) as later:
        found = {job.job_id: (job.owner, job.shared) for job in await later.list()}
        assert found.pop(mine.job_id) == ("ann", True)
        assert list(found.values()) == [(None, False)]


async def test_jobs_that_ran_go_on_under_the_next_head_before_those_that_waited(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        ran = [(await one(jobs, digest, user="ann")).job_id for _ in range(RUNNING_MAX)]
        for job_id in ran:
            await reached(jobs, job_id, "running")
        waits = await one(jobs, digest, user="ann")
    async with begun(service(home, driven=False)) as later:
        assert [(await later.show(job_id)).state for job_id in ran] == ["running"] * RUNNING_MAX
        assert (await later.show(waits.job_id)).state == "queued"
        assert [e["kind"] for e in await later.events(ran[0], 0, 0)] == ["state", "resumed"]
        await later.cancel(ran[3])
        await reached(later, waits.job_id, "running")


async def test_a_command_s_own_head_ends_its_jobs_and_leaves_those_of_a_head_that_stays(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        stays = await one(jobs, digest)
        await reached(jobs, stays.job_id, "running")
    async with begun(service(home, driven=False, embedded=True)) as short:
        own = await one(short, digest)
        await reached(short, own.job_id, "running")
        assert [e["kind"] for e in await short.events(stays.job_id, 0, 0)] == ["state"], "it is left alone"
    async with begun(service(home, driven=False)) as later:
        assert (await later.show(own.job_id)).state == "cancelled"
        assert (await later.show(stays.job_id)).state == "running"


async def test_what_ended_with_its_command_s_killed_head_is_lost_and_can_be_retried(home: Home, digest: str) -> None:
    killed = service(home, driven=False, embedded=True)
    await killed.begin()
    job = await one(killed, digest)
    for task in [*killed._tasks.values(), *killed._followers]:
        task.cancel()
    await killed.ledger.close()
    async with begun(service(home, driven=False)) as later:
        status = await later.show(job.job_id)
        assert (status.state, status.exit_code) == ("lost", 104)
        assert (await later.retry(job.job_id)).state == "queued"
        await reached(later, job.job_id, "running")


async def test_a_ledger_that_is_gone_is_made_again_from_what_lies_beside_it(home: Home, digest: str) -> None:
    async with begun(service(home)) as jobs:
        failed = await reached(jobs, (await one(jobs, digest, user="ann", key="k")).job_id, "failed")
    for file in home.root.glob("ledger.db*"):
        file.unlink()
    async with begun(service(home)) as later:
        found = await later.show(failed.job_id)
        assert (found.state, found.error, found.owner) == (failed.state, failed.error, "ann")
        again = await later.submit({"workload": digest, "operates": True, "user": "ann", "key": "k"})
        assert (again.created, again.jobs[0].job_id) == (False, failed.job_id)


# The same submission again


async def test_the_same_key_again_gives_the_same_job_also_under_the_next_head(home: Home, digest: str) -> None:
    request = {"workload": digest, "operates": True, "user": "ann", "key": "k", "params": {"count": 3}}
    async with begun(service(home, driven=False)) as jobs:
        first, again = await jobs.submit(request), await jobs.submit(request)
        assert (first.created, again.created) == (True, False)
        assert first.jobs[0].job_id == again.jobs[0].job_id
        with pytest.raises(KeyReused):
            await jobs.submit({**request, "params": {"count": 4}})
        assert (await jobs.submit({**request, "user": "bob"})).created, "another user's key is another key"
    async with begun(service(home, driven=False)) as later:
        assert (await later.submit(request)).jobs[0].job_id == first.jobs[0].job_id


@pytest.mark.parametrize("array", [None, [{"count": 1}, {"count": 2}]])
async def test_a_key_that_is_sent_many_times_at_once_gives_one_job(home: Home, digest: str, array: Any) -> None:
    request = {"workload": digest, "operates": True, "key": "k", "array": array}
    async with begun(service(home, driven=False)) as jobs:
        answers = await asyncio.gather(*(jobs.submit(request) for _ in range(8)))
        assert sum(answer.created for answer in answers) == 1
        (ids,) = {tuple(job.job_id for job in answer.jobs) for answer in answers}
        assert [job.job_id for job in await jobs.list()] == sorted(ids)
        assert len(ids) == len(array or [0])
        for job_id in ids:
            await reached(jobs, job_id, "running")
            assert jobs.driver.cancelled == set()
            assert (await jobs.cancel(job_id)).state == "cancelled", "the record that is driven is the one that is told of"


async def test_a_submission_sent_again_counts_against_no_quota(home: Home, tmp_path: Path) -> None:
    told = settings(roots=(tmp_path,), jobs=1, submissions_per_minute=1)
    async with begun(service(home, driven=False, told=told)) as jobs:
        request = {"workload": "embed-codebase", "user": "ann", "key": "k", "params": {"path": [str(tmp_path)]}}
        first = await jobs.submit(request)
        assert (await jobs.submit(request)).jobs[0].job_id == first.jobs[0].job_id


# One after another


async def test_a_job_waits_for_those_it_follows_and_begins_when_they_are_done(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = service(home)
    go = asyncio.Event()

    async def run(_: Any) -> None:
        await go.wait()

    monkeypatch.setattr(jobs.driver, "_run", run)
    async with begun(jobs):
        first = await one(jobs, digest)
        second = await one(jobs, digest, after=[first.job_id])
        third = await one(jobs, digest, after=[first.job_id, second.job_id])
        await reached(jobs, first.job_id, "running")
        assert [(await jobs.show(job.job_id)).state for job in (second, third)] == ["queued"] * 2
        go.set()
        assert (await reached(jobs, third.job_id, "done")).state == "done"
        assert (await jobs.show(second.job_id)).state == "done"
        assert (await one(jobs, digest, after=[first.job_id])).state in {"queued", "running"}, "also after what is long done"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_what_follows_a_job_that_ends_otherwise_fails_with_its_name_all_along_the_chain(home: Home, digest: str, end: str) -> None:
    async with begun(service(home, driven=end == "failed")) as jobs:
        first = await one(jobs, digest)
        chain = [first.job_id]
        for _ in range(12):
            chain.append((await one(jobs, digest, after=chain[-1:])).job_id)
        if end == "cancelled":
            await jobs.cancel(first.job_id)
        await reached(jobs, first.job_id, end)
        for before, job_id in itertools.pairwise(chain):
            status = await reached(jobs, job_id, "failed")
            assert status.error is not None
            assert status.error["code"] == "dependency_failed"
            assert before in status.error["message"]


async def test_a_job_that_follows_an_unknown_one_is_refused(home: Home, digest: str) -> None:
    async with begun(service(home)) as jobs:
        with pytest.raises(NoSuchJob):
            await one(jobs, digest, after=["nothing"])
        assert await jobs.list() == []


async def test_a_submitter_learns_nothing_of_others_jobs_by_following_them(home: Home, digest: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    async with begun(service(home, driven=False, told=settings(roots=(tmp_path / "in",)))) as jobs:
        hers = await one(jobs, digest, user="ann")
        request = {"workload": "embed-codebase", "user": "bob", "params": {"path": [str(tmp_path / "in")]}}
        with pytest.raises(NoSuchJob):
            await jobs.submit({**request, "after": [hers.job_id]})


async def test_an_array_is_one_acceptance_of_many_jobs(home: Home, digest: str) -> None:
    async with begun(service(home, driven=False)) as jobs:
        made = await jobs.submit({"workload": digest, "operates": True, "params": {"count": 9}, "array": [{"count": 1}, {}]})
        assert made.array_id == made.jobs[0].job_id
        assert [job.params for job in made.jobs] == [{"count": 1}, {"count": 9}]
        rows = [await jobs.ledger.job(job.job_id) for job in made.jobs]
        assert [row and row.array_id for row in rows] == [made.array_id] * 2


# Once more


async def test_a_job_is_started_again_by_itself_as_often_as_it_says(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpunet_dask.jobs.driving.RETRY_S", 0.0)
    async with begun(service(home)) as jobs:
        job = await one(jobs, digest, retry=2)
        await reached(jobs, job.job_id, "failed")
        row = await jobs.ledger.job(job.job_id)
        assert row is not None
        assert row.tries == 3
        kinds = [e["kind"] for e in await jobs.events(job.job_id, 0, 0)]
        assert (kinds.count("again"), kinds.count("state")) == (2, 2), "it does not end in between for those who wait"


async def test_only_what_has_ended_otherwise_than_well_runs_again(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = service(home)
    fails = True
    really = jobs.driver._run

    async def run(record: Any) -> None:
        if fails:
            await really(record)

    monkeypatch.setattr(jobs.driver, "_run", run)
    async with begun(jobs):
        job = await one(jobs, digest)
        await reached(jobs, job.job_id, "failed")
        fails = False
        again = await jobs.retry(job.job_id)
        assert (again.error, again.exit_code) == (None, 0)
        assert (await reached(jobs, job.job_id, "done")).error is None
        with pytest.raises(UsageError):
            await jobs.retry(job.job_id)


# What the scheduler tells


async def test_placements_are_read_once_and_from_the_beginning_of_a_new_scheduler(home: Home) -> None:
    dask = FakeScheduler()
    async with begun(service(home, dask)) as jobs:
        await jobs._copy_placements()
        dask.fails = True  # a slow answer is no new scheduler: what was read must not be read again
        await jobs._copy_placements()
        dask.fails = False
        await jobs._copy_placements()
        await jobs.scheduler_lost("the scheduler ended")
        await jobs._copy_placements()
    assert dask.since == [0, 7, 7, 0]


# Models


async def test_a_job_is_refused_another_users_model_before_anything_else(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    text = 'version: 1\nname: one\nparams: {model: {type: model}}\nstages: {read: {run: "stages:Read"}}\n'
    digest = stored(home, tmp_path / "workload", text)
    monkeypatch.setattr("dgpunet_dask.jobs.accepting.shipped_digests", lambda: {digest: tmp_path / "workload"})

    async def ended(jobs: JobService, name: str | Path, **who: Any) -> str:
        status: JobStatus = await reached(jobs, (await one(jobs, digest, params={"model": str(name)}, **who)).job_id, "failed")
        assert status.error is not None
        return f"{status.exit_code} {status.error['code']}"

    async with begun(service(home, told=settings(roots=(model,)))) as jobs:
        no_agent = await ended(jobs, "minilm", user="ann")
        assert no_agent.startswith("100 ")
        assert jobs.models.list(User(operates=True)) == []
        for who, end in (("ann", no_agent), ("bob", "2 not_allowed"), ("ann", no_agent)):
            assert await ended(jobs, model, user=who, operates=False) == end
        assert await ended(jobs, model, user="root") == no_agent
        (info,) = jobs.models.list(User(operates=True))
        assert (info.owner, info.shared, info.name) == ("ann", False, str(model))
        jobs.models.share(info.id, User("ann"), shared=True)
        assert await ended(jobs, model, user="bob", operates=False) == no_agent


