"""What bringing the inputs takes: measured links before stated ones, and the pool as the full decision."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.placement.rank import field_of, rate_of, transfer_s
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.placement.simulate import Arrival, simulate
from dgpunet_dask.testing.fleets import demands, fleets

GB = 10**9
HOSTS = (Host(name="a", link=1e9), Host(name="b", link=1e9), Host(name="c"))
DEVICES = tuple(Device(name=f"{h.name}0", host=h.name, vram_mib=8192) for h in HOSTS)
FLEET = Fleet(HOSTS, DEVICES)
DEMAND = Demand(stage="s", vram="1GiB", work=1.0, inputs={"a": 2 * GB})


def seconds(fleet: Fleet, host: str, demand: Demand = DEMAND) -> float:
    return transfer_s(host, field_of(fleet, resolve(demand, NO_POLICY)))


@pytest.mark.parametrize(
    ("links", "host", "want"),
    [
        ({}, "a", 0.0),
        ({}, "b", 2.0),
        ({}, "c", 2.0),  # the end that is known
        ({("a", "b"): 5e8}, "b", 4.0),  # measured slower than stated
        ({("a", "b"): 4e9}, "b", 0.5),  # measured faster than stated
        ({("b", "a"): 5e8}, "b", 2.0),  # the other way says nothing
        ({("a", "c"): 1e8}, "c", 20.0),
        ({("a", "a"): 1.0}, "a", 0.0),
    ],
)
def test_measured_links_win_over_stated_ones(links, host, want):
    assert seconds(replace(FLEET, links=links), host) == pytest.approx(want)


def test_what_is_not_known_at_all_costs_nothing():
    bare = Fleet(tuple(replace(h, link=None) for h in HOSTS), DEVICES)
    field = field_of(bare, resolve(DEMAND, NO_POLICY))
    assert rate_of("a", "b", field) is None
    assert transfer_s("b", field) == 0.0
    assert seconds(FLEET, "b", replace(DEMAND, inputs={"elsewhere": GB})) == 1.0


def test_work_goes_where_its_input_comes_sooner():
    fleet = Fleet(HOSTS, tuple(d for d in DEVICES if d.host != "a"))
    assert place(replace(fleet, links={("a", "b"): 1e8, ("a", "c"): 1e9}), DEMAND).devices == ("c0",)
    assert place(replace(fleet, links={("a", "b"): 1e9, ("a", "c"): 1e8}), DEMAND).devices == ("b0",)


def test_simulation_moves_inputs_over_measured_links():
    cpu = Device(name="a/cpu", host="a", kind="cpu")
    fleet = Fleet(HOSTS, (cpu, DEVICES[1]), links={("a", "b"): 1e8})
    assert simulate(fleet, NO_POLICY, [Arrival(id="u", demand=DEMAND)]).makespan_s == pytest.approx(21.0)


@given(fleets(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_pool_decides_by_links_as_place_does(fleet, data):
    hosts = [h.name for h in fleet.hosts]
    ways = [(src, dst) for src in hosts for dst in hosts]
    links = data.draw(st.dictionaries(st.sampled_from(ways), st.sampled_from([1e7, 1e8, 1e9]), max_size=6)) if ways else {}
    inputs = data.draw(st.dictionaries(st.sampled_from([*hosts, "elsewhere"]), st.sampled_from([1, GB]), max_size=2))
    demand = replace(data.draw(demands()), inputs=inputs)
    pool = Pool()
    for device in fleet.devices:
        pool.add_device(device, fleet.host_by_name[device.host])
    for charge in fleet.charges:
        pool.charge(charge)
    pool.set_links(links)
    assert pool.fleet().links == links
    assert pool.place(demand, verdicts=True) == place(pool.fleet(), demand)
    assert pool.place(demand).devices == place(pool.fleet(), demand).devices
