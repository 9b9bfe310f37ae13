"""Units that are short of a card's memory: what their stage asks for next, for the whole job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.errors import ForeignMemory, StageHostLost, StageOutOfMemory, Unplaceable
from dgpunet_dask.jobs.flights import Attempt, Flights, Unit
from dgpunet_dask.jobs.learning import Learning
from dgpunet_dask.jobs.requeue import FOREIGN_RETRIES
from dgpunet_dask.jobs.shortage import Shortage
from dgpunet_dask.jobs.task import Parcel
from dgpunet_dask.model.policy import OnOom
from tests.unit.jobs.runs import JOB, FakeDask, plan_of

NEVER = Unplaceable(what="stage work", summary="-", verdicts=[])
FOREIGN = ForeignMemory(stage="work", device="a0", free="-", charge="-", attempts=1)


def oom(charge_mib: int = 1024, *, card_mib: int = 8192) -> StageOutOfMemory:
    fields = {"device": "a0", "charge_mib": charge_mib, "peak_mib": None, "card_mib": card_mib, "whole": False}
    return StageOutOfMemory(stage="work", peak="-", charge="-", cards="-", attempts=1, **fields)


class Job:
    """The stage ``work`` of one job, and units on their way through it."""

    def __init__(self, folder: Path, on_oom: OnOom) -> None:
        self.flights = Flights(FakeDask(), plan_of(folder, ("work", False)), JOB)  # type: ignore[arg-type]  # it stands in for a client
        self.slept: list[float] = []
        self.learned = Learning()
        self.shortage = Shortage(self.flights, self.learned, lambda _: on_oom, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def attempt(self, number: int = 0) -> Attempt:
        """Return an attempt of a unit that has been submitted."""
        made = Attempt(Unit(number, f"{number:032}", Parcel([], 1)), 1)
        made.unit.attempts.append(made)
        self.flights.submit(made, ["work"])
        return made

    @property
    def vram_mib(self) -> int | None:
        demand = self.flights.stages["work"].demand
        assert demand is not None
        return demand.vram_mib


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    return lambda **on_oom: Job(tmp_path, OnOom(**{"grow": 2.0, "max_mib": None, "retries": 2, **on_oom}))


async def test_what_was_too_small_for_one_unit_grows_once_for_all(job: Callable[..., Job]) -> None:
    it = job()
    attempts = [it.attempt(n) for n in range(5)]
    for attempt in attempts:
        await it.shortage.settle(attempt, "work", oom())
    assert it.vram_mib == 2048, "all five met the same"
    await it.shortage.settle(it.attempt(9), "work", oom(2048, card_mib=12288))
    assert it.vram_mib == 4096
    assert it.learned.estimates.peak_mib("work", None) == 4096


async def test_what_no_device_has_is_followed_by_the_next_size_once(job: Callable[..., Job]) -> None:
    it = job()
    first, other = it.attempt(), it.attempt(1)
    await it.shortage.settle(first, "work", oom())
    asked = it.flights.stages["work"].demand
    for attempt in (first, other):
        it.flights.submit(attempt, ["work"])
    await it.shortage.settle(first, "work", NEVER)
    after = it.flights.stages["work"].demand
    await it.shortage.settle(other, "work", NEVER)
    assert after != asked
    assert it.flights.stages["work"].demand == after, "the other's refusal is of what was asked for before"


async def test_a_unit_is_held_after_its_tries_and_when_there_is_nothing_left_to_ask_for(job: Callable[..., Job]) -> None:
    it = job(retries=1)
    attempt = it.attempt()
    await it.shortage.settle(attempt, "work", oom())
    with pytest.raises(StageOutOfMemory) as held:
        await it.shortage.settle(attempt, "work", oom(2048, card_mib=12288))
    assert held.value.fields["attempts"] == 2
    it = job(max_mib=1024, retries=9)
    with pytest.raises(StageOutOfMemory):
        await it.shortage.settle(it.attempt(), "work", oom())


async def test_a_card_that_others_fill_is_waited_for_longer_each_time(job: Callable[..., Job]) -> None:
    it = job()
    attempt = it.attempt()
    for _ in range(FOREIGN_RETRIES):
        await it.shortage.settle(attempt, "work", FOREIGN)
    assert it.slept == sorted(it.slept)
    assert len(set(it.slept)) == FOREIGN_RETRIES
    assert it.vram_mib == 1024
    with pytest.raises(ForeignMemory) as given_up:
        await it.shortage.settle(attempt, "work", FOREIGN)
    assert given_up.value.fields["attempts"] == FOREIGN_RETRIES + 1


@pytest.mark.parametrize(
    ("error", "name"),
    [(oom(), "work"), (FOREIGN, "work"), (NEVER, None), (StageHostLost(stage="other", device="-", how="-", attempts=1, log="-"), None)],
    ids=["memory", "foreign", "never asked for more", "another stage"],
)
async def test_only_what_is_about_memory_is_decided_here(job: Callable[..., Job], error: Any, name: str | None) -> None:
    it = job()
    assert it.shortage.stage_of(it.attempt(), error) == name
