"""The small process above a host's daemons: starts them, and starts them again when they end, each alone.

On the head's host these are the head daemon and the host's agent, on any other host the agent; a cluster on one machine (`up`) has both. A head
that is killed comes back on the same ports while the agent, with all loaded stages, lives on. The first one that ends with status 0 was told
to: then all ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.config import Membership
from dgpunet_dask.cluster.workers import Backoff
from dgpunet_dask.config.descriptors import raise_limit
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.keeping import how_ended, look_for_stopped, suspended
from dgpunet_dask.daemons.lifeline import OwnedProcess, child_env, python_argv, spawn, watch
from dgpunet_dask.daemons.register import SUPERVISOR, Register, kill_descendants, registered
from dgpunet_dask.daemons.starter import SHORT, Outlet, no_room
from dgpunet_dask.errors.fullness import is_short

log = logging.getLogger(__name__)

#: How long each daemon may take to end in good order.
STOP_S: Final = 20.0
#: How long one may stand still before it counts as stuck.
STOPPED_S: Final = 10.0
#: A daemon that ends this often in a row, each time soon after its start and before it has served, will not run.
FAILURES_MAX: Final = 6
#: A daemon that ends with this status cannot run as it is configured: starting it again would not help.
USAGE: Final = 2
#: How long after a start that the system had no room or no files for it is looked whether it has, or started again.
SHORT_WAIT_S: Final = 5.0


@dataclass(frozen=True)
class Daemon:
    """One daemon.

    Parameters
    ----------
    name, argv
        The name of its log; its module with arguments.
    leaves
        Files under ``run`` that mean nothing once it has ended.
    proof
        The file under ``run`` that has its pid once it serves; empty where it writes none.
    """

    name: str
    argv: tuple[str, ...]
    leaves: tuple[str, ...] = ()
    proof: str = ""


def daemons_of(membership: Membership, home: Home, policy: Sequence[Path] = ()) -> tuple[Daemon, ...]:
    """Return the daemons of a host, in the order in which they are started. Pure."""
    here = ("--home", str(home.root))
    agent = Daemon("agent", ("dgpunet_dask.daemons.node_agent", *here))
    if membership == "node":
        return (agent,)
    files = tuple(word for path in policy for word in ("--policy", str(path)))
    return (Daemon("head", ("dgpunet_dask.daemons.head", *here, "--cluster", *files), proof=home.head_file.name), agent)


def local_daemons(home: Home, simulate: Path | None = None, policy: Sequence[Path] = ()) -> tuple[Daemon, ...]:
    """Return the daemons of a cluster on this machine alone, in the order in which they are started. Pure.

    The agent waits for the fleet that the head writes. Its workers must not go to a scheduler that is gone: its file goes with the head.
    """
    here = ("--home", str(home.root))
    files = tuple(word for path in policy for word in ("--policy", str(path)))
    fleet = () if simulate is None else ("--simulate", str(simulate))
    scheduler = home.run / "scheduler.json"
    meeting = ("--fleet-file", str(home.run / "fleet.json"), "--scheduler-file", str(scheduler))
    head = ("dgpunet_dask.daemons.head", *here, "--supervised", *fleet, *files)
    return (
        Daemon("head", head, leaves=(scheduler.name,), proof=home.head_file.name),
        Daemon("agent", ("dgpunet_dask.daemons.agent", *here, *meeting)),
    )


class Supervisor:
    """Keeps daemons running until the first of them ends by itself in good order, or `stop` is set.

    Parameters
    ----------
    home
        Where their logs and the register lie.
    daemons
        What to run.
    say
        Takes a line about each daemon that ends.
    clock
        Tells how long a daemon ran.
    outlet
        Where a command waits for the first daemon and reads what that says of its start.
    """

    def __init__(
        self, home: Home, daemons: Sequence[Daemon], say: Callable[[str], None], clock: Clock | None = None, outlet: Outlet | None = None
    ) -> None:
        self.home, self.daemons, self.say, self.outlet = home, daemons, say, outlet
        self.clock = clock or SystemClock()
        self.register = Register(home.run / "processes")
        self.backoff = Backoff(most_s=15.0)
        self.stop = asyncio.Event()
        self.status = 0
        self._running: dict[int, OwnedProcess] = {}

    async def run(self) -> int:
        """Run all; return the exit status to leave with. The first ends first: it may need the others for that."""
        tasks = [asyncio.create_task(self._keep(daemon)) for daemon in self.daemons]
        tasks.append(asyncio.create_task(self._watch()))
        try:
            await self.stop.wait()
        finally:
            for some in (tasks[:1], tasks[1:]):
                for task in some:
                    task.cancel()
                await asyncio.gather(*some, return_exceptions=True)
        return self.status

    async def _keep(self, daemon: Daemon) -> None:
        failures = 0
        while not self.stop.is_set():
            began = self.clock.monotonic()
            status, served = await self._run_once(daemon)
            if daemon is self.daemons[0] and not served and (status == SHORT or (status not in (0, USAGE) and no_room(self.home.root))):
                await self._wait_for_room(daemon)  # not its fault: it counts as no failure
                continue
            failures, wait_s = self.backoff.next(0 if served else failures, self.clock.monotonic() - began)
            logs = self.home.run / "logs" / f"{daemon.name}.log"
            first = daemon is self.daemons[0]  # what this host is for: an agent that cannot run does not take its head along
            if first and (status in (0, USAGE) or failures >= FAILURES_MAX):
                if status != 0:
                    self.say(f"the {daemon.name} ended ({how_ended(status)}); see {logs}")
                self.status = int(status) if isinstance(status, int) and status >= 0 else 1
                self.stop.set()
                return
            self.say(f"the {daemon.name} ended ({how_ended(status)}); started again in {wait_s:.1f} s; see {logs}")
            await asyncio.sleep(wait_s)

    async def _wait_for_room(self, daemon: Daemon) -> None:
        """Return when a daemon may be started again that ended because the system lacks room on the disk, or files that may be opened."""
        began = self.clock.monotonic()
        what = f"room on the disk of {self.home.root}" if no_room(self.home.root) else "what the system is short of (a disk's room, open files)"
        self.say(f"the {daemon.name} ended and waits for {what}; see {self.home.run / 'logs' / f'{daemon.name}.log'}")
        await asyncio.sleep(SHORT_WAIT_S)
        while no_room(self.home.root):  # noqa: ASYNC110  # a disk announces nothing
            await asyncio.sleep(SHORT_WAIT_S)
        self.say(f"the {daemon.name} is started again: it waited {self.clock.monotonic() - began:.0f} s for {what}")

    async def _watch(self) -> None:
        """Kill daemons that stand still: whoever waits for one would do so for ever."""
        async for pid, seconds in look_for_stopped(lambda: list(self._running), self.clock, suspended, STOPPED_S):
            if (child := self._running.get(pid)) is not None:
                self.say(f"process {pid} was stopped for {seconds:.0f} s and is killed")
                child.process.kill()

    async def _run_once(self, daemon: Daemon) -> tuple[int | str, bool]:
        """Run a daemon to its end; return how it ended, and whether it had served by then."""
        try:
            child = self._spawn(daemon)
        except OSError as error:
            log.warning("the %s cannot be started: %s", daemon.name, error)
            return SHORT if is_short(error) else str(error), False
        self._running[child.pid] = child
        with self.register.noted(child.pid, daemon.name):
            try:
                return await child.ended(), _wrote(self.home.run / daemon.proof, child.pid)
            finally:
                await asyncio.shield(child.stop(0.0 if suspended([child.pid]) else STOP_S))
                del self._running[child.pid]
                for name in daemon.leaves:
                    (self.home.run / name).unlink(missing_ok=True)

    def _spawn(self, daemon: Daemon) -> OwnedProcess:
        heard = self.outlet is not None and daemon is self.daemons[0] and self.outlet.heard
        return spawn(
            python_argv(*daemon.argv),
            env=child_env({"DGPUNET_HOME": str(self.home.root)}),
            log_file=self.home.run / "logs" / f"{daemon.name}.log",
            cwd=self.home.run,
            stdout=self.outlet.fd if self.outlet is not None and heard else None,
        )


def _wrote(proof: Path, pid: int) -> bool:
    """Whether the process `pid` has noted itself in `proof`."""
    try:
        return bool(json.loads(proof.read_text(encoding="utf-8"))["pid"] == pid)
    except (OSError, ValueError, LookupError, TypeError):
        return False


async def supervise(home: Home, daemons: Sequence[Daemon], say: Callable[[str], None] = log.warning, outlet: Outlet | None = None) -> int:
    """Run `daemons` until SIGTERM or SIGINT, or until the first of them ends in good order or cannot run; return the exit status."""
    raise_limit()  # all daemons and workers inherit it
    supervisor = Supervisor(home, daemons, say, outlet=outlet)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, supervisor.stop.set)
    with registered(home, SUPERVISOR):
        return await supervisor.run()


def _end_at_once() -> None:
    """End with all descendants: the starter is gone before this was its own master."""
    kill_descendants()
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a host's daemons in the background of a command that has started this process."""
    watch(_end_at_once)
    parser = argparse.ArgumentParser(prog="dgpunet-dask-supervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--membership", choices=("local", "head", "node"), required=True)
    parser.add_argument("--simulate", type=Path)
    parser.add_argument("--policy", type=Path, action="append", default=[])
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    home = Home(args.home).ensure()
    if args.membership != "local":
        return asyncio.run(supervise(home, daemons_of(args.membership, home, args.policy)))
    outlet = Outlet(sys.stdout.fileno())
    return asyncio.run(supervise(home, local_daemons(home, args.simulate, args.policy), outlet.warn, outlet))


if __name__ == "__main__":
    sys.exit(main())
