"""Runs one job: units from the source, each through its stages over Dask, results committed, then the gather stage.

Memory is bounded: at most `in_flight` units are between the source and the disk, and the source is pulled only when there is room.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from dgpunet_dask.errors import DgpunetError, DiskFull, JobFailed
from dgpunet_dask.jobs.commit import commit_frames
from dgpunet_dask.jobs.plan import JobPlan, StagePlan
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.task import Parcel, StageRecord, run_stage
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.spec import CallResult

#: How long a unit that Dask gave up waits for a better cause than that.
CAUSE_S: Final = 1.0


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
        The most units between source and disk.
    """

    dask: Client
    agent: AgentClient
    in_flight: int


class JobRunner:
    """Drives one planned job to its end. `run` is called once."""

    def __init__(self, record: JobRecord, plan: JobPlan, ports: Ports) -> None:
        self.record = record
        self.plan = plan
        self.ports = ports
        self.results = record.folder / "results"
        self.committed: dict[int, dict[str, Path]] = {}
        self.failed: DgpunetError | None = None

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
        room = asyncio.Semaphore(self.ports.in_flight)
        stream = self.ports.agent.stream(
            self.plan.source.call.spec, self.plan.source.spec.unit_items, self.plan.source.spec.unit_bytes
        )
        number = 0
        try:
            async with asyncio.TaskGroup() as group:
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
                self.record.units(total=number)
                self._progress()
        finally:
            await in_thread(_close, stream)

    async def _unit(self, number: int, piece: CallResult) -> None:
        source = Parcel(piece.frames, piece.items)
        futures: dict[str, Future] = {}
        try:
            for plan in self.plan.units:
                futures[plan.spec.name] = self._submit(plan, number, futures.get(str(plan.spec.after), source))
            ends = {name: await self._result(futures[name], name) if name in futures else source for name in self.plan.ends}
            await self._commit(number, ends)
        except Exception as error:
            starts = error.fields.get("attempts", 1) if isinstance(error, JobFailed) else 1
            self.record.units(failed=self.record.counted.failed + 1, attempts=self.record.counted.attempts + starts)
            raise
        finally:
            await self._let_go(list(futures.values()))

    def _submit(self, plan: StagePlan, number: int, upstream: Any) -> Future:
        key = unit_key(plan.spec.name, self.record.status.job_id, number)
        if plan.demand is None:
            return self.ports.dask.submit(run_stage, plan.call, upstream, key=key, pure=False, resources={"LIGHT": 1}, priority=-number)
        with dask.annotate(demand=plan.demand.to_mapping()):
            return self.ports.dask.submit(run_stage, plan.call, upstream, key=key, pure=False, priority=-number)

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
        for stage_record in records.values():
            self.record.count(stage_record.counts)
        done = self.record.counted
        self.record.units(done=done.done + 1, attempts=done.attempts + 1 + extra_attempts(records))
        self._progress()

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


def unit_key(stage: str, job_id: str, number: int) -> str:
    """Return the Dask key of one unit at one stage; Dask's dashboard groups keys by what stands before the first number."""
    return f"{stage}-{job_id}-{number}"


def job_of_key(key: str) -> str | None:
    """Return the job of a key that `unit_key` made, else None."""
    parts = key.rsplit("-", 3)
    return "-".join(parts[1:3]) if len(parts) == 4 and parts[1].isdigit() else None


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
