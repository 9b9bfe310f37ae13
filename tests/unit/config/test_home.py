"""Where state lies, and who may read it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dgpunet_dask.config.home import home_from
from dgpunet_dask.errors import UnreadablePath


def test_the_variable_names_the_home_and_nothing_is_touched(tmp_path: Path) -> None:
    home = home_from({"DGPUNET_HOME": str(tmp_path / "h")})
    assert home.root == tmp_path / "h"
    assert not home.root.exists()
    assert home_from({}).root.is_absolute()
    assert home_from({"DGPUNET_HOME": ""}) == home_from({})


def test_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    home = home_from({"DGPUNET_HOME": str(tmp_path / "h")})
    assert home.ensure().ensure() == home
    for path in (home.root, home.run, home.jobs, home.indexes, home.workloads):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreadablePath, match="file"):
        home_from({"DGPUNET_HOME": str(tmp_path / "file" / "h")}).ensure()


def test_a_shared_folder_keeps_its_mode_and_what_is_ours_is_still_closed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "of-others").touch()
    shared.chmod(0o1777)
    home = home_from({"DGPUNET_HOME": str(shared)}).ensure()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert stat.S_IMODE(home.jobs.stat().st_mode) == 0o700
