"""The quick index decides as the plain rules do."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, DeviceState, Fleet, Host
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.testing.fleets import demands, fleets

STATES: tuple[DeviceState, ...] = ("running", "running", "running", "paused", "cordoned", "draining", "lost")


def pool_of(fleet: Fleet) -> Pool:
    pool = Pool()
    for device in fleet.devices:
        pool.add_device(device, fleet.host_by_name[device.host], fleet.states.get(device.name, "running"))
    for charge in fleet.charges:
        pool.charge(charge)
    return pool


def alike(pool: Pool, demand: Demand) -> None:
    quick, plain = pool.place(demand), place(pool.fleet(), demand)
    assert (quick.outcome, quick.devices, quick.evict) == (plain.outcome, plain.devices, plain.evict)
    assert pool.place(demand, verdicts=True) == plain


@given(fleets(), st.lists(demands(), min_size=1, max_size=4))
@settings(max_examples=400, deadline=None)
def test_the_pool_decides_as_place_does(fleet: Fleet, asked: list[Demand]) -> None:
    pool = pool_of(fleet)
    for demand in asked:
        alike(pool, demand)


@given(fleets(charged=False), st.data())
@settings(max_examples=250, deadline=None)
def test_the_pool_decides_as_place_does_under_change(fleet: Fleet, data: st.DataObject) -> None:
    pool = pool_of(fleet)
    kinds = data.draw(st.lists(demands(), min_size=1, max_size=3))
    names = [d.name for d in fleet.devices]
    running: list[str] = []
    for step in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.sampled_from(["place", "place", "place", "end", "state", "resident", "leave", "join"]))
        name = data.draw(st.sampled_from(names)) if names else ""
        if what == "place":
            demand = data.draw(st.sampled_from(kinds))
            for other in kinds:
                alike(pool, other)
            decision = pool.place(demand)
            for chosen in () if decision.evict else decision.devices:
                pool.charge(pool.activation(chosen, demand, f"u{step}"))
                running.append(f"u{step}")
        elif what == "end" and running:
            pool.release(running.pop(data.draw(st.integers(0, len(running) - 1))))
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
        for demand in kinds:
            alike(pool, demand)


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
    assert pool.ideal(pair) == ("a", "b")


def test_a_host_whose_size_changed_counts_for_all_its_devices() -> None:
    pool = Pool()
    pool.add_device(Device(name="h/cpu", host="h", kind="cpu"), Host(name="h", cpus=8))
    pool.add_device(Device(name="a", host="h", vram_mib=8192), Host(name="h", cpus=2))
    alike(pool, Demand(vram="1GiB", cpus=4))
    assert pool.place(Demand(vram="1GiB", cpus=4)).outcome == "never"
    assert [h.cpus for h in pool.fleet().hosts] == [2]
