"""Dask preload (``--preload``): ends a scheduler, nanny or worker when its owner is gone.

It acts when imported, on purpose: Dask imports preloads before it waits for the scheduler's file, and calls ``dask_setup`` only after
that; a process must not outlive its owner while it waits.
"""

from __future__ import annotations

from dgpunet_dask.daemons.lifeline import end_now, watch

watch(end_now)
