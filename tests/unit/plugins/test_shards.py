from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.model.fleet import Host
from dgpunet_dask.plugins import shards
from dgpunet_dask.plugins.shards import DIFFERENT, FULL, HELD, UNREADABLE, ShardWorker, digest_of, encoded

ROWS, DIMENSION = 300, 8
SIZE_BYTES = ROWS * DIMENSION * 2
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(np.float32)
CODES = encoded(VECTORS)
SHARD = {"key": "s", "rows": ROWS, "dimension": DIMENSION, "digest": digest_of(CODES)}


@pytest.fixture
async def worker():
    found = ShardWorker(Host(name="a", cpus=1))
    found.setup(SimpleNamespace(handlers={}))
    yield found
    found.teardown(SimpleNamespace())


def test_it_speaks_for_what_the_host_is_said_to_have_and_no_more_than_there_is():
    told = ShardWorker(Host(name="a", cpus=10**6, ram_mib=1)).dgpunet_shards
    real = ShardWorker(Host(name="a", ram_mib=10**9))
    assert (ShardWorker(Host(name="a", cpus=1)).cores, real.cores) == (1, usable_cpus())
    assert (ShardWorker(Host(name="a", ram_mib=1)).ram_bytes, real.ram_bytes) == (1 << 20, psutil.virtual_memory().total)
    assert callable(told)


def test_float16_is_rounded_as_numpy_does_it():
    assert encoded(np.zeros((0, 3), np.float32)).shape == (0, 3)
    large = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    assert (encoded(large) == large.astype("<f2").view(np.uint16)).all()


async def test_what_is_held_is_scanned_and_what_is_not_is_named(worker):
    assert worker.dgpunet_shards()["held"] == {}
    assert await worker.dgpunet_shard_hold(**SHARD, room_bytes=SIZE_BYTES, codes=CODES) == HELD
    assert worker.dgpunet_shards() == {"host": "a", "cores": 1, "ram_bytes": worker.ram_bytes, "held": {"s": SIZE_BYTES}}
    vector = VECTORS[7] / np.linalg.norm(VECTORS[7])
    answer = await worker.dgpunet_shard_search(["s", "t"], vector.tobytes(), 10**6)
    assert answer["missing"] == ["t"]
    scores, rows = np.frombuffer(answer["found"]["s"][0], np.float32), np.frombuffer(answer["found"]["s"][1], np.int64)
    assert sorted(rows.tolist()) == list(range(ROWS))
    np.testing.assert_allclose(scores, (CODES.view("<f2").astype(np.float32) @ vector)[rows], atol=1e-4)
    worker.dgpunet_shard_drop(["s", "t"])
    assert worker.dgpunet_shards()["held"] == {}


async def test_it_reads_a_file_of_its_own_host(worker, tmp_path):
    (tmp_path / "v").write_bytes(b"12345678" + VECTORS.tobytes())
    assert await worker.dgpunet_shard_hold(**SHARD, room_bytes=SIZE_BYTES, file=str(tmp_path / "v"), offset=8) == HELD
    answer = await worker.dgpunet_shard_search(["s"], VECTORS[7].tobytes(), 1)
    assert len(answer["found"]["s"][1]) == 8


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"codes": CODES, "room_bytes": SIZE_BYTES - 1}, FULL),
        ({"codes": encoded(VECTORS + 1)}, DIFFERENT),
        ({"codes": CODES[:-1]}, DIFFERENT),
        ({"codes": CODES, "digest": "0" * 32}, DIFFERENT),
        ({"file": "/nowhere/vectors.faiss"}, UNREADABLE),
        ({"file": __file__, "offset": 10**9}, UNREADABLE),
    ],
)
async def test_what_it_cannot_hold_it_refuses(worker, changes, wanted):
    assert await worker.dgpunet_shard_hold(**{**SHARD, "room_bytes": SIZE_BYTES, **changes}) == wanted
    assert worker.dgpunet_shards()["held"] == {}


async def test_what_is_on_its_way_counts_and_is_not_taken_twice(worker):
    calls = [worker.dgpunet_shard_hold(**{**SHARD, "key": key}, room_bytes=SIZE_BYTES, codes=CODES) for key in ("s", "s", "t")]
    assert sorted(await asyncio.gather(*calls)) == [FULL, FULL, HELD]
    assert await worker.dgpunet_shard_hold(**SHARD, room_bytes=SIZE_BYTES, codes=CODES) == HELD  # it is there
    assert worker.dgpunet_shards()["held"] == {"s": SIZE_BYTES}


async def test_what_no_head_asks_for_is_let_go_of(worker, monkeypatch):
    monkeypatch.setattr(shards, "LEASE_S", 0.05)
    assert await worker.dgpunet_shard_hold(**SHARD, room_bytes=SIZE_BYTES, codes=CODES) == HELD
    async with asyncio.timeout(20):
        while worker.held:  # noqa: ASYNC110  # looking at it by a call would renew the lease
            await asyncio.sleep(0.01)
