"""Clock, disk and limits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import DEFAULTS, SettingsWatch
from dgpunet_dask.daemons.disk import Disk
from dgpunet_dask.hardware import system
from dgpunet_dask.hardware.system import ClockFacts, clock_facts, clock_of, disk_facts, file_limits
from dgpunet_dask.observe import probes


@pytest.mark.parametrize(
    ("state", "status", "error_us", "expected"),
    [
        (0, 0x2001, 25_000, ClockFacts(synchronised=True, error_s=0.025)),
        (1, 0x2001, 25_000, ClockFacts(synchronised=True, error_s=0.025)),  # a leap second is near
        (5, 0x40, 16_000_000, ClockFacts(synchronised=False, error_s=None)),
        (0, 0x40, 25_000, ClockFacts(synchronised=False, error_s=None)),
    ],
)
def test_what_the_kernel_says_of_the_clock(state, status, error_us, expected):
    assert clock_of(state, status, error_us) == expected


@pytest.mark.parametrize(
    ("kernel", "printed", "expected"),
    [(False, "NTPSynchronized=yes\n", True), (False, "NTPSynchronized=no\n", False), (False, "", False), (None, "", None), (None, "NTPSynchronized=no\n", False), (True, "NTPSynchronized=no\n", True)],
)
def test_systemd_is_asked_where_the_kernel_does_not_say_yes(monkeypatch, kernel, printed, expected):
    monkeypatch.setattr(system, "_kernel_clock", lambda: ClockFacts(kernel, None))
    monkeypatch.setattr(system.shutil, "which", lambda _: "timedatectl")
    monkeypatch.setattr(system.subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 0, printed, ""))
    assert clock_facts().synchronised is expected


def test_a_systemd_that_hangs_says_nothing(monkeypatch):
    def hang(argv, **_):
        raise subprocess.TimeoutExpired(argv, 1)

    monkeypatch.setattr(system, "_kernel_clock", lambda: ClockFacts(None, None))
    monkeypatch.setattr(system.shutil, "which", lambda _: "timedatectl")
    monkeypatch.setattr(system.subprocess, "run", hang)
    assert clock_facts() == ClockFacts(None, None)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's clock is Linux's")
def test_this_kernel_answers():
    assert clock_facts().synchronised in {True, False}


def test_a_folder_that_is_not_there_yet_is_on_its_parent_s_disk(tmp_path):
    found, own = disk_facts(tmp_path / "a" / "b"), disk_facts(tmp_path)
    assert found.total == own.total
    assert 0 < found.free <= found.total


def test_blocks_that_are_kept_for_root_are_no_part_of_a_disk(tmp_path, monkeypatch):
    """``doctor`` and the head reckon the floor from the same total."""
    kept = os.statvfs_result((4096, 4096, 1000, 400, 350, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: kept)
    assert disk_facts(tmp_path / "a") == (950 * 4096, 350 * 4096)
    (row,) = probes.disk(tmp_path)
    floor = DEFAULTS.disk.floor.of(950 * 4096)
    assert (row["total"], row["free"], row["floor"]) == (950 * 4096, 350 * 4096, floor)
    watch = SettingsWatch(tmp_path / "config.yaml")
    assert Disk(Home(tmp_path), watch).room().floor_bytes == floor


def test_the_limits_of_this_process():
    limits = file_limits()
    assert limits.soft is None or limits.soft >= 3
    assert limits.hard is None or (limits.soft is not None and limits.hard >= limits.soft)
