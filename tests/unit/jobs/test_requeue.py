"""What a unit that ran out of memory asks for next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import StageOutOfMemory
from dgpunet_dask.jobs.requeue import Tries, asks_more
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.policy import OnOom
from dgpunet_dask.placement.oom import Overrun, next_demands

PART = Overrun("a", charge_mib=4096, peak_mib=None, card_mib=8192, whole=False)
WHOLE = Overrun("a", charge_mib=8000, peak_mib=None, card_mib=8192, whole=True)
ON_OOM = OnOom(grow=1.5, max_mib=None, retries=2)


def asked(demand: Demand, overrun: Overrun, on_oom: OnOom = ON_OOM) -> list[tuple[int | None, int | None]]:
    """Return VRAM and `larger_than` of each further demand."""
    found = next_demands(demand, overrun, on_oom)
    return [(d.vram_mib, None if d.larger_than is None else int(d.larger_than)) for d in found]


def test_a_part_of_a_card_grows_on_a_larger_one_else_on_any_else_to_the_whole() -> None:
    assert asked(Demand(vram="4GiB"), PART) == [(6144, 8192), (6144, None), (None, 8192), (None, 8191)]


def test_a_whole_card_is_followed_by_larger_ones_only() -> None:
    assert asked(Demand(), WHOLE) == [(12000, 8192), (None, 8192)]


def test_the_peak_counts_where_it_is_more_than_the_charge() -> None:
    peak = Overrun("a", charge_mib=4096, peak_mib=10000, card_mib=8192, whole=False)
    assert asked(Demand(vram="4GiB"), peak)[0] == (15000, 8192)


def test_the_policy_sets_how_far_it_may_grow() -> None:
    assert asked(Demand(vram="4GiB"), PART, OnOom(grow=4.0, max_mib=5000)) == [(5000, 8192), (5000, None)]
    assert asked(Demand(vram="4GiB"), PART, OnOom(max_mib=4096)) == [], "it has that already"


def test_an_earlier_bound_on_the_card_stays() -> None:
    demand = Demand(vram="4GiB", larger_than="6GiB")
    assert asked(demand, PART)[1] == (6144, 6144)


@given(
    charge=st.integers(1, 40000), peak=st.none() | st.integers(1, 80000), spare=st.integers(0, 9000), whole=st.booleans(),
    grow=st.floats(1.0, 4.0), most=st.none() | st.integers(1, 80000),
)  # fmt: skip
def test_every_further_demand_asks_for_more(
    charge: int, peak: int | None, spare: int, whole: bool, grow: float, most: int | None
) -> None:
    overrun = Overrun("a", charge, peak, charge + spare, whole)
    for demand in next_demands(Demand(stage="s"), overrun, OnOom(grow, most)):
        assert demand.vram_mib is None or demand.vram_mib > charge
        assert most is None or (demand.vram_mib is not None and demand.vram_mib <= most)
        assert demand.larger_than is not None or not whole
        assert asks_more(demand, overrun)


def test_a_demand_that_has_grown_meanwhile_is_enough() -> None:
    assert not asks_more(Demand(vram="4GiB"), PART)
    assert asks_more(Demand(vram="6GiB"), PART)
    assert not asks_more(Demand(), WHOLE)
    assert asks_more(Demand(larger_than="8GiB"), WHOLE)


def test_a_held_unit_names_its_highest_peak_and_every_card() -> None:
    tries = Tries()
    for device, charge, peak in (("a", 4096, 5000), ("b", 7500, 9000)):
        fields = {"device": device, "charge_mib": charge, "peak_mib": peak, "card_mib": 8192, "whole": False, "traceback": "where"}
        tries.overran(fields)
    error = tries.held("embed")
    assert isinstance(error, StageOutOfMemory)
    assert "its peak was 9000MiB where 7500MiB were charged, on a (4GiB of 8GiB), b (7500MiB of 8GiB), after 2 attempt(s)" in error.message
    assert error.fields["traceback"] == "where"


def test_a_filled_card_is_waited_for_longer_each_time() -> None:
    assert [Tries(foreign=n).wait_s() for n in (1, 2, 3)] == [2.0, 4.0, 8.0]
