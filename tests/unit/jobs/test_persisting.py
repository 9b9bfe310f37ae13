"""Steps that come to their end."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.errors import DiskFull, JobFailed, OutOfFiles
from dgpunet_dask.jobs.persisting import to_its_end, written


@pytest.mark.parametrize("short", [DiskFull(path="x"), OutOfFiles(why="x")])
async def test_a_step_is_done_again_until_there_is_room(short: JobFailed) -> None:
    full, waits = [1, 2, 3], []

    async def step() -> str:
        if full:
            full.pop()
            raise short
        return "done"

    async def wait(*seconds: float) -> None:
        waits.append(seconds)

    assert await written(step, wait, wait) == "done"
    assert len(waits) == 6


async def test_other_failures_are_the_caller_s() -> None:
    async def step() -> None:
        raise JobFailed(why="-")

    with pytest.raises(JobFailed):
        await written(step, lambda: asyncio.sleep(0))


@pytest.mark.parametrize("fails", [False, True])
async def test_work_ends_although_its_caller_is_cancelled_however_often(fails: bool) -> None:
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(1)
        if fails:
            raise JobFailed(why="-")

    caller = asyncio.create_task(to_its_end(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == [1]
