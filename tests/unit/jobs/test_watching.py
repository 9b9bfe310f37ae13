"""Which units the watch takes for slow: on what they are measured by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dgpunet_dask.jobs.straggling import FACTOR
from dgpunet_dask.jobs.watching import Watch
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from tests.unit.jobs.ledgers import StandingClock

DEVICES = {"cpu": Device(name="cpu", host="h", kind="cpu"), "card": Device(name="card", host="h", model="M", vram_mib=8192)}


class Job:
    """So many units of one stage on a device since `clock.now`, each of which shared it with all the others before."""

    def __init__(self, device: str, count: int, *, crowded: bool = False) -> None:
        self.clock, demand = StandingClock(), Demand(stage="nap", vram="1GiB")
        self.units = {n: SimpleNamespace(number=n, copied=False, copy_asked=SimpleNamespace(set=lambda: None), attempts=[]) for n in range(count)}
        self.attempts = [
            SimpleNamespace(number=n, unit=unit, copy=False, asked={"nap": demand}, places={"nap": (device, self.clock.now)}) for n, unit in self.units.items()
        ]
        flights: Any = SimpleNamespace(pending=lambda: ((a, "nap", None) for a in self.attempts), units=self.units, stages={"nap": None})
        kind = "cpu" if device == "cpu" else "M"
        self.learned = SimpleNamespace(estimates=NO_ESTIMATES.with_run("nap", None, kind, 2.0, share=20).with_load("nap", None, kind, 0.1))
        ports: Any = SimpleNamespace(devices=lambda: DEVICES, clock=self.clock, could=lambda *_: True, learned=self.learned)
        self.watch = Watch(flights, ports, lambda: crowded)

    def slow(self, after_s: float) -> list[int]:
        """Return the units that are to be copied after so many seconds."""
        self.clock.now += after_s
        self.watch._look()
        return [n for n, unit in self.units.items() if unit.copied]


@pytest.mark.parametrize("count", [1, 20])
def test_equal_units_that_share_a_cpu_are_not_slow(count: int) -> None:
    job = Job("cpu", count)
    assert job.slow(1000.0) == [], "what was learned of a shared CPU tells nothing of one unit"
    job = Job("cpu", count)
    job.watch.worked("nap", "cpu", 2.0)
    assert job.slow(FACTOR * 2.0 - 0.1) == []
    assert job.slow(0.2) == list(range(count))


def test_units_that_share_a_card_have_their_share_of_its_time() -> None:
    job = Job("card", 20)
    assert job.slow(FACTOR * 2.0 + 0.2) == [], "it may still load"
    job.watch.worked("nap", "card", 0.1)
    assert job.slow(0.0) == list(range(20))
    job = Job("card", 20)
    job.watch.worked("nap", "card", 0.1)
    assert job.slow(FACTOR * 2.0 - 0.1) == []


def test_no_copy_is_made_while_further_units_wait_unless_nothing_gets_on() -> None:
    job = Job("card", 3, crowded=True)
    job.watch.worked("nap", "card", 0.1)
    job.attempts[2].places["nap"] = ("card", job.clock.now + 50.0)
    assert job.slow(50.0) == []
    assert job.slow(50.0) == [0, 1, 2]


def test_of_a_stage_that_is_met_for_the_first_time_nothing_is_known() -> None:
    job = Job("card", 3)
    job.learned.estimates = NO_ESTIMATES
    job.watch.worked("nap", "card", 0.1)
    assert job.slow(1000.0) == []
