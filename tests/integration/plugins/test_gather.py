"""How Dask's client fetches results for many at once, and what a caller that is cancelled does to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from distributed import Client, Future, wait

from dgpunet_dask.jobs.flights import SchedulerGone, fetched
from dgpunet_dask.testing.placement import card, placed_cluster


def double(number: int) -> int:
    return 2 * number


@dataclass(frozen=True)
class Crowd:
    """A client that fetches as much at once as it may, and finished tasks: whoever fetches now waits until `over`."""

    client: Client
    futures: list[Future]
    over: asyncio.Event


@asynccontextmanager
async def crowded() -> AsyncIterator[Crowd]:
    """Give a crowd."""
    async with placed_cluster(card("a", 8)) as cluster, asyncio.TaskGroup() as group:
        futures = [cluster.client.submit(double, number) for number in range(3)]
        await wait(futures)
        over = asyncio.Event()

        async def holds() -> None:
            async with cluster.client._gather_semaphore:
                await over.wait()

        for _ in range(5):
            group.create_task(holds())
        await asyncio.sleep(0)
        yield Crowd(cluster.client, futures, over)


async def begun(*calls: Any) -> list[asyncio.Task[Any]]:
    """Return tasks that wait for their turn to fetch, all in one request."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_a_caller_that_is_cancelled_while_it_waits_to_fetch_poisons_the_client() -> None:
    async with crowded() as crowd:
        first, second = await begun(*crowd.futures[:2])
        first.cancel()
        await asyncio.wait([first, second], timeout=5)
        assert second.cancelled(), "nobody has cancelled it"
        crowd.over.set()
        await asyncio.sleep(0.1)
        (third,) = await begun(crowd.futures[2])
        await asyncio.wait([third], timeout=5)
        assert third.cancelled(), "nor this one, which began long after"
        crowd.client._gather_future = None  # so that it may end


async def test_a_unit_s_result_that_nobody_waits_for_any_more_costs_no_other_its_own() -> None:
    async with crowded() as crowd:
        first, second = await begun(*(fetched(future) for future in crowd.futures[:2]))
        first.cancel()
        await asyncio.wait([first])
        crowd.over.set()
        assert (await second, await fetched(crowd.futures[2])) == (2, 4)
        assert first.cancelled()


async def test_a_fetching_that_others_have_cancelled_is_no_end_of_the_caller() -> None:
    async with crowded() as crowd:
        first, second = await begun(crowd.futures[0], fetched(crowd.futures[1]))
        first.cancel()
        with pytest.raises(SchedulerGone):
            await second
        crowd.over.set()
        crowd.client._gather_future = None
