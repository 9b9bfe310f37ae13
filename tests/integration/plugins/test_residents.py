"""What stays loaded on a card is charged, idle ones leave when room is needed, and reports are believed only from the right worker."""

from __future__ import annotations

from typing import Any

import dask
import pytest
from distributed import wait

from dgpunet_dask.plugins import scheduler as plugin_module
from dgpunet_dask.plugins.worker import DeviceWorker
from dgpunet_dask.testing.placement import GIB, Gate, PlacedCluster, card, gates, placed_cluster, spans, work


def demand(gib: int, **more: object) -> dict[str, object]:
    return {"vram": f"{gib}GiB", **more}


def resident(stage: str, gib: int, *, busy: bool = False) -> dict[str, Any]:
    return {"stage": stage, "id": f"{stage}-id", "mib": gib * GIB, "busy": busy}


async def with_residents(cluster: PlacedCluster, *residents: dict[str, Any], gib: int = 24) -> tuple[DeviceWorker, list[tuple[str, str]]]:
    """Add device `a` with residents, and note which evictions its worker is asked for."""
    asked: list[tuple[str, str]] = []
    worker = await cluster.add_worker("a", [card("a", gib)], evict=lambda device, stage: asked.append((device, stage)))
    speaker = worker.plugins["dgpunet-device"]
    speaker.report_residents("a", residents)
    await cluster.until(lambda: len(cluster.charges("resident").get("a", ())) == len(residents))
    return speaker, asked


async def test_an_idle_resident_is_sent_away_and_the_demand_placed_once_it_has_gone() -> None:
    async with placed_cluster() as cluster:
        speaker, asked = await with_residents(cluster, resident("chat", 10), resident("pose", 2))
        with dask.annotate(demand=demand(18, stage="image")):
            large = cluster.client.submit(work, "large", mib=18 * GIB)
        await cluster.until(lambda: asked)
        with dask.annotate(demand=demand(8, stage="late")):
            small = cluster.client.submit(work, "small", mib=8 * GIB)  # it would fit, but the card is being cleared for the other
        await cluster.until(lambda: len(cluster.plugin.pump.queues) == 2)
        assert asked == [("a", "chat-id")]
        assert not cluster.charges()
        speaker.report_residents("a", [resident("pose", 2)])
        await wait([large, small])
        assert [span.tag for span in spans.all] == ["large", "small"]
        assert asked == [("a", "chat-id")]


async def test_a_busy_resident_is_left_alone() -> None:
    async with placed_cluster() as cluster:
        speaker, asked = await with_residents(cluster, resident("chat", 10, busy=True))
        with dask.annotate(demand=demand(18)):
            large = cluster.client.submit(work, "large")
        with dask.annotate(demand=demand(8)):
            assert await cluster.client.submit(work, "small") == "a"
        assert large.status == "pending"
        assert asked == []
        speaker.report_residents("a", [resident("chat", 10)])
        await cluster.until(lambda: asked)
        speaker.report_residents("a", [])
        assert await large == "a"


async def test_an_eviction_that_failed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(plugin_module, "EVICT_RETRY_S", 0.01)
    async with placed_cluster() as cluster:
        speaker, asked = await with_residents(cluster, resident("chat", 10))

        def refuse_once(device: str, stage: str) -> None:
            asked.append((device, stage))
            if len(asked) == 1:
                raise OSError("not now")
            speaker.report_residents("a", [])

        speaker._on_evict = refuse_once
        with dask.annotate(demand=demand(18)):
            assert await cluster.client.submit(work) == "a"
        assert len(asked) == 2
        assert "could not be asked to unload chat-id" in caplog.text


async def test_a_stage_that_is_loaded_already_is_charged_only_for_the_rest() -> None:
    async with placed_cluster() as cluster:
        await with_residents(cluster, resident("embed", 6))
        with dask.annotate(demand=demand(20, stage="embed", resident="6GiB")):
            assert await cluster.client.submit(work) == "a"
        entry = cluster.plugin.pump.log.since(0)[0]
        assert (entry["vram_mib"], entry["charged_mib"]) == (14 * GIB, 20 * GIB)


async def test_a_stage_that_loads_during_its_call_is_not_charged_twice() -> None:
    async with placed_cluster() as cluster:
        speaker, _ = await with_residents(cluster)
        gates["g"] = Gate()
        with dask.annotate(demand=demand(20, stage="embed", resident="6GiB")):
            future = cluster.client.submit(work, gate="g")
        await cluster.until(lambda: gates["g"].entered)
        assert cluster.plugin.book.pool.fleet().charged_mib("a") == 20 * GIB
        speaker.report_residents("a", [resident("embed", 6, busy=True)])
        await cluster.until(lambda: cluster.charges("resident"))
        assert cluster.plugin.book.pool.fleet().charged_mib("a") == 20 * GIB
        gates["g"].open()
        await future
        await cluster.until(lambda: cluster.plugin.book.pool.fleet().charged_mib("a") == 6 * GIB)


async def test_residents_stay_charged_while_their_worker_is_away_and_until_the_next_one_reports() -> None:
    async with placed_cluster() as cluster:
        await with_residents(cluster, resident("chat", 10, busy=True))
        await cluster.workers.pop("a").close()
        await cluster.until(lambda: cluster.plugin.book.pool.slot("a").state == "lost")
        assert cluster.charges("resident") == {"a": ["chat-id"]}
        worker = await cluster.add_worker("a", [card("a", 24)])
        with dask.annotate(demand=demand(18)):
            future = cluster.client.submit(work)
        await cluster.until(lambda: len(cluster.plugin.pump.queues))
        assert cluster.charges("resident") == {"a": ["chat-id"]}
        worker.plugins["dgpunet-device"].report_residents("a", [])
        assert await future == "a"


async def test_reports_about_devices_of_others_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with placed_cluster(card("b", 24)) as cluster:
        speaker, _ = await with_residents(cluster)
        speaker.report_residents("b", [resident("chat", 1)])
        speaker.report_residents("zzz", [resident("chat", 1)])
        await cluster.until(lambda: "residents of b, which is not its own" in caplog.text and "residents of zzz" in caplog.text)
        assert not cluster.charges("resident")


async def test_facts_that_cannot_be_read_are_told_and_the_worker_gets_no_placed_work(caplog: pytest.LogCaptureFixture) -> None:
    async with placed_cluster(card("b", 24)) as cluster:
        worker = cluster.plugin.scheduler.workers[cluster.workers["b"].address]
        worker.extra["dgpunet"] = {"host": {"name": "h", "rem": 3}, "devices": []}
        cluster.plugin.book.add_worker(worker)
        assert "did you mean 'ram_mib'" in caplog.text or "host field 'rem' is not valid" in caplog.text
