"""The head daemon: the Dask scheduler as its child, the jobs, and the HTTP API over them. Embedded, the agent is its child as well.

What it prints on its standard output until it is ready is for its starter, one JSON object a line: ``{"progress": text}``, then
``{"ready": true}`` or ``{"error": {...}}``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from distributed import Client

from dgpunet_dask.clock import within
from dgpunet_dask.cluster.decisions import DecisionFiles
from dgpunet_dask.cluster.fleets import charged_by_device, fleet_digest, fleet_to_json, live_fleet, worker_rows
from dgpunet_dask.cluster.headfile import HeadFile, write_head_file
from dgpunet_dask.cluster.policy_watch import Places
from dgpunet_dask.cluster.wire import error_to_wire
from dgpunet_dask.config.descriptors import raise_limit
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import children, resuming
from dgpunet_dask.daemons.api import ApiContext, listen
from dgpunet_dask.daemons.api.server import ApiServer
from dgpunet_dask.daemons.backing import Backing, ports_of
from dgpunet_dask.daemons.deriving import Deriving
from dgpunet_dask.daemons.disk import EMBEDDED_ROOM_S, ROOM_S, Disk, DiskPorts
from dgpunet_dask.daemons.expected import Expected
from dgpunet_dask.daemons.explaining import Explaining, at_time
from dgpunet_dask.daemons.handing_on import followed_settings, hand_on_policies, load_settings
from dgpunet_dask.daemons.indexes import Indexes
from dgpunet_dask.daemons.lifeline import watch
from dgpunet_dask.daemons.policies import Policies
from dgpunet_dask.daemons.recording import Recording
from dgpunet_dask.daemons.register import kill_descendants, only_head
from dgpunet_dask.daemons.settling import Settling
from dgpunet_dask.daemons.sharding import sharding_over
from dgpunet_dask.daemons.starter import Starter, leaving
from dgpunet_dask.daemons.tasklearning import TaskLearning
from dgpunet_dask.errors import DgpunetError, StartFailed
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.policy import OnOom
from dgpunet_dask.placement.estimate import Estimates
from dgpunet_dask.placement.policy_file import Source
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.security.files import write_private
from dgpunet_dask.stagehost.reports import full_disk

if TYPE_CHECKING:
    from dgpunet_dask.jobs.service import JobService as Jobs

log = logging.getLogger(__name__)

#: How long the cluster may take until all its workers have joined. Loading Dask from a cold disk takes most of it.
START_S: Final = 120.0
#: How long stopping in good order may take before the rest is killed.
STOP_S: Final = 10.0
#: How long a question to the scheduler may take; it answers within milliseconds unless it is gone or overloaded.
ASK_S: Final = 10.0
#: How long the last decisions may take to be written.
LAST_S: Final = 2.0
_POLL_S: Final = 0.05


@dataclass(frozen=True)
class HeadOptions:
    """What a head is started with: its home, the fleet and what that was read from, and whether it ends with its last lease.

    `probed`: the fleet is this machine, and not a file. `policy`: the policy files; without any, those of the home. `supervised`: the agent
    is the supervisor's child, and this head may be the successor of one that was killed.
    """

    home: Home
    fleet: Fleet
    label: str = "local"
    embedded: bool = False
    probed: bool = False
    policy: tuple[Path, ...] = ()
    supervised: bool = False


class Head:
    """One running cluster. `run` is called once and returns when the cluster has stopped.

    Parameters
    ----------
    options
        What to run.
    report
        Tells the starter how far it is.
    """

    #: Finds the folder of a model for other hosts; ``None`` where there are none.
    find_model: Callable[[str], Path | None] | None = None

    def __init__(self, options: HeadOptions, report: Callable[[dict[str, Any]], None]) -> None:
        self.options = options
        self.home = options.home
        self.report = report
        self.stopping = asyncio.Event()
        self.why = ""
        self.client: Client | None = None
        self.service: Jobs | None = None
        self.expected = Expected(self.home.expected_devices)
        self.deriving = Deriving(self.home, options.fleet, simulated=not options.probed)
        self.policies = Policies(Places(self.home, options.policy), self._tell_policies)
        self.recording = Recording(DecisionFiles(self.home.decisions), lambda seen: self._ask("dgpunet_trace", since=seen))
        self.children = children.Children(
            self.home, fatal=self.stop, on_scheduler_lost=self._scheduler_lost, own_agent=not options.supervised
        )
        self.before: HeadFile | None = None
        self.settling = Settling(self.live, lambda: self.policies.told)
        self.settings = followed_settings(self.home)
        self.sharding = sharding_over(self._dask, self.settings, self._fleet)
        self.disk = Disk(self.home, self.settings, DiskPorts(in_use=lambda: self.service.in_use() if self.service else (), ended=lambda: self.service.ended() if self.service else {}))
        self.backing = Backing(self.home, head_host(options.fleet).partition("/")[0], self.settings, ports_of(lambda: self.service), self.policies.clock)

    def stop(self, why: str) -> None:
        """Begin to stop; the first reason counts."""
        if not self.stopping.is_set():
            self.why = why
            log.info("stopping: %s", why)
            self.stopping.set()

    async def run(self) -> None:
        """Start everything, serve until `stop`, end everything.

        Raises
        ------
        StartFailed
            If the scheduler or every worker failed to start.
        UsageError
            If the settings or a policy file cannot be read.
        """
        self._resume()
        load_settings(self.settings, self.home.settings_in_force, resumes=self.before is not None)
        described = {**fleet_to_json(self.options.fleet), "probed": self.options.probed}
        write_private(self.home.run / "fleet.json", json.dumps(described))
        self.deriving.refresh()
        self._load_policies()
        hand_on_policies(self.home.policies_in_force, self.policies.sources)
        self.expected.begin(self._belonging())
        async with self._children(), self._connected() as client, self._following():
            await self._or_stopped(self.policies.settled(), "the scheduler did not take the policies")
            if self.before is None:  # else they come back by themselves, and who waits for this head has waited long enough
                await self._workers_joined(client)
            if self.stopping.is_set():
                return
            async with self._serving():
                self.report({"ready": True})
                if not self.options.embedded:  # one that ends with its command is seldom asked
                    self.indexes.warm()
                await self.children.served(self.stopping, client)

    def _resume(self) -> None:
        """Be found where the head before was, if one was killed; what it had is on its way back."""
        self.before = None if self.options.embedded else resuming.head_before(self.home)
        if self.before is not None:
            log.info("goes on for the head that was process %d", self.before.pid)
            self.children.resume(self.before.scheduler, self.before.dashboard)
            self.settling.met = frozenset(device.name for device in self.options.fleet.devices)

    def _load_policies(self) -> None:
        if self.before is None:
            self.policies.load()
        else:
            resuming.load_policies(self.policies, self.home.policies_in_force)

    @contextlib.asynccontextmanager
    async def _children(self) -> AsyncIterator[None]:
        self.report({"progress": "starting the scheduler and the workers"})
        self.children.start()
        try:
            yield
        finally:
            await self.children.stop()

    @contextlib.asynccontextmanager
    async def _following(self) -> AsyncIterator[None]:
        """Keep the generated policies equal to what the machines report, the scheduler to the policies, and the decision log."""
        deriving = self.deriving.run(self._fleet)
        followers = (deriving, self.policies.run(), self.recording.run(), self._task_learning().run(), self.disk.run(), self.backing.run(), self.sharding.run())
        tasks = [asyncio.create_task(follower) for follower in followers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await within(LAST_S, self.recording.drain())

    def _task_learning(self) -> TaskLearning:
        kept = Learning(self.home.learned_tasks)
        kept.load()
        return TaskLearning(kept, lambda estimates: self._ask("dgpunet_own", estimates=estimates))

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        """Connect to the scheduler once it has written its file."""
        address = await self._or_stopped(self.children.scheduler_address(), "the scheduler did not start")
        secured = self._security()
        self.client = await Client(address, asynchronous=True, set_as_default=False, name="dgpunet-head", security=secured)
        try:
            yield self.client
        finally:
            with contextlib.suppress(TimeoutError, OSError):
                await within(2, self.client.close(timeout=1))

    def _security(self) -> Any:
        """Return how Dask's connections are secured, ``None`` on 127.0.0.1."""
        return None

    async def _or_stopped(self, coroutine: Any, what: str) -> Any:
        """Wait for `coroutine`, at most `START_S` seconds, and no longer than until the head is stopped."""
        task, stopped = asyncio.ensure_future(coroutine), asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait({task, stopped}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            return task.result()
        task.cancel()
        raise StartFailed(why=self.why or f"{what} within {START_S:g} s", logs=self.home.run / "logs")

    async def _workers_joined(self, client: Client) -> None:
        """Wait until each device has its worker. Some that fail leave a smaller cluster, and a warning; none is an error."""
        wanted = {device.name for device in self.options.fleet.devices}
        deadline, joined = asyncio.get_running_loop().time() + START_S, set[str]()
        while joined < wanted and not self.stopping.is_set():
            now = await self._joined(client) & wanted
            if now != joined:
                self.report({"progress": f"{len(now)} of {len(wanted)} workers have joined"})
            joined = now
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_POLL_S)
        missing = ", ".join(sorted(wanted - joined))
        if wanted and not joined and not self.stopping.is_set():
            raise StartFailed(why=f"no worker joined within {START_S:g} s", logs=self.home.run / "logs")
        if missing:
            self.report({"warning": f"the cluster runs without {missing}: see {self.home.run / 'logs'}"})

    async def _joined(self, client: Client) -> set[str]:
        try:
            found = await within(ASK_S, client.scheduler.identity(n_workers=-1))
        except (OSError, TimeoutError):
            return set()
        return {str(worker["name"]) for worker in found["workers"].values() if worker["status"] == "running"}

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """Serve the jobs over HTTP, and let others find this head."""
        self.service = service = self._make_service()
        await service.begin()
        self.deriving.learned = lambda: service.learned.estimates
        self.indexes = Indexes(self.home, sharding=self.sharding)
        self.ctx = ctx = self._make_context(service)
        servers = self._listen(ctx)
        ctx.keep = functools.partial(self._keep, ctx)
        self._write_head_file(ctx)
        try:
            yield
        finally:
            ctx.stopping = True
            self.indexes.close()
            if self.stopping.is_set():  # else it broke, and its successor needs to know where it was
                self.home.head_file.unlink(missing_ok=True)
            with contextlib.suppress(TimeoutError):
                await within(STOP_S, self.service.close())
            for server in servers:
                server.stop()
                await server.close_all_connections()

    def _keep(self, ctx: ApiContext) -> None:
        """Stay after the last command: with all jobs, also those that another head has left."""
        self._write_head_file(ctx)
        if self.service is not None:
            self._adopting = asyncio.ensure_future(self.service.adopt())

    def _make_context(self, jobs: Jobs) -> ApiContext:
        return ApiContext(
            key=secrets.token_urlsafe(32) if self.before is None else self.before.key,
            service=jobs,
            status=self.status,
            placements=self.placements,
            indexes=self.indexes,
            models=jobs.models,
            why=Explaining(self.live, lambda: self.policies.policy, self.learned, lambda: jobs, self._queue),
            policy=self.policies.status,
            reload=self.policies.reload,
            shutdown=self.stop,
            embedded=self.options.embedded,
            uploads=self.home.run / "uploads",
        )

    def _listen(self, ctx: ApiContext) -> list[ApiServer]:
        """Open the listeners."""
        return [resuming.listen_again(functools.partial(listen, ctx), resuming.port_of(self.before.api if self.before else None))]

    def _make_service(self) -> Jobs:
        from dgpunet_dask.jobs.plan import HeadHost
        from dgpunet_dask.jobs.service import JobService, ServicePorts
        from dgpunet_dask.stagehost.client import AgentClient

        host = HeadHost(device=self.head_device, threads=usable_cpus(), home=self.home.root)
        agent = functools.partial(AgentClient, self.home.agent_socket)
        ports = ServicePorts(
            self._dask, agent, self.settling.fleet, host, self._on_oom, lambda: self.policies.policy, find_model=self.find_model,
            room=lambda: self.disk.room_within(EMBEDDED_ROOM_S if self._embedded else ROOM_S), settings=lambda: self.settings.settings,
        )  # fmt: skip
        return JobService(self.home, ports, embedded=lambda: self._embedded)

    @property
    def _embedded(self) -> bool:
        return self.ctx.embedded if hasattr(self, "ctx") else self.options.embedded

    @property
    def head_device(self) -> str:
        """The CPU device of the host where sources and gather stages run."""
        return head_host(self.options.fleet)

    def _on_oom(self, demand: Demand) -> OnOom:
        return resolve(demand, self.policies.policy).on_oom

    def _dask(self) -> Client:
        assert self.client is not None
        return self.client

    def _write_head_file(self, ctx: ApiContext) -> None:
        write_head_file(
            self.home.head_file,
            HeadFile(
                pid=os.getpid(),
                created=psutil.Process().create_time(),
                api=f"http://127.0.0.1:{ctx.port}",
                key=ctx.key,
                scheduler=self.children.address,
                dashboard=self.children.dashboard,
                fleet=self.options.label,
                fleet_digest=fleet_digest(self.options.fleet),
                embedded=ctx.embedded,
                policy=tuple(map(str, self.options.policy)),
            ),
        )

    async def _tell_policies(self, sources: Sequence[Source]) -> None:
        hand_on_policies(self.home.policies_in_force, sources)
        await self._ask("dgpunet_set_policy", sources=[list(source) for source in sources])

    async def _scheduler_lost(self, why: str) -> None:
        self.policies.lost()
        self.recording.lost()
        if self.service is not None:
            await self.service.scheduler_lost(why)

    async def _ask(self, name: str, **arguments: Any) -> Any:
        """Ask the scheduler's plugin.

        Raises
        ------
        StartFailed
            If the scheduler does not answer: it is being restarted.
        """
        try:
            if (scheduler := self._dask().scheduler) is None:
                raise OSError("the connection to it was given up")
            return await within(ASK_S, getattr(scheduler, name)(**arguments))
        except (OSError, TimeoutError) as error:
            raise StartFailed(why=f"the scheduler does not answer ({error})", logs=self.home.run / "logs") from error

    async def live(self) -> Fleet:
        """Return the fleet as the scheduler's plugin sees it now."""
        return at_time(live_fleet(await self._fleet()), self.policies.clock.wall())

    async def _fleet(self) -> dict[str, Any]:
        """Return what the scheduler's plugin says of its fleet, which the next scheduler will count on."""
        seen = dict(await self._ask("dgpunet_fleet"))
        self.expected.keep(seen)
        return seen

    async def _queue(self, key: str) -> dict[str, Any]:
        return dict(await self._ask("dgpunet_explain", key=key))

    async def learned(self) -> Estimates:
        """Return the estimates that the scheduler's plugin decides by."""
        return Estimates.from_json(await self._ask("dgpunet_learned"))

    def _belonging(self) -> frozenset[str] | None:
        """Return the devices that an earlier head had and that come back by themselves: none, but where that was killed and its agent was not.

        ``None``: all that it had.
        """
        return None if self.before is not None else frozenset()

    async def placements(self, since: int) -> Sequence[dict[str, Any]]:
        """Return the placements after number `since`."""
        return list(await self._ask("dgpunet_placements", since=since))

    async def status(self) -> dict[str, Any]:
        """Return the object of ``status --json``. While the scheduler is away, every worker is lost."""
        states, charged = dict[str, str](), dict[str, int]()
        with contextlib.suppress(StartFailed):
            seen = await self._fleet()
            states = {d["name"]: seen["states"].get(d["name"], "running") for d in seen["devices"]}
            charged = charged_by_device(seen["charges"])
        return {
            "head_pid": os.getpid(),
            "address": self.children.address,
            "api": f"http://127.0.0.1:{self.ctx.port}",
            "dashboard": self.children.dashboard,
            "workers": worker_rows(self.options.fleet, states, charged),
            "policy": self.policies.status(),
            "disk": self.disk.status(),
            "backup": self.backing.status(),
            "resident": self.sharding.summary(),
        }


def head_host(fleet: Fleet) -> str:
    """Return the CPU device of the first host with the role ``head``, else of the first host."""
    heads = [host for host in fleet.hosts if "head" in host.roles] or list(fleet.hosts)
    return heads[0].cpu_device if heads else "cpu"


def _end_at_once() -> None:
    """End with all descendants: the starter is gone before the head was its own master."""
    kill_descendants()
    os._exit(1)


async def _main(options: HeadOptions, starter: Starter, *, cluster: bool) -> None:
    if cluster:
        from dgpunet_dask.daemons.head_cluster import ClusterHead

        head: Head = ClusterHead(options, starter.tell)
    else:
        head = Head(options, starter.tell)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, head.stop, f"{signum.name} received")
    await head.run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a head until it is told to stop; return its exit status."""
    watch(_end_at_once)
    parser = argparse.ArgumentParser(prog="dgpunet-dask-head", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--simulate", type=Path)
    for name in ("--embedded", "--supervised", "--cluster"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--policy", type=Path, action="append", default=[])
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise_limit()  # an embedded head has no supervisor
    home = Home(args.home).ensure()
    starter = Starter(home.run / "logs" / "head.log")
    try:
        label = "cluster" if args.cluster else str(args.simulate or "local")
        kept = resuming.kept_fleet(home.run / "fleet.json") if args.supervised else None
        fleet = Fleet() if args.cluster else kept or resuming.read_fleet(args.simulate, home)  # the agents of a cluster tell what it has
        probed, policy = args.simulate is None, tuple(args.policy)
        options = HeadOptions(home, fleet, label, args.embedded, probed=probed, policy=policy, supervised=args.supervised)
        with only_head(home):
            asyncio.run(_main(options, starter, cluster=args.cluster))
    except DgpunetError as error:
        log.error("%s", error)
        starter.tell({"error": error_to_wire(error)})
        return leaving(error, error.exit_code)
    except Exception as error:  # the starter must learn of it, whatever it is
        log.exception("the head broke")
        starter.tell({"error": error_to_wire(full_disk(error) or DgpunetError(detail=f"{type(error).__name__}: {error}"))})
        return leaving(error, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
