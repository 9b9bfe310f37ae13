"""Runs one job: units from the source, each through its stages over Dask, results committed, then the gather stage.

Memory is bounded: at most `in_flight` units are between the source and the disk, and the source is pulled only when there is room. It
follows the fleet as it grows: a job may begin on the first devices of many.

A head that starts again runs the source from its beginning. The units that are committed already are told by their ids and passed over.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from distributed import Client

from dgpunet_dask import failpoints
from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.errors import DgpunetError, JobFailed, UnitsFailed
from dgpunet_dask.jobs.attempting import Attempting
from dgpunet_dask.jobs.commit import commit_frames, commit_text
from dgpunet_dask.jobs.flights import Flights, Unit
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.ledger import Ledger
from dgpunet_dask.jobs.longest import LongestFirst
from dgpunet_dask.jobs.persisting import written
from dgpunet_dask.jobs.plan import JobPlan, StagePlan
from dgpunet_dask.jobs.progress import Tally
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.rows import UnitRow
from dgpunet_dask.jobs.sidecar import results_manifest
from dgpunet_dask.jobs.sourcing import SourceReader, anew
from dgpunet_dask.jobs.task import Parcel
from dgpunet_dask.jobs.threads import cancelled, in_thread
from dgpunet_dask.jobs.units import result_name
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.model.policy import DEFAULT_ON_OOM, OnOom
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.reports import full_disk
from dgpunet_dask.stagehost.spec import CallResult

log = logging.getLogger(__name__)

#: How often the runner asks whether there is room for more units.
WIDEN_S: Final = 2.0


async def at_once() -> None:
    """Wait for nothing."""


def _no_devices() -> Mapping[str, Device]:
    return {}


@dataclass(frozen=True)
class Ports:
    """What a runner reaches the world through.

    Parameters
    ----------
    dask
        An asynchronous client of the scheduler, also of the next one.
    agent
        Of the agent on the head's host, for this job alone: closed where the job ends in the middle of a call.
    in_flight
        Tells the most units between source and disk, for the fleet as it is; waits for a scheduler that is being started again.
    learned
        Takes in what each unit teaches.
    on_oom
        Says how far a demand may grow that ran out of memory: the policy's clause for it.
    sleep
        Waits for some seconds.
    room
        Waits until the head's disk has room.
    devices
        The devices that were seen last, by name.
    could
        Whether a stage could go to any device but these, now or later.
    check_units
        Raises where a job has more units than its user may have.
    """

    dask: Client
    agent: AgentClient
    in_flight: Callable[[], Awaitable[int]]
    learned: Learning = field(default_factory=Learning)
    on_oom: Callable[[Demand], OnOom] = lambda _: DEFAULT_ON_OOM
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    room: Callable[[], Awaitable[None]] = at_once
    devices: Callable[[], Mapping[str, Device]] = _no_devices
    clock: Clock = field(default_factory=SystemClock)
    could: Callable[[StagePlan, Collection[str]], bool] = lambda _stage, _avoid: False
    check_units: Callable[[int], None] = lambda _: None


class JobRunner:
    """Drives one planned job to its end. `run` is called once.

    Parameters
    ----------
    record
        The job.
    plan
        What it does.
    ledger
        Where its units are kept.
    recipe
        The digest of what its units have in common (`units.recipe_of`).
    """

    def __init__(self, record: JobRecord, plan: JobPlan, ledger: Ledger, recipe: str, ports: Ports) -> None:
        self.record, self.plan, self.ledger, self.recipe, self.ports = record, plan, ledger, recipe, ports
        self.job_id = record.status.job_id
        self.results = record.folder / "results"
        self.flights = Flights(ports.dask, plan, self.job_id)
        self.attempting = Attempting(record, plan, ledger, self.flights, ports, self._crowded)
        self.turns = LongestFirst()
        self.most = 1
        self.items = 0
        self.given = 0

    async def run(self) -> None:
        """Run the job.

        Raises
        ------
        DgpunetError
            What failed; everything else of the job has been stopped by then.
        asyncio.CancelledError
            If the job was cancelled; its Dask tasks are cancelled too.
        """
        self.results.mkdir(parents=True, exist_ok=True)
        try:
            await self._run_units()
            self._check_failed()
            await self._finish()
        except ExceptionGroup as group:
            raise first_cause(group) from group

    async def _run_units(self) -> None:
        pass_ = await self.ledger.begin_pass(self.job_id)
        counts = await self.ledger.counts(self.job_id)
        self.record.units(done=0, reused=0, failed=0, attempts=counts.attempts, total=None)
        self.record.tally = Tally.of(await self.ledger.spent(self.job_id))  # of earlier heads and tries too
        await self.attempting.begin()
        self.most = await self.ports.in_flight()
        room = asyncio.Semaphore(self.most)
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(self._widen(room)), group.create_task(self.attempting.watch())]
            await self._pull(group, room, pass_)
            await self._drained()
            await cancelled(*helpers)
        await written(lambda: self.ledger.end_pass(self.job_id, pass_, self.given), self.ports.room, self.ports.sleep)
        counts = await self.ledger.counts(self.job_id)  # the one true count: what was adopted may have begun under another head
        self.record.units(total=self.given, attempts=counts.attempts)
        self._progress()

    async def _drained(self) -> None:
        """Wait until no unit is on its way any more."""
        self.record.units(total=self.given)
        self._progress()
        while self.flights.units:
            await self.attempting.one_ended()

    async def _pull(self, group: asyncio.TaskGroup, room: asyncio.Semaphore, pass_: int) -> None:
        """Take units from the source as there is room, until it ends."""
        source = SourceReader(self.ports.agent, self.plan.source, self.recipe, self.ports.sleep, self._died(self.plan.source))
        try:
            while True:
                await self.ports.room()
                await room.acquire()
                piece, unit_id = await source.next()
                if piece is None:
                    return
                self._take_in(piece)
                if unit_id is None:  # only counts: the source's last word
                    room.release()
                    continue
                row = await self.ledger.offer(self.job_id, self.given, unit_id, pass_)
                self.given += 1
                self.ports.check_units(self.given)
                if await self._settled(row):
                    room.release()
                    continue
                group.create_task(self._unit(self._begun(row.number, unit_id, piece))).add_done_callback(lambda _: room.release())
        finally:
            await source.close()

    def _begun(self, number: int, unit_id: str, piece: CallResult) -> Unit:
        """Return a unit that is on its way from now on."""
        parcel = Parcel(piece.frames, piece.items)
        unit = self.flights.units[number] = Unit(number, unit_id, parcel, self.turns.turn(number, sys.getsizeof(parcel), self.most))
        return unit

    def _died(self, stage: StagePlan) -> Callable[[DgpunetError], None]:
        """Return what tells of a death of the source's or the gather stage's process, after which it is started again."""
        return lambda error: self.record.emit("retry", stage=stage.spec.name, unit=None, cause=error.code, device=error.fields.get("device"), demand=None)

    def _take_in(self, piece: CallResult) -> None:
        self.record.count(piece.counts)
        self.items += piece.items
        if piece.log:
            self.record.log(self.plan.source.spec.name, piece.log)

    async def _settled(self, row: UnitRow) -> bool:
        """Whether a unit needs nothing any more; where it is committed, what it counted is counted again."""
        if row.state in ("failed", "quarantined"):
            self.attempting.failed_before(row)
            return True
        if row.state != "committed" or row.results is None or row.epoch is None:
            return False
        names = [result_name(row.unit_id, leaf, row.epoch) for leaf in row.results]
        if not all((self.results / name).is_file() for name in names):
            await self.ledger.damaged(self.job_id, row.unit_id, row.epoch, evidence={"missing": names})
            return False
        self.record.count(row.counts)
        self.record.tally.stages.update(list(self.flights.stages))
        done = self.record.counted
        self.record.passed_over += 1
        self.record.units(done=done.done + 1, reused=done.reused + (row.try_no < self.record.job.tries))
        self._progress()
        return True

    async def _unit(self, unit: Unit) -> None:
        try:
            await self.attempting.finish(unit)
        finally:
            self.flights.units.pop(unit.number, None)
            self.attempting.ended.set()
        self._progress()

    async def _widen(self, room: asyncio.Semaphore) -> None:
        """Make room for more units where the fleet has grown. What has gone leaves its room: others do its work."""
        while True:
            await self.ports.sleep(WIDEN_S)
            try:
                now = await self.ports.in_flight()
            except DgpunetError:  # the scheduler is away, and comes back
                continue
            for _ in range(now - self.most):
                room.release()
            self.most = max(self.most, now)

    def _crowded(self) -> bool:
        """Whether the source has more units, perhaps, than there is room for."""
        return self.record.counted.total is None and len(self.flights.units) >= self.most

    def pending(self) -> Iterator[tuple[str, str, Demand | None]]:
        """Yield stage, key and demand of each task that waits for a device or runs: not of those that wait for an earlier stage."""
        for attempt, name, future in self.flights.pending():
            yield name, future.key, attempt.asked[name]

    def _check_failed(self) -> None:
        """Raise where more units failed than the job may lose: with what all failed with, if not one of them went well."""
        failed, errors = self.attempting.failures, self.attempting.errors
        if len(failed) > self.record.allow_failed:
            if len(errors) == self.given and len({error.code for error in errors.values()}) == 1:
                raise errors[min(errors)]
            first = failed[min(failed)]
            raise UnitsFailed(failed=len(failed), total=self.given, first=first, units=sorted(failed))

    async def _finish(self) -> None:
        """Run the gather stage over the committed results, or list them: leaf by leaf, in the order of the source."""
        committed = await self.ledger.committed(self.job_id)
        files = [
            str(self.results / result_name(row.unit_id, leaf, row.epoch))
            for leaf in self.plan.leaves
            for row in committed
            if row.epoch is not None
        ]
        failpoints.hit("gather.before")
        if self.plan.gather is None:
            manifest = results_manifest(files)
            await self._kept(lambda: in_thread(commit_text, self.results / "manifest.json", manifest))
        else:
            await self._gather(self.plan.gather, files)

    async def _gather(self, plan: StagePlan, files: list[str]) -> None:
        self.record.emit("stage", stage=plan.spec.name, state="running")
        agent = self.ports.agent
        result = await anew(
            lambda: in_thread(agent.gather, plan.call.spec, files, stop=agent.close), plan.spec.retries, self.ports.sleep, self._died(plan)
        )
        self.record.count(result.counts)
        if result.log:
            self.record.log(plan.spec.name, result.log)
        failpoints.hit("gather.done")
        file = self.record.folder / "result.frames"
        await self._kept(lambda: in_thread(commit_frames, file, result.frames, failpoints.hit))

    async def _kept(self, write: Callable[[], Awaitable[object]]) -> None:
        """Write what the job gives; where the disk is full, it waits in memory for room."""
        await written(write, self.ports.room, self.ports.sleep)

    def _progress(self) -> None:
        expected = self.record.counts.get("expected_items")
        self.record.progress(self.given, self.items, expected if isinstance(expected, int) else None)


def first_cause(group: BaseExceptionGroup[BaseException]) -> DgpunetError:
    """Return the error to tell of a group: ours before others, the one with the lowest message among equals."""
    flat = list(_flatten(group))
    ours = sorted((e for e in flat if isinstance(e, DgpunetError)), key=lambda e: (-e.exit_code, str(e)))
    if ours:
        return ours[0]
    error = flat[0]
    return full_disk(error) or JobFailed(why=f"{type(error).__name__}: {error}")


def _flatten(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flatten(error)
        else:
            yield error
