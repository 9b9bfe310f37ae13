"""From a unit to its commit: attempts under leases, one after the other, or two side by side where one is slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from distributed import Future

from dgpunet_dask import failpoints
from dgpunet_dask.errors import DgpunetError, Quarantined, WorkerKilled
from dgpunet_dask.errors.fullness import shortage_of
from dgpunet_dask.jobs.causes import attribute
from dgpunet_dask.jobs.evidence import evidence_of, others_of, ran
from dgpunet_dask.jobs.flights import Attempt, Flights, SchedulerGone, Unit, hosts_of, records_of
from dgpunet_dask.jobs.judging import Failure, Verdict, judge
from dgpunet_dask.jobs.ledger import Ledger
from dgpunet_dask.jobs.persisting import to_its_end, written
from dgpunet_dask.jobs.plan import JobPlan
from dgpunet_dask.jobs.publishing import publish, take_back
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.rows import UnitRow
from dgpunet_dask.jobs.shortage import SHORT, Shortage
from dgpunet_dask.jobs.task import Parcel, StageRecord
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.jobs.watching import Watch

if TYPE_CHECKING:
    from dgpunet_dask.jobs.runner import Ports

log = logging.getLogger(__name__)

#: How long it is waited between two looks at something that is to come, in seconds.
LOOK_S: Final = 1.0
#: So many times it is looked whether a unit was placed where its call may still go on.
THERE_LOOKS: Final = 20
#: Attempts of its job that the cause of a failure is told from.
OTHERS: Final = 200


#: Devices to avoid, by stage.
Avoid = Mapping[str, tuple[str, ...]]


class _NotThere(Exception):
    """A unit was not placed on the device that it was meant for."""


class Attempting:
    """Brings the units of one job to their end.

    Parameters
    ----------
    crowded
        Whether further units of the job wait until others end.

    Attributes
    ----------
    failures, errors
        Why each unit failed for good, by number: in words, and the last error of those that failed under this head.
    ended
        Set whenever a unit has ended.
    left
        By unit, the stage and the device where a call may go on that an earlier head has begun.
    """

    def __init__(
        self, record: JobRecord, plan: JobPlan, ledger: Ledger, flights: Flights, ports: Ports, crowded: Callable[[], bool] = lambda: False
    ) -> None:
        self.record, self.plan, self.ledger, self.flights, self.ports = record, plan, ledger, flights, ports
        self.job_id = record.status.job_id
        self.shortage = Shortage(flights, ports.learned, ports.on_oom, ports.sleep)
        self.failures: dict[int, str] = {}
        self.errors: dict[int, DgpunetError] = {}
        self.ended = asyncio.Event()
        self.left: dict[str, tuple[str, str]] = {}
        self._watch = Watch(flights, ports, crowded)
        self._alone = asyncio.Lock()
        first = [stage for stage in plan.units if stage.spec.after == plan.source.spec.name]
        self._light_first = any(stage.demand is None for stage in first)  # of these nobody tells when they begin

    async def one_ended(self) -> None:
        """Wait until a unit ends."""
        self.ended.clear()
        await self.ended.wait()

    def failed_before(self, row: UnitRow) -> None:
        """Take in a unit that failed under an earlier head, in this try of the job."""
        self.failures[row.number] = f"unit {row.number} was {row.state} before the head started again."
        self.record.units(failed=len(self.failures))

    async def begin(self) -> None:
        """Learn which calls earlier heads have left behind."""
        left = [row for row in await self.ledger.unknown() if row.job_id == self.job_id]
        self.left = {row.unit_id: (row.stage, row.device) for row in left if row.stage is not None and row.device is not None}

    # One unit

    async def finish(self, unit: Unit) -> None:
        """Try a unit until it is committed or given up.

        Raises
        ------
        DgpunetError
            If it failed and the job cannot do without it.
        """
        failures: list[Failure] = []
        verdict, avoid = Verdict("again"), dict[str, tuple[str, ...]]()
        try:
            while verdict.next == "again":
                await self.ports.sleep(verdict.wait_s)
                failed = await self._raced(unit, avoid, alone=self._suspect(failures))
                if failed is None:
                    return
                verdict = await self._judged(unit, failures, *failed)
                avoid = self._elsewhere(failed[1], verdict.avoid)
        finally:
            for attempt in list(unit.attempts):
                await self.flights.let_go(attempt)
        self._give_up(unit, failures, verdict)

    @staticmethod
    def _suspect(failures: list[Failure]) -> bool:
        """Whether the unit may have killed a worker that it shared with others: then it is tried with no other suspect beside it."""
        return any(isinstance(f.error, WorkerKilled) for f in failures)

    async def _raced(self, unit: Unit, avoid: Avoid, *, alone: bool) -> tuple[Attempt, DgpunetError] | None:
        """Run a unit's attempts until one commits; return the last that failed, with its error, if none does."""
        if alone:
            async with self._alone:
                return await self._race(unit, avoid)
        return await self._race(unit, avoid)

    async def _race(self, unit: Unit, avoid: Avoid) -> tuple[Attempt, DgpunetError] | None:
        unit.copied = False
        unit.copy_asked.clear()
        running = [asyncio.create_task(self._attempt(unit, avoid))]
        copying = asyncio.create_task(unit.copy_asked.wait())
        try:
            while True:
                waited: list[asyncio.Task[Any]] = [*running, *([] if copying.done() else [copying])]
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task in done]:
                    running.remove(task)
                    if isinstance(task.exception(), SchedulerGone):  # a copy's; its unit begins anew, unless the other attempt does so
                        running += [] if running else [asyncio.create_task(self._attempt(unit, avoid))]
                        continue
                    failed = task.result()
                    if failed is None or not running:
                        return failed
                    await self._note_failure(*failed, to="ready")
                if copying in done and unit.attempts:  # not while it waits for the next scheduler
                    running.append(asyncio.create_task(self._copy(unit)))
        finally:
            for waiting in (copying, *running):
                waiting.cancel()
            await asyncio.gather(copying, *running, return_exceptions=True)

    async def _attempt(self, unit: Unit, avoid: Avoid) -> tuple[Attempt, DgpunetError] | None:
        """Lease a unit and run it, again on each new scheduler; return what it failed with, ``None`` once it is committed.

        Where a call of it may still go on that an earlier head or scheduler has begun, it goes there first: that agent gives the result.
        """
        there = self.left.pop(unit.unit_id, None)
        while True:
            await self.ports.room()
            attempt = await self._leased(unit, avoid=self._all_but(*there) if there else avoid)
            try:
                self.flights.submit(attempt, self.flights.stages)
                if self._light_first:
                    await self._started(attempt, None)
                failpoints.hit("unit.submitted", job=self.job_id, unit=unit.number)
                return await (self._run(attempt) if there is None else self._run_there(attempt))
            except _NotThere:
                await self._lost(attempt, f"{there} takes nothing now")
                there = None
            except SchedulerGone as error:
                there = attempt.last_place(self.flights.stages)
                await self._lost(attempt, str(error))
                await self._scheduler_back()

    def _all_but(self, stage: str, device: str) -> Avoid:
        """Return what to avoid for a stage that belongs on `device`, as long as that is here."""
        devices = self.ports.devices()
        return {stage: tuple(name for name in devices if name != device)} if device in devices else {}

    async def _run_there(self, attempt: Attempt) -> tuple[Attempt, DgpunetError] | None:
        """Run an attempt that is meant for one device.

        Raises
        ------
        _NotThere
            If it was not placed there soon.
        """
        running = asyncio.create_task(self._run(attempt))
        try:
            for _ in range(THERE_LOOKS):
                done, _ = await asyncio.wait([running], timeout=LOOK_S)
                if done or attempt.ending or set(attempt.avoid) <= set(attempt.places):
                    return await running
            raise _NotThere
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _copy(self, unit: Unit) -> tuple[Attempt, DgpunetError] | None:
        """Run a second attempt beside one that is slow, on another device, from the stage that is slow.

        Raises
        ------
        SchedulerGone
            If the scheduler was lost; another is there by then.
        """
        if not unit.attempts:  # it has ended this moment
            return await self._attempt(unit, {})
        slow = unit.attempts[0]
        avoid = {name: (slow.places[name][0],) for name, future in slow.futures.items() if name in slow.places and future.status == "pending"}
        attempt = await self._leased(unit, avoid=avoid, copy=True)
        finished = {name: Future(future.key, self.ports.dask) for name, future in slow.futures.items() if future.status == "finished"}
        attempt.futures.update(finished)
        self.flights.submit(attempt, [name for name in self.flights.stages if name not in finished])
        self._tell(attempt, "copied", why="it is slow: " + ", ".join(f"{name} on {devices[0]}" for name, devices in avoid.items()))
        try:
            return await self._run(attempt)
        except SchedulerGone as error:
            await self._lost(attempt, str(error))
            await self._scheduler_back()
            raise

    async def _leased(self, unit: Unit, *, avoid: Avoid, copy: bool = False) -> Attempt:
        epoch = await self.ledger.lease(self.job_id, unit.unit_id, speculative=copy)
        failpoints.hit("lease.granted", job=self.job_id, unit=unit.number)
        attempt = Attempt(unit, epoch, copy=copy, avoid=avoid)
        unit.attempts.append(attempt)
        return attempt

    async def _run(self, attempt: Attempt) -> tuple[Attempt, DgpunetError] | None:
        try:
            ends = await self._ends(attempt)
            if not await self._commit(attempt, ends) and not await self._is_committed(attempt.unit):
                raise SchedulerGone("its lease had ended before its results came")  # nobody's fault: it is leased anew
            return None
        except DgpunetError as error:
            return attempt, error
        except OSError as error:
            if (short := shortage_of(error, self.record.folder)) is None:
                raise
            return attempt, short
        finally:
            await self.flights.let_go(attempt)

    async def _is_committed(self, unit: Unit) -> bool:
        found = await self.ledger.unit(self.job_id, unit.unit_id)
        return found is not None and found.state == "committed"

    async def _ends(self, attempt: Attempt) -> dict[str, Parcel]:
        """Return what the last stages gave; a stage that ran out of memory is tried again, with all that comes after it."""
        while True:
            try:
                return await self.flights.ends(attempt)
            except SHORT as error:
                name = self.shortage.stage_of(attempt, error)
                if name is None:
                    raise
                await self.shortage.settle(attempt, name, error)
                await self._renew(attempt, error, name)

    async def _renew(self, attempt: Attempt, error: DgpunetError, name: str) -> None:
        """Start a stage that was short of memory anew, under a lease of its own; what the stages before it gave is kept."""
        await self._note_failure(attempt, error, to="ready")
        await self._lease_again(attempt)
        demand = self.flights.stages[name].demand
        self.record.emit(
            "retry", stage=name, unit=attempt.number, cause=error.code, device=error.fields.get("device"),
            demand=None if demand is None else demand.to_mapping(),
        )  # fmt: skip
        self.flights.submit(attempt, self.plan.from_stage(name))

    async def _lease_again(self, attempt: Attempt) -> None:
        attempt.epoch = await self.ledger.lease(self.job_id, attempt.unit.unit_id, speculative=attempt.copy)
        attempt.started = False

    async def _started(self, attempt: Attempt, device: str | None, stage: str | None = None) -> None:
        """Take in that something runs under an attempt's lease: it is a start from now on."""
        self._count_start(attempt)
        facts = self.ports.devices().get(str(device))
        host = None if facts is None else facts.host
        await self.ledger.placed(self.job_id, attempt.unit.unit_id, attempt.epoch, device, host, stage=stage)

    def _count_start(self, attempt: Attempt) -> None:
        self.record.units(attempts=self.record.counted.attempts + (not attempt.started))
        attempt.started = True

    # Its end

    async def _commit(self, attempt: Attempt, ends: Mapping[str, Parcel]) -> bool:
        async with attempt.lock:  # a lease that is being renewed has its new epoch first
            attempt.ending = True
        unit, folder, leaves = attempt.unit, self.record.folder / "results", self.plan.leaves
        records = records_of(ends)
        try:
            digests = await publish(folder, unit.unit_id, attempt.epoch, ends, leaves, self.ports.room, self.ports.sleep)
        except BaseException:  # another attempt was first, perhaps: nobody counts on these files
            await in_thread(take_back, folder, unit.unit_id, attempt.epoch, leaves)
            raise
        return await to_its_end(self._keep(attempt, digests, records))

    async def _keep(self, attempt: Attempt, digests: Mapping[str, str], records: Mapping[str, StageRecord]) -> bool:
        """Have the ledger commit what is on the disk, and count it; else remove that. Not to be stopped half-way."""
        unit, counts = attempt.unit, merged({}, *(r.counts for r in records.values()))
        failpoints.hit("commit.before", job=self.job_id, unit=unit.number)
        won = await self._written(lambda: self.ledger.commit(
            self.job_id, unit.unit_id, attempt.epoch, digests, counts=counts, device=attempt.device(records),
            seconds=sum(r.seconds for r in records.values()), adopted=any(r.adopted for r in records.values()),
            spent={stage: (r.device, r.seconds) for stage, r in records.items()},
        ))  # fmt: skip
        failpoints.hit("commit.done", job=self.job_id, unit=unit.number)
        if not won:
            await in_thread(take_back, self.record.folder / "results", unit.unit_id, attempt.epoch, list(digests))
            return False
        self._count_start(attempt)
        self._count(unit, records)
        if any(r.adopted for r in records.values()):  # the ledger knows which start it is one with
            self.record.units(attempts=(await self.ledger.counts(self.job_id)).attempts)
        return True

    def _count(self, unit: Unit, records: Mapping[str, Any]) -> None:
        for stage, found in records.items():
            self.record.count(found.counts)
            self.record.tally.note(stage, found.device, found.seconds)
            self._watch.worked(stage, found.device, found.seconds)
            self.ports.learned.unit(self.flights.stages[stage].demand, found)
            if found.log:
                self.record.log(stage, found.log, unit=unit.number, device=found.device)
        self.record.units(done=self.record.counted.done + 1)

    async def _judged(self, unit: Unit, failures: list[Failure], attempt: Attempt, error: DgpunetError) -> Verdict:
        """Decide what becomes of a unit that has failed once more, and have the ledger know."""
        device = error.fields.get("device") or attempt.device(self.flights.stages)
        facts = self.ports.devices().get(str(device))
        suspected = not isinstance(error, WorkerKilled) or self._suspect(failures)
        failures.append(Failure(error=error, host=None if facts is None else facts.host, device=device, alone=suspected, stage=self._stage_of(attempt, error)))
        stage = self.flights.stages.get(failures[-1].stage)
        verdict = judge(failures, 2 if stage is None else stage.spec.retries)
        await self._note_failure(attempt, error, to="ready" if verdict.next == "again" else verdict.next)
        return verdict

    def _stage_of(self, attempt: Attempt, error: DgpunetError) -> str:
        """Return the stage that `error` came from, as far as that is known: our own errors need not say."""
        placed = attempt.last_place(self.flights.stages)
        return str(error.fields.get("stage") or (placed[0] if placed else "-"))

    def _elsewhere(self, error: DgpunetError, avoid: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """Return what the stage that failed is to avoid: all devices of the hosts of these, or these alone, where any other could take it."""
        name = str(error.fields.get("stage"))
        stage, devices = self.flights.stages.get(name), self.ports.devices()
        if stage is None or not avoid:
            return {}
        hosts = hosts_of(avoid, {device.name: device.host for device in devices.values()})
        whole = tuple(sorted({*avoid, *(device.name for device in devices.values() if device.host in hosts)}))
        return next(({name: found} for found in (whole, avoid) if self.ports.could(stage, found)), {})

    async def _note_failure(self, attempt: Attempt, error: DgpunetError, *, to: Any) -> None:
        device = error.fields.get("device") or attempt.device(self.flights.stages)
        facts = self.ports.devices().get(str(device))
        evidence = evidence_of(error, device=device, host=None if facts is None else facts.host, units_done=self.record.counted.done)
        others = others_of(await self.ledger.attempts(self.job_id, limit=OTHERS), attempt.unit.unit_id)
        cause = attribute(evidence, elsewhere=others)
        if ran(error):
            self._count_start(attempt)
        known = {**evidence, "why": cause.why, "confidence": cause.confidence}
        await self._written(lambda: self.ledger.fail(
            self.job_id, attempt.unit.unit_id, attempt.epoch, cause=cause.code, evidence=known, device=device, host=evidence.get("host"), to=to,
            ran=ran(error),
        ))  # fmt: skip
        self._tell(attempt, "failed", cause=cause.code, why=cause.why, message=str(error))
        if evidence.get("log_tail"):
            self.record.log(self._stage_of(attempt, error), str(evidence["log_tail"]), unit=attempt.number, device=device)

    async def _written(self, step: Callable[[], Awaitable[bool]]) -> bool:
        return await written(step, self.ports.room, self.ports.sleep)

    def _tell(self, attempt: Attempt, state: str, **facts: Any) -> None:
        self.record.emit("attempt", unit=attempt.number, epoch=attempt.epoch, state=state, device=attempt.device(self.flights.stages), **facts)

    def _give_up(self, unit: Unit, failures: list[Failure], verdict: Verdict) -> None:
        """Note that a unit has failed for good; raise where the job cannot do without it.

        A poison unit never stops the others; code that raises stops the job once more units failed than it may lose.
        """
        error = failures[-1].error
        hosts = ", ".join(sorted({str(f.device or f.host) for f in failures if f.device or f.host})) or "this cluster"
        poison = verdict.next == "quarantined"
        last = type(error)(**{**error.fields, "attempts": len(failures)}) if poison else error
        self.errors[unit.number] = last
        self.failures[unit.number] = f"{Quarantined(number=unit.number, attempts=len(failures), hosts=hosts)} {last}" if poison else str(error)
        self.record.units(failed=len(self.failures))
        if not poison and len(self.failures) > self.record.allow_failed:
            raise error
        if error.fields.get("traceback"):  # that of an error which ends the job is told with its end
            self.record.log(failures[-1].stage, str(error.fields["traceback"]), unit=unit.number)

    # Loss

    async def _lost(self, attempt: Attempt, why: str) -> None:
        await self._written(lambda: self.ledger.lost(self.job_id, attempt.unit.unit_id, attempt.epoch, cause="system", evidence={"why": why}))
        self._tell(attempt, "lost", cause="system", why=why)

    async def _scheduler_back(self) -> None:
        while True:
            try:
                await self.ports.in_flight()
            except DgpunetError as error:
                log.info("job %s waits for the scheduler: %s", self.job_id, error)
                await self.ports.sleep(LOOK_S)
            else:
                await self.ports.learned.now()
                return

    async def placed(self, row: Mapping[str, Any]) -> None:
        """Take in where a task was placed; the second time it is another attempt, since its worker was lost."""
        found = self.flights.placed(str(row["stage"]), str(row["key"]), str(row["device"]), self.ports.clock.monotonic())
        if found is None:
            return
        attempt, again = found
        async with attempt.lock:
            if attempt.ending:
                return
            if again:
                await self._lost(attempt, "its worker is gone")
                await self._lease_again(attempt)
            await self._started(attempt, str(row["device"]), str(row["stage"]))

    async def watch(self) -> None:
        """Ask for a second copy of units that are much slower than they should be, until cancelled."""
        await self._watch.run()


def merged(into: dict[str, Any], *counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts of several stages in one mapping that `merge_counts` reads: numbers of one name added up, notes replaced."""
    for group in counts:
        for name, value in group.items():
            note = name.startswith("=") or not isinstance(value, int | float)
            into[name] = value if note else into.get(name, 0) + value
    return into
