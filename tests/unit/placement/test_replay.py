"""Logs as scenarios: what comes, what it takes, and what differs between two policies."""

from __future__ import annotations

import pytest

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Policy, Require, Rule, Selector
from dgpunet_dask.placement.replay import Scenario, difference, replay, scenario_of
from dgpunet_dask.placement.trace import (
    EndRecord,
    FleetRecord,
    ForeignRecord,
    PlaceRecord,
    PolicyRecord,
    PolicySource,
    Record,
    StateRecord,
    SubmitRecord,
)

HOST = Host(name="h", cpus=8)
SLOW = Device(name="slow", host="h", model="slow card", vram_mib=8192)
FAST = Device(name="fast", host="h", model="fast card", vram_mib=8192, speed=4.0)
FLEET = Fleet((HOST,), (SLOW, FAST))
DEMAND = Demand(stage="embed", vram="4GiB")


def log(*records: Record, fleet: Fleet = FLEET) -> Scenario:
    found = scenario_of([FleetRecord.of(100.0, fleet), *records])
    assert found is not None
    return found


def submit(t: float, id: str = "a", demand: Demand = DEMAND) -> SubmitRecord:  # noqa: A002
    return SubmitRecord(t, id, demand)


def end(t: float, id: str = "a", outcome: str = "done", device: str = "fast", **more: object) -> EndRecord:  # noqa: A002
    return EndRecord(t, id, outcome, (device,), **more)  # type: ignore[arg-type]


def test_units_come_when_they_came_and_take_what_they_took() -> None:
    scenario = log(submit(103.0), PlaceRecord(104.0, "a", "placed", ("fast",)), end(110.0, seconds=6.0, share=2))
    (arrival,) = scenario.arrivals
    assert (arrival.id, arrival.at_s, arrival.work_s) == ("a", 3.0, 6.0 * 4.0 / 2)
    assert scenario.recorded == {"fast": 1}
    assert scenario.estimates.run_s("embed", None, "fast card") == 3.0
    found = replay(scenario, NO_POLICY)
    assert found.run.done["a"].devices == ("fast",)
    assert found.run.makespan_s == pytest.approx(3.0)
    assert found.ratio == pytest.approx(1.0, rel=1e-3)


def test_what_did_not_end_takes_what_is_expected() -> None:
    stated = Demand(stage="x", vram="1GiB", work=8.0)
    scenario = log(submit(100.0, "a", stated), submit(100.0, "b"))
    assert [a.work_s for a in scenario.arrivals] == [None, None]
    assert replay(scenario, NO_POLICY).run.makespan_s == 2.0


def test_tries_of_one_unit_are_one_unit() -> None:
    records = [submit(100.0), end(101.0, outcome="oom", peak_mib=6000), submit(101.0, demand=Demand(stage="embed", vram="6GiB")),
               end(104.0, outcome="lost"), submit(104.0), end(109.0, seconds=5.0)]  # fmt: skip
    (arrival,) = log(*records).arrivals
    assert arrival.demand == DEMAND
    assert (arrival.work_s, arrival.peak_mib) == (20.0, 6000)


def test_a_name_that_comes_again_after_its_end_is_another_unit() -> None:
    records = [submit(100.0), end(101.0, seconds=1.0), submit(102.0), end(104.0, seconds=2.0), submit(105.0)]
    scenario = log(*records)
    assert [(a.id, a.at_s, a.work_s) for a in scenario.arrivals] == [("a", 0.0, 4.0), ("a #2", 2.0, 8.0), ("a #3", 5.0, None)]
    assert scenario.recorded == {"fast": 2}


def test_what_is_left_out_is_told() -> None:
    running = FLEET.with_charges([
        Charge(holder="ends", device="slow"), Charge(holder="endless", device="fast"), Charge(holder="a", device="fast"),
        Charge(holder="lease", device="fast", kind="lease", vram_mib=100),
    ])  # fmt: skip
    records = [submit(100.0), submit(100.0, "b"), end(103.0, "ends", device="slow"), EndRecord(104.0, "b", "cancelled"), end(105.0)]
    scenario = log(*records, fleet=running)
    assert [(c.holder, c.ends_s) for c in scenario.fleet.charges] == [("ends", 3.0), ("lease", None)]
    assert [a.id for a in scenario.arrivals] == ["a"]
    assert len(scenario.notes) == 3


def test_devices_that_change() -> None:
    grown = Fleet((HOST,), (SLOW, FAST, Device(name="new", host="h", vram_mib=8192)), states={"slow": "draining"})
    shrunk = Fleet((HOST,), (FAST,), (Charge(holder="foreign", device="fast", kind="foreign", vram_mib=77),))
    records = [StateRecord(101.0, "slow", "paused"), ForeignRecord(102.0, "fast", 50), FleetRecord.of(103.0, grown), FleetRecord.of(104.0, shrunk)]
    told = [(c.at_s, c.device, c.state, c.foreign_mib, c.joins is not None) for c in log(*records).changes]
    assert told == [
        (1.0, "slow", "paused", None, False), (2.0, "fast", None, 50, False), (3.0, "new", None, None, True), (3.0, "new", "running", None, False),
        (3.0, "slow", "draining", None, False), (4.0, "fast", None, 77, False), (4.0, "new", "lost", None, False), (4.0, "slow", "lost", None, False),
    ]  # fmt: skip


def test_another_fleet_takes_the_place_of_the_recorded_one() -> None:
    other = Fleet((HOST,), (Device(name="fast", host="h", vram_mib=8192, speed=2.0),))
    records = [FleetRecord.of(0.0, FLEET), submit(0.0), StateRecord(0.0, "slow", "lost"), ForeignRecord(1.0, "fast", 5), end(9.0, seconds=1.0)]
    scenario = scenario_of(records, other)
    assert scenario is not None
    assert scenario.fleet == other
    assert [c.device for c in scenario.changes] == ["fast"]
    assert scenario.arrivals[0].work_s == 4.0, "measured on the recorded card"


def test_a_log_without_machines_needs_some() -> None:
    assert scenario_of([submit(0.0)]) is None
    assert scenario_of([]) is None
    scenario = scenario_of([submit(0.0)], FLEET)
    assert scenario is not None
    assert scenario.fleet == FLEET


def test_the_policy_of_the_log_is_the_last_that_it_names() -> None:
    last = PolicyRecord(102.0, "b", (PolicySource("x.yaml", "human", "version: 1"),))
    assert log(PolicyRecord(100.0, "a", last.sources), last, PolicyRecord(103.0, "c")).policy == last
    assert log().policy is None


def test_nothing_recorded_is_no_mistake() -> None:
    found = replay(log(), NO_POLICY)
    assert found.bound_s is None
    assert found.ratio is None
    assert found.run.metrics()["finished"] == 0


def test_a_difference_tells_what_moves_and_what_no_longer_runs() -> None:
    work = [submit(100.0, f"u{i}", Demand(stage="embed", vram="4GiB", work=2.0)) for i in range(3)]
    scenario = log(*work, submit(100.0, "big", Demand(stage="chat", vram="6GiB", work=1.0)))
    plain = replay(scenario, NO_POLICY).run
    deny = replay(scenario, Policy((Rule(name="no", deny=(Selector(device="fast"),)),))).run
    never = replay(scenario, Policy((Rule(name="need", require=Require(vram_mib=5000)), Rule(name="more", require=Require(vram_mib=9000))))).run
    found = difference(scenario, plain, deny)
    assert {(m.before, m.after) for m in found.moved} <= {(("fast",), ("slow",))}
    assert found.moved
    assert found.metrics["makespan_s"][1] > found.metrics["makespan_s"][0]
    assert found.any
    gone = difference(scenario, plain, never)
    assert {loss.id for loss in gone.newly_waiting} == {"u0", "u1", "u2", "big"}
    assert all("vram_total" in loss.reason for loss in gone.newly_waiting)
    back = difference(scenario, never, plain)
    assert {loss.id for loss in back.newly_runnable} == {"u0", "u1", "u2", "big"}
    assert not difference(scenario, plain, plain).any
