"""The lower bound: right on cases that can be enumerated, and never above what a schedule has done."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Match, Policy, Rule
from dgpunet_dask.placement.bound import lower_bound_s
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from dgpunet_dask.placement.run import Arrival
from dgpunet_dask.placement.simulate import simulate

HOST = Host(name="h", cpus=8)
NEAR = 1.001  # the bisection's precision


def fleet_of(*speeds: float, vram: tuple[int, ...] = ()) -> Fleet:
    sizes = vram or (8192,) * len(speeds)
    cards = tuple(
        Device(name=f"g{i}", host="h", model=f"card {i}", vram_mib=mib, speed=s) for i, (s, mib) in enumerate(zip(speeds, sizes, strict=True))
    )
    return Fleet((HOST,), cards)


def units(*works: float, **demand: object) -> list[Arrival]:
    return [Arrival(id=f"u{i}", demand=Demand(stage="s", vram="1GiB", work=w, **demand)) for i, w in enumerate(works)]  # type: ignore[arg-type]


def best_s(works: list[float], speeds: tuple[float, ...], load_s: float = 0.0) -> float:
    """Return the least makespan of all assignments."""
    found = float("inf")
    for assigned in itertools.product(range(len(speeds)), repeat=len(works)):
        ends = []
        for device, speed in enumerate(speeds):
            mine = [w for w, d in zip(works, assigned, strict=True) if d == device]
            ends.append((load_s if mine else 0.0) + sum(mine) / speed)
        found = min(found, max(ends))
    return found


def test_nothing_takes_no_time() -> None:
    assert lower_bound_s(fleet_of(1.0), NO_POLICY, []) == 0.0


@pytest.mark.parametrize(
    ("works", "speeds", "bound"),
    [
        ([10.0], (1.0, 4.0), 2.5),  # one unit on the fastest
        ([10.0, 10.0], (1.0, 1.0), 10.0),
        ([1.0] * 50, (1.0, 4.0), 10.0),  # together they do 5 a second
        ([12.0, 1.0], (1.0, 1.0), 12.0),  # the longest unit bounds, not the sum
    ],
)
def test_known_bounds(works: list[float], speeds: tuple[float, ...], bound: float) -> None:
    assert lower_bound_s(fleet_of(*speeds), NO_POLICY, units(*works)) == pytest.approx(bound, rel=1e-3)


def test_a_card_too_small_does_not_help() -> None:
    fleet = fleet_of(1.0, 1.0, vram=(8192, 512))
    assert lower_bound_s(fleet, NO_POLICY, units(5.0, 5.0)) == pytest.approx(10.0, rel=1e-3)


def test_each_device_loads_for_itself() -> None:
    estimates = NO_ESTIMATES.with_load("s", None, "card 0", 10.0).with_load("s", None, "card 1", 10.0)
    bound = lower_bound_s(fleet_of(1.0, 1.0), NO_POLICY, units(*[1.0] * 20), estimates=estimates)
    assert bound == pytest.approx(20.0, rel=1e-3), "10 s of load and 10 s of work on each"


def test_gangs_take_all_their_cards() -> None:
    assert lower_bound_s(fleet_of(1.0, 1.0), NO_POLICY, units(*[1.0] * 6, gpus=2)) == pytest.approx(6.0, rel=1e-3)


def test_late_arrivals_count_from_when_they_come() -> None:
    late = [Arrival(id="a", demand=Demand(vram="1GiB", work=1)), *(replace(u, at_s=100.0) for u in units(3.0, 3.0))]
    assert lower_bound_s(fleet_of(1.0), NO_POLICY, late) == pytest.approx(106.0, rel=1e-3)


def test_what_no_device_can_hold_has_no_bound() -> None:
    with pytest.raises(ValueError, match="no device"):
        lower_bound_s(fleet_of(1.0), NO_POLICY, [Arrival(id="a", demand=Demand(vram="100GiB", work=1))])


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.0]), min_size=1, max_size=6),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=3),
    st.sampled_from([0.0, 4.0]),
)
@settings(max_examples=60, deadline=None)
def test_never_above_the_best_of_all_schedules(works: list[float], speeds: list[float], load_s: float) -> None:
    fleet, estimates = fleet_of(*speeds), NO_ESTIMATES
    for device in fleet.devices:
        estimates = estimates.with_load("s", None, str(device.model), load_s)
    bound = lower_bound_s(fleet, NO_POLICY, units(*works), estimates=estimates)
    best = best_s(works, tuple(speeds), load_s)
    assert bound <= best * NEAR
    assert bound >= best / 2, "rounding stays within twice the bound (Lenstra, Shmoys and Tardos)" if not load_s else "loads are counted"


SHARES = (None, 2, 4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]), st.sampled_from([512, 3000, 7000]), st.sampled_from([1.0, 4.0]), st.sampled_from([0.5, 1.0, 2.0]),
            st.sampled_from([0.0, 0.0, 5.0]), st.sampled_from([1, 1, 1, 2]),
        ),
        min_size=1,
        max_size=14,
    ),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=3),
    st.tuples(st.sampled_from(SHARES), st.sampled_from(SHARES), st.sampled_from(SHARES)),
    st.sampled_from([0.0, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_never_above_what_was_simulated(
    work: list[tuple[str, int, float, float, float, int]], speeds: list[float], shares: tuple[int | None, ...], load_s: float
) -> None:
    fleet, estimates = fleet_of(*speeds), NO_ESTIMATES
    rules = (Rule(name=s, match=Match(stage=s), max_per_gpu=n) for s, n in zip("abc", shares, strict=True) if n is not None)
    policy = Policy(rules=tuple(rules))
    for device in fleet.devices:
        for stage in "abc":
            estimates = estimates.with_load(stage, None, str(device.model), load_s)
    arrivals = [
        Arrival(id=str(i), demand=Demand(stage=s, vram=f"{v}MiB", work=w, gpus=gpus), noise=noise, at_s=at)
        for i, (s, v, w, noise, at, gpus) in enumerate(work)
    ]
    run = simulate(fleet, policy, arrivals, estimates=estimates)
    assert not run.waiting
    assert lower_bound_s(fleet, policy, arrivals, estimates=estimates) <= run.makespan_s * NEAR
