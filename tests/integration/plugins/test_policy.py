"""A policy in a live scheduler: every kind of rule, swapped while work waits, and the same course as a simulation."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dask
import pytest
from distributed import Future, wait

from dgpunet_dask.errors import MalformedFile, Unplaceable
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.order import PATIENCE
from dgpunet_dask.placement.run import Arrival
from dgpunet_dask.placement.simulate import simulate
from dgpunet_dask.placement.trace import parse_trace
from dgpunet_dask.plugins.worker import current_vram_mib, device_facts
from dgpunet_dask.testing.placement import GIB, Gate, PlacedCluster, card, gates, placed_cluster, spans, work

HEAD = "version: 1\n"


def demand(gib: int, **more: object) -> dict[str, object]:
    return {"vram": f"{gib}GiB", **more}


async def explained(cluster: PlacedCluster, future: Future) -> dict[str, Any]:
    await cluster.until(lambda: any(record.key == future.key for record in queued(cluster)))
    return dict(await cluster.client.scheduler.dgpunet_explain(key=future.key))


def queued(cluster: PlacedCluster) -> list[Any]:
    return [record for record in cluster.plugin.records.values() if record.ts.state == "no-worker"]


async def put(cluster: PlacedCluster, *texts: str) -> str:
    sources = [(HEAD + text, f"{i}.yaml", "human") for i, text in enumerate(texts)]
    return str(await cluster.client.scheduler.dgpunet_set_policy(sources=sources))


def submit(cluster: PlacedCluster, tag: Any, what: dict[str, object], count: int = 1, **options: Any) -> list[Future]:
    with dask.annotate(demand=what):
        return list(cluster.client.map(work, [tag] * count, pure=False, **options))


def unit(seconds: float, tag: Any = None) -> str:
    """Take `seconds` at speed 1."""
    with spans.note(tag=tag) as device:
        time.sleep(seconds / device_facts(device).speed)
        return device


async def test_deny_and_allow_hold_back_the_faster_card() -> None:
    async with placed_cluster(card("a", 16), card("b", 24), card("c", 8)) as cluster:
        await put(cluster, "rules: [{name: r, match: {stage: embed}, deny: [{device: b}]}, {name: s, match: {stage: pose}, allow: [{device: c}]}]")
        embed, pose, chat = (submit(cluster, s, demand(2, stage=s), 4, pause_s=0.005) for s in ("embed", "pose", "chat"))
        assert set(await cluster.client.gather(embed)) <= {"a", "c"}
        assert set(await cluster.client.gather(pose)) == {"c"}
        await wait(chat)


async def test_shared_cards_run_as_many_units_as_the_rule_says() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await put(cluster, "rules: [{name: r, match: {stage: embed}, share: {max_per_gpu: 3}}]")
        gates["all"] = Gate()
        units = submit(cluster, "x", demand(2, stage="embed"), 5, gate="all", mib=2 * GIB)
        await cluster.until(lambda: gates["all"].entered == 3)
        assert len(cluster.charges()["a"]) == 3
        gates["all"].open()
        await wait(units)
        assert spans.peak("a", lambda _: 1) == 3


async def test_a_reserve_is_kept_for_those_it_is_for() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await put(cluster, "reserve: [{name: chat, device: a, vram: 12GiB, for: {stage: chat}}]")
        batch = submit(cluster, "batch", demand(6, stage="embed"))[0]
        assert await submit(cluster, "chat", demand(6, stage="chat"))[0] == "a"
        told = await explained(cluster, batch)
        assert told["verdicts"]["a"][0]["code"] == "reserved"
        assert "0.yaml" in told["verdicts"]["a"][0]["rule"]
        await put(cluster)
        assert await batch == "a"


async def test_a_rules_priority_puts_work_first() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await put(cluster, "rules: [{name: r, match: {stage: chat}, priority: interactive}]")
        gates["first"] = Gate()
        first = submit(cluster, "first", demand(2), gate="first")
        await cluster.until(lambda: gates["first"].entered == 1)
        later = [*submit(cluster, "batch", demand(2, stage="embed"), 3), *submit(cluster, "chat", demand(2, stage="chat"))]
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 4)
        gates["first"].open()
        await wait([*first, *later])
        assert [span.tag for span in spans.all] == ["first", "chat", "batch", "batch", "batch"]


async def test_the_owners_conditions_make_work_wait_and_not_fail() -> None:
    async with placed_cluster() as cluster:
        host = Host(name="laptop", cpus=4, power="battery")
        worker = await cluster.add_worker("a", [card("a", 16, host="laptop"), Device(name="laptop/cpu", host="laptop", kind="cpu")], host=host)
        await put(cluster, "hosts: [{match: {host: laptop}, when: {power: mains}, otherwise: [interactive]}]")
        batch = submit(cluster, "batch", demand(2))[0]
        assert await submit(cluster, "now", demand(2, priority="interactive"))[0] == "a"
        told = await explained(cluster, batch)
        assert (told["outcome"], told["final"], told["verdicts"]["a"][0]["code"]) == ("never", False, "owner")
        worker.plugins["dgpunet-device"].report_host("mains", None)
        assert await batch == "a"


async def test_the_owners_hours_follow_the_clock() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        local = time.localtime()
        minute = 60 * local.tm_hour + local.tm_min
        start, end = ((minute + shift) % 1440 for shift in (120, 240))
        hours = [f"{m // 60:02}:{m % 60:02}" for m in (start, end)]
        await put(cluster, f'hosts: [{{match: {{host: "*"}}, when: {{hours: "{hours[0]}-{hours[1]}"}}, otherwise: []}}]')
        late = submit(cluster, "late", demand(2))[0]
        told = await explained(cluster, late)
        assert told["verdicts"]["a"][0]["code"] == "owner"
        cluster.plugin.book.pool.set_minute((minute + 121) % 1440)
        cluster.plugin.pump.arm()
        assert await late == "a"


async def test_a_demand_that_the_policy_forbids_everywhere_fails_with_the_rule() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        await put(cluster, 'rules: [{name: no-cards, match: {user: guest}, deny: [{device: "*"}]}]')
        with pytest.raises(Unplaceable, match="2 denied"):
            await submit(cluster, "x", demand(2, user="guest"))[0]


async def test_a_bad_file_leaves_the_old_policy_in_force() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        digest = await put(cluster, "rules: [{name: r, deny: [{device: b}]}]")
        with pytest.raises(MalformedFile, match=r"0\.yaml:2"):
            await put(cluster, "rules: [{name: r, deny: [{devise: b}]}]")
        told = await cluster.client.scheduler.dgpunet_policy()
        assert told["digest"] == digest
        assert "deny: [{device: b}]" in told["sources"][0][0]
        assert set(await cluster.client.gather(submit(cluster, "x", demand(2), 3))) == {"a"}


async def test_waiting_work_is_planned_anew_and_running_work_stays() -> None:
    async with placed_cluster(card("a", 16), card("b", 24)) as cluster:
        await put(cluster, "rules: [{name: r, allow: [{device: a}]}]")
        gates["hold"] = Gate()
        units = submit(cluster, "x", demand(2), 2, gate="hold")
        await cluster.until(lambda: gates["hold"].entered == 1)
        assert (list(cluster.charges()), len(cluster.plugin.pump.queues)) == (["a"], 1)
        await put(cluster, "rules: [{name: r, deny: [{device: a}]}]")
        await cluster.until(lambda: gates["hold"].entered == 2)
        assert cluster.charges().keys() == {"a", "b"}
        gates["hold"].open()
        assert sorted(await cluster.client.gather(units)) == ["a", "b"]


async def test_a_running_unit_knows_what_it_may_use() -> None:
    async with placed_cluster(card("a", 16, reserve_mib=512)) as cluster:
        await put(cluster, "rules: [{name: r, match: {stage: embed}, require: {vram: 6GiB}}]")
        with dask.annotate(demand=demand(2, stage="embed")):
            assert await cluster.client.submit(current_vram_mib, pure=False) == 6 * GIB
        with dask.annotate(demand={"stage": "chat"}):
            assert await cluster.client.submit(current_vram_mib, pure=False) == 16 * GIB - 512


# The same course as a simulation


def counted(futures: Sequence[Future], places: Sequence[str]) -> Counter[str]:
    assert len(futures) == len(places)
    return Counter(places)


@pytest.mark.parametrize(("units", "seconds"), [(30, 0.4), (7, 0.4), (50, 0.2)])
async def test_a_burst_goes_where_a_simulation_sends_it(units: int, seconds: float) -> None:
    speeds = {"4070l": 0.8, "4080l": 1.4, "4090l": 1.6, "3090": 1.5, "5090": 3.0}
    async with placed_cluster(*(card(name, 16, speed=speed) for name, speed in speeds.items())) as cluster:
        pool = cluster.plugin.book.pool
        await cluster.until(lambda: not pool.fleet().states, "all devices run")
        asked = Demand(stage="embed", vram="4GiB", work=seconds)
        expected = simulate(pool.fleet(), pool.policy, [Arrival(id=str(i), demand=asked) for i in range(units)]).counts
        with dask.annotate(demand=asked.to_mapping()):
            futures = cluster.client.map(unit, [seconds] * units, pure=False)
        got = counted(futures, await cluster.client.gather(futures))
        assert all(abs(got[name] - expected.get(name, 0)) <= 1 for name in speeds), (got, expected)


async def test_work_waits_for_a_faster_card_until_that_is_overdue() -> None:
    async with placed_cluster(card("slow", 16, speed=1.0), card("quick", 16, speed=20.0)) as cluster:
        gates["hold"] = Gate()
        first = submit(cluster, "first", demand(2, work=4.0), gate="hold")  # expected to take 0.2 s there
        await cluster.until(lambda: gates["hold"].entered == 1)
        second = submit(cluster, "second", demand(2, work=4.0))[0]
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 1)
        told = await cluster.client.scheduler.dgpunet_explain(key=second.key)
        assert (told["outcome"], told["waits_for"], told["ranking"][0]["device"]) == ("wait", "quick", "slow")
        assert await second == "slow"  # nothing happened meanwhile but that the unit on the quick card is overdue
        gates["hold"].open()
        await wait(first)


# Urgency and starvation


async def test_interactive_work_starts_within_one_unit_in_a_saturated_fleet() -> None:
    length = 0.25
    async with placed_cluster(card("a", 16), card("b", 16)) as cluster:
        batch = submit(cluster, "batch", demand(2), 40, pause_s=length)
        await cluster.until(lambda: len(cluster.charges()) == 2)
        asked, urgent = [], []
        for _ in range(3):
            asked.append(time.perf_counter())
            urgent += submit(cluster, "urgent", demand(8, priority="interactive"))
            await wait(urgent)
        starts = [span.start for span in spans.all if span.tag == "urgent"]
        assert all(start - since <= length + 0.15 for start, since in zip(starts, asked, strict=True))
        await cluster.client.cancel(batch)
        await cluster.until(lambda: not cluster.charges())


async def test_a_large_demand_is_not_starved_by_small_units_that_share_its_card() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await put(cluster, "rules: [{name: r, match: {stage: small}, share: {max_per_gpu: 4}}]")
        gates["first"] = Gate()
        small = submit(cluster, "small", demand(3, stage="small"), 4, gate="first")
        await cluster.until(lambda: gates["first"].entered == 4)
        small += [f for i in range(4) for f in submit(cluster, i, demand(3, stage="small"), 30, pause_s=0.003 * (i + 1), priority=10)]
        large = submit(cluster, "large", demand(14, stage="large"))[0]
        await cluster.until(lambda: large.key in cluster.scheduler.tasks and len(cluster.plugin.pump.queues) == 121)
        gates["first"].open()
        await wait([*small, large])
        order = [entry["key"] for entry in cluster.plugin.pump.log.since(0)]
        assert order.index(large.key) <= 4 + PATIENCE + 4


async def test_users_share_by_weight() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        await put(cluster, "fair_share: {ann: 3, bob: 1}")
        gates["first"] = Gate()
        first = submit(cluster, "first", demand(2), gate="first")
        await cluster.until(lambda: gates["first"].entered == 1)
        units = [f for user in ("ann", "bob") for f in submit(cluster, user, demand(2, user=user, work=0.02), 12, pause_s=0.02)]
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 24)
        gates["first"].open()
        await wait([*first, *units])
        early = Counter(span.tag for span in spans.all[1:13])
        assert 8 <= early["ann"] <= 10
        used = await cluster.client.scheduler.dgpunet_usage()
        assert used["ann"] > 0 < used["bob"]


# What is told


async def test_run_seconds_are_learned_from_plain_tasks() -> None:
    async with placed_cluster(card("a", 16, model="RTX", speed=2.0)) as cluster:
        await wait(submit(cluster, "x", demand(2, stage="embed"), 3, pause_s=0.05))
        await cluster.until(lambda: cluster.plugin.book.pool.estimates != NO_ESTIMATES)
        learned = cluster.plugin.book.pool.estimates
        seconds = learned.run_s("embed", None, "RTX")
        assert seconds is not None
        assert 0.05 <= seconds < 0.5
        assert learned.work_s("embed", None) == pytest.approx(2 * seconds)
        assert (await cluster.client.scheduler.dgpunet_learned())["stages"][0]["stage"] == "embed"
        earlier = NO_ESTIMATES.with_run("render", None, "RTX", 7.0, speed=2.0, share=1).with_run("embed", None, "RTX", 99.0, speed=2.0, share=1)
        known = Estimates.from_json(await cluster.client.scheduler.dgpunet_own(estimates=earlier.to_json()))
        assert known.run_s("render", None, "RTX") == 7.0 == cluster.plugin.book.pool.estimates.run_s("render", None, "RTX")
        assert known.run_s("embed", None, "RTX") == pytest.approx(seconds), "what was seen here counts before what an earlier one saw"


async def test_the_decision_log_can_be_read_as_a_trace() -> None:
    async with placed_cluster(card("a", 16)) as cluster:
        digest = await put(cluster, "rules: [{name: r, match: {stage: embed}, share: {max_per_gpu: 2}}]")
        done = submit(cluster, "x", demand(2, stage="embed", user="ann"), 2)
        await wait(done)
        with pytest.raises(Unplaceable):
            await submit(cluster, "y", demand(99))[0]
        told = await cluster.client.scheduler.dgpunet_trace(since=0)
        assert told["dropped"] == 0
        records = parse_trace("\n".join(told["lines"]) + "\n", "log").records
        kinds = Counter(record.kind for record in records if record.kind != "state")
        assert kinds == {"policy": 1, "submit": 3, "fleet": 1, "place": 3, "end": 2}
        placed = [json.loads(line) for line in told["lines"] if '"placed"' in line]
        assert {row["policy"] for row in placed} == {digest}
        again = await cluster.client.scheduler.dgpunet_trace(since=told["seq"])
        assert (list(again["lines"]), again["seq"]) == ([], told["seq"])
        log = await cluster.client.scheduler.dgpunet_placements(since=0)
        assert {(entry["user"], entry["priority"]) for entry in log} == {("ann", "batch")}
