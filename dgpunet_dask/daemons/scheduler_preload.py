"""Dask preload of the scheduler: ``dask scheduler --preload dgpunet_dask.daemons.scheduler_preload``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpunet_dask.daemons.lifeline import end_now, watch
from dgpunet_dask.plugins.scheduler import PlacementPlugin

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

watch(end_now)  # at import, before anything can keep this process waiting without its owner


def dask_setup(scheduler: Scheduler) -> None:
    """Add the placement plugin; Dask starts it with the scheduler."""
    scheduler.add_plugin(PlacementPlugin(), idempotent=True)
