"""A running task knows what it was charged for and between how many stages its card is shared; what was learned shapes later charges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask
from distributed import Future

from dgpunet_dask.model.policy import Policy, Rule
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from dgpunet_dask.plugins.worker import current_device, current_vram_mib, sharing
from dgpunet_dask.testing.placement import GIB, Gate, PlacedCluster, card, gates, placed_cluster

SHARED = Policy(rules=(Rule(name="all", max_per_gpu=4),))


def look(gate: str | None = None) -> tuple[str, int | None, int]:
    """Tell what the task knows of its place, after waiting at `gate`."""
    if gate is not None:
        gates[gate].pass_through()
    return current_device(), current_vram_mib(), sharing()


def submit(cluster: PlacedCluster, demand: Mapping[str, Any], *args: Any) -> Future:
    with dask.annotate(demand=demand):
        return cluster.client.submit(look, *args, pure=False)


async def test_a_task_knows_its_charge_the_whole_card_where_nothing_was_stated() -> None:
    async with placed_cluster(card("a", 24, reserve_mib=512)) as cluster:
        assert await submit(cluster, {"vram": "4GiB"}) == ("a", 4 * GIB, 1)
        assert await submit(cluster, {}) == ("a", 24 * GIB - 512, 1)
        assert (await cluster.client.submit(look, pure=False))[1] is None, "a task that was not placed"


async def test_what_was_learned_is_charged_where_nothing_is_stated() -> None:
    async with placed_cluster(card("a", 8), card("b", 24, speed=1.0)) as cluster:
        learned = NO_ESTIMATES.with_peak("embed", "m", 1000)
        await cluster.client.scheduler.dgpunet_estimates(estimates=learned.to_json())
        assert await submit(cluster, {"stage": "embed", "model": "m"}) == ("a", 1152, 1)
        failed = learned.with_oom("embed", "m", need_mib=9000, too_small_mib=8 * GIB)
        await cluster.client.scheduler.dgpunet_estimates(estimates=failed.to_json())
        assert await submit(cluster, {"stage": "embed", "model": "m"}) == ("b", 9000, 1)


async def test_what_waits_follows_what_was_learned_meanwhile() -> None:
    async with placed_cluster(card("a", 8)) as cluster:
        gates["door"] = Gate()
        first = submit(cluster, {"stage": "embed", "model": "m"}, "door")
        await cluster.until(lambda: gates["door"].entered == 1)
        second = submit(cluster, {"stage": "embed", "model": "m"})
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 1)
        learned = NO_ESTIMATES.with_peak("embed", "m", 1000)
        await cluster.client.scheduler.dgpunet_estimates(estimates=learned.to_json())
        gates["door"].open()
        assert (await first)[1] == 8 * GIB
        assert (await second)[1] == 1152


async def test_stages_on_one_card_share_it_and_units_of_one_stage_take_turns() -> None:
    async with placed_cluster(card("a", 24)) as cluster:
        cluster.plugin.pump.set_policy(SHARED)
        gates["door"] = Gate()
        demands = [{"stage": stage, "vram": "1GiB"} for stage in ("embed", "embed", "chat")]
        running = [submit(cluster, demand, "door") for demand in demands]
        await cluster.until(lambda: gates["door"].entered == 3)
        fourth = submit(cluster, {"stage": "chat", "vram": "1GiB"})
        assert await fourth == ("a", GIB, 2)
        gates["door"].open()
        for future in running:
            await future
