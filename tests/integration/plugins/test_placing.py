"""Placement on a real scheduler and real workers, both validating their own state. What ran where is told by the tasks themselves."""

from __future__ import annotations

from collections import Counter

import dask
import pytest
from distributed import Reschedule, get_worker, wait

from dgpunet_dask.errors import BadValue, NotFound, Unplaceable
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.plugins.worker import current_device
from dgpunet_dask.testing.placement import GIB, Gate, PlacedCluster, card, gates, placed_cluster, spans, work

CARDS = (card("c16", 16), card("c24a", 24), card("c24b", 24), card("c80", 80))


def demand(gib: int, **more: object) -> dict[str, object]:
    return {"vram": f"{gib}GiB", **more}


async def with_cpu(cluster: PlacedCluster) -> None:
    host = Host(name="box", cpus=4, ram_mib=8 * GIB)
    await cluster.add_worker("box/cpu", [Device(name="box/cpu", host="box", kind="cpu", speed=0.1)], host=host, nthreads=8)


async def test_a_mixed_load_never_overcommits() -> None:
    async with placed_cluster(*CARDS) as cluster:
        await with_cpu(cluster)
        futures = []
        for gib, count in ((3, 60), (14, 40), (20, 40), (60, 20)):
            with dask.annotate(demand=demand(gib)):
                futures += cluster.client.map(work, [f"{gib}-{i}" for i in range(count)], mib=gib * GIB, pause_s=0.001, pure=False)
        plain = cluster.client.map(abs, range(100))
        with dask.annotate(demand={"vram": "999GiB", "cpu_ok": True, "cpus": 2}):
            futures += cluster.client.map(work, range(10), mib=2, pause_s=0.001, pure=False)
        where = await cluster.client.gather(futures)
        assert sum(await cluster.client.gather(plain)) == 4950
        assert len(spans.all) == len(where) == 170
        for device in CARDS:
            assert 0 < spans.peak(device.name) <= (device.usable_mib or 0)
            assert spans.peak(device.name, lambda _: 1) == 1
        assert spans.peak("box/cpu") <= 4
        assert Counter(where)["box/cpu"] == 10
        assert {span.device for span in spans.all if span.mib == 60 * GIB} == {"c80"}
        await cluster.until(lambda: not cluster.charges())


async def test_the_decision_log_shows_no_charge_above_what_is_usable() -> None:
    async with placed_cluster(card("a", 16, reserve_mib=512), card("b", 24)) as cluster:
        with dask.annotate(demand=demand(10, stage="embed")):
            await cluster.client.gather(cluster.client.map(work, range(20), pure=False))
        log = await cluster.client.scheduler.dgpunet_placements(since=0)
        assert [entry["seq"] for entry in log] == list(range(1, 21))
        assert all(entry["vram_mib"] == 10 * GIB <= entry["charged_mib"] <= entry["usable_mib"] for entry in log)
        assert {entry["stage"] for entry in log} == {"embed"}
        assert list(await cluster.client.scheduler.dgpunet_placements(since=18)) == list(log[18:])


async def test_dependencies_between_placed_tasks() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        with dask.annotate(demand=demand(20)):
            first = cluster.client.submit(work, "first")
        with dask.annotate(demand=demand(10)):
            second = [cluster.client.submit(work, i, wait_for=first, pure=False) for i in range(4)]
        third = cluster.client.submit(len, second)
        assert await third == 4
        assert await first == "b"
        ended = {span.tag: span.stop for span in spans.all}
        assert all(ended["first"] <= span.start for span in spans.all if span.tag != "first")


async def test_plain_tasks_and_those_with_resources_are_left_to_dask() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await cluster.add_worker("b", [card("b", 24)], resources={"FOO": 1})
        own = cluster.client.submit(lambda: get_worker().name, resources={"FOO": 1}, pure=False)
        plain = cluster.client.submit(lambda: get_worker().name, pure=False)
        assert await own == "b"
        assert await plain in {"a", "b"}
        for future in (own, plain):
            ts = cluster.scheduler.tasks[future.key]
            assert not ts.worker_restrictions
            assert not ts.annotations or "dgpunet_device" not in ts.annotations
        assert cluster.scheduler.tasks[own.key].resource_restrictions == {"FOO": 1}
        assert not cluster.plugin.records


async def test_a_demand_with_resources_gets_a_device_whose_worker_offers_them() -> None:
    async with placed_cluster(card("a", 80)) as cluster:
        await cluster.add_worker("b", [card("b", 24)], resources={"FOO": 1})
        with dask.annotate(demand=demand(10)):
            futures = [cluster.client.submit(work, i, resources={"FOO": 1}, pure=False) for i in range(3)]
        assert await cluster.client.gather(futures) == ["b"] * 3


async def test_two_devices_on_one_worker_each_know_their_name() -> None:
    two = [card("x", 24, host="h"), card("y", 24, host="h")]
    async with placed_cluster() as cluster:
        await cluster.add_worker("both", two, host=Host(name="h", cpus=4))
        gates["both"] = Gate()
        with dask.annotate(demand=demand(20)):
            futures = cluster.client.map(work, range(2), mib=20 * GIB, gate="both", pure=False)
            await cluster.until(lambda: gates["both"].entered == 2)
            more = cluster.client.map(work, range(10), mib=20 * GIB, pure=False)
        gates["both"].open()
        assert sorted(await cluster.client.gather(futures)) == ["x", "y"]
        await cluster.client.gather(more)
        assert spans.peak("x") == spans.peak("y") == 20 * GIB
        with pytest.raises(NotFound):
            await cluster.client.submit(current_device, pure=False)


async def test_a_task_that_was_not_placed_has_its_workers_only_device() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        assert await cluster.client.submit(current_device) == "a"


async def test_a_malformed_demand_fails_its_task_alone() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        for wrong in ({"vrm": "4GiB"}, {"vram": 4}, "4GiB", {"vram": object}):
            with dask.annotate(demand=wrong):
                bad = cluster.client.submit(work, str(wrong))
            with pytest.raises(BadValue):
                await bad
        with dask.annotate(demand=Demand(vram="4GiB")):
            assert await cluster.client.submit(work, "good") == "a"


async def test_an_impossible_demand_fails_at_once_with_its_verdicts() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        with dask.annotate(demand=demand(30, stage="big")):
            future = cluster.client.submit(work, "x", retries=5)
            after = cluster.client.submit(len, future)
        with pytest.raises(Unplaceable, match="2 vram_total") as error:
            await future
        assert [(v["device"], v["code"], v["need"], v["have"]) for v in error.value.reasons] == [
            ("a", "vram_total", "30GiB", "16GiB"),
            ("b", "vram_total", "30GiB", "24GiB"),
        ]
        with pytest.raises(Unplaceable):
            await after


async def test_an_empty_fleet_waits_and_a_late_worker_starts_what_is_held() -> None:
    async with placed_cluster() as cluster:
        with dask.annotate(demand=demand(20)):
            futures = cluster.client.map(work, range(3), pure=False)
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 3)
        why = await cluster.client.scheduler.dgpunet_explain(key=futures[0].key)
        assert (why["outcome"], why["state"], why["verdicts"]) == ("wait", "no-worker", {})
        await cluster.add_worker("late", [card("late", 24)])
        assert await cluster.client.gather(futures) == ["late"] * 3


async def test_explain_gives_every_verdict_of_a_waiting_task() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        gates["g"] = Gate()
        with dask.annotate(demand=demand(20)):
            running, waiting = cluster.client.map(work, range(2), gate="g", pure=False)
        await cluster.until(lambda: gates["g"].entered == 1)
        key = waiting.key if waiting.key in {r.key for r in cluster.plugin.records.values() if r.holder is None} else running.key
        why = await cluster.client.scheduler.dgpunet_explain(key=key)
        assert why["outcome"] == "wait"
        assert {d: [v["code"] for v in found] for d, found in why["verdicts"].items()} == {"a": ["vram_total"], "b": ["vram_free", "busy"]}
        assert (await cluster.client.scheduler.dgpunet_explain(key="nobody")) == {"key": "nobody", "managed": False}
        gates["g"].open()
        await wait([running, waiting])


async def test_the_fleet_is_told_with_its_charges() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        gates["g"] = Gate()
        with dask.annotate(demand=demand(10, stage="embed")):
            future = cluster.client.submit(work, gate="g")
        await cluster.until(lambda: gates["g"].entered)
        fleet = await cluster.fleet()
        assert [d["name"] for d in fleet["devices"]] == ["a"]
        assert [(c["holder"], c["device"], c["vram_mib"], c["kind"], c["stage"]) for c in fleet["charges"]] == [
            (future.key, "a", 10 * GIB, "activation", "embed")
        ]
        assert fleet["states"] == {}
        gates["g"].open()
        await future


async def test_user_pins_are_respected() -> None:
    async with placed_cluster(card("a", 80), card("b", 24), card("c", 16)) as cluster:
        address = cluster.workers["b"].address
        with dask.annotate(demand=demand(10)):
            pinned = cluster.client.map(work, range(4), workers=[address], pure=False)
            by_name = cluster.client.submit(work, "n", workers="c", pure=False)
            two = cluster.client.map(work, range(4), workers=["b", "c"], pure=False)
        assert await cluster.client.gather(pinned) == ["b"] * 4
        assert await by_name == "c"
        assert set(await cluster.client.gather(two)) <= {"b", "c"}


async def test_a_pin_that_may_be_left_is_left_only_when_it_must_be() -> None:
    async with placed_cluster(card("a", 80), card("b", 24)) as cluster:
        with dask.annotate(demand=demand(20)):
            assert await cluster.client.submit(work, 1, workers="b", allow_other_workers=True) == "b"
        with dask.annotate(demand=demand(40)):
            assert await cluster.client.submit(work, 2, workers="b", allow_other_workers=True) == "a"
            with pytest.raises(Unplaceable):
                await cluster.client.submit(work, 3, workers="b")


async def test_a_pin_to_a_worker_that_is_not_there_waits_for_it() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        port = cluster.workers["a"].port
        await cluster.workers.pop("a").close()
        with dask.annotate(demand=demand(20)):
            future = cluster.client.submit(work, workers=f"tcp://127.0.0.1:{port}")
            await cluster.add_worker("other", [card("other", 80)])
            assert await cluster.client.submit(work, "free") == "other"
            assert future.status == "pending"
            await cluster.add_worker("a", [card("a", 24)], port=port)
        assert await future == "a"


async def test_a_demand_of_no_vram_takes_a_cpu_only_where_no_card_could_hold_it() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await with_cpu(cluster)
        with dask.annotate(demand={"vram": "0GiB", "cpu_ok": True}):
            assert await cluster.client.submit(work, 1) == "a"
        with dask.annotate(demand={"vram": "0GiB", "cpu_ok": True, "features": ["bf16"]}):
            assert await cluster.client.submit(work, 2) == "box/cpu"


async def test_a_cpu_takes_units_while_cores_last() -> None:
    async with placed_cluster() as cluster:
        await with_cpu(cluster)
        gates["g"] = Gate()
        with dask.annotate(demand={"vram": "1GiB", "cpu_ok": True, "cpus": 2}):
            futures = cluster.client.map(work, range(5), mib=2, gate="g", pure=False)
        await cluster.until(lambda: gates["g"].entered == 2)
        assert len(cluster.charges()["box/cpu"]) == 2
        gates["g"].open()
        await wait(futures)
        assert spans.peak("box/cpu") == 4


async def test_an_exclusive_demand_is_alone_on_its_cpu() -> None:
    async with placed_cluster() as cluster:
        await with_cpu(cluster)
        futures = []
        for i in range(6):
            with dask.annotate(demand={"vram": "1GiB", "cpu_ok": True, "exclusive": i % 3 == 0}):
                futures.append(cluster.client.submit(work, i, mib=100 if i % 3 == 0 else 1, pause_s=0.005))
        await wait(futures)
        assert spans.peak("box/cpu") == 100


async def test_a_whole_card_and_several_cards() -> None:
    async with placed_cluster(card("a", 16), card("b", 24), card("c", 80)) as cluster:
        gates["g"] = Gate()
        with dask.annotate(demand={}):
            whole = cluster.client.submit(work, "whole", gate="g")
        await cluster.until(lambda: gates["g"].entered == 1)
        assert cluster.plugin.book.pool.fleet().charged_mib("c") == 80 * GIB
        with dask.annotate(demand=demand(10, gpus=2)):
            pair = cluster.client.submit(work, "pair", gate="g")
            other = cluster.client.submit(work, "other")
        await cluster.until(lambda: gates["g"].entered == 2)
        assert cluster.charges() == {"a": [pair.key], "b": [pair.key], "c": [whole.key]}
        assert cluster.scheduler.tasks[pair.key].annotations["dgpunet_devices"] == ["b", "a"]
        assert other.status == "pending"
        gates["g"].open()
        await wait([whole, pair, other])
        assert await pair == "b"


async def test_a_unit_on_several_cards_keeps_its_others_when_the_worker_of_one_is_lost() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        gates["g"] = Gate()
        with dask.annotate(demand=demand(10, gpus=2)):
            pair = cluster.client.submit(work, "pair", gate="g")
        await cluster.until(lambda: gates["g"].entered)
        assert cluster.charges() == {"a": [pair.key], "b": [pair.key]}
        await cluster.workers.pop("a").close()
        await cluster.until(lambda: "a" not in cluster.charges())
        assert cluster.charges() == {"b": [pair.key]}
        gates["g"].open()
        assert await pair == "b"
        await cluster.until(lambda: not cluster.charges())


async def coroutine_task() -> str:
    return current_device()


async def test_a_coroutine_is_placed_too() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        with dask.annotate(demand=demand(10)):
            assert await cluster.client.submit(coroutine_task) == "a"


async def test_client_compute_and_delayed_carry_the_demand() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        lazy = [dask.delayed(work)(i, mib=GIB) for i in range(3)]
        with dask.annotate(demand=demand(20)):
            futures = cluster.client.compute(lazy, optimize_graph=False)
        assert await cluster.client.gather(futures) == ["b"] * 3


_seen: list[str] = []


def once_then(error: type[Exception]) -> str:
    _seen.append(current_device())
    if len(_seen) == 1:
        raise error
    return _seen[-1]


@pytest.mark.parametrize("error", [ValueError, Reschedule])
async def test_retries_and_reschedule_go_through_the_ledger(error: type[Exception]) -> None:
    _seen.clear()
    async with placed_cluster(card("a", 24)) as cluster:
        with dask.annotate(demand=demand(20)):
            future = cluster.client.submit(once_then, error, retries=1)
        assert await future == "a"
        assert len(_seen) == 2
        assert len(cluster.plugin.pump.log.since(0)) == 2
        await cluster.until(lambda: not cluster.charges())


async def test_a_retry_by_the_client_goes_through_the_ledger() -> None:
    _seen.clear()
    async with placed_cluster(card("a", 24)) as cluster:
        with dask.annotate(demand=demand(20)):
            future = cluster.client.submit(once_then, ValueError)
        await wait(future)
        assert future.status == "error"
        await future.retry()
        assert await future == "a"
        assert len(cluster.plugin.pump.log.since(0)) == 2
        assert cluster.scheduler.tasks[future.key].worker_restrictions == {"dgpunet-placement://hold"}
