"""Runs one job: units from the source, each through its stages over Dask, results committed, then the gather stage.

Memory is bounded: at most `in_flight` units are between the source and the disk, and the source is pulled only when there is room. It
follows the fleet as it grows: a job may begin on the first devices of many.
"""

from __future__ import annotations

import asyncio
import functools
import re
import shutil
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from dgpunet_dask.errors import DgpunetError, DiskFull, ForeignMemory, JobFailed, StageOutOfMemory, Unplaceable
from dgpunet_dask.jobs.commit import commit_frames
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.plan import JobPlan, StagePlan
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.requeue import FOREIGN_RETRIES, Growth, Tries, asks_more
from dgpunet_dask.jobs.task import Parcel, StageRecord, run_stage
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.policy import DEFAULT_ON_OOM, OnOom
from dgpunet_dask.placement.oom import next_demands
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.spec import CallResult

#: How long a unit that Dask gave up waits for a better cause than that.
CAUSE_S: Final = 1.0
#: How often the runner asks whether there is room for more units.
WIDEN_S: Final = 2.0
_KEY: Final = re.compile(r".+-(\d+-[^-]+)-\d+(?:-r\d+)?")


@dataclass(frozen=True)
class Ports:
    """What a runner reaches the world through.

    Parameters
    ----------
    dask
        An asynchronous client of the scheduler.
    agent
        Of the agent on the head's host, for this job alone: closed where the job ends in the middle of a call.
    in_flight
        Tells the most units between source and disk, for the fleet as it is.
    learned
        Takes in what each unit teaches.
    on_oom
        Says how far a demand may grow that ran out of memory: the policy's clause for it.
    sleep
        Waits for some seconds.
    """

    dask: Client
    agent: AgentClient
    in_flight: Callable[[], Awaitable[int]]
    learned: Learning = field(default_factory=Learning)
    on_oom: Callable[[Demand], OnOom] = lambda _: DEFAULT_ON_OOM
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(eq=False)
class Unit:
    """One unit on its way: what the source gave, the task of each stage with what it asked for, and what was tried where memory was short."""

    number: int
    source: Parcel
    futures: dict[str, Future] = field(default_factory=dict)
    asked: dict[str, Demand | None] = field(default_factory=dict)
    tries: dict[str, Tries] = field(default_factory=lambda: defaultdict(Tries))
    resubmitted: int = 0


class JobRunner:
    """Drives one planned job to its end. `run` is called once."""

    def __init__(self, record: JobRecord, plan: JobPlan, ports: Ports) -> None:
        self.record = record
        self.plan = plan
        self.ports = ports
        self.results = record.folder / "results"
        self.committed: dict[int, dict[str, Path]] = {}
        self.stages = {plan.spec.name: plan for plan in plan.units}  # as they are asked for now: demands may grow
        self.grown: dict[str, Growth] = {}
        self.flying: set[Unit] = set()

    async def run(self) -> None:
        """Run the job.

        Raises
        ------
        DgpunetError
            What failed first; everything else of the job has been stopped by then.
        asyncio.CancelledError
            If the job was cancelled; its Dask tasks are cancelled too.
        """
        self.results.mkdir(parents=True, exist_ok=True)
        try:
            await self._run_units()
            if self.plan.gather is not None:
                await self._gather(self.plan.gather)
        except ExceptionGroup as group:
            raise first_cause(group) from group

    async def _run_units(self) -> None:
        most = await self.ports.in_flight()
        room = asyncio.Semaphore(most)
        stream = self.ports.agent.stream(
            self.plan.source.call.spec, self.plan.source.spec.unit_items, self.plan.source.spec.unit_bytes
        )
        number = 0
        try:
            async with asyncio.TaskGroup() as group:
                widening = group.create_task(self._widen(room, most))
                while True:
                    await room.acquire()
                    piece = await in_thread(_next, stream, stop=self.ports.agent.close)
                    if piece is None:
                        break
                    self.record.count(piece.counts)
                    if not piece.items:  # only counts: the source's last word
                        room.release()
                        continue
                    group.create_task(self._unit(number, piece)).add_done_callback(lambda _: room.release())
                    number += 1
                widening.cancel()
                self.record.units(total=number)
                self._progress()
        finally:
            await in_thread(_close, stream)

    async def _widen(self, room: asyncio.Semaphore, most: int) -> None:
        """Make room for more units than `most` where the fleet has grown. What has gone leaves its room: others do its work."""
        while True:
            await self.ports.sleep(WIDEN_S)
            try:
                now = await self.ports.in_flight()
            except DgpunetError:  # the scheduler is away; whoever lost it ends this job
                continue
            for _ in range(now - most):
                room.release()
            most = max(most, now)

    async def _unit(self, number: int, piece: CallResult) -> None:
        unit = Unit(number, Parcel(piece.frames, piece.items))
        self.flying.add(unit)
        try:
            self._submit(unit, self.stages)
            await self._commit(number, await self._ends(unit))
        except Exception as error:
            self.record.units(failed=self.record.counted.failed + 1, attempts=self.record.counted.attempts + starts_of(error))
            raise
        finally:
            self.flying.discard(unit)
            await self._let_go(list(unit.futures.values()))

    def pending(self) -> Iterator[tuple[str, str, Demand | None]]:
        """Yield stage, key and demand of each task that waits for a device or runs: not of those that wait for an earlier stage."""
        for unit in sorted(self.flying, key=lambda unit: unit.number):
            for name, future in unit.futures.items():
                before = unit.futures.get(str(self.stages[name].spec.after))
                if future.status == "pending" and (before is None or before.status == "finished"):
                    yield name, future.key, unit.asked[name]

    def _submit(self, unit: Unit, names: Iterable[str]) -> None:
        """Submit the stages `names` of a unit, in the order of the data; tasks that were there before are let go."""
        for name in names:
            plan, before = self.stages[name], unit.futures.get(name)
            unit.asked[name] = plan.demand
            unit.futures[name] = self._task(unit, plan, unit.futures.get(str(plan.spec.after), unit.source))
            if before is not None:
                before.release()

    def _task(self, unit: Unit, plan: StagePlan, upstream: Any) -> Future:
        key = unit_key(plan.spec.name, self.record.status.job_id, unit.number, unit.resubmitted)
        submit = functools.partial(self.ports.dask.submit, run_stage, plan.call, upstream, key=key, pure=False, priority=-unit.number)
        if plan.demand is None:
            return submit(resources={"LIGHT": 1})
        with dask.annotate(demand=plan.demand.to_mapping()):
            return submit()

    async def _ends(self, unit: Unit) -> dict[str, Parcel]:
        """Return what the last stages gave; a stage that ran out of memory is tried again, with all that comes after it."""
        while True:
            try:
                return {name: await self._end(unit, name) for name in self.plan.ends}
            except (StageOutOfMemory, ForeignMemory, Unplaceable) as error:
                name = self._short_stage(unit, error)
                if name is None:
                    raise
                await self._again(unit, name, error)

    async def _end(self, unit: Unit, name: str) -> Parcel:
        return await self._result(unit.futures[name], name) if name in unit.futures else unit.source

    async def _result(self, future: Future, stage: str) -> Parcel:
        try:
            parcel: Parcel = await future
        except KilledWorker as error:
            raise JobFailed(why=f"stage {stage} ended its worker {error.allowed_failures + 1} times; see the worker's log") from error
        except FutureCancelledError as error:
            await asyncio.sleep(CAUSE_S)  # whoever lost the scheduler knows why, and ends this job with that cause meanwhile
            raise JobFailed(why=f"Dask gave up a unit of stage {stage} ({error}); submit again") from error
        return parcel

    async def _commit(self, number: int, ends: Mapping[str, Parcel]) -> None:
        for name in self.plan.leaves:
            path = self.results / f"{name}-{number:08d}.frames"
            await in_thread(commit_frames, path, ends[name].frames)
            self.committed.setdefault(number, {})[name] = path
        records = {stage: r for parcel in ends.values() for stage, r in parcel.records.items()}
        for stage, stage_record in records.items():
            self.record.count(stage_record.counts)
            self.ports.learned.unit(self.stages[stage].demand, stage_record)
        done = self.record.counted
        self.record.units(done=done.done + 1, attempts=done.attempts + 1 + extra_attempts(records))
        self._progress()

    # Short of memory

    def _short_stage(self, unit: Unit, error: DgpunetError) -> str | None:
        """Return the stage that `error` is about, ``None`` where trying again is not ours to decide.

        `Unplaceable` counts only after memory was short: then what the stage asked for next was more than any device has.
        """
        if not isinstance(error, Unplaceable):
            return str(error.fields["stage"]) if error.fields.get("stage") in unit.futures else None
        return next((name for name in self.grown if unit.futures[name].status == "error"), None)

    async def _again(self, unit: Unit, name: str, error: DgpunetError) -> None:
        """Submit stage `name` of a unit again, with all that comes after it.

        Raises
        ------
        StageOutOfMemory, ForeignMemory
            If it was tried often enough, or there is nothing left to ask for.
        """
        if not isinstance(error, Unplaceable):
            self.record.units(attempts=self.record.counted.attempts + 1)
        if isinstance(error, ForeignMemory):
            await self._wait_for_others(unit.tries[name], error)
        else:
            await self._grow(unit, name, error)
        unit.resubmitted += 1
        plan = self.stages[name]
        self.record.emit(
            "retry", stage=name, unit=unit.number, cause=error.code, device=error.fields.get("device"),
            demand=None if plan.demand is None else plan.demand.to_mapping(),
        )  # fmt: skip
        self._submit(unit, self.plan.from_stage(name))

    async def _wait_for_others(self, tries: Tries, error: ForeignMemory) -> None:
        tries.foreign += 1
        if tries.foreign > FOREIGN_RETRIES:
            raise ForeignMemory(**{**error.fields, "attempts": tries.failures}) from error
        await self.ports.sleep(tries.wait_s())

    async def _grow(self, unit: Unit, name: str, error: DgpunetError) -> None:
        """Let stage `name` of this job ask for more from now on, unless it does already: other units may have met the same."""
        demand, tries = self.stages[name].demand, unit.tries[name]
        assert demand is not None  # only stages on a card run out of its memory
        if isinstance(error, StageOutOfMemory):
            overrun, on_oom = tries.overran(error.fields), self.ports.on_oom(demand)
            if len(tries.overruns) > on_oom.retries:
                raise self._held(demand, name, tries) from error
            if asks_more(demand, overrun):
                return
            self.grown[name] = Growth(tries, overrun, list(next_demands(demand, overrun, on_oom)))
        elif demand != unit.asked[name]:
            return
        growth = self.grown[name]
        if not growth.left:
            raise self._held(demand, name, growth.tries) from error
        more = growth.left.pop(0)
        self.stages[name] = self.stages[name].asking(more)
        self.ports.learned.overrun(demand, growth.overrun, more)
        await self.ports.learned.now()

    def _held(self, demand: Demand, name: str, tries: Tries) -> StageOutOfMemory:
        """Return the error that a unit is given up with after `tries`."""
        self.ports.learned.held(demand)
        return tries.held(name)

    async def _let_go(self, futures: list[Future]) -> None:
        unfinished = [f for f in futures if not f.done()]
        if unfinished:
            await asyncio.shield(self.ports.dask.cancel(unfinished, reason="its job ended"))
        for future in futures:
            future.release()

    async def _gather(self, plan: StagePlan) -> None:
        self.record.emit("stage", stage=plan.spec.name, state="running")
        files = [by_name[str(plan.spec.after)] for _, by_name in sorted(self.committed.items())]
        result = await in_thread(self.ports.agent.gather, plan.call.spec, files, stop=self.ports.agent.close)
        self.record.count(result.counts)
        await in_thread(commit_frames, self.record.folder / "result.frames", result.frames)
        await in_thread(shutil.rmtree, self.results)

    def _progress(self) -> None:
        units = self.record.counted
        self.record.emit(
            "progress", done=units.done, total=units.total, metrics=dict(self.record.status.metrics),
            expected_items=self.record.counts.get("expected_items"),
        )  # fmt: skip


def unit_key(stage: str, job_id: str, number: int, again: int = 0) -> str:
    """Return the Dask key of one unit at one stage, submitted for the time after `again` others.

    Dask's dashboard groups keys by what stands before the first number.
    """
    return f"{stage}-{job_id}-{number}-r{again}" if again else f"{stage}-{job_id}-{number}"


def job_of_key(key: str) -> str | None:
    """Return the job of a key that `unit_key` made, else None."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


def starts_of(error: Exception) -> int:
    """Return how many starts a unit's last failure stands for. Those that ended for want of memory were counted as they happened."""
    if isinstance(error, StageOutOfMemory | ForeignMemory):
        return 0
    return int(error.fields.get("attempts", 1)) if isinstance(error, JobFailed) else 1


def extra_attempts(records: Mapping[str, StageRecord]) -> int:
    """Return how often stages of one unit were started again after their process died."""
    return sum(record.attempts - 1 for record in records.values())


def first_cause(group: BaseExceptionGroup[BaseException]) -> DgpunetError:
    """Return the error to tell of a group: ours before others, the one with the lowest message among equals."""
    flat = list(_flatten(group))
    ours = sorted((e for e in flat if isinstance(e, DgpunetError)), key=lambda e: (-e.exit_code, str(e)))
    if ours:
        return ours[0]
    error = flat[0]
    if isinstance(error, OSError) and error.errno == 28:
        return DiskFull(path=error.filename or "$DGPUNET_HOME")
    return JobFailed(why=f"{type(error).__name__}: {error}")


def _flatten(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flatten(error)
        else:
            yield error


def _next(stream: Iterator[CallResult]) -> CallResult | None:
    return next(stream, None)


def _close(stream: Iterator[CallResult]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()
