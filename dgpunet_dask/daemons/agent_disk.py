"""The disk of an agent's host. On the head's host another process, the head, keeps it: there an agent only marks what it uses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from dgpunet_dask.clock import Clock
from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings_file import SettingsWatch
from dgpunet_dask.daemons.disk import Disk, DiskPorts
from dgpunet_dask.daemons.uses import used_by_stages
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.stagehost.spec import StageCallSpec

log = logging.getLogger(__name__)


def agent_disk(home: Home, loaded: Callable[[], Iterable[StageCallSpec]], clock: Clock, *, beside_head: bool) -> Disk:
    """Return the keeper of an agent's disk, with the settings read. A mistake in them is told and stops no agent: the defaults hold.

    Parameters
    ----------
    loaded
        Gives the stages that are loaded or about to be.
    beside_head
        Whether this is the head's host.
    """
    watch = SettingsWatch(home.config, clock)
    try:
        watch.load()
    except DgpunetError as error:
        watch.error = error
        log.error("%s is not taken, the defaults hold: %s", home.config, error)
    return Disk(home, watch, DiskPorts(in_use=lambda: used_by_stages(loaded(), home)), clock=clock, tidies=not beside_head)
