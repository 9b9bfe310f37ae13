"""All jobs of one head: accepted, driven, kept for those who ask. The HTTP API calls nothing else."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from distributed import Client

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import (
    BadValue,
    BadWorkload,
    DgpunetError,
    DiskFull,
    JobCancelled,
    JobFailed,
    JobLost,
    NoSuchJob,
    Unplaceable,
)
from dgpunet_dask.jobs.commit import commit_text
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.model_owners import ModelOwners
from dgpunet_dask.jobs.models import FindModel, brought, local_model, model_digests, model_folders, with_digests
from dgpunet_dask.jobs.params import complete_params
from dgpunet_dask.jobs.plan import HeadHost, JobPlan, facts_from_wire, of_user, plan_job
from dgpunet_dask.jobs.record import JobRecord, events_on_disk
from dgpunet_dask.jobs.runner import JobRunner, Ports, job_of_key
from dgpunet_dask.jobs.store import add_workload, checked_digest, read_workload
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.job import JobStatus, UnitCounts
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.model.policy import DEFAULT_ON_OOM, NO_POLICY, OnOom, Policy
from dgpunet_dask.placement.explanation import explanation
from dgpunet_dask.placement.fixes import nearest
from dgpunet_dask.placement.place import place
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.reports import full_disk

log = logging.getLogger(__name__)

#: How often placements of running jobs are copied into their events.
PLACEMENTS_EVERY_S: Final = 0.5
RECORD_VERSION: Final = 1
#: How long the scheduler's plugin may take to hear what was learned.
TELL_S: Final = 10.0

#: Whether a fleet, which may still grow, will do.
Enough = Callable[[Fleet], bool]


@dataclass(frozen=True)
class ServicePorts:
    """What the service reaches the world through.

    Parameters
    ----------
    dask
        Gives the client of the present scheduler, which changes when the scheduler is restarted.
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
    """

    dask: Callable[[], Client]
    agent: Callable[[], AgentClient]
    fleet: Callable[[Enough], Awaitable[Fleet]]
    host: HeadHost
    on_oom: Callable[[Demand], OnOom] = lambda _: DEFAULT_ON_OOM
    policy: Callable[[], Policy] = lambda: NO_POLICY
    find_model: FindModel | None = None


class JobService:
    """Keeps the jobs. Errors are DgpunetErrors."""

    def __init__(self, home: Home, ports: ServicePorts, *, clock: Clock | None = None, token: Callable[[], str] | None = None) -> None:
        self.home = home
        self.ports = ports
        self.clock = clock or SystemClock()
        self._token = token or (lambda: secrets.token_hex(3))
        self._records: dict[str, JobRecord] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runners: dict[str, JobRunner] = {}
        self._causes: dict[str, DgpunetError | None] = {}  # of jobs that are ending
        self._watch: asyncio.Task[None] | None = None
        self.models = ModelOwners(home.model_owners)
        self.learned = Learning(home.learned, self._tell_learned)
        self._learning: asyncio.Task[None] | None = None
        self._copying = asyncio.Lock()
        self._placements_seen = 0

    def begin(self) -> None:
        """Go on where earlier heads ended: read their jobs and what they learned, and begin to learn.

        Raises
        ------
        NewerFormat
            If a newer release has kept what it learned here.
        """
        self.load_past()
        self.learned.load()
        self._learning = asyncio.create_task(self.learned.run(), name="learning")

    def load_past(self) -> None:
        """Read the jobs of earlier heads; what had not ended then is lost, and its working files go."""
        for file in sorted(self.home.jobs.glob("*/job.json")):
            try:
                status = _status_from(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, OSError) as error:
                log.warning("%s cannot be read and is left alone: %s", file, error)
                continue
            record = JobRecord(status, file.parent, self.clock, self.clock.monotonic() - status.seconds)
            self._records[status.job_id] = record
            if not record.final:
                lost = JobLost(job_id=status.job_id)
                record.status = _status_from({**asdict(status), "state": "lost", "error": lost.to_json(), "exit_code": lost.exit_code})
                _remove_working_files(record, done=False)
                self._save(record)

    async def submit(self, request: Mapping[str, Any]) -> JobStatus:
        """Accept a job: ``{"workload": digest, "params": {...}, "user": name, "operates": bool, "shared": bool}``; it is the user's.

        Raises
        ------
        UsageError
            For an unknown workload or a bad parameter.
        """
        workload, params = await in_thread(self._accepted, request)
        job_id = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(self.clock.wall()))}-{self._token()}"
        status = JobStatus(
            job_id=job_id, workload=workload.name, state="queued", params=params, submitted_at=self.clock.wall(), metrics={},
            owner=_user_of(request).name, shared=request.get("shared") is True,
        )  # fmt: skip
        folder = self.home.jobs / job_id
        (folder / "scratch").mkdir(mode=0o700, parents=True)
        record = self._records[job_id] = JobRecord(status, folder, self.clock, self.clock.monotonic())
        self._save(record)
        self._tasks[job_id] = asyncio.create_task(self._drive(record, workload, _user_of(request)), name=job_id)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_placements())
        return record.now()

    async def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return, for each stage, its demand and where it could go now, without running anything but the workload's import."""
        workload, params = await in_thread(self._accepted, request)
        plan = await self._planned(workload, params, "dry-run", self.home.jobs, self.ports.agent())
        fleet = await self.ports.fleet(_only_all)
        explained = functools.partial(explanation, fleet, policy=self.ports.policy(), estimates=self.learned.estimates)
        stages = _stage_rows(of_user(plan, _user_of(request)), explained, self.ports.host.device)
        return {"workload": workload.name, "params": params, "policy": self.ports.policy().digest, "stages": stages}

    def _accepted(self, request: Mapping[str, Any]) -> tuple[Workload, dict[str, Any]]:
        digest, params = request.get("workload"), request.get("params", {})
        if not isinstance(digest, str) or not isinstance(params, dict):
            raise BadValue(what="request", value=sorted(request), why='send {"workload": digest, "params": {...}}')
        folder = self.home.workloads / checked_digest(digest)
        if not folder.is_dir():
            raise BadWorkload(workload=digest[:16], why="its files have not arrived; send them first")
        workload = read_workload(folder)
        return workload, complete_params(workload, params, cwd=Path("/"))

    async def list(self) -> Sequence[JobStatus]:
        """Return all jobs, oldest first."""
        return sorted((r.now() for r in self._records.values()), key=lambda s: (s.submitted_at, s.job_id))

    async def show(self, job_id: str) -> JobStatus:
        """Return one job."""
        return self._record(job_id).now()

    async def events(self, job_id: str, since: int, wait_s: float) -> Sequence[dict[str, Any]]:
        """Return the job's events after number `since`, waiting up to `wait_s` seconds for the first."""
        record = self._record(job_id)
        await record.news(since, wait_s)
        events = record.events or await in_thread(events_on_disk, record.folder)
        return [event for event in events if event["seq"] > since]

    async def tasks(self, job_id: str) -> Sequence[tuple[str, str, Demand | None]]:
        """Return stage, key and demand of each task of a job that waits for a device or runs."""
        self._record(job_id)
        runner = self._runners.get(job_id)
        return [] if runner is None else list(runner.pending())

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job and return once nothing of it runs; a finished one stays as it is."""
        record = self._record(job_id)
        await self._end(job_id, JobCancelled(job_id=job_id))
        return record.now()

    async def has_workload(self, digest: str) -> bool:
        """Whether the workload's files are here."""
        return (self.home.workloads / checked_digest(digest)).is_dir()

    async def add_workload(self, digest: str, stream: BinaryIO) -> None:
        """Take a workload as a tar stream."""
        await in_thread(lambda: add_workload(self.home.workloads, digest, stream.read()))

    async def scheduler_lost(self, why: str) -> None:
        """Fail what has begun to run: the scheduler is gone, and with it every task it knew. What is only planned waits for the next one."""
        self._placements_seen = 0  # the next one counts from the beginning
        self.learned.again()
        await asyncio.gather(*(self._end(job_id, JobFailed(why=why)) for job_id in list(self._runners)))

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        await asyncio.gather(*(self._end(job_id, JobCancelled(job_id=job_id)) for job_id in list(self._tasks)))
        if self._watch is not None:
            self._watch.cancel()
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning])

    def _record(self, job_id: str) -> JobRecord:
        if job_id not in self._records:
            raise NoSuchJob(job_id=job_id)
        return self._records[job_id]

    async def _end(self, job_id: str, cause: DgpunetError) -> None:
        """End a job for `cause`, unless it is ending already, and wait until nothing of it runs."""
        task, record = self._tasks.get(job_id), self._records[job_id]
        if task is None:
            return
        if job_id not in self._causes:
            self._causes[job_id] = cause
            task.cancel()  # once: a second one would interrupt its clearing up
        await asyncio.wait([task])
        if not record.final and self._causes.get(job_id) is cause:  # it was cancelled before its first step
            await self._concluded(record, cause)

    async def _drive(self, record: JobRecord, workload: Workload, user: User) -> None:
        error: DgpunetError | None = None
        try:
            record.move("running")
            await self._run(record, workload, user)
        except asyncio.CancelledError:
            error = JobCancelled(job_id=record.status.job_id)
        except DgpunetError as failure:
            error = failure
            await self._copy_placements()
        except Exception as failure:  # whatever broke, the job must end and say so
            log.exception("job %s broke", record.status.job_id)
            error = full_disk(failure) or DgpunetError(detail=f"{type(failure).__name__}: {failure}")
        await self._concluded(record, error)

    async def _run(self, record: JobRecord, workload: Workload, user: User) -> None:
        agent, params = self.ports.agent(), record.status.params
        digests = await in_thread(self._models, workload, params, user)  # first: no stage sees a model that is not theirs
        plan = await self._planned(workload, params, record.status.job_id, record.folder / "scratch", agent)
        plan = with_digests(of_user(plan, user, shared=record.status.shared), digests)
        await self._check_placeable(plan)
        await self.learned.now()  # the scheduler may be a new one
        ports = Ports(self.ports.dask(), agent, self._in_flight, learned=self.learned, on_oom=self.ports.on_oom)
        runner = self._runners[record.status.job_id] = JobRunner(record, plan, ports)
        await runner.run()
        await self._copy_placements()
        _add_rate(record)

    def _models(self, workload: Workload, params: Mapping[str, Any], user: User) -> Mapping[str, str]:
        """Note whose the job's models are; return their digests where there are other hosts, which copy them from one another."""
        folders = model_folders(workload, params, self.ports.find_model or local_model)
        self.models.use(brought(params, folders, {}), user, self.clock.wall())  # before any of its weights are read
        if self.ports.find_model is None:
            return {}
        digests = model_digests(self.home, folders)
        self.models.use(brought(params, folders, digests), user, self.clock.wall())
        return digests

    async def _concluded(self, record: JobRecord, error: DgpunetError | None) -> None:
        """Clear up after a job and give it its last state, on disk before anybody can hear of it."""
        job_id = record.status.job_id
        error = self._causes.setdefault(job_id, error)
        try:
            if error is not None:
                await in_thread(self._end_hosts, job_id)
            await in_thread(_remove_working_files, record, error is None)
        finally:
            if error is not None and "traceback" in error.fields:
                record.emit("log", text=str(error.fields["traceback"]))
            record.move("done" if error is None else "cancelled" if isinstance(error, JobCancelled) else "failed", error)
            self._save(record)
            record.let_go()
            self._runners.pop(job_id, None)
            del self._causes[job_id], self._tasks[job_id]

    def _end_hosts(self, job_id: str) -> None:
        """End the job's own stage hosts: its source's and its gather stage's."""
        try:
            self.ports.agent().end_job(job_id)
        except DgpunetError as error:
            log.warning("the stage hosts of job %s were not ended: %s", job_id, error)

    async def _planned(
        self, workload: Workload, params: Mapping[str, Any], job_id: str, scratch: Path, agent: AgentClient
    ) -> JobPlan:
        wanted = {stage.name: (stage.run, stage.env) for stage in workload.stages}
        raw = await in_thread(agent.inspect, workload.digest, wanted, params, stop=agent.close)
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

    async def _in_flight(self) -> int:
        """Two units a device keep each busy while the next is on its way; the rest of the input waits on disk."""
        return 2 + 2 * len((await self.ports.fleet(_any)).devices)

    async def _tell_learned(self, estimates: Mapping[str, Any]) -> None:
        await asyncio.wait_for(self.ports.dask().scheduler.dgpunet_estimates(estimates=estimates), TELL_S)

    async def _watch_placements(self) -> None:
        """Copy placements into the events of their jobs while any job runs."""
        while self._tasks:
            await asyncio.sleep(PLACEMENTS_EVERY_S)
            await self._copy_placements()

    async def _copy_placements(self) -> None:
        async with self._copying:
            try:
                placed = await self.ports.dask().scheduler.dgpunet_placements(since=self._placements_seen)
            except OSError as error:  # the scheduler is being restarted
                log.info("placements cannot be read: %s", error)
                return
            for row in placed:
                self._placements_seen = max(self._placements_seen, int(row["seq"]))
                record = self._records.get(job_of_key(str(row["key"])) or "")
                if record is not None and not record.final:
                    record.placed({k: v for k, v in row.items() if k != "seq"})

    def _save(self, record: JobRecord) -> None:
        try:
            commit_text(record.folder / "job.json", json.dumps({"version": RECORD_VERSION, **asdict(record.status)}, indent=1))
        except (OSError, DiskFull) as error:
            log.warning("the record of job %s cannot be written: %s", record.status.job_id, error)


def _only_all(_: Fleet) -> bool:
    return False


def _any(_: Fleet) -> bool:
    return True


def _status_from(raw: Mapping[str, Any]) -> JobStatus:
    values = {name: value for name, value in raw.items() if name != "version"}
    return JobStatus(**{**values, "units": UnitCounts(**values["units"])})


def _remove_working_files(record: JobRecord, done: bool) -> None:
    shutil.rmtree(record.folder / "scratch", ignore_errors=True)
    if not done:
        shutil.rmtree(record.folder / "results", ignore_errors=True)


def _add_rate(record: JobRecord) -> None:
    """Give every counter named `tokens` its rate over the job's whole time, start-up included."""
    tokens, seconds = record.counts.get("tokens"), record.now().seconds
    if isinstance(tokens, int | float) and seconds > 0:
        record.count({"=tokens_per_second": round(tokens / seconds, 1)})


def _user_of(request: Mapping[str, Any]) -> User:
    """Return whose work a request is; without a name where it does not say."""
    user = request.get("user")
    return User(user if isinstance(user, str) and user else None, operates=request.get("operates") is True)


def _stage_rows(plan: JobPlan, explained: Callable[[Demand], Mapping[str, Any]], head: str) -> list[dict[str, Any]]:
    stages = [plan.source, *plan.units, *([plan.gather] if plan.gather else [])]
    table = []
    for stage in stages:
        row: dict[str, Any] = {"stage": stage.spec.name, "env": stage.spec.env, "demand": None, "outcome": "placed"}
        if stage.demand is None:
            row["ranking"] = ["any CPU worker" if stage.call.light else head]
        else:
            found = explained(stage.demand)
            row |= {name: found[name] for name in ("demand", "outcome", "on", "waits_for", "verdicts", "wakes", "fix", "effective")}
            row["ranking"] = [scored["device"] for scored in found["ranking"]]
        table.append(row)
    return table
