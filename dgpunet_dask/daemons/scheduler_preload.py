"""Dask preload of the scheduler: ``dask scheduler --preload dgpunet_dask.daemons.scheduler_preload``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dgpunet_dask.daemons.expected import read_expected
from dgpunet_dask.daemons.lifeline import EXPECTED_ENV, POLICIES_ENV, end_now, watch
from dgpunet_dask.plugins.scheduler import PlacementPlugin

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

watch(end_now)  # at import, before anything can keep this process waiting without its owner


def dask_setup(scheduler: Scheduler) -> None:
    """Add the placement plugin; Dask starts it with the scheduler.

    It decides by the head's policies from its first task on, and knows which devices are on their way.
    """
    file = Path(os.environ.get(POLICIES_ENV, ""))
    sources = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ()
    expected = read_expected(Path(os.environ.get(EXPECTED_ENV, "")))
    scheduler.add_plugin(PlacementPlugin(sources=sources, expected=expected), idempotent=True)
