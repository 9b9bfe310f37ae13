"""The files of the decision log: whole, bounded, each readable alone."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from dgpunet_dask.cluster.decisions import DecisionFiles, log_files, read_log
from dgpunet_dask.errors import MissingPath
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.placement.trace import FleetRecord, PolicyRecord, SubmitRecord, parse_trace, to_line

FLEET = to_line(FleetRecord.of(1.0, Fleet((Host(name="h"),), (Device(name="a", host="h", vram_mib=8192),))))
POLICY = to_line(PolicyRecord(1.0, "0" * 12))


def unit(number: int) -> str:
    return to_line(SubmitRecord(10.0 + number, f"u-{number}", Demand(vram="1GiB")))


def test_each_file_begins_with_fleet_and_policy_and_old_ones_go(tmp_path: Path) -> None:
    files = DecisionFiles(tmp_path / "d", file_bytes=400, files=3)
    files.append([FLEET, POLICY])
    for number in range(40):
        files.append([unit(number)])
    found = log_files(tmp_path / "d")
    assert len(found) == 3
    for file in found:
        records = parse_trace(file.read_text(), file.name)
        assert records.warnings == ()
        assert [r.kind for r in records.records[:2]] == ["fleet", "policy"]
    whole = parse_trace(read_log(tmp_path / "d"), "log")
    assert whole.warnings == ()
    assert [r.id for r in whole.records if isinstance(r, SubmitRecord)][-1] == "u-39"
    assert {oct(file.stat().st_mode)[-3:] for file in found} == {"600"}


def test_a_later_head_goes_on_where_an_earlier_one_was_killed(tmp_path: Path) -> None:
    DecisionFiles(tmp_path, file_bytes=600).append([FLEET, POLICY, unit(1)])
    (file,) = log_files(tmp_path)
    with file.open("a") as torn:
        torn.write(unit(2)[:20])
    later = DecisionFiles(tmp_path, file_bytes=600)
    later.append([unit(3)])
    for number in range(4, 12):
        later.append([unit(number)])
    records = parse_trace(read_log(tmp_path), "log")
    assert records.warnings == ()
    assert [r.id for r in records.records if isinstance(r, SubmitRecord)] == ["u-1", *(f"u-{n}" for n in range(3, 12))]
    assert [r.kind for r in parse_trace(log_files(tmp_path)[-1].read_text(), "last").records[:2]] == ["fleet", "policy"]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = DecisionFiles(tmp_path)
    files.append([FLEET, POLICY, unit(1)])
    before = read_log(tmp_path)
    real = os.write
    room = [10]

    def full(fd: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "no space left on the device")
        n = real(fd, bytes(data)[: room[0]])
        room[0] -= n
        return n

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space"):
            files.append([unit(2)])
    assert read_log(tmp_path) == before
    files.append([unit(3)])
    assert json.loads(read_log(tmp_path).splitlines()[-1])["id"] == "u-3"


def test_no_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingPath):
        read_log(tmp_path)
    DecisionFiles(tmp_path / "d").append([])
    assert not (tmp_path / "d").exists()


def test_what_stands_is_not_lost_with_the_lines_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = DecisionFiles(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="no space"):
            files.append([FLEET, POLICY, unit(1)])
    files.append([unit(2)])
    files.append([unit(3)])
    found = parse_trace(read_log(tmp_path), "log")
    assert [r.kind for r in found.records] == ["fleet", "policy", "submit", "submit"]
    assert [r.t for r in found.records] == [12.0, 12.0, 12.0, 13.0]


def test_a_log_that_was_cleared_away_begins_anew_with_what_stands(tmp_path: Path) -> None:
    files = DecisionFiles(tmp_path / "d")
    files.append([FLEET, POLICY, unit(1)])
    for file in log_files(tmp_path / "d"):
        file.unlink()
    (tmp_path / "d").rmdir()
    files.append([unit(2)])
    assert [r.kind for r in parse_trace(read_log(tmp_path / "d"), "log").records] == ["fleet", "policy", "submit"]
