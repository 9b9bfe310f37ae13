"""Tasks that take as long as their work would on the device that they were placed on: work ÷ speed, spent asleep."""

from __future__ import annotations

import time
from typing import NamedTuple

from dgpunet_dask.plugins.worker import current_device, device_facts


class Stay(NamedTuple):
    """Where a task ran, and from when to when, in Unix seconds."""

    device: str
    start_s: float
    end_s: float


def take_time(work_s: float, number: int) -> Stay:
    """Wait `work_s` ÷ the device's speed. `number` only tells tasks apart."""
    del number
    start_s, device = time.time(), device_facts(current_device())
    time.sleep(work_s / device.speed)
    return Stay(device.name, start_s, time.time())
