"""The head's children: the stock Dask scheduler, and, of an embedded cluster, the agent. Each is started again when it ends, with the loss told.

The scheduler keeps nothing: with it go all futures, and units in flight are leased anew. Its successor listens on the same port, where clients
and workers look for it. Where somebody has taken that port meanwhile, the head ends as well: its own successor takes the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from distributed import Client

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.cluster.workers import Backoff
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.keeping import how_ended, look_for_stopped, suspended
from dgpunet_dask.daemons.lifeline import EXPECTED_ENV, POLICIES_ENV, OwnedProcess, child_env, python_argv, spawn
from dgpunet_dask.daemons.register import Register
from dgpunet_dask.daemons.resuming import free_port, port_of
from dgpunet_dask.errors import SchedulerOutOfReach

log = logging.getLogger(__name__)

#: A child that ends this often in a row, each time soon after its start, will not run: the head stops and says so.
FAILURES_MAX: Final = 5
STOP_GRACE_S: Final = 5.0
#: How long one may stand still before it counts as stuck.
STOPPED_S: Final = 5.0
#: How often it is looked whether the scheduler is where the head looks for it.
LOOK_S: Final = 1.0
_POLL_S: Final = 0.02

#: Dask settings of the scheduler: workers that say nothing for a minute are given up (5 minutes by default).
SCHEDULER_ENV: Final = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",
    "DASK_DISTRIBUTED__DIAGNOSTICS__NVML": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "False",
}


class Children:
    """Starts, watches and ends the scheduler and the agent.

    Parameters
    ----------
    home
        Where their files, logs and the register lie.
    fatal
        Called with the reason when a child keeps ending.
    on_scheduler_lost
        Called with the cause each time the scheduler has ended.
    cluster
        Of a head of real machines: its scheduler listens there.
    own_agent
        Whether the agent is the head's child, and ends with it, and not the supervisor's.
    """

    def __init__(
        self,
        home: Home,
        *,
        fatal: Callable[[str], None],
        on_scheduler_lost: Callable[[str], Awaitable[None]],
        clock: Clock | None = None,
        cluster: ClusterConfig | None = None,
        own_agent: bool = True,
    ) -> None:
        self.cluster = cluster
        self.own_agent = own_agent and cluster is None
        self.home = home
        self.fatal = fatal
        self.on_scheduler_lost = on_scheduler_lost
        self.clock = clock or SystemClock()
        self.register = Register(home.run / "processes")
        self.backoff = Backoff()
        self.comm_env: dict[str, str] = {}
        self.address = ""
        self.dashboard: str | None = None
        self.running: dict[int, OwnedProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def scheduler_file(self) -> Path:
        """Where the scheduler writes its address, and workers wait for it."""
        return self.home.run / "scheduler.json"

    def resume(self, scheduler: str, dashboard: str | None) -> None:
        """Have the scheduler listen where the one of a killed head did, as far as the ports are free. Call it before `start`."""
        self.address, self.dashboard = scheduler, dashboard

    def start(self) -> None:
        """Start both at once; workers wait for the scheduler's file by themselves."""
        self.scheduler_file.unlink(missing_ok=True)  # of a head that was killed
        for left in self.register.end_all(STOP_GRACE_S, only="scheduler"):  # one that was stopped cannot see that its head is gone
            log.warning("the scheduler of an earlier head (process %d) was ended", left.pid)
        self._tasks = [asyncio.create_task(self._keep("scheduler", self._start_scheduler))]
        self._tasks.append(asyncio.create_task(self._watch()))
        if self.own_agent:
            self._tasks.append(asyncio.create_task(self._keep("agent", self._start_agent)))

    async def stop(self) -> None:
        """End both, and whatever they own."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.scheduler_file.unlink(missing_ok=True)

    async def scheduler_address(self) -> str:
        """Return the scheduler's address once it listens."""
        while not (found := _read(self.scheduler_file)):  # noqa: ASYNC110  # a file gives no event
            await asyncio.sleep(_POLL_S)
        self.address = str(found["address"])
        port = found.get("services", {}).get("dashboard")
        self.dashboard = f"http://127.0.0.1:{port}/status" if port else None
        return self.address

    async def served(self, stopping: asyncio.Event, client: Client) -> None:
        """Wait until the head is stopped.

        Raises
        ------
        SchedulerOutOfReach
            If its client cannot come back to the scheduler: Dask's gives up after 30 s, and never looks at another address.
        """
        while not stopping.is_set():
            if (why := self._out_of_reach(client)) is not None:
                raise SchedulerOutOfReach(why=why)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await stopping.wait()

    def _out_of_reach(self, client: Client) -> str | None:
        if client.status == "closed":
            return f"nothing has answered at {self.address} for as long as Dask waits"
        now = _read(self.scheduler_file)
        return None if now is None or now["address"] == self.address else f"somebody has taken its port, and it is at {now['address']} now"

    async def _keep(self, name: str, start: Callable[[], OwnedProcess]) -> None:
        failures = 0
        while True:
            began = self.clock.monotonic()
            status = await self._run_once(name, start)
            served = name == "scheduler" and self.scheduler_file.exists()  # then it can: its end is none of a row
            failures, wait_s = self.backoff.next(0 if served else failures, self.clock.monotonic() - began)
            why = f"the {name} ended ({how_ended(status)})"
            log.error("%s; started again in %.1f s", why, wait_s)
            if name == "scheduler":
                await self.on_scheduler_lost(why)
            if failures >= FAILURES_MAX:
                self.fatal(f"{why} {failures} times in a row; see {self.home.run / 'logs' / name}.log")
            await asyncio.sleep(wait_s)

    async def _watch(self) -> None:
        """Kill a scheduler that stands still: its clients and workers would wait for it for ever."""
        async for pid, seconds in look_for_stopped(lambda: list(self.running), self.clock, suspended, STOPPED_S):
            if (child := self.running.get(pid)) is not None:
                log.error("process %d was stopped for %.0f s and is killed", pid, seconds)
                child.process.kill()

    async def _run_once(self, name: str, start: Callable[[], OwnedProcess]) -> int | str:
        """Run one child to its end; a cancelled caller ends it."""
        try:
            child = start()
        except OSError as error:
            return str(error)
        self.running[child.pid] = child
        with self.register.noted(child.pid, name):
            try:
                return await child.ended()
            finally:
                await asyncio.shield(child.stop(STOP_GRACE_S))
                del self.running[child.pid]

    def _start_scheduler(self) -> OwnedProcess:
        self.scheduler_file.unlink(missing_ok=True)
        web_port = str(free_port(port_of(self.dashboard)))
        argv = python_argv(
            *self._scheduler(web_port),
            *("--scheduler-file", str(self.scheduler_file)),
            *("--preload", "dgpunet_dask.daemons.lifeline_preload"),
            *("--preload", "dgpunet_dask.daemons.scheduler_preload"),
        )
        scratch = str(self.home.run / "scratch" / "scheduler")
        files = {POLICIES_ENV: str(self.home.policies_in_force), EXPECTED_ENV: str(self.home.expected_devices)}
        env = {"DASK_TEMPORARY_DIRECTORY": scratch, **files}
        return self._spawn("scheduler", argv, {**SCHEDULER_ENV, **env, **self.comm_env})

    def _scheduler(self, web_port: str) -> tuple[str, ...]:
        """Return module and addresses of the scheduler."""
        if self.cluster is not None:
            where = ("--host", self.cluster.address, "--port", str(self.cluster.ports.scheduler))
            return ("dgpunet_dask.daemons.scheduler_main", *where, "--dashboard-port", web_port)
        where = ("--host", "127.0.0.1", "--port", str(free_port(port_of(self.address))))
        return ("distributed.cli.dask_scheduler", *where, "--dashboard-address", f"127.0.0.1:{web_port}")

    def _start_agent(self) -> OwnedProcess:
        argv = python_argv(
            "dgpunet_dask.daemons.agent",
            *("--home", str(self.home.root)),
            *("--fleet-file", str(self.home.run / "fleet.json")),
            *("--scheduler-file", str(self.scheduler_file)),
        )
        return self._spawn("agent", argv, {})

    def _spawn(self, name: str, argv: list[str], env: dict[str, str]) -> OwnedProcess:
        log_file = self.home.run / "logs" / f"{name}.log"
        return spawn(argv, env=child_env({**env, "DGPUNET_HOME": str(self.home.root)}), log_file=log_file, cwd=self.home.run)


def _read(file: Path) -> dict[str, Any] | None:
    """Return what the scheduler has written, ``None`` before it is whole."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) and "address" in found else None
    return None
