"""The same with workers in processes of their own, which can be killed and restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import dask
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

from dgpunet_dask.daemons.lifeline import wait_until
from dgpunet_dask.model.fleet import Host
from dgpunet_dask.plugins.scheduler import NAME, PlacementPlugin
from dgpunet_dask.plugins.worker import DeviceWorker, current_device
from dgpunet_dask.testing.placement import CONFIG, DEADLINE_S, card

pytestmark = pytest.mark.long


@pytest.fixture
async def cluster() -> AsyncIterator[SpecCluster]:
    cards = [card("a", 80), card("b", 24)]
    workers = {
        c.name: {"cls": Nanny, "options": {"nthreads": 2, "plugins": (DeviceWorker(Host(name=c.host), [c]),), "dashboard": False}}
        for c in cards
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "port": 0,
            "preload": ["dgpunet_dask.daemons.scheduler_preload"],
        },
    }  # fmt: skip
    with dask.config.set(CONFIG):
        async with SpecCluster(workers, scheduler, asynchronous=True, silence_logs=False) as running:
            yield running


def plugin_of(cluster: SpecCluster) -> PlacementPlugin:
    found = cluster.scheduler.plugins[NAME]
    assert isinstance(found, PlacementPlugin)
    return found


def where(folder: str, once: bool = False) -> str:
    """Tell where it runs; with `once` the first call tells its process id and never ends."""
    device = current_device()
    told = Path(folder) / "pid"
    if once and not told.exists():
        told.with_suffix(".new").write_text(str(os.getpid()))
        told.with_suffix(".new").rename(told)
        threading.Event().wait()
    return device


async def told_pid(folder: Path) -> int:
    """Return the process id that `where` has told."""
    found = await asyncio.to_thread(wait_until, (folder / "pid").exists, DEADLINE_S)
    assert found
    return int((folder / "pid").read_text())


async def test_a_worker_killed_during_a_call_is_replaced_and_its_task_runs_elsewhere(cluster: SpecCluster, tmp_path: Path) -> None:
    async with Client(cluster, asynchronous=True) as client, asyncio.timeout(3 * DEADLINE_S):
        plugin = plugin_of(cluster)
        with dask.annotate(demand={"vram": "20GiB"}):
            future = client.submit(where, str(tmp_path), once=True)
            pid = await told_pid(tmp_path)
            assert [c.device for c in plugin.book.pool.fleet().charges] == ["a"]
            os.kill(pid, signal.SIGKILL)
            assert await future == "b"
        with dask.annotate(demand={"vram": "40GiB"}):
            assert await client.submit(where, str(tmp_path), pure=False) == "a"  # its nanny has started another
        assert plugin.book.pool.fleet().states == {}


async def test_a_restart_of_all_workers_leaves_a_working_fleet(cluster: SpecCluster, tmp_path: Path) -> None:
    async with Client(cluster, asynchronous=True) as client, asyncio.timeout(3 * DEADLINE_S):
        with dask.annotate(demand={"vram": "20GiB"}):
            held = client.map(where, [str(tmp_path)] * 4, once=True, pure=False)
            await told_pid(tmp_path)
            await client.restart()
            assert all(f.status == "cancelled" for f in held)
            assert plugin_of(cluster).book.pool.fleet().charges == ()
            assert await client.submit(where, str(tmp_path), pure=False) == "a"
