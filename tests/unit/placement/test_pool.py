"""The quick index decides as the plain rules do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.place import charges_of, place, place_request
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.testing.fleets import demands, fleets
from dgpunet_dask.testing.policies import estimates, owned, policies, worked

STATES: tuple[DeviceState, ...] = ("running", "running", "running", "paused", "cordoned", "draining", "lost")


def pool_of(fleet: Fleet, policy: Policy = NO_POLICY, learned: Estimates = NO_ESTIMATES) -> Pool:
    pool = Pool(policy, learned)
    pool.set_minute(fleet.minute)
    for device in fleet.devices:
        pool.add_device(device, fleet.host_by_name[device.host], fleet.states.get(device.name, "running"))
    for charge in fleet.charges:
        pool.charge(charge)
    return pool


def alike(pool: Pool, demand: Demand, barred: Collection[str] = ()) -> None:
    fleet = pool.fleet()
    plain = place(fleet, demand, pool.policy, pool.estimates)
    assert pool.place(demand, verdicts=True) == plain
    outcome = plain.outcome
    if barred:
        plain = place(replace(fleet, devices=tuple(d for d in fleet.devices if d.name not in barred)), demand, pool.policy, pool.estimates)
        outcome = plain.outcome if plain.outcome == "placed" else "never" if outcome == "never" else "wait"
    quick = pool.place(demand, barred=barred)
    assert (quick.outcome, quick.devices, quick.evict) == (outcome, plain.devices, plain.evict)
    if plain.outcome == "wait" and plain.ranking and not barred:
        assert quick.waits_for == plain.waits_for
    if plain.outcome == "never" and not barred and demand.gpus < 2:
        assert pool.plan(demand).final == plain.final
    if plain.outcome == "placed" and not plain.evict and not barred:
        charged = charges_of(fleet, resolve(demand, pool.policy, pool.estimates), plain, "unit")
        assert tuple(pool.activation(name, demand, "unit") for name in plain.devices) == charged


@given(fleets(), st.lists(demands(), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_the_pool_decides_as_place_does(fleet: Fleet, asked: list[Demand]) -> None:
    pool = pool_of(fleet)
    for demand in asked:
        alike(pool, demand)


@given(fleets(), st.data())
@settings(max_examples=600, deadline=None)
def test_the_pool_decides_as_place_does_under_a_policy(plain: Fleet, data: st.DataObject) -> None:
    fleet = data.draw(owned(plain))
    pool = pool_of(fleet, data.draw(policies()), data.draw(estimates()))
    names = [d.name for d in fleet.devices]
    for name in data.draw(st.lists(st.sampled_from(names), max_size=2)) if names else ():
        pool.book(name, data.draw(st.sampled_from([0.3, 2.0])))
    for _ in range(data.draw(st.integers(1, 4))):
        demand = data.draw(worked(data.draw(demands())))
        alike(pool, demand)
        alike(pool, demand, data.draw(st.sets(st.sampled_from(names), max_size=2)))


@given(fleets(charged=False), st.data())
@settings(max_examples=300, deadline=None)
def test_the_pool_decides_as_place_does_under_change(plain: Fleet, data: st.DataObject) -> None:
    fleet = data.draw(owned(plain))
    pool = pool_of(fleet, data.draw(policies()), data.draw(estimates()))
    kinds = [data.draw(worked(demand)) for demand in data.draw(st.lists(demands(), min_size=1, max_size=3))]
    names = [d.name for d in fleet.devices]
    running: list[str] = []
    steps = ["place", "place", "place", "end", "time", "state", "resident", "leave", "join", "host", "policy", "learn", "minute"]
    for step in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(steps))
        name = data.draw(st.sampled_from(names)) if names else ""
        if what == "place":
            demand = data.draw(st.sampled_from(kinds))
            decision = pool.place(demand)
            for chosen in () if decision.evict else decision.devices:
                pool.charge(pool.activation(chosen, demand, f"u{step}"))
                running.append(f"u{step}")
        elif what == "end" and running:
            pool.release(running.pop(data.draw(st.integers(0, len(running) - 1))))
        elif what == "time":
            pool.begin(pool.now + data.draw(st.sampled_from([0.1, 1.0, 6.0])))
        elif what == "state" and name in pool:
            pool.set_state(name, data.draw(st.sampled_from(STATES)))
        elif what == "resident" and name in pool:
            stage, idle = data.draw(st.sampled_from(["embed", "chat", None])), data.draw(st.booleans())
            mib = data.draw(st.integers(0, 12)) << 10
            pool.charge(Charge(holder=f"r-{stage}", device=name, vram_mib=mib, kind="resident", stage=stage, evictable=idle))
        elif what == "leave" and name in pool:
            pool.remove_device(name)
        elif what == "join" and name:
            device = fleet.by_name[name]
            pool.add_device(replace(device, speed=data.draw(st.sampled_from([0.5, 1.0, 2.0]))), fleet.host_by_name[device.host])
        elif what == "host" and name in pool:
            pool.update_host(replace(pool.slot(name).host, idle_s=data.draw(st.sampled_from([None, 5.0, 5000.0])), power="mains"))
        elif what == "policy":
            pool.set_policy(data.draw(policies()))
        elif what == "learn":
            pool.set_estimates(data.draw(estimates()))
        elif what == "minute":
            pool.set_minute(data.draw(st.sampled_from([None, 30, 700])))
        for demand in kinds:
            alike(pool, demand)


@given(fleets(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_line_of_equal_units_goes_where_one_by_one_would_send_it(plain: Fleet, data: st.DataObject) -> None:
    fleet = data.draw(owned(plain))
    demand = replace(data.draw(demands()), gpus=1, work=data.draw(st.sampled_from([0.5, 4.0])))
    pool, other = pool_of(fleet), pool_of(fleet)
    count = data.draw(st.integers(1, 12))
    placed: list[str] = []
    left = count
    while left > 0:  # as the pump does it
        choice = pool.choose(pool.plan(demand), (), left)
        for name, seconds in choice.ahead:
            pool.book(name, seconds)
        left -= len(choice.ahead)
        if choice.slot is None:
            break
        pool.charge(pool.activation(choice.slot.name, demand, f"u{left}"))
        placed.append(choice.slot.name)
        left -= 1
    one_by_one: list[str] = []
    request = resolve(demand)
    for unit in range(count):
        decision = place_request(other.fleet(), request)
        if decision.device is not None:
            other.charge(other.activation(decision.device, demand, f"u{unit}"))
            one_by_one.append(decision.device)
        elif decision.ranking and decision.waits_for is not None:
            other.book(decision.waits_for, request.run_s(other.slot(decision.waits_for).device))
        else:
            break
    assert placed == one_by_one


def test_the_lowest_name_wins_among_alike_devices_however_they_came_and_went() -> None:
    host = Host(name="h")
    pool = Pool()
    for name in ("c", "a", "b"):
        pool.add_device(Device(name=name, host="h", vram_mib=8192), host)
    demand = Demand(vram="2GiB")
    order = []
    for unit in range(3):
        name = pool.place(demand).device
        assert name is not None
        order.append(name)
        pool.charge(pool.activation(name, demand, str(unit)))
    assert order == ["a", "b", "c"]
    assert pool.place(demand).outcome == "wait"
    pool.release("1")
    assert pool.place(demand).device == "b"
    pool.release("0")
    assert pool.place(demand).device == "a"
    assert pool.place(demand, barred={"a"}).device == "b"
    assert pool.place(demand, barred={"a", "b"}).outcome == "wait"
    assert pool.place(demand, among={"b"}).device == "b"


def test_devices_that_others_wait_for_do_not_make_a_demand_impossible() -> None:
    pool = Pool()
    pool.add_device(Device(name="a", host="h", vram_mib=8192), Host(name="h"))
    pair = Demand(vram="2GiB", gpus=2)
    assert pool.place(pair).outcome == "never"
    pool.add_device(Device(name="b", host="h", vram_mib=8192), Host(name="h"))
    assert pool.place(pair).devices == ("a", "b")
    assert pool.place(pair, barred={"a"}).outcome == "wait"
    assert pool.ideal(pool.plan(pair)) == ("a", "b")


def test_a_host_whose_size_changed_counts_for_all_its_devices() -> None:
    pool = Pool()
    pool.add_device(Device(name="h/cpu", host="h", kind="cpu"), Host(name="h", cpus=8))
    pool.add_device(Device(name="a", host="h", vram_mib=8192), Host(name="h", cpus=2))
    alike(pool, Demand(vram="1GiB", cpus=4))
    assert pool.place(Demand(vram="1GiB", cpus=4)).outcome == "never"
    assert [h.cpus for h in pool.fleet().hosts] == [2]
