"""Segments that lie resident on workers in processes of their own, which are killed and stopped."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from dgpunet_dask.daemons.lifeline import wait_until
from dgpunet_dask.daemons.sharding import DaskWorkers, Sharding
from dgpunet_dask.model.fleet import Host
from dgpunet_dask.plugins.shards import ShardWorker
from dgpunet_dask.plugins.worker import LIGHT
from dgpunet_dask.retrieval.opened import _Dense
from dgpunet_dask.retrieval.shards import Sizes
from dgpunet_dask.retrieval.spread import Spreading
from dgpunet_dask.testing.placement import CONFIG, DEADLINE_S
from tests.unit.retrieval.test_scans import segment, unit

pytestmark = pytest.mark.long

ROWS, DIMENSION = 12_000, 24
SIZES = Sizes(least_rows=ROWS, shard_rows=1000, core_rows=ROWS)
SHARDS = ROWS // SIZES.shard_rows
SHARD_BYTES = SIZES.shard_rows * DIMENSION * 2
RAM_MIB = 64


@dataclass
class Setting:
    """A cluster whose workers hold one segment, as a head sees it."""

    cluster: SpecCluster
    sharding: Sharding
    dense: _Dense
    plain: _Dense
    allowed: dict[str, float] = field(default_factory=lambda: {"share": 1.0})

    async def until(self, look: Callable[[], bool], what: str, within_s: float = DEADLINE_S) -> None:
        """Wait until `look` is true."""
        assert await asyncio.to_thread(wait_until, look, within_s), f"not within {within_s:g} s: {what}; {self.told}"

    @property
    def told(self) -> dict[str, Any]:
        [found] = self.sharding.status()
        return found

    def complete(self) -> bool:
        return bool(self.told["copies"] == 2 * SHARDS and self.told["asked"])

    def pid(self, name: str) -> int:
        return int(self.cluster.workers[name].process.pid)

    def same(self, seed: int, count: int = 50) -> None:
        """Search both ways, in a thread of its own, and compare."""
        vector = unit(DIMENSION, seed)
        assert self.dense.nearest(vector, count, None) == self.plain.nearest(vector, count, np.arange(ROWS))


@asynccontextmanager
async def running(folder: Path, names: str = "abc") -> AsyncIterator[Setting]:
    workers = {
        name: {
            "cls": Nanny,
            "options": {
                "name": f"{name}/cpu", "nthreads": 1, "dashboard": False, "resources": {LIGHT: 4},
                "plugins": (ShardWorker(Host(name=name, cpus=2, ram_mib=RAM_MIB)),),
            },
        }
        for name in names
    }  # fmt: skip
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "port": 0}}
    with dask.config.set(CONFIG):
        async with SpecCluster(workers, scheduler, asynchronous=True, silence_logs=False) as cluster, Client(cluster, asynchronous=True) as client:
            allowed = {"share": 1.0}
            sharding = Sharding(DaskWorkers(lambda: client), lambda total: int(total * allowed["share"]), SIZES)
            made = Setting(cluster, sharding, _Dense(folder, "x", sharding.spread), _Dense(folder), allowed)
            task = asyncio.create_task(sharding.run())
            try:
                yield made
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segment(tmp_path_factory.mktemp("shards") / uuid.uuid4().hex, unit((ROWS, DIMENSION)))


async def test_a_large_segment_is_held_twice_and_finds_what_the_exact_scan_finds(folder: Path) -> None:
    async with running(folder) as now:
        assert isinstance(now.dense._scan, Spreading)
        await asyncio.to_thread(now.same, 1)  # before anybody holds it
        await now.until(now.complete, "two copies of each")
        assert now.told["bytes"] == 2 * SHARDS * SHARD_BYTES
        assert len(now.told["workers"]) == 3
        for seed in range(2, 30):
            await asyncio.to_thread(now.same, seed)
        assert now.sharding._pace._recent
