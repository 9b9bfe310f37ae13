"""What a head has learned: told to the scheduler, kept in a file, and never lost in silence."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.errors import DiskFull, NewerFormat
from dgpunet_dask.jobs import learning
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.task import Seen, StageRecord
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.oom import Overrun

EMBED = Demand(stage="embed", model="m")
SEEN = Seen(device_class="RTX", speed=2.0, share=1, seconds=3.0, load_s=7.0, peak_mib=1000, charge_mib=24000)


def record(seen: Seen | None) -> StageRecord:
    return StageRecord(items=1, counts={}, attempts=1, device="g", seconds=3.0, seen=seen)


def test_a_unit_teaches_its_seconds_its_load_and_its_peak() -> None:
    learned = Learning()
    learned.unit(EMBED, record(SEEN))
    assert learned.estimates.run_s("embed", "m", "RTX") == 3.0
    assert learned.estimates.work_s("embed", "m") == 6.0
    assert learned.estimates.load_s("embed", "m", "RTX") == 7.0
    assert learned.estimates.peak_mib("embed", "m") == 1152


def test_light_stages_teach_nothing() -> None:
    learned = Learning()
    learned.unit(None, record(None))
    learned.unit(EMBED, record(None))
    assert learned.estimates == NO_ESTIMATES


def test_an_overrun_raises_the_need_and_only_a_whole_card_is_too_small() -> None:
    learned, grown = Learning(), Demand(stage="embed", model="m", vram="6GiB")
    learned.overrun(EMBED, Overrun("a", 4096, None, 8192, whole=False), grown)
    assert (learned.estimates.peak_mib("embed", "m"), learned.estimates.larger_than_mib("embed", "m")) == (6144, None)
    learned.overrun(EMBED, Overrun("a", 8192, None, 8192, whole=True), EMBED)
    assert (learned.estimates.peak_mib("embed", "m"), learned.estimates.larger_than_mib("embed", "m")) == (None, 8192)


def test_a_unit_that_was_given_up_leaves_no_bound_behind() -> None:
    learned = Learning()
    learned.overrun(EMBED, Overrun("a", 8192, None, 8192, whole=True), Demand(stage="embed", model="m", vram="12GiB"))
    learned.held(EMBED)
    assert (learned.estimates.peak_mib("embed", "m"), learned.estimates.larger_than_mib("embed", "m")) == (None, None)


async def until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # a file gives no event
            await asyncio.sleep(0.01)


async def test_changes_are_told_and_kept_and_read_again(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []

    async def tell(raw: Mapping[str, Any]) -> None:
        told.append(raw)

    learned = Learning(tmp_path / "learned.json", tell)
    learned.load()
    running = asyncio.create_task(learned.run())
    learned.unit(EMBED, record(SEEN))
    await until((tmp_path / "learned.json").exists)
    learned.unit(EMBED, record(SEEN))
    running.cancel()
    await asyncio.wait([running])
    assert Estimates.from_json(told[-1]).work_s("embed", "m") == 6.0
    again = Learning(tmp_path / "learned.json")
    again.load()
    assert again.estimates == learned.estimates, "the last change was kept at the end"


async def test_a_new_scheduler_is_told_everything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "EVERY_S", 0.01)
    told: list[Mapping[str, Any]] = []
    failures = [OSError("the scheduler is away"), TimeoutError()]

    async def tell(raw: Mapping[str, Any]) -> None:
        if failures:
            raise failures.pop()
        told.append(raw)

    learned = Learning(tmp_path / "learned.json", tell)
    learned.unit(EMBED, record(SEEN))
    running = asyncio.create_task(learned.run())
    await until(lambda: told)
    learned.again()
    await until(lambda: len(told) == 2)
    running.cancel()
    await asyncio.wait([running])
    assert told[0] == told[1] == learned.estimates.to_json()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": "x", "stages": []}', '{"version": 1, "stages": [{}]}'])
def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "learned.json"
    path.write_text(text)
    learned = Learning(path)
    with caplog.at_level(logging.WARNING):
        learned.load()
    assert learned.estimates == NO_ESTIMATES
    assert not path.exists()
    assert (tmp_path / "learned.json.damaged").read_text() == text
    assert "learned.json.damaged" in caplog.text


def test_what_can_neither_be_read_nor_set_aside_costs_only_what_is_learned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "learned.json"
    path.mkdir()
    (tmp_path / "learned.json.damaged").write_text("an earlier one")
    with caplog.at_level(logging.WARNING):
        Learning(path).load()
    assert "nor set aside" in caplog.text


def test_a_file_of_a_newer_release_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    path.write_text(json.dumps({"version": 99, "stages": []}))
    with pytest.raises(NewerFormat, match="version 99"):
        Learning(path).load()
    assert path.exists()


def test_a_full_disk_costs_what_was_learned_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise DiskFull(path=path)

    learned = Learning(tmp_path / "learned.json")
    learned.unit(EMBED, record(SEEN))
    with monkeypatch.context() as patched:
        patched.setattr(learning, "commit_text", full)
        learned.keep()
    assert "cannot be kept" in caplog.text
    learned.keep()
    assert (tmp_path / "learned.json").exists()
