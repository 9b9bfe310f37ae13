"""Whoever meets a full disk first, it is told as what it is."""

from __future__ import annotations

import errno

import pytest

from dgpunet_dask.errors import DgpunetError, DiskFull, JobFailed, LowDisk, StageFailed
from dgpunet_dask.stagehost.reports import error_from_json, error_to_json, failure_of, full_disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_a_full_disk_with_its_path(number):
    found = full_disk(OSError(number, "no room", "run/log"))
    assert found is not None
    assert (found.exit_code, found.fields["path"]) == (100, "run/log")


def test_it_is_told_from_behind_what_was_raised_over_it():
    error = JobFailed(why="x")
    error.__cause__ = OSError(errno.ENOSPC, "no room", "run/log")
    found = full_disk(ExceptionGroup("several", [ValueError("x"), error]))
    assert isinstance(found, DiskFull)
    assert found.fields["path"] == "run/log"


@pytest.mark.parametrize("error", [DiskFull(path="run/log"), LowDisk(path="run/log", free="1 MiB", floor="2 MiB")], ids=["full", "low"])
def test_what_we_say_ourselves_stays_as_it_is(error: DgpunetError):
    assert full_disk(ExceptionGroup("several", [error])) is error


def test_without_a_path_it_is_the_home_s_disk_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path))
    found = full_disk(OSError(errno.ENOSPC, "no room"))
    assert found is not None
    assert f"the disk of {tmp_path}." in str(found)


def test_without_a_home_it_is_told_as_it_is_set(monkeypatch):
    monkeypatch.delenv("DGPUNET_HOME", raising=False)
    found = full_disk(OSError(errno.ENOSPC, "no room"))
    assert found is not None
    assert found.fields == {"path": "$DGPUNET_HOME", "free_disk_bytes": None}


@pytest.mark.parametrize("name", ["/mnt/small/out.bin", b"/mnt/small/out.bin"])
def test_a_disk_that_a_stage_filled_is_told_by_the_file_that_the_system_names(name):
    found = failure_of(OSError(errno.ENOSPC, "No space left on device", name), "s")
    assert type(found) is DiskFull
    assert "the disk of /mnt/small/out.bin." in str(found)


@pytest.mark.parametrize("name", [None, 7])
def test_where_the_system_names_no_file_no_folder_of_ours_is_blamed(name):
    found = error_from_json(error_to_json(failure_of(OSError(errno.ENOSPC, "No space left on device", name), "embed")))
    assert isinstance(found, DiskFull), "it is waited for like any full disk"
    assert found.code == "stage_disk_full"
    assert "a disk that stage embed wrote to" in str(found)
    assert "folder" not in str(found)


def test_a_stage_that_has_dealt_with_a_full_disk_fails_by_its_own_error():
    error = ValueError("x")
    error.__context__ = OSError(errno.ENOSPC, "no room", "run/log")
    assert isinstance(failure_of(error, "s"), StageFailed)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), OSError("no number"), ValueError("x")])
def test_anything_else_is_not(error):
    assert full_disk(error) is None
