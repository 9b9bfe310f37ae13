"""Results on their way to the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dgpunet_dask import failpoints
from dgpunet_dask.errors import DiskFull
from dgpunet_dask.jobs.publishing import FILES_WAIT_S, FULL_TRIES, publish, take_back
from dgpunet_dask.jobs.task import Parcel
from dgpunet_dask.jobs.units import result_name
from dgpunet_dask.stagehost.frames import pack

ENDS = {"left": Parcel(pack([1, 2]), 2), "right": Parcel(pack(["x"]), 1)}
UNIT = "a" * 32


class Disk:
    """A disk that is full, or a process with too many open files, until it was waited for `full` times; `at` is where it is noticed."""

    def __init__(self, full: int, at: str, number: int = errno.ENOSPC) -> None:
        self.full, self.at, self.number, self.waits = full, at, number, 0
        self.slept = 0.0

    def hit(self, name: str, **_: object) -> None:
        if name == self.at and self.waits < self.full:
            raise OSError(self.number, os.strerror(self.number))

    async def room(self) -> None:
        self.waits += 1

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_each_leaf_has_its_file_and_what_is_refused_leaves_none(tmp_path: Path) -> None:
    disk = Disk(0, "")
    digests = await publish(tmp_path, UNIT, 7, ENDS, ["left", "right"], disk.room)
    assert files(tmp_path) == [result_name(UNIT, leaf, 7) for leaf in ("left", "right")]
    assert len(set(digests.values())) == 2
    again = await publish(tmp_path, UNIT, 8, ENDS, ["left"], disk.room)
    assert again["left"] == digests["left"], "the digest is of the bytes"
    take_back(tmp_path, UNIT, 8, ["left", "right"])
    assert files(tmp_path) == [result_name(UNIT, leaf, 7) for leaf in ("left", "right")]


@pytest.mark.parametrize("at", ["publish.opened", "publish.written", "publish.synced", "publish.renamed"])
async def test_a_full_disk_is_waited_for_and_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    disk = Disk(3, at)
    monkeypatch.setattr(failpoints, "hit", disk.hit)
    await publish(tmp_path, UNIT, 7, ENDS, ["left", "right"], disk.room)
    assert disk.waits == 3
    assert files(tmp_path) == [result_name(UNIT, leaf, 7) for leaf in ("left", "right")]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_files_that_cannot_be_opened_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    disk = Disk(3, "publish.opened", number)
    monkeypatch.setattr(failpoints, "hit", disk.hit)
    await publish(tmp_path, UNIT, 7, ENDS, ["left"], disk.room, disk.sleep)
    assert disk.slept == 3 * FILES_WAIT_S
    assert files(tmp_path) == [result_name(UNIT, "left", 7)]


async def test_a_disk_that_stays_full_is_told_of_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(10**6, "publish.written")
    monkeypatch.setattr(failpoints, "hit", disk.hit)
    with pytest.raises(DiskFull):
        await publish(tmp_path, UNIT, 7, ENDS, ["left"], disk.room)
    assert disk.waits == FULL_TRIES - 1
    assert not [name for name in files(tmp_path) if name.endswith(".frames")]
