"""Facts about this machine without its cards."""

from __future__ import annotations

import os
import re
import socket
from typing import Final

import psutil

from dgpunet_dask.errors import BadValue
from dgpunet_dask.hardware.presence import idle_now, power_now
from dgpunet_dask.model.fleet import Host

_UNUSABLE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def probe_host() -> Host:
    """Return this machine: its name, memory, and the cores that this process may use.

    The link's speed is not known: what an interface claims says nothing about the path behind it.
    """
    power = power_now()
    return Host(
        name=host_name(socket.gethostname()),
        ram_mib=psutil.virtual_memory().total >> 20,
        cpus=usable_cpus(),
        power=power.source,
        idle_s=idle_now(),
        battery=power.battery,
    )


def host_name(raw: str) -> str:
    """Return `raw` without its domain and without letters that a device name may not have; ``host`` if nothing is left."""
    return _UNUSABLE.sub("-", raw.partition(".")[0]).strip("-._") or "host"


def checked_name(name: str) -> str:
    """Return `name` if it can be a host's as it is.

    Raises
    ------
    BadValue
        If `host_name` would make another of it.
    """
    if host_name(name) != name:
        raise BadValue(what="host name", value=name, why="use letters, digits, underscore and hyphen; leave the domain out")
    return name


def usable_cpus() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
