"""A scheduler that was started again counts on the devices of the one before it, for a while."""

from __future__ import annotations

from dataclasses import replace

import dask
import pytest
from distributed import Client, Scheduler

from dgpunet_dask.errors import Unplaceable
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.plugins import hosts
from dgpunet_dask.plugins.scheduler import PlacementPlugin
from dgpunet_dask.testing.placement import GIB, card, placed_cluster, work

BIG = {"vram": "20GiB"}
A0, B0 = card("a0", 8, host="a"), card("b0", 24, host="b")
EARLIER = Fleet((Host(name="a", cpus=4, ram_mib=64 * GIB), Host(name="b", cpus=4, ram_mib=64 * GIB)), (A0, B0))


def submit(cluster, demand):
    with dask.annotate(demand=demand):
        return cluster.client.submit(work, pure=False)


async def test_what_only_an_expected_device_can_hold_waits_for_it_and_runs_there():
    async with placed_cluster(A0) as cluster:
        hosts.expect(cluster.plugin, EARLIER)
        future = submit(cluster, BIG)
        await cluster.until(lambda: cluster.plugin.records)
        assert await submit(cluster, {"vram": "1GiB"}) == "a0", "what can go elsewhere does not wait"
        told = await cluster.client.scheduler.dgpunet_explain(key=future.key)
        assert (told["outcome"], told["verdicts"]["b0"][0]["code"]) == ("wait", "lost")
        assert (await cluster.fleet())["states"] == {"b0": "lost"}
        await cluster.add_worker("b0", [B0])
        assert await future == "b0"
        assert cluster.plugin.book.expected == set()


async def test_what_is_pinned_to_a_host_waits_for_the_rest_of_that_host():
    earlier = Fleet(EARLIER.hosts, (A0, card("a1", 24, host="a")))
    async with placed_cluster(A0) as cluster:
        hosts.expect(cluster.plugin, earlier)
        with dask.annotate(demand=BIG):
            future = cluster.client.submit(work, pure=False, workers=["127.0.0.1"])
        await cluster.until(lambda: cluster.plugin.records)
        told = await cluster.client.scheduler.dgpunet_explain(key=future.key)
        assert told["outcome"] == "wait"
        await cluster.add_worker("a1", [card("a1", 24, host="a")])
        assert await future == "a1"


async def test_a_card_that_was_cordoned_takes_nothing_before_the_head_has_said_so_again():
    async with placed_cluster(plugin=False) as cluster:
        await cluster.client.register_plugin(PlacementPlugin(expected=replace(EARLIER, states={"b0": "cordoned"})))
        await cluster.add_worker("b0", [B0])
        await cluster.add_worker("a0", [A0])
        assert await submit(cluster, {"vram": "1GiB"}) == "a0"
        assert (await cluster.client.scheduler.dgpunet_fleet())["states"] == {"b0": "cordoned"}


async def test_what_has_not_come_back_by_the_deadline_is_not_counted_on_any_more():
    async with placed_cluster(A0) as cluster:
        hosts.expect(cluster.plugin, EARLIER, seconds=0.2)
        with pytest.raises(Unplaceable) as refused:
            await submit(cluster, BIG)
        assert [v["code"] for v in refused.value.fields["verdicts"]] == ["vram_total"]
        assert {device["name"] for device in (await cluster.fleet())["devices"]} == {"a0"}


async def test_what_came_back_and_was_lost_again_stays_lost_after_the_deadline():
    async with placed_cluster(A0) as cluster:
        await cluster.add_worker("b0", [B0])
        hosts.expect(cluster.plugin, Fleet(EARLIER.hosts, (B0, card("c0", 8, host="b"))), seconds=0.05)
        await cluster.client.scheduler.dgpunet_lose(host="b")
        await cluster.until(lambda: "c0" not in cluster.plugin.book.pool)
        assert (await cluster.fleet())["states"] == {"b0": "lost"}


CPU = Device(name="a/cpu", host="a", kind="cpu")
SOME = {"vram": "1GiB", "cpu_ok": True}


async def test_work_that_a_cpu_could_do_waits_a_little_for_the_card_that_has_it_loaded():
    async with placed_cluster(CPU) as cluster:
        hosts.expect(cluster.plugin, EARLIER)
        future = submit(cluster, SOME)
        assert await submit(cluster, {"gpus": 0}) == "a/cpu", "this is not for a card"
        told = await cluster.client.scheduler.dgpunet_explain(key=future.key)
        assert (told["outcome"], told["waits_for"], told["state"]) == ("wait", "a0", "no-worker")
        await cluster.add_worker("b0", [B0])
        assert await future == "b0", "and not for a better one"


async def test_work_waits_a_little_for_the_card_that_has_its_stage_loaded():
    loaded = Charge(holder="e1", device="b0", vram_mib=GIB, kind="resident", stage="embed", evictable=True)
    async with placed_cluster(CPU) as cluster:
        hosts.expect(cluster.plugin, EARLIER.with_charges([loaded]))
        future = submit(cluster, {**SOME, "stage": "embed"})
        await cluster.add_worker("a0", [A0])
        assert await submit(cluster, {**SOME, "stage": "another"}) == "a0"
        await cluster.add_worker("b0", [B0])
        assert await future == "b0"
        assert cluster.charges("resident") == {"b0": ["e1"]}
        cluster.plugin.book.set_residents("b0", [])
        assert cluster.charges("resident") == {}, "what its worker says counts"


async def test_work_that_a_cpu_could_do_is_done_there_where_no_card_comes():
    async with placed_cluster(CPU) as cluster:
        hosts.expect(cluster.plugin, EARLIER, cards_first_s=0.1)
        assert await submit(cluster, SOME) == "a/cpu"
        assert cluster.plugin.book.expected == {"a0", "b0"}


async def test_facts_of_the_worker_take_the_place_of_what_was_expected():
    async with placed_cluster(A0) as cluster:
        hosts.expect(cluster.plugin, EARLIER)
        await cluster.client.scheduler.dgpunet_hold(holds={"b0": "cordoned"})
        await cluster.add_worker("b0", [card("b0", 12, host="b")])
        await cluster.until(lambda: not cluster.plugin.book.expected)
        assert (await cluster.fleet())["states"] == {"b0": "cordoned"}
        with pytest.raises(Unplaceable):
            await submit(cluster, BIG)


async def test_a_scheduler_starts_with_what_its_plugin_is_to_expect():
    async with Scheduler(dashboard=False, host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
        await scheduler.register_scheduler_plugin(PlacementPlugin(expected=EARLIER), idempotent=True)
        async with Client(scheduler.address, asynchronous=True) as client:
            assert (await client.scheduler.dgpunet_fleet())["states"] == {"a0": "lost", "b0": "lost"}
            assert list(await client.scheduler.dgpunet_forget(devices=["b0"])) == ["b0"]
            assert set((await client.scheduler.dgpunet_fleet())["states"]) == {"a0"}
