"""The agent: one worker process per device, started again when it ends, and all stage hosts of this machine.

A Dask worker exits with status 0 when its scheduler dies, so every end counts, whatever its status. In a simulated fleet one agent stands
in for all machines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.fleets import fleet_from_json, worker_facts
from dgpunet_dask.cluster.headfile import write_private
from dgpunet_dask.cluster.workers import Backoff, WorkerPlan, WorkerSite, plan_workers
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.lifeline import OwnedProcess, child_env, python_argv, spawn, watch
from dgpunet_dask.daemons.register import Register, kill_descendants
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.stagehost.manager import StageHosts

log = logging.getLogger(__name__)

#: How long a call may go on whose worker has ended: its result has no taker, but its model may be wanted again.
ORPHAN_S: Final = 5.0
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
        self.site = site
        self.plans = plan_workers(fleet, site)
        self.clock = clock or SystemClock()
        cards = {plan.device.name: plan.device.uuid for plan in self.plans if plan.device.uuid is not None}
        self.hosts = StageHosts(home, self.clock, cards)
        self.register = Register(home.run / "processes")
        self.backoff = Backoff()
        self._dropping: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep all workers and the stage hosts running until `stop` is set, then end them."""
        shutil.rmtree(self.site.scratch, ignore_errors=True)  # what killed workers left; live ones of another agent cannot be here
        await self.hosts.start()
        supervisors = [asyncio.create_task(self._supervise(plan)) for plan in self.plans]
        try:
            await stop.wait()
        finally:
            tasks = [*supervisors, *self._dropping]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.hosts.stop()

    async def _supervise(self, plan: WorkerPlan) -> None:
        failures = 0
        while True:
            began = self.clock.monotonic()
            status = await self._run_once(plan)
            failures, wait_s = self.backoff.next(failures, self.clock.monotonic() - began)
            log.warning("worker %s ended (%s); started again in %.1f s", plan.device.name, how_ended(status), wait_s)
            dropping = asyncio.create_task(self.hosts.drop_calls(plan.device.name, ORPHAN_S))
            self._dropping.add(dropping)
            dropping.add_done_callback(self._dropping.discard)
            await asyncio.sleep(wait_s)

    async def _run_once(self, plan: WorkerPlan) -> int | str:
        """Run one worker to its end; return its exit status, or why it could not be started."""
        try:
            worker = self._start(plan)
        except OSError as error:
            return str(error)
        try:
            return await worker.ended()
        finally:
            worker.kill()
            self.register.remove(worker.pid)

    def _start(self, plan: WorkerPlan) -> OwnedProcess:
        plan.facts_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(plan.facts_file, json.dumps(worker_facts(plan.host, [plan.device], agent_pid=os.getpid())))
        worker = spawn(
            python_argv(plan.module, *plan.argv),
            env=child_env(plan.env),
            log_file=self.home.run / "logs" / plan.log_name,
            cwd=self.home.run,
        )
        self.register.add(worker.pid, f"worker {plan.device.name}")
        return worker


def how_ended(status: int | str | None) -> str:
    """Return an exit status in words: the signal's name where there was one."""
    if isinstance(status, int) and status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}" if isinstance(status, int) else str(status)


def end_with_children() -> None:
    """End this process and all its descendants at once: the owner is gone."""
    kill_descendants()
    os._exit(1)


async def _main(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    home = Home(args.home)
    described = json.loads(args.fleet_file.read_text())
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
