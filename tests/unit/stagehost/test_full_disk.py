"""Whoever meets a full disk first, it is told as what it is."""

from __future__ import annotations

import errno

import pytest

from dgpunet_dask.stagehost.reports import full_disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_a_full_disk_with_its_path(number):
    found = full_disk(OSError(number, "no room", "run/log"))
    assert found is not None
    assert (found.exit_code, found.fields["path"]) == (100, "run/log")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), OSError("no number"), ValueError("x")])
def test_anything_else_is_not(error):
    assert full_disk(error) is None
