"""All jobs of one head: accepted, driven, kept for those who ask. The HTTP API calls nothing else.

A job belongs to the ledger, not to this process: a head that starts goes on with what earlier ones have left unfinished.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final

from dgpunet_dask import failpoints
from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DependencyFailed, DgpunetError, JobCancelled, JobLost, NoSuchJob, UsageError
from dgpunet_dask.errors.fullness import SHORTAGES
from dgpunet_dask.jobs import past
from dgpunet_dask.jobs.accepting import Asked, asked, ids, jobs_in, shipped_digests, user_of
from dgpunet_dask.jobs.admission import Candidate, hopeless, startable
from dgpunet_dask.jobs.driving import Driver, ServicePorts
from dgpunet_dask.jobs.evidence import told, told_state
from dgpunet_dask.jobs.flights import job_of_key
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.ledger import Ledger
from dgpunet_dask.jobs.looks import Looks
from dgpunet_dask.jobs.model_owners import ModelOwners
from dgpunet_dask.jobs.plan import of_user
from dgpunet_dask.jobs.progress import Tally, eta_s
from dgpunet_dask.jobs.quotas import Submissions, check
from dgpunet_dask.jobs.rebuild import rebuild
from dgpunet_dask.jobs.record import JobRecord, events_on_disk
from dgpunet_dask.jobs.rows import JobRow
from dgpunet_dask.jobs.store import add_workload, checked_digest, stage_names
from dgpunet_dask.jobs.threads import cancelled, in_thread
from dgpunet_dask.jobs.turns import Turns
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.job import JobStatus, UnitCounts
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.submitted import Submitted
from dgpunet_dask.placement.explanation import explanation

log = logging.getLogger(__name__)

#: How often placements of running jobs are copied into their events.
PLACEMENTS_EVERY_S: Final = 0.5
#: How long the scheduler's plugin may take to hear what was learned.
TELL_S: Final = 10.0
ATTEMPTS_MOST: Final = 1000


class JobService:
    """Keeps the jobs. Errors are DgpunetErrors.

    Parameters
    ----------
    embedded
        Whether the head ends with the commands that use it: then jobs do too, and what another head has left is not gone on with.
    """

    def __init__(
        self, home: Home, ports: ServicePorts, *, clock: Clock | None = None, token: Callable[[], str] | None = None,
        embedded: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.home, self.ports, self.embedded = home, ports, embedded
        self.clock = clock or SystemClock()
        self.ledger = Ledger(home.ledger, self.clock, failpoint=failpoints.hit)
        self.models = ModelOwners(home.model_owners)
        self.learned = Learning(home.learned, self._tell_learned)
        self.driver = Driver(home, ports, self.ledger, self.learned, self.models, self.clock, self._copy_placements)
        self._token = token or (lambda: secrets.token_hex(3))
        self._records: dict[str, JobRecord] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._followers: list[asyncio.Task[None]] = []
        self._submissions = Submissions()
        self._ending: set[str] = set()
        self._moving = asyncio.Lock()
        self._coming: dict[str, str | None] = {}  # whose the jobs are that are being accepted or taken back
        self._turns = Turns()
        self._copying = asyncio.Lock()
        self._placements_seen = 0
        self._closing = False

    # Begin and end

    async def begin(self) -> None:
        """Open the ledger and go on where earlier heads ended: with their jobs, and with what they learned.

        Raises
        ------
        NewerFormat
            If a newer release has kept its jobs, or what it learned, here.
        """
        await self.ledger.open()
        if self.ledger.fresh:
            await rebuild(self.ledger, self.home.jobs)
        for row in await self.ledger.jobs():
            counts = await self.ledger.counts(row.job_id)
            self._records[row.job_id] = past.record_of(row, counts, self.home.jobs / row.job_id, self.clock)
        await in_thread(past.sweep, list(self._records.values()))
        self.learned.load()
        self._followers = [asyncio.create_task(self.learned.run(), name="learning"), asyncio.create_task(self._watch_placements())]
        await self._take_over()

    async def _take_over(self) -> None:
        """End what ended with an earlier command, and go on with the rest."""
        for record in self._unfinished():
            if past.is_bound(record.folder):
                await self._conclude(record, "lost", JobLost(job_id=record.status.job_id))
            elif record.status.state == "running" and not self.embedded():
                record.emit("resumed", done=record.counted.done, attempts=record.counted.attempts)
        await self._admit()

    async def adopt(self) -> None:
        """Go on with all jobs: this head, which would have ended with its last command, stays."""
        for record in self._unfinished():
            await in_thread(past.unbind, record.folder)
        await self._admit()

    def _unfinished(self) -> list[JobRecord]:
        return [record for record in self._records.values() if not record.final]

    async def close(self) -> None:
        """Stop what runs. Jobs of an embedded head are cancelled; others stay as they are, and the next head goes on with them."""
        self._closing = True
        if self.embedded():
            await asyncio.gather(*(self._end(job_id) for job_id in list(self._tasks)))
        for task in self._tasks.values():
            task.cancel()
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._tasks.values(), *self._followers, return_exceptions=True)
        await self.ledger.close()

    async def scheduler_lost(self, why: str) -> None:
        """Take in that the scheduler is gone, and with it every task it knew: units in flight are given to the next one."""
        log.warning("jobs wait for the next scheduler: %s", why)
        self._placements_seen = 0  # the next one counts from the beginning
        self.learned.again()

    # Accepting

    async def submit(self, request: Mapping[str, Any], gone: Callable[[], bool] = lambda: False) -> Submitted:
        """Accept a job, or an array of them (`accepting.asked`); they are the user's. The answer means that they are on the disk.

        Parameters
        ----------
        gone
            Whether nobody waits for the answer any more; then what is not accepted yet is given up.

        Raises
        ------
        Abandoned
            Where it was given up.
        UsageError
            For an unknown workload, a bad parameter, a key that stands for something else, or more than the user's quota.
        """
        key = request.get("key")
        async with self._turns.of(None if key is None else ("key", user_of(request).name, str(key))):  # sent twice at once, it is one all the same
            return await self._submit(request, gone)

    async def _submit(self, request: Mapping[str, Any], gone: Callable[[], bool]) -> Submitted:
        self._check_quota(user_of(request), jobs_in(request), request.get("key"))  # before anything that takes time
        checked = await self._asked(request, gone)
        self._check_quota(checked.user, len(checked.params), request.get("key"))
        failpoints.hit("submit.before")
        made, owner = ids(self._new_id, len(checked.params)), checked.user.name
        self._coming |= dict.fromkeys(made, owner)
        try:
            rows = await self.ledger.submit(checked.jobs(made, made[0] if checked.array else None, self.clock.wall()))
            failpoints.hit("submit.committed")
            created = rows[0].job_id == made[0]
            for row in rows:
                await self._accept(row)  # also where another request of the same key is at it: whoever answers has the jobs
        finally:
            for job_id in made:
                del self._coming[job_id]
        if created:
            self._submissions.add(owner, self.clock.monotonic(), len(rows))
            await self._admit()
        return Submitted(jobs=tuple(self._records[row.job_id].now() for row in rows), created=created, array_id=rows[0].array_id)

    async def _asked(self, request: Mapping[str, Any], gone: Callable[[], bool]) -> Asked:
        """Check a request; those of one submitter one after the other, so that many at once take no more of this process than one."""
        user = user_of(request)
        async with self._turns.of(None if user.operates else ("looks", user.name)):
            looks = Looks(gone)
            checked = await in_thread(asked, self.home, request, self.ports.settings().roots, looks, stop=looks.stop)
        await self._check_after(checked)
        return checked

    def _new_id(self) -> str:
        return f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(self.clock.wall()))}-{self._token()}"

    async def _accept(self, row: JobRow) -> None:
        """Have a job that is in the ledger in memory too, and its folder there: once, whoever asks for it."""
        folder = self.home.jobs / row.job_id
        with contextlib.suppress(OSError):  # a full disk: the job is accepted, and its folder is made when it begins
            await in_thread(functools.partial(folder.mkdir, mode=0o700, parents=True, exist_ok=True))
        if self.embedded():
            await in_thread(past.bind, folder)
        if row.job_id in self._records:
            return
        record = self._records[row.job_id] = JobRecord(past.status_of(row, UnitCounts()), folder, self.clock, row)
        await in_thread(past.save, record)

    async def _check_after(self, checked: Asked) -> None:
        for job_id in checked.request.get("after") or ():
            if not checked.user.sees(self._record(job_id).status):
                raise NoSuchJob(job_id=job_id)

    def _check_quota(self, user: User, jobs: int, key: object = None) -> None:
        quota = self.ports.settings().quotas.of(user.name, operates=user.operates)
        if key is not None and jobs == sum(r.job.key == key and r.status.owner == user.name for r in self._records.values()):
            return  # sent again: it is no more work
        coming = sum(owner == user.name for job_id, owner in self._coming.items() if job_id not in self._records or self._records[job_id].final)
        live = coming + sum(record.status.owner == user.name for record in self._unfinished())
        check(quota, user.name, live, self._submissions, self.clock.monotonic(), jobs=jobs)

    async def plan(self, request: Mapping[str, Any], gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Return, for each stage, its demand and where it could go now, without running anything but the workload's import."""
        checked = await self._asked(request, gone)
        workload, params = checked.workload, checked.params[0]
        plan = await self.driver.planned(workload, params, "dry-run", self.home.jobs, self.ports.agent())
        fleet = await self.ports.fleet(_only_all)
        explained = functools.partial(explanation, fleet, policy=self.ports.policy(), estimates=self.learned.estimates)
        stages = stage_rows(of_user(plan, user_of(request)), explained, self.ports.host.device)
        return {"workload": workload.name, "params": params, "policy": self.ports.policy().digest, "stages": stages}

    async def has_workload(self, digest: str) -> bool:
        """Whether the workload's files are here, or come with the product. Those that are will stay for a while."""
        folder = self.home.workloads / checked_digest(digest)
        if folder.is_dir():
            os.utime(folder)
            return True
        return digest in await in_thread(shipped_digests)

    async def add_workload(self, digest: str, stream: BinaryIO) -> None:
        """Take a workload as a tar stream."""
        await in_thread(lambda: add_workload(self.home.workloads, digest, stream.read()))

    # Telling

    async def list(self) -> Sequence[JobStatus]:
        """Return all jobs, oldest first."""
        return sorted((r.now() for r in self._records.values()), key=lambda s: (s.submitted_at, s.job_id))

    async def show(self, job_id: str) -> JobStatus:
        """Return one job."""
        return self._record(job_id).now()

    async def events(self, job_id: str, since: int, wait_s: float) -> Sequence[dict[str, Any]]:
        """Return the first events after number `since`, waiting up to `wait_s` seconds for one."""
        record = self._record(job_id)
        await record.news(since, wait_s)
        found = record.since(since)
        return await in_thread(events_on_disk, record.folder, since) if found is None else found

    async def progress(self, job_id: str) -> dict[str, Any]:
        """Return the unit counts, the rate, the seconds that are left, and what each stage and each device does, and whom it waits for."""
        record, runner = self._record(job_id), self.driver.runners.get(job_id)
        units, rate = record.counted, None if record.final else record.pace.rate_per_s()
        stages, waiting, running = self.driver.at_work(job_id)
        if record.final and not record.tally.devices:  # it may have ended under an earlier head
            record.tally = Tally.of(await self.ledger.spent(job_id))
        left = None if record.final or runner is None else eta_s(units.done, units.total, record.expected_units, rate)
        told = {"units": units.to_json(), "rate_per_s": rate, "eta_s": left, **record.tally.rows(stages, waiting, running)}
        names = await in_thread(stage_names, self.home.workloads / record.job.digest) if record.job.digest else None
        return told | {"waits_for": await self.waits_for(job_id), "all_stages": names}

    async def waits_for(self, job_id: str) -> Sequence[dict[str, Any]]:
        """Return id and state of each job that must be done before this one begins, and is not."""
        record, states = self._record(job_id), self._states()
        after = record.job.after if record.status.state == "queued" else ()
        found = [(other, states.get(other, "unknown")) for other in after]
        return [{"job_id": other, "state": state} for other, state in found if state != "done"]

    async def attempts(self, job_id: str) -> Sequence[dict[str, Any]]:
        """Return the last starts of the job's units: where, when, how they ended and why."""
        self._record(job_id)
        return [
            {
                "unit": row.number, "epoch": row.epoch, "device": row.device, "host": row.host, "state": told_state(row), "cause": row.cause,
                "evidence": told(row.evidence or {}), "began": row.started, "started_s": row.leased_s, "ended_s": row.ended_s,
            }
            for row in await self.ledger.attempts(job_id, limit=ATTEMPTS_MOST)
        ]  # fmt: skip

    async def tasks(self, job_id: str) -> Sequence[tuple[str, str, Demand | None]]:
        """Return stage, key and demand of each task of a job that waits for a device or runs."""
        self._record(job_id)
        runner = self.driver.runners.get(job_id)
        return [] if runner is None else [*runner.pending()]

    def in_use(self) -> Collection[tuple[str, str]]:
        """Return kind and digest of the folders that unfinished jobs need."""
        return {("workload", record.job.digest) for record in self._unfinished() if record.job.digest}

    def ended(self) -> Mapping[str, float]:
        """Return when each job ended that has, in seconds since 1970."""
        return {i: r.status.submitted_at + r.status.seconds for i, r in self._records.items() if r.final}

    def _record(self, job_id: str) -> JobRecord:
        if job_id not in self._records:
            raise NoSuchJob(job_id=job_id)
        return self._records[job_id]

    # Changing

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job and return once nothing of it runs; a finished one stays as it is."""
        record = self._record(job_id)
        await self._end(job_id)
        return record.now()

    async def retry(self, job_id: str) -> JobStatus:
        """Run a job again that failed, was cancelled or is lost: what it has committed is kept. One that has not ended stays as it is.

        Raises
        ------
        UsageError
            For a job that is done, for one of a release that kept too little of it, and beyond its owner's quota, as for a new one.
        """
        record = self._record(job_id)
        if not record.final:
            return record.now()
        if record.status.state == "done" or not record.job.digest:
            why = "is done" if record.status.state == "done" else "was run by an older release, which kept too little of it"
            raise UsageError(detail=f"Job {job_id} {why}. Submit it again to have it run once more.")
        async with self._moving:
            if record.final:
                await self._take_back(record)
        await self._admit()
        return record.now()

    async def _take_back(self, record: JobRecord) -> None:
        job_id, user = record.status.job_id, User(record.status.owner, operates=record.job.operates)
        self._check_quota(user, 1)
        self._coming[job_id] = user.name
        try:
            await self._move(record, "queued")
        finally:
            del self._coming[job_id]
        self._submissions.add(user.name, self.clock.monotonic())

    async def _end(self, job_id: str) -> None:
        """Cancel a job that has not ended, and wait until nothing of it runs."""
        record, task = self._records[job_id], self._tasks.get(job_id)
        if task is not None:
            self.driver.cancelled.add(job_id)
            await cancelled(task)
            self._ended_task(job_id, task)
        if not record.final:  # it had not begun
            await self._conclude(record, "cancelled", JobCancelled(job_id=job_id))

    async def _conclude(self, record: JobRecord, state: Any, error: DgpunetError) -> None:
        await self._end_undriven(record, state, error)
        await self._admit()  # others may wait for this one

    async def _end_undriven(self, record: JobRecord, state: Any, error: DgpunetError) -> None:
        """End a job that nothing drives. Of several who want that one does it, and the others find it ended."""
        self._ending.add(record.status.job_id)
        try:
            async with self._moving:
                if not record.final:
                    await self._move(record, state, error)
                    await in_thread(past.clear_up, record)
        finally:
            self._ending.discard(record.status.job_id)

    async def _move(self, record: JobRecord, state: Any, error: DgpunetError | None = None) -> None:
        await self.driver.move(record, state, error)

    # Driving

    async def _admit(self) -> None:
        """Begin the jobs whose turn it is, and end those that wait for one that will never be done."""
        if self._closing:
            return
        try:
            await self._end_hopeless()
        except SHORTAGES as error:  # they end when the next job does, and keep nobody waiting who has hope
            log.warning("jobs that will never begin stay for now: %s", error)
        running = [self._records[job_id].status.owner for job_id in self._tasks]
        for job_id in startable(self._candidates(), running, self._states()):
            self._tasks[job_id] = asyncio.create_task(self._drive(self._records[job_id]), name=job_id)

    async def _end_hopeless(self) -> None:
        while lost := hopeless(self._candidates(), self._states()):
            for job_id, (after, state) in lost.items():
                await self._end_undriven(self._records[job_id], "failed", DependencyFailed(job_id=job_id, after=after, state=state))

    def _states(self) -> dict[str, str]:
        return {job_id: record.status.state for job_id, record in self._records.items()}

    def _candidates(self) -> Sequence[Candidate]:
        """Return the jobs that may begin or be found hopeless, in the order of acceptance."""
        waiting = [r for r in self._unfinished() if r.status.job_id not in self._tasks and r.status.job_id not in self._ending and self._ours(r)]
        return [Candidate(job_id=r.status.job_id, owner=r.status.owner, after=r.job.after) for r in _in_order(waiting)]

    def _ours(self, record: JobRecord) -> bool:
        """Whether this head drives the job: one that will end with its commands leaves others' jobs to a head that stays."""
        return not self.embedded() or past.is_bound(record.folder)

    async def _drive(self, record: JobRecord) -> None:
        job_id = record.status.job_id
        try:
            await self.driver.drive(record)
        except asyncio.CancelledError:
            log.info("job %s waits for the next head", job_id)
        finally:
            self._ended_task(job_id, asyncio.current_task())
        await self._admit()

    def _ended_task(self, job_id: str, task: asyncio.Task[None] | None) -> None:
        """Forget the task of a job. One that is cancelled before its first step cannot do so itself."""
        self.driver.cancelled.discard(job_id)
        if self._tasks.get(job_id) is task:
            del self._tasks[job_id]

    async def _tell_learned(self, estimates: Mapping[str, Any]) -> None:
        async with asyncio.timeout(TELL_S):
            await self.ports.dask().scheduler.dgpunet_estimates(estimates=estimates)

    async def _watch_placements(self) -> None:
        """Copy placements into the events of their jobs while any job runs."""
        while True:
            await asyncio.sleep(PLACEMENTS_EVERY_S)
            if self._tasks:
                try:
                    await self._copy_placements()
                except Exception:  # the next round may fare better; without it slow units are not seen
                    log.exception("placements were not read")

    async def _copy_placements(self) -> None:
        async with self._copying:
            try:
                placed = await self.ports.dask().scheduler.dgpunet_placements(since=self._placements_seen)
            except OSError as error:  # the scheduler is being restarted
                log.info("placements cannot be read: %s", error)
                return
            for row in placed:
                self._placements_seen = max(self._placements_seen, int(row["seq"]))
                job_id = job_of_key(str(row["key"])) or ""
                record = self._records.get(job_id)
                if record is not None and not record.final:
                    record.emit("placement", **{k: v for k, v in row.items() if k != "seq"})
                    await self.driver.placed(job_id, row)


def _in_order(records: Iterable[JobRecord]) -> list[JobRecord]:
    """Return records in the order of acceptance; those that had begun under an earlier head come first."""
    return sorted(records, key=lambda r: (r.status.state == "queued", r.status.submitted_at, r.status.job_id))


def _only_all(_: Any) -> bool:
    return False


def stage_rows(plan: Any, explained: Callable[[Demand], Mapping[str, Any]], head: str) -> list[dict[str, Any]]:
    """Return each stage of a plan with where it could go."""
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
            row["seconds"] = found["run_s"]
        table.append(row)
    return table


__all__ = ["JobService", "ServicePorts", "stage_rows"]
