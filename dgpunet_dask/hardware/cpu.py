"""Facts about this machine without its cards."""

from __future__ import annotations

import os
import re
import socket
from typing import Final, Literal

import psutil

from dgpunet_dask.model.fleet import Host

_UNUSABLE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def probe_host() -> Host:
    """Return this machine: its name, memory, and the cores that this process may use.

    The link's speed is not known: what an interface claims says nothing about the path behind it.
    """
    return Host(
        name=host_name(socket.gethostname()),
        ram_mib=psutil.virtual_memory().total >> 20,
        cpus=usable_cpus(),
        power=_power(),
    )


def host_name(raw: str) -> str:
    """Return `raw` without its domain and without letters that a device name may not have; ``host`` if nothing is left."""
    return _UNUSABLE.sub("-", raw.partition(".")[0]).strip("-._") or "host"


def usable_cpus() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _power() -> Literal["mains", "battery"] | None:
    """Return what feeds the machine, ``None`` where it does not say (a desktop without a battery says nothing)."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None or battery.power_plugged is None:
        return None
    return "mains" if battery.power_plugged else "battery"
