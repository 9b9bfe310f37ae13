"""The agent of a cluster on one machine: one worker process per device (`keeping`), and all stage hosts.

In a simulated fleet it stands in for all machines. The agent of a real cluster is in `node_agent`. Under `up` it is the supervisor's child and
not the head's: loaded stages, and calls that run, outlive a head that is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.fleets import fleet_from_json
from dgpunet_dask.cluster.headfile import read_head_file
from dgpunet_dask.cluster.workers import WorkerSite, plan_workers
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.agent_disk import agent_disk
from dgpunet_dask.daemons.followers import Followers
from dgpunet_dask.daemons.keeping import WorkerKeeper, look_for_stopped, suspended
from dgpunet_dask.daemons.lifeline import watch
from dgpunet_dask.daemons.register import Registered, kill_descendants
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.stagehost.manager import StageHosts

#: How long a call may go on whose worker has ended: its result has no taker, but its model may be wanted again.
ORPHAN_S: Final = 5.0
#: How long stage hosts are kept without any head (as `node_agent.ORPHAN_S`), and how often it is looked for.
HEADLESS_S: Final = 900.0
LOOK_S: Final = 30.0
_POLL_S: Final = 0.05
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
log = logging.getLogger(__name__)


class Agent:
    """Supervises the workers of a fleet's devices.

    Parameters
    ----------
    home
        Where logs, facts and the register lie.
    fleet
        The hosts and devices that this agent stands for.
    site
        What the workers share.
    clock
        Tells how long a worker ran.
    """

    def __init__(self, home: Home, fleet: Fleet, site: WorkerSite, clock: Clock | None = None) -> None:
        self.home = home
        self.clock = clock = clock or SystemClock()
        cards = {device.name: device.uuid for device in fleet.devices if device.uuid is not None}
        self.hosts = StageHosts(home, clock, cards)
        self.disk = agent_disk(home, self.hosts.specs, clock, beside_head=True)
        self.site = replace(site, spill_bytes=self.disk.limits.spill)
        self.plans = plan_workers(fleet, self.site)
        self.workers = WorkerKeeper(home, clock, lambda device: self.hosts.drop_calls(device, ORPHAN_S))

    async def run(self, stop: asyncio.Event) -> None:
        """Keep all workers and the stage hosts running until `stop` is set, then end them."""
        shutil.rmtree(self.site.scratch, ignore_errors=True)  # what killed workers left; live ones of another agent cannot be here
        await self.hosts.start()
        self.workers.start(self.plans)
        beside = Followers(self.clock)
        beside.begin("head", lambda: watch_for_head(lambda: head_runs(self.home), self.hosts.end_all, self.clock))
        beside.begin("disk", self.disk.run)
        beside.begin("stage hosts", lambda: kill_stopped(self.hosts, self.clock))
        try:
            await stop.wait()
        finally:
            await beside.stop()
            await self.workers.stop()
            await self.hosts.stop()


def head_runs(home: Home) -> bool:
    """Whether the head that serves under `home` runs."""
    try:
        head = read_head_file(home.head_file)
    except (DgpunetError, OSError):
        return True  # there is one, of another release
    return head is not None and Registered(head.pid, head.created, "head").process() is not None


async def watch_for_head(runs: Callable[[], bool], end: Callable[[], Awaitable[int]], clock: Clock, look_s: float = LOOK_S) -> None:
    """End what is loaded once no head has run for `HEADLESS_S`: nobody will use it, and it holds memory that others may want."""
    seen_s: float | None = clock.monotonic()
    while True:
        await asyncio.sleep(look_s)
        if await asyncio.to_thread(runs):
            seen_s = clock.monotonic()
        elif seen_s is not None and clock.monotonic() - seen_s >= HEADLESS_S:
            seen_s, ended = None, await end()
            log.error("no head has run for %.0f s: %d stage hosts were ended, so that their memory is free", HEADLESS_S, ended)


async def kill_stopped(hosts: StageHosts, clock: Clock) -> None:
    """Kill stage hosts that stand still: their calls would wait for the deadline, and idle ones would take the next call into it."""
    async for pid, seconds in look_for_stopped(lambda: list(hosts.pids()), clock, suspended):
        hosts.kill_stopped(pid, seconds)


def end_with_children() -> None:
    """End this process and all its descendants at once: the owner is gone."""
    kill_descendants()
    os._exit(1)


async def _described(fleet_file: Path, stop: asyncio.Event) -> dict[str, Any] | None:
    """Return the fleet once the head has written it, ``None`` where `stop` comes first."""
    while not stop.is_set():
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(fleet_file.read_text()))  # noqa: ASYNC240  # before anything is served
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await stop.wait()
    return None


async def _main(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    home = Home(args.home)
    described = await _described(args.fleet_file, stop)
    if described is None:
        return
    site = WorkerSite(
        scheduler_file=args.scheduler_file,
        facts_folder=home.run / "facts",
        scratch=home.run / "scratch" / "workers",
        agent_socket=home.agent_socket,
        home=home.root,
        cores=usable_cpus(),
        probed=bool(described.get("probed")),
    )
    await Agent(home, fleet_from_json(described), site).run(stop)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the agent until SIGTERM, or until its owner is gone."""
    watch(end_with_children)
    parser = argparse.ArgumentParser(prog="dgpunet-dask-agent", description=__doc__)
    for name in ("--home", "--fleet-file", "--scheduler-file"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    asyncio.run(_main(args))


if __name__ == "__main__":
    main()
