"""Segments that lie resident on workers in processes of their own, which are killed and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster, Status

from dgpunet_dask.daemons.hedging import ANSWER_S
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
    client: Client
    folder: Path
    allowed: dict[str, float] = field(default_factory=lambda: {"share": 1.0})
    states: dict[str, str] = field(default_factory=dict)

    async def fleet(self) -> dict[str, Any]:
        """What the scheduler's plugin would say."""
        return {"states": self.states}

    def __post_init__(self) -> None:
        self.sharding = self.another()
        self.dense, self.plain = _Dense(self.folder, "x", self.sharding.spread), _Dense(self.folder)

    def another(self) -> Sharding:
        """The sharding of another head."""
        return Sharding(DaskWorkers(lambda: self.client, self.fleet), lambda total: int(total * self.allowed["share"]), SIZES)

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
        found, wanted = self.dense.nearest(vector, count, None), self.plain.nearest(vector, count, np.arange(ROWS))
        assert [score for score, _ in found] == [score for score, _ in wanted]
        least = wanted[-1][0]  # of several that are equal there, either will do
        assert [one for one in found if one[0] > least] == [one for one in wanted if one[0] > least]


def spec(name: str) -> dict[str, Any]:
    """What a nanny of a worker is made with."""
    plugin = ShardWorker(Host(name=name, cpus=2, ram_mib=RAM_MIB))
    return {"name": f"{name}/cpu", "nthreads": 1, "dashboard": False, "resources": {LIGHT: 4}, "plugins": (plugin,)}


@asynccontextmanager
async def running(folder: Path, names: str = "abc") -> AsyncIterator[Setting]:
    workers = {name: {"cls": Nanny, "options": spec(name)} for name in names}
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "port": 0}}
    with dask.config.set(CONFIG):
        async with SpecCluster(workers, scheduler, asynchronous=True, silence_logs=False) as cluster, Client(cluster, asynchronous=True) as client:
            made = Setting(cluster, client, folder)
            task = asyncio.create_task(made.sharding.run())
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


class Searching:
    """Threads that search and compare, until told to stop; what went wrong is raised then."""

    def __init__(self, now: Setting, threads: int = 2) -> None:
        self.now, self.stopped, self.count = now, threading.Event(), 0
        self.threads = [asyncio.create_task(asyncio.to_thread(self._run, number)) for number in range(threads)]

    def _run(self, number: int) -> None:
        seed = number
        while not self.stopped.is_set():
            seed += len(self.threads)
            self.now.same(seed)
            self.count += 1

    async def more(self, least: int) -> None:
        """Wait until so many more searches have been answered."""
        wanted = self.count + least
        await self.now.until(lambda: self.count >= wanted or any(task.done() for task in self.threads), f"{least} searches")


@asynccontextmanager
async def searching(now: Setting) -> AsyncIterator[Searching]:
    """Search all the while; at the end the first that was wrong is raised."""
    made = Searching(now)
    try:
        yield made
    finally:
        made.stopped.set()
        await asyncio.gather(*made.threads)


async def test_a_killed_worker_costs_no_answer_and_its_shards_are_held_elsewhere(folder: Path) -> None:
    async with running(folder) as now:
        await now.until(now.complete, "two copies of each")
        before = dict(now.told["workers"])
        async with searching(now) as searches:
            await searches.more(20)
            now.cluster.workers["a"].status = Status.closing_gracefully  # its nanny starts no other
            os.kill(now.pid("a"), signal.SIGKILL)
            await now.until(lambda: now.complete() and "a/cpu" not in now.told["workers"], "two copies of each without it")
            await searches.more(20)
        assert before["a/cpu"] > 0
        assert all(now.told["workers"][name] >= before[name] for name in ("b/cpu", "c/cpu"))


async def test_when_all_are_killed_searches_are_whole_and_a_worker_that_comes_back_holds_its_shards_again(folder: Path) -> None:
    async with running(folder, "ab") as now:
        await now.until(now.complete, "two copies of each")
        async with searching(now) as searches:
            await searches.more(20)
            before = {one.address for one in now.sharding._view.told.values()}
            for name in "ab":
                os.kill(now.pid(name), signal.SIGKILL)  # each has a nanny that starts another
            await searches.more(20)
            await now.until(lambda: now.complete() and not before & {one.address for one in now.sharding._view.told.values()}, "others hold them", 2 * DEADLINE_S)
            await searches.more(20)


async def test_a_worker_that_stands_still_is_not_waited_for(folder: Path) -> None:
    async with running(folder) as now:
        await now.until(now.complete, "two copies of each")
        for seed in range(20):
            await asyncio.to_thread(now.same, seed)  # so that the pace is known
        pid = now.pid("b")
        os.kill(pid, signal.SIGSTOP)
        try:
            loop = asyncio.get_running_loop()
            took = []
            for seed in range(20):
                began = loop.time()
                await asyncio.to_thread(now.same, seed)
                took.append(loop.time() - began)
            assert sorted(took)[len(took) // 2] < ANSWER_S / 2, took
            assert "b/cpu" in now.sharding._late
            await now.until(lambda: now.complete() and "b/cpu" not in now.told["workers"], "its shards are held elsewhere", 2 * DEADLINE_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        await now.until(lambda: now.complete() and "b/cpu" in now.told["workers"], "it takes part again", 2 * DEADLINE_S)
        await asyncio.to_thread(now.same, 99)


async def test_no_worker_holds_more_than_it_may_and_what_it_may_can_change(folder: Path) -> None:
    async with running(folder) as now:
        await now.until(now.complete, "two copies of each")
        may = 5 * SHARD_BYTES
        now.allowed["share"] = (may + 1) / (RAM_MIB << 20)  # room for 15 of 24
        await now.until(lambda: now.told["copies"] == 15, "what they may hold and no more")
        assert all(held == may for held in now.told["workers"].values())
        assert now.told["held"] == SHARDS
        await asyncio.to_thread(now.same, 1)
        now.allowed["share"] = 0.0
        await now.until(lambda: now.told["copies"] == 0, "nothing is held")
        assert not now.told["asked"]
        await asyncio.to_thread(now.same, 2)


async def test_what_a_worker_cannot_read_by_itself_is_sent_to_it(folder: Path, tmp_path: Path) -> None:
    async with running(folder, "ab") as now:
        await now.until(now.complete, "two copies of each")
        elsewhere = replace(now.dense._scan.source, index="y", digest="other", file=tmp_path / "gone")  # type: ignore[union-attr]  # it is `Spreading`
        made = now.sharding.spread(elsewhere, None)
        assert isinstance(made, Spreading)
        await now.until(lambda: [one["copies"] for one in now.sharding.status()] == [2 * SHARDS] * 2, "both are held twice")
        vector = unit(DIMENSION, 5)
        found = await asyncio.to_thread(made.nearest, vector, 50)
        assert set(found.tolist()) == {row for _, row in now.plain.nearest(vector, 50, np.arange(ROWS))}
        del made
        await now.until(lambda: len(now.sharding.status()) == 1, "what is not open any more is let go of")
        await now.until(lambda: now.sharding.summary()["bytes"] == 2 * SHARDS * SHARD_BYTES, "nobody holds it any more")


async def test_a_worker_that_joins_takes_its_share(folder: Path) -> None:
    async with running(folder, "ab") as now:
        await now.until(now.complete, "two copies of each")
        options = dict(spec("c"))
        async with Nanny(now.cluster.scheduler.address, **options):
            await now.until(lambda: now.complete() and "c/cpu" in now.told["workers"], "three share them")
            await asyncio.to_thread(now.same, 3)
            await now.until(lambda: set(now.told["workers"].values()) != {SHARDS * SHARD_BYTES}, "the others let go of something")


async def test_a_cordoned_host_holds_nothing(folder: Path) -> None:
    async with running(folder) as now:
        await now.until(now.complete, "two copies of each")
        now.states["c/cpu"] = "cordoned"
        await now.until(lambda: now.complete() and set(now.told["workers"]) == {"a/cpu", "b/cpu"}, "the others hold its shards")
        await asyncio.to_thread(now.same, 4)
        del now.states["c/cpu"]
        await now.until(lambda: now.complete() and "c/cpu" in now.told["workers"], "it takes part again")


async def test_another_head_finds_what_is_held_and_has_nothing_loaded_anew(folder: Path) -> None:
    async with running(folder, "ab") as now:
        await now.until(now.complete, "two copies of each")
        other = now.another()
        dense = _Dense(folder, "x", other.spread)
        task = asyncio.create_task(other.run())
        await now.until(lambda: other.status()[0]["copies"] == 2 * SHARDS, "it knows")
        assert not other._digests
        assert (await asyncio.to_thread(dense.nearest, unit(DIMENSION, 8), 9, None)) == now.plain.nearest(unit(DIMENSION, 8), 9, np.arange(ROWS))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
