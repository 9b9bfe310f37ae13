"""The keeper of a home's disk: when there is room, and what it removes, with time and disk moved by hand."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch, settings_path
from dgpunet_dask.daemons import disk as disk_module
from dgpunet_dask.daemons.disk import FRESH_S, REST_S, TIDY_LOW_S, TIDY_S, Disk, DiskPorts
from dgpunet_dask.daemons.tidying import EVENTS_ENDED
from dgpunet_dask.errors import MalformedFile

A, B, C, D = (letter * 64 for letter in "abcd")
MIB = 1 << 20


class World:
    """A clock, a disk and a head that a test moves by hand."""

    def __init__(self, home: Home) -> None:
        self.home, self.now, self.free, self.total = home, 10_000_000.0, 500 * MIB, 1000 * MIB
        self.used: set[tuple[str, str]] = set()
        self.over: dict[str, float] = {}
        self.told: list[str] = []
        self.forgotten: list[str] = []
        self.wanted: set[str] = set()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def disk(self, text: str = "version: 1\ndisk: {floor: 10%}", **more: Any) -> Disk:
        settings_path(self.home.root).write_text(text)
        watch = SettingsWatch(settings_path(self.home.root), self)
        watch.load()
        ports = DiskPorts(
            in_use=lambda: self.used, ended=lambda: self.over, forget=self.forget, tell=self.tell, statvfs=lambda _: (self.total, self.free),
            commands=lambda: iter(()),
        )  # fmt: skip
        return Disk(self.home, watch, ports, clock=self, **more)

    async def forget(self, job_id: str) -> bool:
        self.forgotten.append(job_id)
        return job_id not in self.wanted

    def tell(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.told.append(kind)

    def cached(self, *digests: str, size: int = MIB, age_s: float = 2 * REST_S) -> None:
        for number, digest in enumerate(digests):
            folder = self.home.models / digest
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(b"x" * size)
            used_s = self.now - age_s + number
            os.utime(folder, (used_s, used_s))

    def job(self, job_id: str, days: float, size: int = MIB) -> Path:
        folder = self.home.jobs / job_id
        (folder / "results").mkdir(parents=True)
        (folder / "results/u.write.1.frames").write_bytes(b"x" * size)
        (folder / "job.json").write_text("{}")
        self.over[job_id] = self.now - days * 86_400
        return folder

    @property
    def models(self) -> set[str]:
        return {path.name for path in self.home.models.iterdir() if path.is_dir()}

    @property
    def results(self) -> set[str]:
        return {path.parent.name for path in self.home.jobs.glob("*/results")}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Home(tmp_path / "h").ensure())


# Room


def test_room_is_low_below_the_floor_until_it_has_risen(world: World) -> None:
    disk, seen = world.disk(), []
    for free in (100, 99, 105, 109, 110, 100):
        world.free = free * MIB
        world.now += 1
        seen.append(disk.room().low)
    assert seen == [False, True, True, True, False, False]
    assert world.told == ["disk_low", "disk_ok"]


def test_the_disk_is_asked_no_oftener_than_its_answer_is_fresh(world: World) -> None:
    disk = world.disk()
    disk.room()
    world.free = 0
    assert not disk.room().low
    world.now += 2 * FRESH_S
    assert disk.room().low


async def test_work_waits_for_room_and_then_goes_on(world: World) -> None:
    disk = world.disk()
    await disk.room_ok()
    world.free, world.now = 0, world.now + 1
    waiting = [asyncio.create_task(disk.room_ok()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    world.free, world.now = 500 * MIB, world.now + 1
    await disk.step()  # whoever looks first tells all
    await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_who_waits_looks_also_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "LOOK_S", 0.01)
    disk = world.disk()
    world.free = 0
    waiting = asyncio.create_task(disk.room_ok())
    await asyncio.sleep(0)
    world.free, world.now = 500 * MIB, world.now + 1
    await asyncio.wait_for(waiting, 5)


async def test_a_waiting_job_can_be_cancelled(world: World) -> None:
    disk = world.disk()
    world.free = 0
    waiting = asyncio.create_task(disk.room_ok())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_what_is_told_of_a_low_disk(world: World) -> None:
    disk = world.disk()
    assert (disk.status()["low"], disk.status()["error"], disk.status()["low_since"]) == (False, None, None)
    world.free, world.now = 50 * MIB, world.now + 1
    status = disk.status()
    assert (status["free"], status["floor"], status["total"], status["low_since"]) == (50 * MIB, 100 * MIB, 1000 * MIB, world.now)
    assert status["error"]["code"] == "low_disk"
    assert "50.0 MiB left and work stops below 100.0 MiB" in status["error"]["message"]
    json.dumps(status)


async def test_settings_are_followed_and_a_mistake_is_told(world: World) -> None:
    disk = world.disk("version: 1")
    for text, error in (("version: 1\ndisk: {floor: 400MiB}", None), ("version: 1\ndisk: {flor: 1%}", MalformedFile)):
        settings_path(world.home.root).write_text(text)
        for _ in range(2):
            world.now += 1
            await disk.step()
        assert disk.limits.floor.of(world.total) == 400 * MIB
        assert type(disk.watch.error) is (error or type(None))
    assert disk.status()["settings"]["error"]["code"] == "malformed_file"


# Caches


async def test_the_longest_unused_go_until_the_rest_fits(world: World) -> None:
    world.cached(A, B, C, D)
    disk = world.disk("version: 1\ndisk: {caches: 2100KiB}")
    assert await disk.tidy() >= 2 * MIB
    assert world.models == {C, D}


async def test_what_is_in_use_stays_and_counts(world: World) -> None:
    world.cached(A, B, C)
    world.used = {("model", A), ("model", B)}
    await world.disk("version: 1\ndisk: {caches: 0B}").tidy()
    assert world.models == {A, B}


async def test_what_was_used_a_moment_ago_stays(world: World) -> None:
    world.cached(A, B, age_s=REST_S - 60)
    disk = world.disk("version: 1\ndisk: {caches: 0B}")
    await disk.tidy()
    assert world.models == {A, B}
    world.now += 120
    await disk.tidy()
    assert world.models == set()


async def test_what_was_in_use_once_goes_last(world: World) -> None:
    world.cached(A, B, C)
    disk = world.disk("version: 1\ndisk: {caches: 10MiB}")
    world.now = 2e9  # what is marked on disk has the time of this machine
    world.used = {("model", A)}
    await disk.tidy()
    world.used = set()
    settings_path(world.home.root).write_text("version: 1\ndisk: {caches: 1100KiB}")
    for _ in range(2):
        world.now += TIDY_S
        await disk.step()
    assert world.models == {A}


async def test_a_job_that_begins_while_things_are_removed_keeps_what_it_uses(world: World) -> None:
    world.cached(A, B)
    disk = world.disk("version: 1\ndisk: {caches: 0B}")
    removed = disk.caches.remove
    disk.caches.remove = lambda entry: (world.used.add(("model", B)), removed(entry))[1]  # type: ignore[method-assign]  # a moment in between
    await disk.tidy()
    assert world.models == {B}


async def test_caches_make_room_on_a_low_disk_and_results_do_not(world: World) -> None:
    world.cached(A, B, C)
    world.job("j", days=1)
    disk = world.disk()
    world.free = 109 * MIB  # the floor has not been reached
    await disk.tidy()
    assert world.models == {A, B, C}
    world.free, world.now = 99 * MIB, world.now + 1
    assert disk.room().low
    world.free, world.now = 108 * MIB + MIB // 2, world.now + 1
    await disk.tidy()
    assert world.models == {C}
    assert world.results == {"j"}


async def test_an_agent_beside_a_head_marks_what_it_uses_and_removes_nothing(world: World) -> None:
    world.cached(A, B, age_s=1e6)
    world.used = {("model", A), ("model", D)}
    await world.disk("version: 1\ndisk: {caches: 0B}", tidies=False).tidy()
    assert world.models == {A, B}
    assert (world.home.models / A).stat().st_mtime > (world.home.models / B).stat().st_mtime + 1000


# Results


async def test_results_go_after_their_days_and_the_oldest_when_there_are_too_many(world: World) -> None:
    for job_id, days in (("old", 15), ("big1", 3), ("big2", 2), ("new", 1)):
        folder = world.job(job_id, days)
    live = world.job("live", days=100)
    del world.over["live"]
    await world.disk("version: 1\ndisk: {results: 2100KiB}").tidy()
    assert world.results == {"big2", "new", "live"}
    assert world.forgotten == ["old", "big1"]
    assert (world.home.jobs / "old/job.json").exists()
    assert live.is_dir()
    assert folder.is_dir()


async def test_results_that_are_wanted_after_all_stay(world: World) -> None:
    world.job("again", days=30)
    world.wanted = {"again"}
    await world.disk().tidy()
    assert world.results == {"again"}


async def test_the_ledger_hears_of_it_before_it_happens(world: World) -> None:
    folder = world.job("j", days=30)
    disk, seen = world.disk(), []

    async def forget(job_id: str) -> bool:
        seen.append((job_id, (folder / "results").is_dir()))
        return True

    object.__setattr__(disk.ports, "forget", forget)
    await disk.tidy()
    assert seen == [("j", True)]
    assert world.results == set()
    world.now += TIDY_S
    await disk.tidy()
    assert seen == [("j", True)], "what has gone is not told again"


async def test_events_are_cut_when_too_long_and_more_when_the_results_have_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "EVENTS_MOST", 2 * MIB)
    old, live = world.job("old", days=30), world.job("live", days=0)
    del world.over["live"]
    for folder in (old, live):
        (folder / "events.jsonl").write_text("".join(f'{{"seq": {n}, "kind": "log", "text": "{"x" * 1000}"}}\n' for n in range(3000)))
    disk = world.disk()
    await disk.tidy()
    assert 0 < (old / "events.jsonl").stat().st_size <= EVENTS_ENDED
    assert EVENTS_ENDED < (live / "events.jsonl").stat().st_size <= MIB
    sizes = [(folder / "events.jsonl").stat().st_size for folder in (old, live)]
    await disk.tidy()
    assert [(folder / "events.jsonl").stat().st_size for folder in (old, live)] == sizes
    assert world.forgotten == ["old"]


async def test_where_there_is_no_head_jobs_are_left_alone(world: World) -> None:
    world.job("j", days=100)
    disk = world.disk()
    object.__setattr__(disk.ports, "ended", None)
    await disk.tidy()
    assert world.results == {"j"}


# The loop


async def test_files_are_looked_at_at_the_start_now_and_then_and_at_once_when_room_is_low(world: World) -> None:
    disk, rounds = world.disk(), []

    async def tidy() -> int:
        rounds.append(world.now)
        disk._tidied_s = world.now
        return 0

    disk.tidy = tidy  # type: ignore[method-assign]  # only when it is called counts here
    start = world.now
    for _ in range(int(TIDY_S) + 5):
        await disk.step()
        world.now += 1
    assert rounds == [start, start + TIDY_S]
    world.free = 0
    low = world.now
    for _ in range(int(TIDY_LOW_S) + 1):
        await disk.step()
        world.now += 1
    assert rounds[2:] == [low, low + TIDY_LOW_S]


async def test_one_part_that_fails_keeps_no_other_from_being_tidied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cached(A)

    def broken(*_: object) -> int:
        raise PermissionError("no")

    monkeypatch.setattr(disk_module.tidying, "cut_logs", broken)
    await world.disk("version: 1\ndisk: {caches: 0B}").tidy()
    assert world.models == set()


def test_a_disk_that_does_not_answer_stops_no_work_and_changes_nothing(world: World) -> None:
    disk = world.disk()
    answers = disk.ports.statvfs

    def failing(_: object) -> tuple[int, int]:
        raise OSError("stale file handle")

    object.__setattr__(disk.ports, "statvfs", failing)
    assert not disk.room().low
    for free, low in ((0, True), (500 * MIB, False)):
        world.free = free
        for statvfs in (answers, failing):
            world.now += 1
            object.__setattr__(disk.ports, "statvfs", statvfs)
            assert disk.room().low is low
    assert world.told == ["disk_low", "disk_ok"]


async def test_the_loop_survives_whatever_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "LOOK_S", 0.001)
    disk, asked, often = world.disk(), [], asyncio.Event()

    async def failing() -> None:
        asked.append(1)
        if len(asked) == 3:
            often.set()
        raise ValueError("something unforeseen")

    disk.step = failing  # type: ignore[method-assign]  # only the loop is looked at
    task = asyncio.create_task(disk.run())
    await asyncio.wait_for(often.wait(), 5)
    task.cancel()
