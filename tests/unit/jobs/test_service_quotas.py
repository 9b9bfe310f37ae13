"""Quotas of a head's jobs: what counts, however it comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadValue, OverQuota, PathNotAllowed, TooManyJobs
from dgpunet_dask.jobs.looks import Abandoned
from tests.unit.jobs.services import begun, service, settings


async def test_a_quota_holds_also_for_submissions_that_come_at_once(home: Home, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    request = {"workload": "embed-codebase", "user": "ann", "params": {"path": [str(tmp_path / "in")]}}
    async with begun(service(home, driven=False, told=settings(roots=(tmp_path / "in",), jobs=3))) as jobs:
        answers = await asyncio.gather(*(jobs.submit(request) for _ in range(8)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, TooManyJobs)]
        assert (len(refused), len(await jobs.list())) == (5, 3)
        assert "3 jobs queued or running" in str(refused[0])
        await jobs.cancel((await jobs.list())[0].job_id)
        await jobs.submit(request)
        assert (await jobs.submit({**request, "user": "bob"})).created, "a quota is one user's"
        with pytest.raises(OverQuota):
            await jobs.submit({**request, "user": "carl", "array": [{}] * 4})


async def test_a_job_is_taken_back_within_the_quota_alone(home: Home, tmp_path: Path) -> None:
    request = {"workload": "embed-codebase", "user": "ann", "params": {"path": [str(tmp_path)]}}
    told = settings(roots=(tmp_path,), jobs=2)
    async with begun(service(home, driven=False, told=told)) as jobs:
        ids = []
        for _ in range(6):
            ids.append((await jobs.submit(request)).jobs[0].job_id)
            await jobs.cancel(ids[-1])
        answers = await asyncio.gather(*(jobs.retry(job_id) for job_id in ids), jobs.submit(request), return_exceptions=True)
        assert sum(isinstance(answer, TooManyJobs) for answer in answers) == 5
        live = [job for job in await jobs.list() if job.state in {"queued", "running"}]
        assert len(live) == 2
        assert (await jobs.retry(live[0].job_id)).state in {"queued", "running"}, "one that has not ended is no more work"
        await jobs.cancel(live[0].job_id)
        assert (await jobs.retry(live[0].job_id)).state in {"queued", "running"}


async def test_a_job_that_is_taken_back_is_a_submission(home: Home, tmp_path: Path) -> None:
    request = {"workload": "embed-codebase", "user": "ann", "params": {"path": [str(tmp_path)]}}
    async with begun(service(home, driven=False, told=settings(roots=(tmp_path,), submissions_per_minute=3))) as jobs:
        job_id = (await jobs.submit(request)).jobs[0].job_id
        for _ in range(2):
            await jobs.cancel(job_id)
            await jobs.retry(job_id)
        await jobs.cancel(job_id)
        with pytest.raises(TooManyJobs, match="3 jobs a minute"):
            await jobs.retry(job_id)


async def test_a_key_that_is_sent_many_times_at_once_is_one_job_of_the_quota(home: Home, tmp_path: Path) -> None:
    request = {"workload": "embed-codebase", "user": "ann", "key": "k", "params": {"path": [str(tmp_path)]}}
    async with begun(service(home, driven=False, told=settings(roots=(tmp_path,), jobs=3))) as jobs:
        found = await asyncio.gather(*(jobs.submit(request) for _ in range(12)), jobs.submit({**request, "key": "another"}))
        assert sum(one.created for one in found) == 2
        assert len({job.job_id for one in found[:12] for job in one.jobs}) == 1
        assert not jobs._turns._held, "nobody waits, and nothing is kept"


async def test_submissions_within_a_minute_are_bounded(home: Home, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    request = {"workload": "embed-codebase", "user": "ann", "params": {"path": [str(tmp_path / "in")]}}
    told = settings(roots=(tmp_path / "in",), submissions_per_minute=2)
    async with begun(service(home, driven=False, told=told)) as jobs:
        await jobs.submit({**request, "array": [{}, {}]})
        with pytest.raises(TooManyJobs) as refused:
            await jobs.submit(request)
        assert 0 < refused.value.fields["wait_s"] <= 60


async def test_the_quota_is_looked_at_before_any_path(home: Home, tmp_path: Path) -> None:
    request = {"workload": "embed-codebase", "user": "ann", "params": {"path": [str(tmp_path / "none")]}}
    async with begun(service(home, driven=False, told=settings(jobs=2))) as jobs:
        with pytest.raises(OverQuota):
            await jobs.submit({**request, "array": [{}] * 1000})
        with pytest.raises(BadValue, match="array"):
            await jobs.submit({**request, "array": [{}] * 1001})
        with pytest.raises(PathNotAllowed):
            await jobs.submit(request)


async def test_a_known_key_opens_the_quota_for_no_more_than_what_it_stands_for(home: Home, tmp_path: Path) -> None:
    request = {"workload": "embed-codebase", "user": "ann", "key": "k", "params": {"path": [str(tmp_path)]}}
    async with begun(service(home, driven=False, told=settings(roots=(tmp_path,), jobs=1))) as jobs:
        await jobs.submit(request)
        with pytest.raises(OverQuota):
            await jobs.submit({**request, "array": [{}] * 1000, "params": {"path": [str(tmp_path / "none")]}})
        assert not (await jobs.submit(request)).created


async def test_what_a_submitter_asks_for_is_looked_at_one_after_the_other(home: Home, tmp_path: Path) -> None:
    request = {"workload": "embed-codebase", "params": {"path": [str(tmp_path)]}}
    begins, goes_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stands() -> bool:
        loop.call_soon_threadsafe(begins.set)
        asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result(30)
        return True

    asked: list[str] = []
    async with begun(service(home, driven=False, told=settings(roots=(tmp_path,)))) as jobs:
        first = asyncio.create_task(jobs.submit({**request, "user": "ann"}, stands))
        await begins.wait()
        second = asyncio.create_task(jobs.submit({**request, "user": "ann"}, lambda: bool(asked.append("ann"))))
        assert (await jobs.submit({**request, "user": "bob"})).created, "others do not wait"
        assert asked == []
        goes_on.set()
        with pytest.raises(Abandoned):
            await first
        assert (await second).created
        assert asked
        assert len(await jobs.list()) == 2
