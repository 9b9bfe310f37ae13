"""Measured links reach the live scheduler, and decide where inputs are brought."""

import dask
import pytest

from dgpunet_dask.cluster.fleets import live_fleet
from dgpunet_dask.testing.placement import card, placed_cluster, work

GB = 10**9


@pytest.mark.parametrize(("links", "want"), [([["a", "b", 1e8], ["a", "c", 1e9]], "c0"), ([["a", "b", 1e9], ["a", "c", 1e8]], "b0")])
async def test_a_task_goes_where_its_inputs_come_sooner(links, want):
    async with placed_cluster(card("b0", 8, host="b"), card("c0", 8, host="c")) as cluster:
        await cluster.client.scheduler.dgpunet_links(links=links)
        with dask.annotate(demand={"vram": "1GiB", "work": 1.0, "inputs": {"a": 2 * GB}}):
            assert await cluster.client.submit(work, pure=False) == want


def made(nbytes):
    return bytes(nbytes)


def where(_, **options):
    return work(**options)


async def test_a_large_result_of_another_task_is_an_input():
    """The card beside the result is slower, and still done sooner than the other would have it."""
    async with placed_cluster(card("a0", 8, host="a", speed=1.0), card("b0", 8, host="b", speed=2.0)) as cluster:
        small = {"vram": "1GiB", "work": 1.0}
        source = cluster.client.submit(made, 40_000_000, workers=["a0"], pure=False)
        await source
        with dask.annotate(demand=small):
            assert await cluster.client.submit(where, source, pure=False) == "b0"
        await cluster.client.scheduler.dgpunet_links(links=[["a", "b", 1e7], ["b", "a", 1e7]])
        with dask.annotate(demand=small):
            future = cluster.client.submit(where, source, pure=False, key="beside")
            assert await future == "a0"
        told = await cluster.client.scheduler.dgpunet_explain(key="beside")
        assert told["transfers"]["a"]["seconds"] == 0.0
        assert told["transfers"]["b"]["seconds"] == pytest.approx(4.0, rel=0.2)
        assert told["transfers"]["b"]["from"]["a"]["measured"] is True
        assert live_fleet(await cluster.fleet()).links == {("a", "b"): 1e7, ("b", "a"): 1e7}
        assert cluster.charges() == {}
