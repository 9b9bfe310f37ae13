"""Which process stands for which device: the command and environment of each Dask worker. Pure.

A real card gets dask-cuda's worker, which sees that card alone; a simulated card and a CPU get a plain one. Neither opens a dashboard.
All listen on 127.0.0.1, unless the site says where a cluster of real machines meets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgpunet_dask.model.fleet import Device, Fleet, Host

#: Threads of a worker: its tasks only wait for a stage host, and one more unit should be on its way while one computes.
GPU_THREADS: Final = 4
CPU_THREADS_MIN: Final = 4
CPU_THREADS_MAX: Final = 16

PRELOADS: Final = ("dgpunet_dask.daemons.lifeline_preload", "dgpunet_dask.daemons.worker_preload")

#: Dask settings of every worker: no profiler and no NVML polling in processes that only wait; CPU time belongs to the stages.
WORKER_CONFIG: Final[Mapping[str, str]] = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__DIAGNOSTICS__NVML": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "False",
}


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """How to start the worker of one device.

    Parameters
    ----------
    argv
        Module and arguments, to be run as ``python -m``.
    env
        What is added to the environment.
    facts_file
        Where the facts of host and device must lie (JSON) before it starts.
    """

    device: Device
    host: Host
    module: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    facts_file: Path

    @property
    def log_name(self) -> str:
        """A file name for its log."""
        return f"worker-{file_name(self.device.name)}.log"


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the workers of a real cluster meet, under their host's certificate.

    Parameters
    ----------
    scheduler
        Its address, ``tls://HOST:PORT``.
    address
        Where this host's workers listen.
    worker_port, nanny_port
        Of the first device; each further device has the next.
    compression
        The codec of Dask's connections, the same in the whole cluster; ``None``: none pays.
    """

    scheduler: str
    address: str
    worker_port: int
    nanny_port: int
    compression: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerSite:
    """What the workers of one agent share: the scheduler's file, their folders, the agent's socket and the machine's cores.

    `probed`: the fleet is what this machine reported, and not simulated: its workers watch it. `meeting`: without one, all of it is on
    127.0.0.1. `spill_bytes`: the most that the worker of one device may write of results that do not fit into memory; ``None``: Dask's default.
    """

    scheduler_file: Path
    facts_folder: Path
    scratch: Path
    agent_socket: Path
    home: Path
    cores: int
    probed: bool = False
    meeting: Meeting | None = None
    spill_bytes: int | None = None


def plan_workers(fleet: Fleet, site: WorkerSite) -> tuple[WorkerPlan, ...]:
    """Return one plan per device of `fleet`, in the order of their names."""
    threads = stage_threads(fleet, site.cores)
    return tuple(_plan(d, fleet.host_by_name[d.host], site, threads, number) for number, d in enumerate(fleet.devices))


def stage_threads(fleet: Fleet, cores: int) -> int:
    """Return the compute threads of one stage on a CPU: the machine's cores, shared by all devices that are computed on them."""
    return max(1, cores // max(1, sum(device.uuid is None for device in fleet.devices)))


def _plan(device: Device, host: Host, site: WorkerSite, threads: int, number: int) -> WorkerPlan:
    real_card = device.kind == "gpu" and device.uuid is not None
    facts_file = site.facts_folder / f"{file_name(device.name)}.json"
    if site.meeting is not None:
        module, argv = "dgpunet_dask.daemons.worker_main", _meeting_options(device, host, site, site.meeting, number)
    elif real_card:
        module, argv = "dask_cuda.cli", ("worker", *_options(device, host, site))
    else:
        module, argv = "distributed.cli.dask_worker", ("--no-nanny", *_options(device, host, site))
    return WorkerPlan(
        device=device, host=host, module=module, argv=argv, env=_env(device, site, facts_file, threads), facts_file=facts_file
    )


_PRELOADED: Final = tuple(word for module in PRELOADS for word in ("--preload", module))


def _options(device: Device, host: Host, site: WorkerSite) -> tuple[str, ...]:
    return (
        *("--scheduler-file", str(site.scheduler_file)),
        *("--host", "127.0.0.1"),
        *("--name", device.name),
        *("--nthreads", str(threads_of(device, host))),
        *("--memory-limit", "0"),
        *("--local-directory", str(site.scratch)),
        *("--dashboard-address", "127.0.0.1:0"),  # without it, the page that answers `/health` would listen everywhere
        "--no-dashboard",
        *_PRELOADED,
    )


def _meeting_options(device: Device, host: Host, site: WorkerSite, meeting: Meeting, number: int) -> tuple[str, ...]:
    return (
        meeting.scheduler,
        *("--host", meeting.address),
        *("--name", device.name),
        *("--nthreads", str(threads_of(device, host))),
        *("--local-directory", str(site.scratch)),
        *("--worker-port", str(meeting.worker_port + number)),
        *("--nanny-port", str(meeting.nanny_port + number)),
        *(("--cuda",) if device.kind == "gpu" and device.uuid is not None else ()),
        *_PRELOADED,
    )


def threads_of(device: Device, host: Host) -> int:
    """Return how many tasks the worker of `device` may hold at once."""
    return GPU_THREADS if device.kind == "gpu" else max(CPU_THREADS_MIN, min(host.cpus or 1, CPU_THREADS_MAX))


def _env(device: Device, site: WorkerSite, facts_file: Path, threads: int) -> dict[str, str]:
    """Return the added variables. A worker without a real card must see none, or the first library that asks would claim it."""
    nanny = {"DASK_DISTRIBUTED__NANNY__PRELOAD": '["dgpunet_dask.daemons.lifeline_preload"]'} if device.uuid else {}
    return {
        **WORKER_CONFIG,
        **nanny,
        **({} if site.meeting is None else comm_env(site.meeting.compression)),
        **({} if site.spill_bytes is None else spill_env(site.spill_bytes)),
        "CUDA_VISIBLE_DEVICES": device.uuid or "",
        "DGPUNET_WORKER_FACTS": str(facts_file),
        "DGPUNET_AGENT_SOCKET": str(site.agent_socket),
        "DGPUNET_HOME": str(site.home),
        "DGPUNET_STAGE_THREADS": str(threads),
        "DGPUNET_PROBED": "1" if site.probed else "",
        "DGPUNET_HIDE_PAGES": "1" if site.meeting is not None else "",
    }


def comm_env(compression: str | None) -> dict[str, str]:
    """Return the variables that set Dask's compression: between two processes it works only where both have the same."""
    return {"DASK_DISTRIBUTED__COMM__COMPRESSION": compression or "False"}


def spill_env(most: int) -> dict[str, str]:
    """Return the variables that bound what a worker writes of results that do not fit into memory; Dask's own default is no bound."""
    return {"DASK_DISTRIBUTED__WORKER__MEMORY__MAX_SPILL": str(most)}


def file_name(name: str) -> str:
    """Return `name` as a file name; distinct device names stay distinct, since the only odd letter they may have is ``/``."""
    return re.sub(r"[^A-Za-z0-9._-]", "~", name)


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a process is started again. Pure: the caller brings the clock.

    Parameters
    ----------
    first_s, most_s
        The first wait and the longest; each failure in a row doubles it.
    steady_s
        A process that ran this long counts as healthy: its end starts the row anew, and it is started again at once.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    steady_s: float = 20.0

    def next(self, failures: int, ran_s: float) -> tuple[int, float]:
        """Return the new count of failures in a row, and the seconds to wait, after a run of `ran_s` seconds."""
        failures = 1 if ran_s >= self.steady_s else failures + 1
        wait_s = 0.0 if ran_s >= self.steady_s else self.first_s * 2 ** min(failures - 1, 16)
        return failures, min(self.most_s, wait_s)
