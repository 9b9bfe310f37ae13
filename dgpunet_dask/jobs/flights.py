"""Attempts of units as Dask tasks: each stage of a unit is one task, placed by the scheduler's plugin, and takes what the one before gave.

Nothing here decides: `runner` says what is submitted, and again, and what becomes of what fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import dask
from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.comm import get_address_host
from distributed.scheduler import KilledWorker

from dgpunet_dask.errors import WorkerKilled
from dgpunet_dask.jobs.plan import JobPlan, StagePlan
from dgpunet_dask.jobs.requeue import Tries
from dgpunet_dask.jobs.task import Parcel, StageRecord, run_stage
from dgpunet_dask.model.demand import Demand

_KEY: Final = re.compile(r".+-(\d+-[^-]+)-(\d+)(?:-r\d+)?")


class SchedulerGone(Exception):
    """The scheduler is gone, and with it every task that it knew. What was in flight is submitted to the next one."""


@dataclass(eq=False)
class Attempt:
    """One lease of a unit and its tasks.

    Parameters
    ----------
    epoch
        Of the lease; another one where the unit had to be started again in the middle.
    futures, asked
        The task of each stage, and what it asked for.
    places
        Where each stage was placed last, and when (seconds of a clock that never goes back).
    copy
        A second attempt beside one that is slow.
    avoid
        Devices that will not do, by stage.
    started
        Something runs, or has run, under its lease, as far as is known.
    ending
        Its results are being published: nothing changes its lease any more.
    lock
        Held while its lease changes.
    """

    unit: Unit
    epoch: int
    copy: bool = False
    avoid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    futures: dict[str, Future] = field(default_factory=dict)
    asked: dict[str, Demand | None] = field(default_factory=dict)
    places: dict[str, tuple[str, float]] = field(default_factory=dict)
    started: bool = False
    ending: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def number(self) -> int:
        """Of its unit."""
        return self.unit.number

    def last_place(self, stages: Iterable[str]) -> tuple[str, str] | None:
        """Return the last of these stages that was placed, and its device; ``None`` where none was."""
        found = [(name, self.places[name][0]) for name in stages if name in self.places]
        return found[-1] if found else None

    def device(self, stages: Iterable[str]) -> str | None:
        """Return the device of the last of these stages that was placed; ``None`` where none was."""
        found = self.last_place(stages)
        return None if found is None else found[1]


@dataclass(eq=False)
class Unit:
    """One unit on its way: what the source gave, its attempts, and what was tried where memory was short.

    `turn`: among the units of its job that wait for a device the lowest is served first (`longest`).
    """

    number: int
    unit_id: str
    source: Parcel
    turn: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    tries: dict[str, Tries] = field(default_factory=lambda: defaultdict(Tries))
    serial: Iterator[int] = field(default_factory=itertools.count)
    copied: bool = False
    copy_asked: asyncio.Event = field(default_factory=asyncio.Event)


class Flights:
    """Submits attempts of one job and waits for what they give.

    Parameters
    ----------
    dask
        An asynchronous client of the scheduler.
    plan
        The job's stages.
    job_id
        Part of each task's key.
    """

    def __init__(self, dask: Client, plan: JobPlan, job_id: str) -> None:
        self.dask, self.plan, self.job_id = dask, plan, job_id
        self.stages = {stage.spec.name: stage for stage in plan.units}  # as they are asked for now: demands may grow
        self.units: dict[int, Unit] = {}

    def submit(self, attempt: Attempt, names: Iterable[str]) -> None:
        """Submit the stages `names` of an attempt, in the order of the data; tasks that were there before are let go."""
        serial = next(attempt.unit.serial)
        for name in names:
            plan, before = self._asking(attempt, name), attempt.futures.get(name)
            attempt.asked[name] = plan.demand
            upstream = attempt.futures.get(str(plan.spec.after), attempt.unit.source)
            attempt.futures[name] = self._task(attempt, plan, upstream, serial)
            attempt.places.pop(name, None)
            if before is not None:
                before.release()

    @property
    def _head(self) -> str:
        """The head's host, as Dask knows it: its scheduler runs there."""
        return str(get_address_host(self.dask.scheduler.address))

    def _asking(self, attempt: Attempt, name: str) -> StagePlan:
        plan = self.stages[name]
        avoid = attempt.avoid.get(name, ())
        return plan if plan.demand is None or not avoid else plan.asking(replace(plan.demand, avoid=avoid))

    def _task(self, attempt: Attempt, plan: StagePlan, upstream: Any, serial: int) -> Future:
        key = unit_key(plan.spec.name, self.job_id, attempt.number, serial)
        spec = replace(plan.call.spec, unit=attempt.unit.unit_id, epoch=attempt.epoch, copy=attempt.copy)
        call = replace(plan.call, spec=spec, retries=0)  # a process that died is another attempt, with a lease and a cause of its own
        submit = functools.partial(self.dask.submit, run_stage, call, upstream, key=key, pure=False, priority=-attempt.unit.turn)
        if plan.spec.at_head:  # where no worker of that host is left, any does: what it looks up is then not found
            return submit(workers=[self._head], allow_other_workers=True)
        if plan.demand is None:
            return submit(resources={"LIGHT": 1})
        with dask.annotate(demand=plan.demand.to_mapping()):
            return submit()

    async def ends(self, attempt: Attempt) -> dict[str, Parcel]:
        """Return what the last stages gave.

        Raises
        ------
        DgpunetError
            Whatever a stage raised; `WorkerKilled` where Dask's workers died under it, `SchedulerGone` where the scheduler did.
        """
        return {name: await self._end(attempt, name) for name in self.plan.ends}

    async def _end(self, attempt: Attempt, name: str) -> Parcel:
        return await self._result(attempt.futures[name], name) if name in attempt.futures else attempt.unit.source

    async def _result(self, future: Future, stage: str) -> Parcel:
        try:
            return await fetched(future)
        except KilledWorker as error:
            raise WorkerKilled(stage=_stage_of(error, stage), deaths=error.allowed_failures + 1) from error
        except FutureCancelledError as error:
            raise SchedulerGone(f"{stage}: {error}") from error
        except OSError as error:
            if future.status == "error":  # the task's own
                raise
            raise SchedulerGone(f"{stage}: {error}") from error  # its connection broke while the result was fetched

    async def let_go(self, attempt: Attempt) -> None:
        """Cancel what an attempt has not finished, and forget its tasks."""
        unfinished = [f for f in attempt.futures.values() if not f.done()]
        if unfinished:
            with contextlib.suppress(OSError):  # the scheduler is gone, and all of them with it
                await asyncio.shield(self.dask.cancel(unfinished, reason="this attempt has ended"))
        for future in attempt.futures.values():
            future.release()
        if attempt in attempt.unit.attempts:
            attempt.unit.attempts.remove(attempt)

    def placed(self, stage: str, key: str, device: str, now: float) -> tuple[Attempt, bool] | None:
        """Note where a task was placed; return its attempt and whether it had been placed before, ``None`` for a task that has ended."""
        number = number_of_key(key)
        unit = None if number is None else self.units.get(number)
        for attempt in () if unit is None else unit.attempts:
            future = attempt.futures.get(stage)
            if future is not None and future.key == key:
                again = stage in attempt.places
                attempt.places[stage] = (device, now)
                return attempt, again
        return None

    def pending(self) -> Iterator[tuple[Attempt, str, Future]]:
        """Yield attempt, stage and task of each stage that waits for a device or runs: not of those that wait for an earlier stage."""
        for number in sorted(self.units):
            for attempt in self.units[number].attempts:
                for name, future in attempt.futures.items():
                    before = attempt.futures.get(str(self.stages[name].spec.after))
                    if future.status == "pending" and (before is None or before.status == "finished"):
                        yield attempt, name, future


async def fetched(future: Future) -> Parcel:
    """Return what a task gave. A caller that is cancelled leaves the fetching to its end.

    Whoever fetches while others wait to do so shares one request of the client with them: a cancellation that reached it would cancel theirs
    too, and one that reached it before it began would have every later one wait for a request that is cancelled already.
    """
    fetching = asyncio.ensure_future(future)
    fetching.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also where nobody waits any more
    try:
        parcel: Parcel = await asyncio.shield(fetching)
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if own is None or own.cancelling():
            raise
        raise SchedulerGone("the fetching of its result was cancelled") from None  # a task group would take it for our end
    return parcel


def unit_key(stage: str, job_id: str, number: int, again: int = 0) -> str:
    """Return the Dask key of one unit at one stage, submitted for the time after `again` others.

    Dask's dashboard groups keys by what stands before the first number.
    """
    return f"{stage}-{job_id}-{number}-r{again}" if again else f"{stage}-{job_id}-{number}"


def job_of_key(key: str) -> str | None:
    """Return the job of a key that `unit_key` made, else None."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


def number_of_key(key: str) -> int | None:
    """Return the unit's number of a key that `unit_key` made, else None."""
    found = _KEY.fullmatch(key)
    return None if found is None else int(found[2])


def records_of(ends: Mapping[str, Parcel]) -> dict[str, StageRecord]:
    """Return what each stage did with a unit."""
    return {stage: record for parcel in ends.values() for stage, record in parcel.records.items()}


def hosts_of(devices: Collection[str], host_of: Mapping[str, str]) -> frozenset[str]:
    """Return the hosts of these devices, as far as they are known."""
    return frozenset(host_of[device] for device in devices if device in host_of)


def _stage_of(error: KilledWorker, otherwise: str) -> str:
    """Return the stage of the task under which workers died: perhaps an earlier one of the unit."""
    stage, _, _ = str(error.task).partition(f"-{job_of_key(str(error.task))}-")
    return stage or otherwise
