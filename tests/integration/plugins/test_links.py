"""Measured links reach the live scheduler, and decide where inputs are brought."""

import dask
import pytest

from dgpunet_dask.testing.placement import card, placed_cluster, work

GB = 10**9


@pytest.mark.parametrize(("links", "want"), [([["a", "b", 1e8], ["a", "c", 1e9]], "c0"), ([["a", "b", 1e9], ["a", "c", 1e8]], "b0")])
async def test_a_task_goes_where_its_inputs_come_sooner(links, want):
    async with placed_cluster(card("b0", 8, host="b"), card("c0", 8, host="c")) as cluster:
        await cluster.client.scheduler.dgpunet_links(links=links)
        with dask.annotate(demand={"vram": "1GiB", "work": 1.0, "inputs": {"a": 2 * GB}}):
            assert await cluster.client.submit(work, pure=False) == want
