"""What goes wrong while tasks run: lost workers, cancelled calls, paused workers, restarts, late plugins, residents in the way."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from typing import Any

import dask
import pytest
from distributed import Client, secede, wait

from dgpunet_dask.errors import Unplaceable
from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.placement.order import PATIENCE
from dgpunet_dask.plugins.scheduler import PlacementPlugin
from dgpunet_dask.testing.placement import GIB, Gate, PlacedCluster, card, gates, placed_cluster, spans, work


def demand(gib: int, **more: object) -> dict[str, object]:
    return {"vram": f"{gib}GiB", **more}


async def running_task(cluster: PlacedCluster, gib: int = 20, gate: str = "g", **more: Any) -> Any:
    """Start a task and return its future once it runs."""
    gates[gate] = Gate()
    with dask.annotate(demand=demand(gib)):
        future = cluster.client.submit(work, "held", mib=gib * GIB, gate=gate, pure=False, **more)
    await cluster.until(lambda: gates[gate].entered)
    return future


# Loss of workers


async def test_the_loss_of_a_worker_frees_its_charges_and_its_tasks_go_elsewhere() -> None:
    async with placed_cluster(card("a", 80), card("b", 24)) as cluster:
        future = await running_task(cluster)
        assert cluster.charges() == {"a": [future.key]}
        closing = asyncio.create_task(cluster.workers.pop("a").close(timeout=1, executor_wait=False))
        await cluster.until(lambda: cluster.charges() == {"b": [future.key]})
        assert (await cluster.fleet())["states"] == {"a": "lost"}
        gates["g"].open()
        assert await future == "b"
        await closing


async def test_work_that_only_a_lost_device_can_hold_waits_for_it() -> None:
    async with placed_cluster(card("a", 80), card("b", 24)) as cluster:
        await cluster.workers.pop("a").close()
        with dask.annotate(demand=demand(40)):
            future = cluster.client.submit(work)
        await cluster.until(lambda: len(cluster.plugin.pump.queues))
        why = await cluster.client.scheduler.dgpunet_explain(key=future.key)
        assert [v["code"] for v in why["verdicts"]["a"]] == ["lost"]
        await cluster.add_worker("a", [card("a", 80)])
        assert await future == "a"


async def test_a_worker_that_was_retired_takes_its_device_along() -> None:
    async with placed_cluster(card("a", 80), card("b", 24)) as cluster:
        await cluster.client.retire_workers([cluster.workers["a"].address])
        await cluster.until(lambda: len(cluster.plugin.book.pool) == 1)
        with dask.annotate(demand=demand(40)), pytest.raises(Unplaceable):
            await cluster.client.submit(work)


async def test_a_result_lost_with_its_worker_is_computed_again_by_the_ledger() -> None:
    async with placed_cluster(card("a", 80), card("b", 24)) as cluster:
        with dask.annotate(demand=demand(20)):
            first = cluster.client.submit(work, "first")
            assert await first == "a"
            await cluster.workers.pop("a").close()
            assert await cluster.client.submit(len, first) == 1
        assert [entry["device"] for entry in cluster.plugin.pump.log.since(0)] == ["a", "b", "b"]


async def test_a_device_that_two_workers_announce_belongs_to_the_first_until_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        await cluster.add_worker("twin", [card("a", 24)])
        assert "device a is announced by" in caplog.text
        assert cluster.plugin.book.worker_of["a"] == cluster.workers["a"].address
        await cluster.workers.pop("a").close()
        await cluster.until(lambda: cluster.plugin.book.worker_of.get("a") == cluster.workers["twin"].address)
        with dask.annotate(demand=demand(20)):
            assert await cluster.client.submit(work) == "a"


# Cancelled calls


async def test_a_cancelled_call_keeps_its_charge_until_its_worker_reports_the_end() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        future = await running_task(cluster)
        key = future.key
        await future.cancel()
        await cluster.until(lambda: key not in cluster.scheduler.tasks)
        with dask.annotate(demand=demand(20)):
            following = cluster.client.submit(work, "next", mib=20 * GIB, pure=False)
        await cluster.until(lambda: following.key in cluster.scheduler.tasks)
        assert cluster.charges() == {"a": [key]}
        assert (await cluster.fleet())["lingering"] == (key,)
        assert cluster.scheduler.tasks[following.key].state == "no-worker"
        gates["g"].open()
        assert await following == "a"
        assert spans.peak("a") == 20 * GIB
        await cluster.until(lambda: not cluster.charges())


async def test_the_interlock_holds_even_if_the_ledger_forgot_a_cancelled_call() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        future = await running_task(cluster)
        await future.cancel()
        await cluster.until(lambda: cluster.plugin.book.lingering)
        for holder in cluster.plugin.book.lingering:
            cluster.plugin.book.settle(holder)
        with dask.annotate(demand=demand(20)):
            following = cluster.client.submit(work, "next", mib=20 * GIB, pure=False)
        state = cluster.workers["a"].state
        await cluster.until(lambda: following.key in state.tasks)
        assert state.tasks[following.key].state == "constrained"
        gates["g"].open()
        assert await following == "a"
        assert spans.peak("a") == 20 * GIB


async def test_a_cancelled_call_that_had_not_started_frees_its_charge_at_once() -> None:
    async with placed_cluster() as cluster:
        await cluster.add_worker("a", [card("a", 24)], nthreads=1)
        gates["thread"] = Gate()
        busy = cluster.client.submit(gates_only, "thread")
        await cluster.until(lambda: gates["thread"].entered)
        with dask.annotate(demand=demand(20)):
            future = cluster.client.submit(work, pure=False)
        await cluster.until(lambda: cluster.charges() == {"a": [future.key]})
        await future.cancel()
        await cluster.until(lambda: not cluster.charges())
        gates["thread"].open()
        await busy
        assert spans.all == []


def gates_only(name: str) -> None:
    gates[name].pass_through()


async def test_a_cancelled_task_may_be_submitted_again_under_its_key() -> None:
    """After a message of the scheduler's: every client takes its word of the old key's end for that of a new one, if it comes late."""
    async with placed_cluster(card("a", 24), card("b", 24)) as cluster:
        future = await running_task(cluster, key="again")
        await future.cancel()
        await cluster.until(lambda: "again" not in cluster.scheduler.tasks)
        assert await cluster.client.submit(abs, -1) == 1
        gates["second"] = Gate()
        with dask.annotate(demand=demand(20)):
            second = cluster.client.submit(work, "second", key="again", gate="second")
        await cluster.until(lambda: gates["second"].entered)
        assert cluster.charges() == {"a": ["again"], "b": ["again #1"]}
        gates["second"].open()
        assert await second == "b"
        await cluster.until(lambda: cluster.charges() == {"a": ["again"]})
        gates["g"].open()
        await cluster.until(lambda: not cluster.charges())


async def test_a_client_that_leaves_lets_go_of_its_devices() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        async with Client(cluster.scheduler.address, asynchronous=True) as other:
            gates["g"] = Gate()
            with dask.annotate(demand=demand(20)):
                kept = other.map(work, range(3), gate="g", pure=False)
            await cluster.until(lambda: gates["g"].entered)
        await cluster.until(lambda: not cluster.plugin.records)
        gates["g"].open()
        await cluster.until(lambda: not cluster.charges())
        assert len(kept) == 3
        with dask.annotate(demand=demand(20)):
            assert await cluster.client.submit(work) == "a"


async def test_a_call_that_seceded_keeps_its_device() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        gates["g"] = Gate()
        with dask.annotate(demand=demand(20)):
            future = cluster.client.submit(seceding, "g", pure=False)
            await cluster.until(lambda: gates["g"].entered)
            following = cluster.client.submit(work, "next", pure=False)
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 1)
        assert cluster.charges() == {"a": [future.key]}
        await future.cancel()
        await cluster.until(lambda: cluster.plugin.book.lingering)
        assert following.status == "pending"
        gates["g"].open()
        assert await following == "a"


def seceding(gate: str) -> None:
    secede()
    with spans.note(tag="seceded"):
        gates[gate].pass_through()


# Paused workers


async def test_a_paused_worker_gets_nothing_until_it_runs_again() -> None:
    async with placed_cluster(card("a", 80), card("b", 24)) as cluster:
        worker = cluster.workers["a"]
        worker.status = type(worker.status).paused
        await cluster.until(lambda: cluster.plugin.book.pool.slot("a").state == "paused")
        with dask.annotate(demand=demand(20)):
            assert await cluster.client.submit(work, 1) == "b"
        with dask.annotate(demand=demand(40)):
            waiting = cluster.client.submit(work, 2)
        await cluster.until(lambda: len(cluster.plugin.pump.queues))
        worker.status = type(worker.status).running
        assert await waiting == "a"


# Plugin and scheduler come and go


async def test_the_plugin_may_join_a_scheduler_that_has_workers_and_tasks() -> None:
    async with placed_cluster(plugin=False) as cluster:
        await cluster.add_worker("a", [card("a", 24)], nthreads=2)
        gates["g"] = Gate()
        with dask.annotate(demand=demand(20)):
            futures = cluster.client.map(work, range(12), mib=1, gate="g", pure=False)
            after = cluster.client.submit(work, "after", wait_for=futures, mib=1, pure=False)
        await cluster.until(lambda: gates["g"].entered == 2 and after.key in cluster.scheduler.tasks)
        states = {ts.state for ts in cluster.scheduler.tasks.values()}
        assert states == {"processing", "queued", "waiting"}
        await cluster.client.register_plugin(PlacementPlugin())
        assert cluster.scheduler.tasks[futures[-1].key].state == "no-worker"
        processing = [f.key for f in futures if cluster.scheduler.tasks[f.key].state == "processing"]
        assert cluster.charges()["a"] == sorted(processing)
        before = len(processing)
        gates["g"].open()
        assert await after == "a"
        assert spans.peak("a") <= before
        placed = sorted((s for s in spans.all if s.tag not in range(before)), key=lambda s: s.start)
        assert all(one.stop <= other.start for one, other in itertools.pairwise(placed))
        assert len(cluster.plugin.pump.log.since(0)) == len(futures) - before + 1


async def test_the_plugin_is_added_once() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        first = cluster.plugin
        await cluster.client.register_plugin(PlacementPlugin())
        assert cluster.plugin is first


async def test_a_restart_wipes_the_ledger() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        await running_task(cluster)
        with dask.annotate(demand=demand(20)):
            waiting = cluster.client.map(work, range(3), pure=False)
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 3)
        gates["g"].open()
        restarting = asyncio.create_task(cluster.client.restart(wait_for_workers=False))
        await cluster.until(lambda: not cluster.plugin.records and not cluster.plugin.book.worker_of)
        await restarting
        assert len(cluster.plugin.pump.queues) == 0
        assert not cluster.charges()
        assert all(f.status == "cancelled" for f in waiting)
        await cluster.add_worker("a2", [card("a", 24)])
        with dask.annotate(demand=demand(20)):
            assert await cluster.client.submit(work, pure=False) == "a"


async def test_a_failing_hook_is_logged_as_an_error_and_the_scheduler_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        with caplog.at_level(logging.ERROR):
            monkeypatch.setattr(cluster.plugin.pump, "wait", lambda record: 1 / 0)
            with dask.annotate(demand=demand(20)):
                lost = cluster.client.submit(work, 1)
            await cluster.until(lambda: "lost track of" in caplog.text)
            monkeypatch.setattr(cluster.plugin, "_signatures", None)
            with dask.annotate(demand=demand(20)):
                cluster.client.submit(work, 2)
            await cluster.until(lambda: "placement hook update_graph failed" in caplog.text)
        await lost.cancel()
        assert await cluster.client.submit(abs, -1) == 1


# Actors and shuffles: what Dask does itself


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def more(self) -> int:
        self.n += 1
        return self.n


async def test_an_actor_holds_its_device_until_it_is_let_go() -> None:
    """Without validation: Dask asserts that actors are never in `no-worker`, where ours wait; they run well with the default."""
    async with placed_cluster(card("a", 24), validate=False) as cluster:
        with dask.annotate(demand=demand(20)):
            actor = cluster.client.submit(Counter, actor=True)
        counter = await actor
        assert await counter.more() == 1
        assert cluster.charges() == {"a": [actor.key]}
        with dask.annotate(demand=demand(20)):
            after = cluster.client.submit(work)
        await cluster.until(lambda: len(cluster.plugin.pump.queues))
        assert after.status == "pending"
        del counter, actor
        gc.collect()  # Dask lets go of a future when it is collected
        assert await after == "a"


async def test_shuffles_are_left_to_dask() -> None:
    """The annotation stands around `compute`: data frames ignore one that stands where they are built, with a warning."""
    pd = pytest.importorskip("pandas", reason="the shuffle test needs data frames")
    dd = pytest.importorskip("dask.dataframe", reason="the shuffle test needs data frames")
    async with placed_cluster(card("a", 24), card("b", 24)) as cluster:
        frame = dd.from_pandas(pd.DataFrame({"x": range(40), "y": [i % 7 for i in range(40)]}), npartitions=4)
        lengths = frame.shuffle("y", shuffle_method="p2p").map_partitions(len)
        with dask.annotate(demand=demand(4)):
            future = cluster.client.compute(lengths)
        assert sum(await future) == 40
        placed = [entry["key"] for entry in cluster.plugin.pump.log.since(0)]
        assert any("frompandas" in key for key in placed)
        assert not any("shuffle" in key for key in placed)


# Fairness


async def test_several_cards_do_not_starve_behind_single_ones() -> None:
    async with placed_cluster(card("a", 24), card("b", 24)) as cluster:
        gates["first"] = Gate()
        with dask.annotate(demand=demand(4)):
            small = cluster.client.map(work, ["small"] * 2, gate="first", pure=False)
            await cluster.until(lambda: gates["first"].entered == 2)
            small += cluster.client.map(work, ["small"] * 100, pause_s=0.002, pure=False, priority=10)
        with dask.annotate(demand=demand(4, gpus=2)):
            pair = cluster.client.submit(work, "pair", pure=False)
        await cluster.until(lambda: pair.key in cluster.scheduler.tasks and len(cluster.plugin.pump.queues) == 101)
        gates["first"].open()
        await wait([*small, pair])
        order = [entry["key"] for entry in cluster.plugin.pump.log.since(0)]
        assert order.index(pair.key) <= 2 + 2 * PATIENCE + 2  # two devices could pass it


async def test_many_cores_do_not_starve_behind_single_ones() -> None:
    async with placed_cluster() as cluster:
        host = Host(name="box", cpus=4, ram_mib=8 * GIB)
        await cluster.add_worker("box/cpu", [Device(name="box/cpu", host="box", kind="cpu")], host=host, nthreads=8)
        gates["first"] = Gate()
        with dask.annotate(demand=demand(4, cpu_ok=True)):
            small = cluster.client.map(work, ["small"] * 4, gate="first", pure=False)
            await cluster.until(lambda: gates["first"].entered == 4)
            small += cluster.client.map(work, ["small"] * 100, pause_s=0.002, pure=False, priority=10)
        with dask.annotate(demand=demand(4, cpu_ok=True, cpus=4)):
            large = cluster.client.submit(work, "large", pure=False)
        await cluster.until(lambda: large.key in cluster.scheduler.tasks and len(cluster.plugin.pump.queues) == 101)
        gates["first"].open()
        await wait([*small, large])
        order = [entry["key"] for entry in cluster.plugin.pump.log.since(0)]
        assert order.index(large.key) <= 4 + PATIENCE + 4


async def test_urgent_work_goes_first_and_idle_work_last() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        await running_task(cluster)
        futures = []
        for priority in ("idle", "batch", "interactive"):
            with dask.annotate(demand=demand(4, priority=priority)):
                futures.append(cluster.client.submit(work, priority))
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 3)
        gates["g"].open()
        await wait(futures)
        assert [span.tag for span in spans.all] == ["held", "interactive", "batch", "idle"]
