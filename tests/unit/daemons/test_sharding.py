from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch
from dgpunet_dask.daemons.sharding import Sharding, sharding_over
from dgpunet_dask.retrieval.shards import Sizes
from dgpunet_dask.retrieval.spread import Source, Spreading

VECTORS = np.eye(8, dtype=np.float32)


class Nobody:
    """A cluster that must not be spoken to."""

    def __init__(self):
        self.calls = 0

    async def addresses(self):
        self.calls += 1
        raise OSError("no scheduler")

    async def call(self, address, name, **arguments):
        raise AssertionError(name)


def source(rows=8, digest="d"):
    return Source("x", "s", digest, Path("/nowhere"), 0, VECTORS[:rows], lambda vector, count: np.arange(count))


async def within(predicate, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not predicate():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)


async def test_nothing_is_spoken_until_a_large_segment_is_opened():
    nobody, own = Nobody(), object()
    sharding = Sharding(nobody, lambda total: total, Sizes(least_rows=8, shard_rows=5))
    running = asyncio.create_task(sharding.run())
    await asyncio.sleep(0)
    assert sharding.spread(source(rows=4), own) is own
    small = sharding.spread(source(rows=7, digest="small"), own)
    assert isinstance(small, Spreading)
    for _ in range(20):  # as often as the loop turns, it has nothing to do
        await asyncio.sleep(0)
    assert sharding.spread(source(digest=""), own) is own
    assert (nobody.calls, sharding.status()) == (0, [])
    del small
    large = sharding.spread(source(), None)
    assert isinstance(large, Spreading)
    await within(lambda: nobody.calls)
    [told] = sharding.status()
    assert (told["index"], told["held"], told["copies"], told["workers"], told["asked"]) == ("x", 0, 0, {}, False)
    assert (await asyncio.to_thread(large.nearest, VECTORS[0], 2)).tolist() == [0, 1]  # without workers it is scanned here
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await asyncio.to_thread(large.nearest, VECTORS[0], 2)).tolist() == [0, 1]
    del large
    await within(lambda: sharding.status() == [])  # the thread lets go of what it ran a moment after its answer
    parts = [sharding.spread(source(rows=5, digest=name), None) for name in "ef"]  # together they are large
    assert [told["chunks"] for told in sharding.status()] == [5, 5]
    del parts
    assert sharding.summary() == {"segments": 0, "bytes": 0, "workers": {}}


def test_the_settings_in_force_say_what_a_worker_may_hold(tmp_path):
    home = Home(tmp_path / "h").ensure()
    watch = SettingsWatch(home.config)
    allowed = sharding_over(lambda: None, watch)._allowance
    assert allowed(800) == 100
    home.config.write_text("version: 1\nsearch: {resident_percent: 50}\n")
    watch.load()
    assert allowed(800) == 400
    home.config.write_text("version: 1\nsearch: {resident_percent: 0}\n")
    watch.load()
    assert allowed(800) == 0
