"""A runner over a real ledger whose Dask and agent are a script: each test says what every start of a unit comes to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed.client import FutureCancelledError

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.jobs import schema
from dgpunet_dask.jobs.flights import Unit, number_of_key
from dgpunet_dask.jobs.ledger import Ledger, NewJob
from dgpunet_dask.jobs.past import status_of
from dgpunet_dask.jobs.plan import HeadHost, JobPlan, plan_job
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.runner import JobRunner, Ports
from dgpunet_dask.jobs.task import Parcel, StageCall, StageRecord
from dgpunet_dask.jobs.units import recipe_of
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.model.job import UnitCounts
from dgpunet_dask.model.pipeline import StageFacts, StageSpec, Workload
from dgpunet_dask.stagehost.frames import pack, unpack
from dgpunet_dask.stagehost.spec import CallResult

JOB = "1-j"
DEVICES = {
    name: Device(name=name, host=host, vram_mib=8192, speed=1.0) for name, host in (("a0", "one"), ("a1", "one"), ("b0", "two"))
}


@dataclass
class Start:
    """One start of a stage of a unit."""

    stage: str
    number: int
    nth: int
    epoch: int
    copy: bool
    demand: Mapping[str, Any]
    key: str
    priority: int = 0


class FakeFuture:
    """A task that a test ends."""

    def __init__(self, start: Start, upstream: Any) -> None:
        self.key, self.start, self.upstream = start.key, start, upstream
        self.released = False
        self._done: asyncio.Future[Parcel] = asyncio.get_running_loop().create_future()
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def status(self) -> str:
        if not self._done.done():
            return "pending"
        return "cancelled" if isinstance(self._done.exception(), FutureCancelledError) else "error" if self._done.exception() else "finished"

    def done(self) -> bool:
        return self._done.done()

    def release(self) -> None:
        self.released = True

    def end(self, with_: Parcel | BaseException) -> None:
        if self._done.done():
            return
        if isinstance(with_, BaseException):
            self._done.set_exception(with_)
        else:
            self._done.set_result(with_)

    def __await__(self) -> Any:
        return asyncio.shield(self._done).__await__()


#: What a start comes to: ``None`` for well, an error, or something to wait for first.
Outcome = BaseException | None | asyncio.Event


@dataclass
class FakeDask:
    """Takes the place of a Dask client and its cluster."""

    script: Callable[[Start], Outcome] = lambda _: None
    starts: list[Start] = field(default_factory=list)
    futures: list[FakeFuture] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    nth: Counter[tuple[str, int]] = field(default_factory=Counter)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def submit(self, _: Any, call: StageCall, upstream: Any, *, key: str, priority: int, **more: Any) -> FakeFuture:
        import dask

        number, stage = number_of_key(key), call.spec.stage
        assert number is not None
        demand = {} if {"resources", "workers"} & more.keys() else dask.get_annotations()["demand"]
        start = Start(stage, number, self.nth[stage, number], int(call.spec.epoch or 0), bool(call.spec.copy), demand, key, priority)
        self.nth[stage, number] += 1
        self.starts.append(start)
        future = FakeFuture(start, upstream)
        self.futures.append(future)
        task = asyncio.ensure_future(self._run(future))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return future

    async def _run(self, future: FakeFuture) -> None:
        start, upstream = future.start, future.upstream
        try:
            parcel: Parcel = upstream if isinstance(upstream, Parcel) else await upstream
        except BaseException as error:
            future.end(error)
            return
        outcome = self.script(start)
        if isinstance(outcome, asyncio.Event):
            await outcome.wait()
            outcome = None
        if outcome is not None:
            future.end(outcome)
            return
        record = StageRecord(parcel.items, {"seen": parcel.items}, 1, None, 0.5)
        future.end(Parcel(parcel.frames, parcel.items, {**parcel.records, start.stage: record}))

    async def cancel(self, futures: Sequence[FakeFuture], reason: str) -> None:
        self.cancelled += [future.key for future in futures]
        for future in futures:
            future.end(FutureCancelledError(future.key, reason))

    def die(self) -> None:
        """Lose the scheduler, with all that it knows."""
        for future in self.futures:
            future.end(FutureCancelledError(future.key, "the scheduler is gone"))


@dataclass
class FakeAgent:
    """Runs the source: gives these items, each a unit."""

    given: Sequence[Any]
    closed: bool = False
    gathered: list[Any] = field(default_factory=list)
    gather_error: BaseException | None = None

    def stream(self, *_: Any) -> Iterator[CallResult]:
        for item in self.given:
            yield CallResult(pack([item]), 1, {"read": 1}, 0.0)
        yield CallResult([], 0, {"last": 1}, 0.0)

    def gather(self, _: Any, files: Sequence[str]) -> CallResult:
        from dgpunet_dask.stagehost.frames import read_frames

        self.gathered = [item for file in files for item in unpack(read_frames(Path(file)))]
        if self.gather_error is not None:
            raise self.gather_error
        return CallResult(pack([len(self.gathered)]), 1, {}, 0.0)

    def close(self) -> None:
        self.closed = True


def plan_of(folder: Path, *stages: tuple[str, bool], gather: bool = False, retries: int = 2) -> JobPlan:
    """Return the plan of a source and these stages, one after another; of each its name and whether it is light."""
    names = ["read", *(name for name, _ in stages)]
    specs = [StageSpec(name=name, run=f"stages:{name}", after=None if n == 0 else names[n - 1], retries=retries) for n, name in enumerate(names)]
    facts = {"read": StageFacts(demand=None, light=True)}
    facts |= {name: StageFacts(demand=None if light else Demand(vram="1GiB"), light=light) for name, light in stages}
    if gather:
        specs.append(StageSpec(name="total", run="stages:total", after=names[-1], gather=True))
        facts["total"] = StageFacts(demand=None, light=True)
    workload = Workload(name="w", digest="d" * 64, folder=str(folder), stages=tuple(specs))
    return plan_job(workload, {}, facts, job_id=JOB, host=HeadHost("one/cpu", 1, folder), scratch=folder)


@dataclass
class Run:
    """One job under way, and all that it touches."""

    runner: JobRunner
    record: JobRecord
    ledger: Ledger
    dask: FakeDask
    agent: FakeAgent
    slept: list[float]

    @property
    def units(self) -> Mapping[int, Unit]:
        return self.runner.flights.units

    async def states(self, number: int) -> list[str]:
        """Return the states of a unit's attempts, in their order."""
        return [row.state for row in await self.ledger.attempts(JOB) if row.number == number]

    async def faults(self) -> list[str]:
        found = []
        for what, query in schema.FAULTS.items():
            rows = await self.ledger._do(lambda db, query=query: db.execute(query).fetchall(), "read")  # type: ignore[misc]
            found += [f"{what}: {row}" for row in rows]
        return found

    async def placed(self, stage: str, number: int, device: str) -> None:
        """Tell where the last start of a stage of a unit was placed."""
        key = next(start.key for start in reversed(self.dask.starts) if (start.stage, start.number) == (stage, number))
        await self.runner.attempting.placed({"stage": stage, "key": key, "device": device, "host": DEVICES[device].host})


@asynccontextmanager
async def running(
    folder: Path, given: Sequence[Any], script: Callable[[Start], Outcome] = lambda _: None, *, plan: JobPlan | None = None,
    allow_failed: int = 0, again: bool = False, could: Any = None, **ports: Any,
) -> AsyncIterator[Run]:  # fmt: skip
    """Give a runner of a job in `folder`, which has begun; with `again` the ledger and the job of an earlier one are gone on with."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0 if seconds < 0.9 else 0.002)  # the runner's own watching goes round, and takes no time

    async def in_flight() -> int:
        return 6

    ledger = Ledger(folder / "ledger.db", SystemClock())
    await ledger.open()
    if not again:
        await ledger.submit([NewJob(job_id=JOB, workload="w", digest="d" * 64, allow_failed=allow_failed, submitted_s=1.0)])
        await ledger.move(JOB, "running")
    row = await ledger.job(JOB)
    assert row is not None
    record = JobRecord(status_of(row, UnitCounts()), folder, SystemClock(), row)
    dask, agent = FakeDask(script), FakeAgent(given)
    could = could or (lambda stage, avoid: stage.demand is not None and bool(set(DEVICES) - set(avoid)))
    made: dict[str, Any] = {"sleep": sleep, "devices": lambda: DEVICES, "could": could, "in_flight": in_flight, **ports}
    runner = JobRunner(record, plan or plan_of(folder, ("work", False)), ledger, recipe_of("d" * 64, {}, {}), Ports(dask, agent, **made))  # type: ignore[arg-type]  # they stand in for both
    try:
        yield Run(runner, record, ledger, dask, agent, slept)
    finally:
        await ledger.close()
