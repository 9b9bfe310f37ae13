"""Takes one job from its turn to its end: planned, checked, run, tried again if it may be, and concluded."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from distributed import Client

from dgpunet_dask import failpoints
from dgpunet_dask.clock import Clock
from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings import Settings
from dgpunet_dask.config.settings_file import DEFAULTS
from dgpunet_dask.errors import DgpunetError, JobCancelled, JobFailed, Unplaceable
from dgpunet_dask.errors.fullness import SHORTAGES
from dgpunet_dask.jobs import past
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.ledger import Ledger
from dgpunet_dask.jobs.model_owners import ModelOwners
from dgpunet_dask.jobs.models import FindModel, brought, local_model, model_digests, model_folders, with_digests
from dgpunet_dask.jobs.persisting import to_its_end, written
from dgpunet_dask.jobs.plan import HeadHost, JobPlan, StagePlan, facts_from_wire, of_user, plan_job
from dgpunet_dask.jobs.quotas import check_units
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.roots import bounded
from dgpunet_dask.jobs.runner import JobRunner, Ports, at_once
from dgpunet_dask.jobs.sourcing import anew
from dgpunet_dask.jobs.store import checked_digest, read_workload
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.jobs.units import recipe_of
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet
from dgpunet_dask.model.job import JobState
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.model.policy import DEFAULT_ON_OOM, NO_POLICY, OnOom, Policy
from dgpunet_dask.placement.fixes import nearest
from dgpunet_dask.placement.place import place
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.reports import full_disk

log = logging.getLogger(__name__)

#: So many times as many light units are in flight.
LIGHT_TIMES: Final = 8
#: How long the ledger may take to note that a job has failed for want of room.
FULL_END_S: Final = 5.0
#: Before a job is started again by itself.
RETRY_S: Final = 1.0

#: Whether a fleet, which may still grow, will do.
Enough = Callable[[Fleet], bool]


@dataclass(frozen=True)
class ServicePorts:
    """What the jobs reach the world through.

    Parameters
    ----------
    dask
        Gives the client of the present scheduler, also of the next one.
    agent
        Makes a client of the agent on the head's host; each job has one of its own.
    fleet
        Gives the fleet as the scheduler plugin sees it, once it is enough for the caller, or nothing more is expected to come.
    host
        Where sources and gather stages run.
    on_oom
        Says how far a demand may grow that ran out of memory: the policy's clause for it.
    policy
        Gives the policy in force.
    find_model
        Returns the folder of a model's name on this host; ``None``: there are no other hosts that could want it.
    room
        Waits until the head's disk has room for work.
    settings
        Gives what config.yaml says.
    sleep
        Waits for some seconds.
    """

    dask: Callable[[], Client]
    agent: Callable[[], AgentClient]
    fleet: Callable[[Enough], Awaitable[Fleet]]
    host: HeadHost
    on_oom: Callable[[Demand], OnOom] = lambda _: DEFAULT_ON_OOM
    policy: Callable[[], Policy] = lambda: NO_POLICY
    find_model: FindModel | None = None
    room: Callable[[], Awaitable[None]] = at_once
    settings: Callable[[], Settings] = lambda: DEFAULTS
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Driver:
    """Drives jobs, each in a task of its caller.

    Attributes
    ----------
    runners
        Of the jobs that run now.
    cancelled
        The jobs whose task is cancelled because their user wants it, and not because this head ends.
    """

    def __init__(
        self, home: Home, ports: ServicePorts, ledger: Ledger, learned: Learning, models: ModelOwners, clock: Clock,
        copy_placements: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.home, self.ports, self.ledger, self.learned, self.models, self.clock = home, ports, ledger, learned, models, clock
        self.copy_placements = copy_placements
        self.runners: dict[str, JobRunner] = {}
        self.cancelled: set[str] = set()
        self._fleet = Fleet()
        self._devices: Mapping[str, Device] = {}

    async def drive(self, record: JobRecord) -> None:
        """Run a job to its end.

        Raises
        ------
        asyncio.CancelledError
            If this head ends; the job goes on under the next one.
        """
        error = await self._tried(record)
        while error is not None and self._again(record, error):
            error = await self._tried(record, after=error)
        await to_its_end(self._concluded(record, error))

    @staticmethod
    def _again(record: JobRecord, error: DgpunetError) -> bool:
        return isinstance(error, JobFailed) and 0 < record.job.tries <= record.job.retry

    async def _note_retry(self, record: JobRecord, error: DgpunetError) -> None:
        """Take a job to its next try. It does not end for those who wait."""
        await in_thread(self._end_hosts, record.status.job_id)
        record.emit("again", tries=record.job.tries, error=error.to_json())
        job_id = record.status.job_id
        record.job = await written(lambda: self.ledger.again(job_id, error=error.to_json(), exit_code=error.exit_code), self.ports.room)
        record.restart()

    async def _tried(self, record: JobRecord, after: DgpunetError | None = None) -> DgpunetError | None:
        """Run a job once, or once more `after` that failure; return what it failed with."""
        job_id = record.status.job_id
        try:
            if after is not None:
                await to_its_end(self._note_retry(record, after))
                await asyncio.sleep(RETRY_S)
            if record.status.state == "queued":
                await to_its_end(written(lambda: self.move(record, "running"), self.ports.room))
            await self._run(record)
        except asyncio.CancelledError:
            await in_thread(self._end_hosts, job_id)
            if job_id not in self.cancelled:
                raise
            return JobCancelled(job_id=job_id)
        except DgpunetError as failure:
            await self.copy_placements()
            return failure
        except Exception as failure:  # whatever broke, the job must end and say so
            log.exception("job %s broke", job_id)
            return full_disk(failure) or DgpunetError(detail=f"{type(failure).__name__}: {failure}")
        finally:
            self.runners.pop(job_id, None)
        return None

    async def _run(self, record: JobRecord) -> None:
        row = record.job
        scratch = record.folder / "scratch"
        await in_thread(lambda: scratch.mkdir(mode=0o700, parents=True, exist_ok=True))
        agent, user = self.ports.agent(), User(row.owner, operates=row.operates)
        workload = await in_thread(read_workload, self.home.workloads / checked_digest(row.digest))
        params = row.params
        if not user.operates:  # what a path leads to may have changed since the job was accepted
            params = await in_thread(bounded, workload, params, self.ports.settings().roots, (self.home.root,))
        digests, marks = await in_thread(self._models, workload, params, user)  # first: no stage sees a model that is not theirs
        plan = await self.planned(workload, params, row.job_id, scratch, agent)
        plan = with_digests(of_user(plan, user, shared=row.shared), digests)
        await self._check_placeable(plan)
        await self.learned.now()  # the scheduler may be a new one
        record.restart()
        record.leaves = plan.leaves
        await in_thread(past.save, record)
        recipe = recipe_of(row.digest, row.params, marks)
        runner = self.runners[row.job_id] = JobRunner(record, plan, self.ledger, recipe, self._runner_ports(agent, user, light=all(stage.demand is None for stage in plan.units)))
        await runner.run()
        await self.copy_placements()
        _add_rate(record)

    def _runner_ports(self, agent: AgentClient, user: User, *, light: bool) -> Ports:
        quota = self.ports.settings().quotas.of(user.name, operates=user.operates)
        return Ports(
            self.ports.dask(), agent, functools.partial(self._in_flight, light=light), learned=self.learned, on_oom=self.ports.on_oom, room=self.ports.room,
            devices=lambda: self._devices, clock=self.clock, could=self._could, sleep=self.ports.sleep, check_units=lambda units: check_units(quota, units),
        )  # fmt: skip

    def _could(self, stage: StagePlan, avoid: Collection[str]) -> bool:
        """Whether any device but these could take a stage, now or later."""
        if stage.demand is None:
            return False
        demand = replace(stage.demand, avoid=tuple(avoid))
        return bool(self._fleet.devices) and not place(self._fleet, demand, self.ports.policy(), self.learned.estimates).final

    def _models(self, workload: Workload, params: Mapping[str, Any], user: User) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Note whose the job's models are; return their digests where there are other hosts, and marks that change with their files."""
        folders = model_folders(workload, params, self.ports.find_model or local_model)
        self.models.use(brought(params, folders, {}), user, self.clock.wall())  # before any of its weights are read
        if self.ports.find_model is None:
            return {}, {name: _mark(folder) for name, folder in folders.items()}
        digests = model_digests(self.home, folders)
        self.models.use(brought(params, folders, digests), user, self.clock.wall())
        return digests, digests

    async def planned(self, workload: Workload, params: Mapping[str, Any], job_id: str, scratch: Path, agent: AgentClient) -> JobPlan:
        """Return what a job does, after asking each stage's interpreter for its facts."""
        wanted = {stage.name: (stage.run, stage.env) for stage in workload.stages}
        raw = await anew(lambda: in_thread(agent.inspect, workload.digest, wanted, params, stop=agent.close), 0, self.ports.sleep)
        facts = {name: facts_from_wire(found) for name, found in raw.items()}
        return plan_job(workload, params, facts, job_id=job_id, host=self.ports.host, scratch=scratch)

    async def _check_placeable(self, plan: JobPlan) -> None:
        """Refuse at once what no device can ever hold, before any input is read.

        While devices are on their way, nothing is refused that one of them might hold, and only that waits for them.
        """
        policy, estimates = self.ports.policy(), self.learned.estimates
        demands = {stage.spec.name: stage.demand for stage in plan.units if stage.demand is not None}
        fleet = await self.ports.fleet(lambda fleet: not any(place(fleet, d, policy, estimates).final for d in demands.values()))
        for name, demand in demands.items():
            decision = place(fleet, demand, policy, estimates)
            if decision.final:
                verdicts = [v.to_json() for v in decision.first_verdicts]
                fix = nearest(fleet, demand, policy, estimates)
                what = f"stage {name}"
                raise Unplaceable(what=what, summary=decision.summary(), verdicts=verdicts, fix=None if fix is None else str(fix))

    async def _in_flight(self, *, light: bool = False) -> int:
        """Two units a device keep each busy while the next is on its way; the rest of the input waits on disk.

        Light units are short, and Dask's workers take them as they come: of these there are more on their way than their commits take long.
        """
        self._fleet = await self.ports.fleet(_any)
        self._devices = {device.name: device for device in self._fleet.devices}
        return (2 + 2 * len(self._fleet.devices)) * (LIGHT_TIMES if light else 1)

    # Its end

    async def _concluded(self, record: JobRecord, error: DgpunetError | None) -> None:
        """Clear up after a job and give it its last state, on disk before anybody can hear of it."""
        try:
            await self._close_off(record, error)
        except Exception:  # nothing keeps a job from ending
            log.exception("job %s was not cleared up well", record.status.job_id)
        state: JobState = "done" if error is None else "cancelled" if isinstance(error, JobCancelled) else "failed"
        try:
            if isinstance(error, SHORTAGES):  # it has been waited for
                async with asyncio.timeout(FULL_END_S):  # what the ledger owes the disk stands before this
                    await self.move(record, state, error)
            else:
                await written(lambda: self.move(record, state, error), self.ports.room)
        except (*SHORTAGES, TimeoutError) as full:  # whoever waits must hear of it; the next head finds the job as it was, and goes on with it
            log.error("the end of job %s is not in the ledger: %s", record.status.job_id, full or "it waits for room")
            if not record.final:
                record.move(state, error)
        await in_thread(past.clear_up, record)
        record.let_go()

    async def _close_off(self, record: JobRecord, error: DgpunetError | None) -> None:
        if error is not None:
            await in_thread(self._end_hosts, record.status.job_id)
            if "traceback" in error.fields:
                record.emit("log", text=str(error.fields["traceback"]))
        failpoints.hit("job.final")

    async def move(self, record: JobRecord, state: JobState, error: DgpunetError | None = None) -> None:
        """Take a job to another state: in the ledger first, then for those who wait, then beside the ledger."""
        told = None if error is None else error.to_json()
        exit_code = 0 if error is None else error.exit_code
        metrics = record.status.metrics
        record.job = await self.ledger.move(record.status.job_id, state, error=told, exit_code=exit_code, metrics=metrics)
        record.move(state, error)
        await in_thread(past.save, record)

    def _end_hosts(self, job_id: str) -> None:
        """End the job's own stage hosts: its source's and its gather stage's."""
        try:
            self.ports.agent().end_job(job_id)
        except DgpunetError as error:
            log.warning("the stage hosts of job %s were not ended: %s", job_id, error)

    # What it is at

    async def placed(self, job_id: str, row: Mapping[str, Any]) -> None:
        """Take in where a task of a job was placed."""
        runner = self.runners.get(job_id)
        if runner is not None:
            await runner.attempting.placed(row)

    def at_work(self, job_id: str) -> tuple[list[str], Mapping[str, int], list[tuple[str, str]]]:
        """Return a job's stages, how many units wait at each, and stage and device of each call that runs."""
        runner = self.runners.get(job_id)
        if runner is None:
            return [], {}, []
        waiting, running = Counter[str](), list[tuple[str, str]]()
        for attempt, name, _ in runner.flights.pending():
            if name in attempt.places:
                running.append((name, attempt.places[name][0]))
            else:
                waiting[name] += 1
        return list(runner.flights.stages), waiting, running


def _any(_: Fleet) -> bool:
    return True


def _mark(folder: Path) -> str:
    """Return what changes with the files of a model: a digest of their names, sizes and times."""
    told = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _add_rate(record: JobRecord) -> None:
    """Give every counter named `tokens` its rate over the job's whole time, start-up included."""
    tokens, seconds = record.counts.get("tokens"), record.now().seconds
    if isinstance(tokens, int | float) and seconds > 0:
        record.count({"=tokens_per_second": round(tokens / seconds, 1)})
