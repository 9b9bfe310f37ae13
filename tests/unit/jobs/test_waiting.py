"""Whether a job begins on the devices that are here or waits for those on their way, and how much of its input is on its way meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import StartFailed, Unplaceable
from dgpunet_dask.jobs.plan import HeadHost
from dgpunet_dask.jobs.runner import JobRunner, Ports
from dgpunet_dask.jobs.service import JobService, ServicePorts
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host

SMALL = Device(name="small", host="h", vram_mib=8 * 1024)
LARGE = Device(name="large", host="h", vram_mib=24 * 1024)


def fleet(*devices: Device, **states: Any) -> Fleet:
    return Fleet((Host(name="h"),), devices, states=states)


class Growing:
    """Gives these fleets, one after the other, until one is enough; the last one in any case."""

    def __init__(self, *fleets: Fleet) -> None:
        self.fleets = list(fleets)

    async def __call__(self, enough: Callable[[Fleet], bool]) -> Fleet:
        while len(self.fleets) > 1 and not enough(self.fleets[0]):
            self.fleets.pop(0)
        return self.fleets[0]


def plan(*demands: Demand | None) -> Any:
    return SimpleNamespace(units=[SimpleNamespace(spec=SimpleNamespace(name=f"s{n}"), demand=d) for n, d in enumerate(demands)])


@pytest.fixture
def looks(home: Home) -> Callable[[Growing, Any], Awaitable[int]]:
    """Check a plan, and return how many fleets were not looked at."""

    async def check(growing: Growing, plan: Any) -> int:
        service = JobService(home, ServicePorts(lambda: None, lambda: None, growing, HeadHost("h/cpu", 1, home.root)))  # type: ignore[arg-type, return-value]
        await service.driver._check_placeable(plan)
        return len(growing.fleets) - 1

    return check


@pytest.mark.parametrize(
    ("vram", "fleets", "left"),
    [
        ("4GiB", [fleet(SMALL), fleet(SMALL, LARGE)], 1),  # what is here will do
        ("20GiB", [fleet(SMALL), fleet(SMALL, LARGE)], 0),  # it waits for what can hold it
        ("20GiB", [fleet(SMALL, LARGE, large="lost"), fleet(SMALL, LARGE)], 1),  # which the scheduler knows to be on its way
        ("4GiB", [fleet(SMALL, small="cordoned"), fleet(SMALL)], 1),  # not now is not never
        ("4GiB", [fleet(), fleet(SMALL)], 1),  # nothing is known of an empty fleet
    ],
)  # fmt: skip
async def test_a_job_begins_when_no_stage_is_hopeless(looks: Any, vram: str, fleets: Sequence[Fleet], left: int) -> None:
    assert await looks(Growing(*fleets), plan(None, Demand(vram=vram))) == left


async def test_each_stage_counts(looks: Any) -> None:
    both = plan(Demand(vram="4GiB"), Demand(vram="20GiB"))
    assert await looks(Growing(fleet(SMALL), fleet(LARGE)), both) == 0


async def test_what_is_hopeless_in_the_end_is_refused(looks: Any) -> None:
    with pytest.raises(Unplaceable) as refused:
        await looks(Growing(fleet(SMALL), fleet(SMALL, LARGE)), plan(Demand(vram="4GiB"), Demand(vram="30GiB")))
    assert [v["device"] for v in refused.value.fields["verdicts"]] == ["large", "small"]
    assert "stage s1" in str(refused.value)


async def test_room_for_units_follows_the_fleet_as_it_grows_and_never_shrinks() -> None:
    answers: list[int | Exception] = [6, 6, StartFailed(why="the scheduler is away", logs="-"), 4, 10]
    asked = asyncio.Event()

    async def in_flight() -> int:
        if not answers:
            asked.set()
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def no_time(_: float) -> None:
        return None

    ports = Ports(None, None, in_flight, sleep=no_time)  # type: ignore[arg-type]
    runner = JobRunner.__new__(JobRunner)
    runner.ports, runner.most = ports, 4
    room = asyncio.Semaphore(0)
    widening = asyncio.create_task(runner._widen(room))
    await asyncio.wait_for(asked.wait(), 5)
    widening.cancel()
    free = 0
    while not room.locked():
        await room.acquire()
        free += 1
    assert free == 6
