"""A real disk that is full: what is kept stays whole, room is made, and work waits and goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch, settings_path
from dgpunet_dask.daemons import disk as disk_module
from dgpunet_dask.daemons.disk import Disk, DiskPorts
from dgpunet_dask.daemons.register import Register
from dgpunet_dask.daemons.tidying import Caches, EventsCut, cut_log, cut_logs
from dgpunet_dask.errors import DiskFull
from dgpunet_dask.errors.fullness import is_full
from dgpunet_dask.hardware.system import total_and_free
from dgpunet_dask.jobs.commit import commit_frames

MIB = 1 << 20
SmallDisk = Callable[[int], Path]


def fill(folder: Path, left: int = 0) -> Path:
    """Fill the disk of `folder` but for `left` bytes."""
    filler = folder / "filler"
    with open(filler, "ab") as file:
        while (free := shutil.disk_usage(folder).free - left) > 0:
            try:
                file.write(b"\0" * min(free, MIB))
                file.flush()
            except OSError:
                break
    return filler


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the keeper look often."""
    monkeypatch.setattr(disk_module, "LOOK_S", 0.05)


def disk_of(home: Home, text: str, **ports: object) -> Disk:
    settings_path(home.root).write_text(text)
    watch = SettingsWatch(settings_path(home.root))
    watch.load()
    return Disk(home, watch, DiskPorts(commands=lambda: iter(()), **ports))


def test_the_room_of_a_disk_is_what_the_system_says(small_disk: SmallDisk) -> None:
    folder = small_disk(8)
    assert total_and_free(folder) == (8 * MIB, shutil.disk_usage(folder).free)
    fill(folder)
    assert total_and_free(folder)[1] < 8192


@pytest.mark.parametrize("left", [0, 4096, 64 << 10])
def test_a_full_disk_is_told_as_such_by_whoever_writes(small_disk: SmallDisk, left: int) -> None:
    folder = small_disk(2)
    fill(folder, left)
    with pytest.raises(OSError, match="No space") as raised:
        (folder / "file").write_bytes(b"x" * MIB)
    assert raised.value.errno == errno.ENOSPC
    assert is_full(raised.value)
    with pytest.raises(DiskFull) as told:
        commit_frames(folder / "u.frames", [b"x" * MIB])
    assert is_full(told.value)
    assert not list(folder.glob("*u.frames*")), "nothing is left of it"


def test_a_register_that_finds_no_room_leaves_nothing_behind(small_disk: SmallDisk) -> None:
    folder = small_disk(2)
    fill(folder)
    with pytest.raises(OSError, match="No space"):
        Register(folder).add(os.getpid(), "this test")
    assert {file.name for file in folder.iterdir()} == {"filler"}


def test_a_log_that_has_filled_its_disk_is_emptied(small_disk: SmallDisk) -> None:
    logs = small_disk(4)
    path = logs / "worker.log"
    (logs / "worker.log.1").write_bytes(b"old\n" * 1000)
    with open(path, "ab", buffering=0) as writer:
        with pytest.raises(OSError, match="No space"):
            while True:
                writer.write(b"words\n" * 1000)
        cut_logs(logs, 4 * MIB)
        assert sum(file.stat().st_size for file in logs.iterdir()) <= 4 * MIB
        assert shutil.disk_usage(logs).free > 3 * MIB
        writer.write(b"more\n")
    assert path.read_bytes() == b"more\n"


def test_a_log_is_emptied_even_where_not_one_line_of_it_can_be_kept(small_disk: SmallDisk) -> None:
    logs = small_disk(2)
    (logs / "worker.log").write_bytes(b"words\n" * 10_000)
    fill(logs)
    cut_log(logs / "worker.log", 30_000)
    assert (logs / "worker.log").stat().st_size == 0
    assert {file.name for file in logs.iterdir()} == {"worker.log", "filler"}


def test_events_on_a_full_disk_stay_as_they_are(small_disk: SmallDisk) -> None:
    folder = small_disk(4)
    events = folder / "events.jsonl"
    events.write_bytes(b'{"seq": 1, "kind": "log"}\n' * 50_000)
    before = events.read_bytes()
    fill(folder)
    cut = EventsCut.of(events, MIB)
    with pytest.raises(OSError, match="No space"):
        cut.prepare()
    assert events.read_bytes() == before
    assert {file.name for file in folder.iterdir()} == {"events.jsonl", "filler"}


def test_events_that_a_full_disk_keeps_from_being_finished_stay_as_they_are(small_disk: SmallDisk) -> None:
    folder = small_disk(4)
    events = folder / "events.jsonl"
    events.write_bytes(b'{"seq": 1, "kind": "log"}\n' * 50_000)
    cut = EventsCut.of(events, MIB)
    cut.prepare()
    with events.open("ab") as file:
        file.write(b'{"seq": 2, "kind": "log"}\n' * 10_000)
    before = events.read_bytes()
    fill(folder)
    with pytest.raises(OSError, match="No space"):
        cut.finish()
    assert events.read_bytes() == before


def test_a_cached_folder_goes_from_a_full_disk(small_disk: SmallDisk) -> None:
    home = Home(small_disk(4) / "h").ensure()
    folder = home.models / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * MIB)
    fill(home.root)
    caches = Caches(home, lambda: 0.0)
    (entry,) = caches.entries(())
    assert caches.remove(entry)
    assert shutil.disk_usage(home.root).free > MIB // 2


async def test_work_waits_while_the_disk_is_low_and_goes_on_when_there_is_room(small_disk: SmallDisk, quick: None) -> None:
    home = Home(small_disk(16) / "h").ensure()
    told = asyncio.Queue()
    disk = disk_of(home, "version: 1\ndisk: {floor: 2MiB}", tell=lambda kind, facts: told.put_nowait(kind))
    keeper = asyncio.create_task(disk.run())
    await asyncio.wait_for(disk.room_ok(), 5)
    filler = fill(home.root)
    assert await asyncio.wait_for(told.get(), 10) == "disk_low"
    waiting = asyncio.create_task(disk.room_ok())
    assert not (await asyncio.wait([waiting], timeout=0.2))[0]
    os.truncate(filler, filler.stat().st_size - 2 * MIB - MIB // 8)  # above the floor, and not yet far enough
    assert not (await asyncio.wait([waiting], timeout=0.2))[0]
    filler.unlink()
    await asyncio.wait_for(waiting, 10)
    assert await asyncio.wait_for(told.get(), 10) == "disk_ok"
    keeper.cancel()


async def test_a_low_disk_makes_room_by_itself_where_it_can(small_disk: SmallDisk, quick: None) -> None:
    home = Home(small_disk(16) / "h").ensure()
    for number, letter in enumerate("abc"):
        folder = home.models / (letter * 64)
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"x" * 2 * MIB)
        os.utime(folder, (1000 + number, 1000 + number))
    disk = disk_of(home, "version: 1\ndisk: {floor: 3MiB}", in_use=lambda: {("model", "b" * 64)})
    fill(home.root, 2 * MIB)
    assert disk.room().low
    await disk.step()
    await asyncio.wait_for(disk.room_ok(), 10)
    assert {path.name[0] for path in home.models.iterdir() if path.is_dir()} == {"b", "c"}
