"""What a worker announces of its devices, and the interlock's names."""

from __future__ import annotations

from typing import Final

from dgpunet_dask.model.fleet import Device
from dgpunet_dask.model.wire import charge_from_wire, device_from_wire, host_from_wire, to_wire

__all__ = ["EXTRA", "charge_from_wire", "device_from_wire", "host_from_wire", "resource_name", "to_wire"]

#: Where a worker's facts lie in `WorkerState.extra` on the scheduler.
EXTRA: Final = "dgpunet"


def resource_name(device: Device) -> str:
    """Return the name of the worker resource that is the interlock of `device`: MiB of a card, cores of a CPU."""
    return f"{'VRAM' if device.kind == 'gpu' else 'CPUS'}:{device.name}"
