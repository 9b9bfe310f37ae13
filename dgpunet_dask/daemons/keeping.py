"""Keeps the workers of an agent running: started again when they end, killed when they are stopped.

A Dask worker exits with status 0 when its scheduler dies, so every end counts, whatever its status. One that is stopped (SIGSTOP, a
debugger) keeps its connections open and answers nobody: Dask would wait for minutes, so the agent looks at its processes itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import psutil

from dgpunet_dask.clock import Clock
from dgpunet_dask.cluster.fleets import worker_facts
from dgpunet_dask.cluster.workers import Backoff, WorkerPlan
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.lifeline import OwnedProcess, child_env, python_argv, spawn
from dgpunet_dask.daemons.register import Register
from dgpunet_dask.security.files import write_private

log = logging.getLogger(__name__)

#: How often a worker's processes are looked at, and how long one may stand still before it counts as stuck.
LOOK_S: Final = 1.0
STOPPED_S: Final = 3.0
#: What a killed agent left is given so long to end by itself.
LEFT_GRACE_S: Final = 1.0
#: Ends that others bring about: a worker's scheduler has ended, somebody has killed it.
_BY_OTHERS: Final = (0, -signal.SIGKILL, -signal.SIGTERM)
#: So many of those in a row, at most, make the wait for the next start longer.
_BY_OTHERS_MAX: Final = 2


@dataclass
class Kept:
    """One worker: its process where it runs, how often it was started again, and why the last one ended."""

    plan: WorkerPlan
    process: OwnedProcess | None = None
    restarts: int = 0
    why: str | None = None

    def row(self) -> dict[str, Any]:
        """Return what `nodes` shows of it."""
        pid = None if self.process is None else self.process.pid
        state = "waiting" if pid is None else "running"
        return {"device": self.plan.device.name, "pid": pid, "state": state, "restarts": self.restarts, "why": self.why}


class WorkerKeeper:
    """Runs one process for each plan.

    Parameters
    ----------
    home
        Where logs and the register lie.
    clock
        Tells how long a worker ran.
    orphaned
        Called with a device's name when its worker has ended, with calls under way perhaps.
    """

    def __init__(self, home: Home, clock: Clock, orphaned: Callable[[str], Awaitable[None]]) -> None:
        self.home, self.clock, self.orphaned = home, clock, orphaned
        self.register = Register(home.run / "processes")
        self.backoff = Backoff()
        self.kept: list[Kept] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._dropping: set[asyncio.Task[None]] = set()

    def start(self, plans: Iterable[WorkerPlan]) -> None:
        """Run the workers of `plans`, and go on doing so."""
        for left in self.register.end_all(LEFT_GRACE_S, only="worker"):  # one that was stopped cannot see that its agent is gone
            log.warning("the %s of an earlier agent (process %d) was ended", left.what, left.pid)
        self.kept = [Kept(plan) for plan in plans]
        self._tasks = [asyncio.create_task(self._keep(kept)) for kept in self.kept]
        self._tasks.append(asyncio.create_task(self._watch()))

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return bool(self._tasks)

    async def stop(self) -> None:
        """End all workers."""
        tasks = [*self._tasks, *self._dropping]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.kept = []

    def restart(self, why: str) -> None:
        """Kill all workers, so that new ones register: what the scheduler knew of these is gone."""
        for kept in self.kept:
            if kept.process is not None:
                log.warning("worker %s is started again: %s", kept.plan.device.name, why)
                kill_tree(kept.process.pid)

    def rows(self) -> list[dict[str, Any]]:
        """Return what `nodes` shows of each worker."""
        return [kept.row() for kept in self.kept]

    async def _keep(self, kept: Kept) -> None:
        failures = 0
        while True:
            began = self.clock.monotonic()
            status = await self._run_once(kept)
            failures, wait_s = self.backoff.next(blamed(failures, status), self.clock.monotonic() - began)
            kept.why, kept.restarts = how_ended(status), kept.restarts + 1
            log.warning("worker %s ended (%s); started again in %.1f s", kept.plan.device.name, kept.why, wait_s)
            dropping = asyncio.ensure_future(self.orphaned(kept.plan.device.name))
            self._dropping.add(dropping)
            dropping.add_done_callback(self._dropping.discard)
            await asyncio.sleep(wait_s)

    async def _run_once(self, kept: Kept) -> int | str:
        """Run one worker to its end; return its exit status, or why it could not be started."""
        try:
            kept.process = worker = self._spawn(kept.plan)
        except OSError as error:
            return str(error)
        with self.register.noted(worker.pid, f"worker {kept.plan.device.name}"):
            try:
                return await worker.ended()
            finally:
                if worker.returncode is None:  # else the number may be somebody else's by now
                    kill_tree(worker.pid)
                worker.kill()
                kept.process = None

    def _spawn(self, plan: WorkerPlan) -> OwnedProcess:
        plan.facts_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(plan.facts_file, json.dumps(worker_facts(plan.host, [plan.device], agent_pid=os.getpid())))
        return spawn(
            python_argv(plan.module, *plan.argv),
            env=child_env(plan.env),
            log_file=self.home.run / "logs" / plan.log_name,
            cwd=self.home.run,
        )

    async def _watch(self) -> None:
        """Kill workers of which a process stands still."""
        looking = look_for_stopped(lambda: [kept.process.pid for kept in self.kept if kept.process is not None], self.clock, standing_still)
        async for pid, seconds in looking:
            log.error("worker process %d was stopped for %.0f s and is replaced", pid, seconds)
            kill_tree(pid)


async def look_for_stopped(
    pids: Callable[[], list[int]], clock: Clock, still: Callable[[list[int]], list[int]], most_s: float | None = None
) -> AsyncIterator[tuple[int, float]]:
    """Yield each of `pids` that has stood still for `most_s` seconds (`STOPPED_S`), and for how long, again and again until it is gone."""
    since: dict[int, float] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        now = clock.monotonic()
        since = {pid: since.get(pid, now) for pid in await asyncio.to_thread(still, pids())}
        for pid, began in since.items():
            if now - began >= (STOPPED_S if most_s is None else most_s):
                yield pid, now - began


def blamed(failures: int, status: int | str) -> int:
    """Return how many failures in a row a process is blamed for before its new end: those that others bring about count little."""
    return min(failures, _BY_OTHERS_MAX) if status in _BY_OTHERS else failures


def suspended(pids: list[int]) -> list[int]:
    """Return those that are stopped by a signal, without a look at their children. A debugger is no such signal."""
    return [pid for pid in pids if _state(pid) == psutil.STATUS_STOPPED]


def _state(pid: int) -> str | None:
    try:
        return _status(psutil.Process(pid))
    except psutil.Error:
        return None


def standing_still(pids: Iterable[int]) -> list[int]:
    """Return those of which a process stands still."""
    return [pid for pid in pids if stands_still(pid)]


def stands_still(pid: int) -> bool:
    """Whether `pid`, or one of its descendants, is stopped by a signal or a debugger."""
    return any(_status(process) in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) for process in family(pid))


def _status(process: psutil.Process) -> str | None:
    try:
        return str(process.status())
    except psutil.Error:
        return None


def family(pid: int) -> list[psutil.Process]:
    """Return the process `pid` and its descendants; empty where it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def kill_tree(pid: int) -> None:
    """Kill `pid` and its descendants at once: a stopped child would never notice the end of its parent."""
    for process in family(pid):
        with contextlib.suppress(psutil.Error):
            process.kill()


def how_ended(status: int | str | None) -> str:
    """Return an exit status in words: the signal's name where there was one."""
    if isinstance(status, int) and status < 0:
        known = -status in set(signal.Signals)  # of the real-time signals, only the first and the last have names
        return f"killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
    return f"exit status {status}" if isinstance(status, int) else str(status)
