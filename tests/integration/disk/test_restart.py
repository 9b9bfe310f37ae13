"""A head that is killed while its disk is full comes back by itself once there is room."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import settings_path
from dgpunet_dask.daemons.embedded import awaited_head, current_head, starting, stop_cluster
from dgpunet_dask.daemons.lifeline import wait_until
from dgpunet_dask.daemons.register import supervisor_of
from dgpunet_dask.errors import HeadAway
from tests.integration.disk.test_full import SmallDisk, fill

FLEET = "version: 1\nhosts: {a: {ram: 4GiB, cpus: 1}}\n"
#: Six failures in a row take less.
GIVEN_UP_S = 45.0


@pytest.mark.long
def test_a_head_that_finds_no_room_is_started_again_until_there_is(small_disk: SmallDisk, tmp_path: Path) -> None:
    home = Home(small_disk(64)).ensure()
    settings_path(home.root).write_text("version: 1\ndisk: {floor: 1MiB}\n")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(FLEET)
    try:
        with starting(home, simulate=fleet, embedded=False) as (_, first):
            pass
        filler = fill(home.root)
        os.kill(first.pid, signal.SIGKILL)
        log = home.run / "logs" / "supervisor.log"
        assert wait_until(lambda: current_head(home) is None, 10)
        assert not wait_until(lambda: supervisor_of(home) is None, GIVEN_UP_S), log.read_text()
        with pytest.raises(HeadAway, match="full"):
            awaited_head(home)
        os.truncate(filler, 0)
        assert wait_until(lambda: (head := current_head(home)) is not None and head.pid != first.pid, 60), log.read_text()
        assert "is started again" in log.read_text()
    finally:
        stop_cluster(home)
