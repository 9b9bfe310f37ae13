"""Resident shards under the certificates of hosts."""

from __future__ import annotations

import asyncio

import numpy as np

from dgpunet_dask.daemons.lifeline import wait_until
from dgpunet_dask.daemons.sharding import DaskWorkers, Sharding
from dgpunet_dask.model.fleet import Host
from dgpunet_dask.plugins.shards import ShardWorker
from dgpunet_dask.plugins.worker import LIGHT
from dgpunet_dask.retrieval.opened import _Dense
from dgpunet_dask.retrieval.shards import Sizes
from tests.integration.cluster.test_dask_security import Site, site  # noqa: F401  # a fixture
from tests.unit.retrieval.test_scans import segment, unit

ROWS, DIMENSION = 9000, 24


async def test_the_head_has_shards_held_and_searched_over_tls(site: Site, tmp_path):  # noqa: F811  # the fixture
    head = site.security("m18", role="head")
    await site.start(head)
    for name in ("xps", "zen"):
        plugin = ShardWorker(Host(name=name, cpus=2))
        await site.worker(site.security(name), name=f"{name}/cpu", resources={LIGHT: 4}, plugins=(plugin,))
    client = await site.client(head)
    sharding = Sharding(DaskWorkers(lambda: client), lambda total: total // 8, Sizes(least_rows=ROWS, shard_rows=1000, core_rows=ROWS))
    running = asyncio.create_task(sharding.run())
    dense = _Dense(segment(tmp_path / "s", unit((ROWS, DIMENSION))), "x", sharding.spread)
    assert await asyncio.to_thread(wait_until, lambda: sharding.status()[0]["copies"] == 18, 20), sharding.status()
    vector = unit(DIMENSION, 5)
    found = await asyncio.to_thread(dense.nearest, vector, 20, None)
    assert found == dense.nearest(vector, 20, np.arange(ROWS))
    assert sharding._pace._recent  # workers have answered
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
