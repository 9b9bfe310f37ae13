"""What workers report of their cards and hosts reaches the ledger, and only from the right worker."""

from __future__ import annotations

import dask
from distributed import wait

from dgpunet_dask.model.fleet import Host
from dgpunet_dask.placement.derive import TRIAL_UNITS, Standing, card_facts, derive, with_units
from dgpunet_dask.placement.fleet_file import cpu_of
from dgpunet_dask.placement.policy_file import parse_policies, parse_policy
from dgpunet_dask.plugins.book import FOREIGN
from dgpunet_dask.testing.placement import GIB, Gate, card, gates, placed_cluster, work


def use(used: int, ours: int | None = 0, others: int = 0, context: int = 0) -> dict[str, int | None]:
    mine = None if ours is None else ours * GIB
    return {"used_mib": used * GIB, "ours_mib": mine, "others_mib": others * GIB, "context_mib": context * GIB}


def foreign(cluster) -> int:
    charge = cluster.plugin.book.pool.slot("a").charges.get(FOREIGN)
    return 0 if charge is None else charge.vram_mib // GIB


async def test_work_waits_for_a_game_to_end_and_the_reason_says_so() -> None:
    async with placed_cluster() as cluster:
        worker = await cluster.add_worker("a", [card("a", 24)])
        speaker = worker.plugins["dgpunet-device"]
        speaker.report_use("a", use(20, others=20))
        await cluster.until(lambda: foreign(cluster) == 20)
        with dask.annotate(demand={"vram": "8GiB"}):
            large = cluster.client.submit(work, "large")
        with dask.annotate(demand={"vram": "2GiB"}):
            assert await cluster.client.submit(work, "small") == "a"
        verdicts = (await cluster.client.scheduler.dgpunet_explain(key=large.key))["verdicts"]
        assert [v["code"] for v in verdicts["a"]] == ["vram_free"]
        speaker.report_use("a", use(0))
        assert await large == "a"
        assert foreign(cluster) == 0


async def test_what_units_use_is_not_counted_twice() -> None:
    async with placed_cluster() as cluster:
        worker = await cluster.add_worker("a", [card("a", 24)])
        speaker = worker.plugins["dgpunet-device"]
        gate = gates["g"] = Gate()
        with dask.annotate(demand={"vram": "10GiB"}):
            running = cluster.client.submit(work, "one", gate="g")
        await cluster.until(cluster.charges)
        for seen, expected in ((use(12, ours=9), 3), (use(12, None), 2), (use(8, None), 0), (use(12, 0, others=5), 5)):
            speaker.report_use("a", seen)
            await cluster.until(lambda expected=expected: foreign(cluster) == expected)
        gate.open()
        await wait(running)


async def test_foreign_use_that_only_the_ledger_tells_is_counted_again_when_residents_change() -> None:
    async with placed_cluster() as cluster:
        worker = await cluster.add_worker("a", [card("a", 24)])
        speaker = worker.plugins["dgpunet-device"]
        speaker.report_use("a", use(10, None))
        await cluster.until(lambda: foreign(cluster) == 10)
        speaker.report_residents("a", [{"stage": "chat", "id": "x", "mib": 6 * GIB, "busy": False}])
        await cluster.until(lambda: foreign(cluster) == 4)


async def test_a_workers_own_context_is_kept_free_for_it() -> None:
    async with placed_cluster() as cluster:
        worker = await cluster.add_worker("a", [card("a", 24)])
        speaker = worker.plugins["dgpunet-device"]
        pool = cluster.plugin.book.pool
        before = pool.slot("a").device.reserve_mib
        speaker.report_use("a", use(1, ours=1, context=1))
        await cluster.until(lambda: pool.slot("a").device.reserve_mib == before + GIB)
        assert foreign(cluster) == 0
        with dask.annotate(demand={}):
            assert await cluster.client.submit(work, "whole card") == "a"
        speaker.report_use("a", use(0))
        await cluster.until(lambda: pool.slot("a").device.reserve_mib == before)


async def test_a_host_is_followed_and_stays_so_when_another_of_its_workers_joins() -> None:
    async with placed_cluster() as cluster:
        host = Host(name="h", cpus=4, ram_mib=64 * GIB, power="mains", idle_s=9.0)
        cpu = await cluster.add_worker("h/cpu", [cpu_of(host)], host=host)
        seen = lambda: cluster.plugin.book.pool.fleet().host_by_name["h"]  # noqa: E731
        cpu.plugins["dgpunet-device"].report_host("battery", 0.0)
        await cluster.until(lambda: (seen().power, seen().idle_s) == ("battery", 0.0))
        other = await cluster.add_worker("a", [card("a", 24, host="h")], host=host)
        assert (seen().power, seen().idle_s, seen().cpus) == ("battery", 0.0, 4)
        assert cluster.plugin.book.pool.slot("a").host.power == "battery"
        other.plugins["dgpunet-device"].report_host("mains", 5.0)  # only the host's own worker is believed
        cpu.plugins["dgpunet-device"].report_host("battery", 7.0)
        await cluster.until(lambda: seen().idle_s == 7.0)
        assert seen().power == "battery"


async def test_a_laptop_on_its_battery_waits_with_what_nobody_waits_for() -> None:
    rule = "version: 1\nhosts:\n- {match: {host: h}, when: {power: mains}, otherwise: [interactive]}\n"
    async with placed_cluster() as cluster:
        host = Host(name="h", cpus=4, ram_mib=64 * GIB, power="battery")
        cpu = await cluster.add_worker("h/cpu", [cpu_of(host)], host=host)
        await cluster.add_worker("a", [card("a", 24, host="h")], host=host)
        cluster.plugin.pump.set_policy(parse_policy(rule, "generated/h.yaml", "generated"))
        with dask.annotate(demand={"vram": "1GiB"}):
            batch = cluster.client.submit(work, "batch")
        with dask.annotate(demand={"vram": "1GiB", "priority": "interactive"}):
            assert await cluster.client.submit(work, "interactive") == "a"
        explained = await cluster.client.scheduler.dgpunet_explain(key=batch.key)
        assert [v["code"] for v in explained["verdicts"]["a"]] == ["owner"]
        assert batch.status == "pending"
        cpu.plugins["dgpunet-device"].report_host("mains", None)
        assert await batch == "a"


async def test_a_new_card_takes_interactive_work_after_its_trial() -> None:
    old, new = card("old", 24, capability=(8, 9)), card("new", 16, capability=(8, 6))
    async with placed_cluster(old, new) as cluster:
        known = {"old": Standing(card_facts(old), first=True)}
        deriving = lambda done: derive(cluster.plugin.book.pool.fleet(), with_units(known | {"new": Standing(card_facts(new))}, done))  # noqa: E731
        use_policy = lambda files: cluster.plugin.pump.set_policy(  # noqa: E731
            parse_policies([(one.text, one.host, "generated") for one in files])
        )
        use_policy(deriving({}))
        gate = gates["g"] = Gate()
        with dask.annotate(demand={"vram": "20GiB"}):
            taken = cluster.client.submit(work, "old is busy", gate="g")
        await cluster.until(lambda: gate.entered)
        with dask.annotate(demand={"vram": "8GiB", "priority": "interactive", "work": 1}):
            asked = cluster.client.submit(work, "interactive")
        with dask.annotate(demand={"vram": "8GiB"}):
            tried = cluster.client.map(work, range(TRIAL_UNITS), pure=False)
        assert set(await cluster.client.gather(tried)) == {"new"}
        assert asked.status == "pending"
        use_policy(deriving((await cluster.fleet())["succeeded"]))
        assert await asked == "new"
        gate.open()
        await taken


async def test_reports_on_another_workers_card_are_not_believed() -> None:
    async with placed_cluster() as cluster:
        mine = await cluster.add_worker("a", [card("a", 24)])
        other = await cluster.add_worker("b", [card("b", 24)])
        other.plugins["dgpunet-device"].report_use("a", use(20))
        other.plugins["dgpunet-device"].report_use("nowhere", use(20))
        mine.plugins["dgpunet-device"].report_use("a", use(3))
        await cluster.until(lambda: foreign(cluster) == 3)
        other.plugins["dgpunet-device"].report_use("b", use(1))
        await cluster.until(lambda: "b" in cluster.charges("foreign"))
        assert foreign(cluster) == 3


async def test_units_that_end_well_are_counted_by_card() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        with dask.annotate(demand={"vram": "1GiB"}):
            good = cluster.client.map(work, range(3), pure=False)
            bad = cluster.client.submit(int, "no number")
        await wait([*good, bad])
        assert (await cluster.fleet())["succeeded"] == {"a": 3}
