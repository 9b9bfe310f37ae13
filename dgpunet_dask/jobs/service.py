"""All jobs of one head: accepted, driven, kept for those who ask. The HTTP API calls nothing else."""

from __future__ import annotations

import asyncio
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
from dgpunet_dask.errors import BadValue, BadWorkload, DgpunetError, JobCancelled, JobFailed, JobLost, NoSuchJob, Unplaceable
from dgpunet_dask.jobs.commit import commit_text
from dgpunet_dask.jobs.params import complete_params
from dgpunet_dask.jobs.plan import HeadHost, JobPlan, facts_from_wire, plan_job
from dgpunet_dask.jobs.record import JobRecord, events_after
from dgpunet_dask.jobs.runner import JobRunner, Ports, in_thread, job_of_key
from dgpunet_dask.jobs.store import add_workload, checked_digest, read_workload
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.model.job import JobStatus, UnitCounts
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.placement.explain import rows
from dgpunet_dask.placement.place import place
from dgpunet_dask.stagehost.client import AgentClient

log = logging.getLogger(__name__)

#: How often placements of running jobs are copied into their events.
PLACEMENTS_EVERY_S: Final = 0.5
RECORD_VERSION: Final = 1


@dataclass(frozen=True)
class ServicePorts:
    """What the service reaches the world through.

    Parameters
    ----------
    dask
        Gives the client of the present scheduler, which changes when the scheduler is restarted.
    agent
        Of the agent on the head's host.
    fleet
        Gives the fleet as the scheduler plugin sees it now.
    host
        Where sources and gather stages run.
    """

    dask: Callable[[], Client]
    agent: AgentClient
    fleet: Callable[[], Awaitable[Fleet]]
    host: HeadHost


class JobService:
    """Keeps the jobs. Errors are DgpunetErrors."""

    def __init__(self, home: Home, ports: ServicePorts, *, clock: Clock | None = None, token: Callable[[], str] | None = None) -> None:
        self.home = home
        self.ports = ports
        self.clock = clock or SystemClock()
        self._token = token or (lambda: secrets.token_hex(3))
        self._records: dict[str, JobRecord] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._causes: dict[str, DgpunetError] = {}
        self._watch: asyncio.Task[None] | None = None
        self._copying = asyncio.Lock()
        self._placements_seen = 0

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
                _remove_working_files(record)
                self._save(record)

    async def submit(self, request: Mapping[str, Any]) -> JobStatus:
        """Accept a job: ``{"workload": digest, "params": {...}}``.

        Raises
        ------
        UsageError
            For an unknown workload or a bad parameter.
        """
        workload, params = self._accepted(request)
        job_id = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(self.clock.wall()))}-{self._token()}"
        status = JobStatus(
            job_id=job_id, workload=workload.name, state="queued", params=params, submitted_at=self.clock.wall(), metrics={}
        )
        folder = self.home.jobs / job_id
        (folder / "scratch").mkdir(mode=0o700, parents=True)
        record = self._records[job_id] = JobRecord(status, folder, self.clock, self.clock.monotonic())
        self._save(record)
        self._tasks[job_id] = asyncio.create_task(self._drive(record, workload), name=job_id)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_placements())
        return record.now()

    async def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return, for each stage, its demand and where it could go now, without running anything but the workload's import."""
        workload, params = self._accepted(request)
        plan = await self._planned(workload, params, "dry-run", self.home.jobs)
        fleet = await self.ports.fleet()
        return {"workload": workload.name, "params": params, "stages": _stage_rows(plan, fleet, self.ports.host.device)}

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
        if record.final and not record.events:
            await in_thread(_read_events, record)
        return await events_after(record, since, wait_s)

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
        """Fail what runs: the scheduler is gone, and with it every task it knew."""
        for job_id in list(self._tasks):
            await self._end(job_id, JobFailed(why=why))

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        for job_id in list(self._tasks):
            await self._end(job_id, JobCancelled(job_id=job_id))
        if self._watch is not None:
            self._watch.cancel()

    def _record(self, job_id: str) -> JobRecord:
        if job_id not in self._records:
            raise NoSuchJob(job_id=job_id)
        return self._records[job_id]

    async def _end(self, job_id: str, cause: DgpunetError) -> None:
        task = self._tasks.get(job_id)
        if task is None or task.done():
            return
        self._causes.setdefault(job_id, cause)
        task.cancel()
        await in_thread(self._end_hosts, job_id)
        await asyncio.wait([task])

    def _end_hosts(self, job_id: str) -> None:
        """End the job's own stage hosts, so that no thread of ours waits for one that hangs."""
        try:
            self.ports.agent.end_job(job_id)
        except DgpunetError as error:
            log.warning("the stage hosts of job %s were not ended: %s", job_id, error)

    async def _drive(self, record: JobRecord, workload: Workload) -> None:
        job_id = record.status.job_id
        try:
            await record.move("running")
            plan = await self._planned(workload, record.status.params, job_id, record.folder / "scratch")
            await self._check_placeable(plan)
            ports = Ports(self.ports.dask(), self.ports.agent, in_flight=await self._in_flight())
            await JobRunner(record, plan, ports).run()
            await self._copy_placements()
            _add_rate(record)
            await record.move("done")
        except asyncio.CancelledError:
            cause = self._causes.get(job_id, JobCancelled(job_id=job_id))
            await record.move("cancelled" if isinstance(cause, JobCancelled) else "failed", cause)
        except DgpunetError as error:
            await self._failed(record, error)
        except Exception as error:  # whatever broke, the job must end and say so
            log.exception("job %s broke", job_id)
            await self._failed(record, DgpunetError(detail=f"{type(error).__name__}: {error}"))
        finally:
            _remove_working_files(record)
            self._save(record)
            self._tasks.pop(job_id, None)

    async def _failed(self, record: JobRecord, error: DgpunetError) -> None:
        if "traceback" in error.fields:
            await record.emit("log", text=str(error.fields["traceback"]))
        await record.move("failed", error)

    async def _planned(self, workload: Workload, params: Mapping[str, Any], job_id: str, scratch: Path) -> JobPlan:
        wanted = {stage.name: (stage.run, stage.env) for stage in workload.stages}
        raw = await in_thread(self.ports.agent.inspect, workload.digest, wanted, params)
        facts = {name: facts_from_wire(found) for name, found in raw.items()}
        return plan_job(workload, params, facts, job_id=job_id, host=self.ports.host, scratch=scratch)

    async def _check_placeable(self, plan: JobPlan) -> None:
        """Refuse at once what no device can ever hold, before any input is read."""
        fleet = await self.ports.fleet()
        for stage in plan.units:
            if stage.demand is None:
                continue
            decision = place(fleet, stage.demand)
            if decision.outcome == "never":
                verdicts = [v.to_json() for v in decision.first_verdicts]
                raise Unplaceable(what=f"stage {stage.spec.name}", summary=decision.summary(), verdicts=verdicts)

    async def _in_flight(self) -> int:
        """Two units a device keep each busy while the next is on its way; the rest of the input waits on disk."""
        return 2 + 2 * len((await self.ports.fleet()).devices)

    async def _watch_placements(self) -> None:
        """Copy placements into the events of their jobs while any job runs."""
        while self._tasks:
            await asyncio.sleep(PLACEMENTS_EVERY_S)
            await self._copy_placements()

    async def _copy_placements(self) -> None:
        async with self._copying:
            try:
                placed = await self.ports.dask().scheduler.dgpunet_placements(since=self._placements_seen)
            except OSError as error:  # the scheduler is being restarted, and starts to count anew
                log.info("placements cannot be read: %s", error)
                self._placements_seen = 0
                return
            for row in placed:
                self._placements_seen = max(self._placements_seen, int(row["seq"]))
                record = self._records.get(job_of_key(str(row["key"])) or "")
                if record is not None and not record.final:
                    await record.placed({k: v for k, v in row.items() if k != "seq"})

    def _save(self, record: JobRecord) -> None:
        try:
            commit_text(record.folder / "job.json", json.dumps({"version": RECORD_VERSION, **asdict(record.status)}, indent=1))
        except OSError as error:
            log.warning("the record of job %s cannot be written: %s", record.status.job_id, error)


def _status_from(raw: Mapping[str, Any]) -> JobStatus:
    values = {name: value for name, value in raw.items() if name != "version"}
    return JobStatus(**{**values, "units": UnitCounts(**values["units"])})


def _remove_working_files(record: JobRecord) -> None:
    shutil.rmtree(record.folder / "scratch", ignore_errors=True)
    if record.status.state != "done":
        shutil.rmtree(record.folder / "results", ignore_errors=True)


def _read_events(record: JobRecord) -> None:
    file = record.folder / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    record.events.extend(json.loads(line) for line in lines)
    record.seq = max((event["seq"] for event in record.events), default=0)


def _add_rate(record: JobRecord) -> None:
    """Give every counter named `tokens` its rate over the job's whole time, start-up included."""
    tokens, seconds = record.counts.get("tokens"), record.now().seconds
    if isinstance(tokens, int | float) and seconds > 0:
        record.count({"=tokens_per_second": round(tokens / seconds, 1)})


def _stage_rows(plan: JobPlan, fleet: Fleet, head: str) -> list[dict[str, Any]]:
    stages = [plan.source, *plan.units, *([plan.gather] if plan.gather else [])]
    table = []
    for stage in stages:
        row: dict[str, Any] = {"stage": stage.spec.name, "env": stage.spec.env, "demand": None, "outcome": "placed"}
        if stage.demand is None:
            row["ranking"] = ["any CPU worker" if stage.call.light else head]
        else:
            decision = place(fleet, stage.demand)
            row |= {"demand": stage.demand.to_mapping(), "outcome": decision.outcome, "ranking": [s.device for s in decision.ranking]}
            row["refusals"] = [refusal._asdict() for refusal in rows(decision)]
        table.append(row)
    return table
