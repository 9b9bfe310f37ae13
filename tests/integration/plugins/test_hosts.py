"""What the head tells a live scheduler about whole hosts: held, lost, expelled, taken out."""

from __future__ import annotations

import dask
import pytest

from dgpunet_dask.testing.placement import Gate, card, gates, placed_cluster, work

SMALL = {"vram": "1GiB"}


def submit(cluster, **options):
    with dask.annotate(demand=SMALL):
        return cluster.client.submit(work, pure=False, **options)


def states(cluster):
    fleet = cluster.plugin.book.pool.fleet()
    return {device.name: fleet.states.get(device.name, "running") for device in fleet.devices}


async def test_held_devices_take_nothing_new_and_go_on_afterwards():
    async with placed_cluster(card("a0", 8, host="a"), card("b0", 4, host="b")) as cluster:
        rpc = cluster.client.scheduler
        await rpc.dgpunet_hold(holds={"a0": "cordoned", "never-seen": "draining"})
        assert await submit(cluster) == "b0"
        await rpc.dgpunet_hold(holds={"a0": "draining", "b0": "cordoned"})
        waiting = submit(cluster)
        await cluster.until(lambda: len(cluster.scheduler.tasks) == 1)
        assert {name: states(cluster)[name] for name in ("a0", "b0")} == {"a0": "draining", "b0": "cordoned"}
        await rpc.dgpunet_hold(holds={})
        assert await waiting in {"a0", "b0"}


async def test_a_hold_outlives_its_worker_and_meets_the_next_one():
    async with placed_cluster(card("a0", 8, host="a"), card("b0", 4, host="b")) as cluster:
        await cluster.client.scheduler.dgpunet_hold(holds={"a0": "cordoned"})
        await cluster.client.scheduler.dgpunet_lose(host="a")
        await cluster.until(lambda: states(cluster)["a0"] == "lost")
        await cluster.add_worker("again", [card("a0", 8, host="a")])
        await cluster.until(lambda: states(cluster)["a0"] == "cordoned")
        assert await submit(cluster) == "b0"


async def test_the_work_of_a_lost_host_is_done_elsewhere():
    gates["door"] = gate = Gate()
    async with placed_cluster(card("a0", 8, host="a"), card("b0", 4, host="b")) as cluster:
        gates["door"] = gate
        future = submit(cluster, gate="door")
        await cluster.until(lambda: gate.entered == 1)
        before = await cluster.client.scheduler.dgpunet_hosts()
        assert (before["a"]["tasks"], before["b"]["tasks"], len(before["a"]["workers"])) == (1, 0, 1)
        lost = await cluster.client.scheduler.dgpunet_lose(host="a")
        assert list(lost) == list(before["a"]["workers"])
        gate.open()
        assert await future == "b0"
        assert set(await cluster.client.scheduler.dgpunet_hosts()) == {"b"}


async def test_a_host_that_is_not_there_is_lost_in_vain():
    async with placed_cluster(card("a0", 8, host="a")) as cluster:
        assert list(await cluster.client.scheduler.dgpunet_lose(host="zz")) == []
        assert await submit(cluster) == "a0"


async def test_devices_are_forgotten_that_no_worker_speaks_for():
    async with placed_cluster(card("a0", 8, host="a"), card("b0", 4, host="b")) as cluster:
        rpc = cluster.client.scheduler
        assert list(await rpc.dgpunet_forget(devices=["a0", "zz"])) == []
        await rpc.dgpunet_lose(host="a")
        cluster.plugin.book.set_residents("a0", [{"stage": "embed", "id": "e1", "mib": 512}])
        assert list(await rpc.dgpunet_forget(devices=["a0", "b0"])) == ["a0"]
        assert set(states(cluster)) == {"b0"}
        assert cluster.charges("resident") == {}
        await cluster.add_worker("back", [card("a0", 8, host="a")])
        await cluster.until(lambda: states(cluster).get("a0") == "running")


@pytest.mark.parametrize("facts", [None, 7, {}, {"host": 5}, {"host": {"name": ["x"]}}, {"host": {"name": {}}, "devices": 1}])
async def test_a_worker_that_announces_nonsense_is_nobodys(facts):
    from distributed import Worker

    async with placed_cluster(card("a0", 8, host="a")) as cluster:
        async with Worker(cluster.scheduler.address) as stranger:
            cluster.scheduler.workers[stranger.address].extra["dgpunet"] = facts
            assert set(await cluster.client.scheduler.dgpunet_hosts()) == {"a"}
            assert list(await cluster.client.scheduler.dgpunet_lose(host="x")) == []
        assert await submit(cluster) == "a0"
