"""What holds for every fleet and every demand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.decision import REASON_ORDER
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host, features_of
from dgpunet_dask.placement.feasible import NEVER_FILTERS, NOT_NOW_FILTERS
from dgpunet_dask.placement.place import charges_of, place
from dgpunet_dask.placement.resolve import resolve
from dgpunet_dask.testing.fleets import Ledger, demands, fleets


@given(fleets(charged=False), st.lists(demands() | st.integers(0, 5), max_size=30))
@settings(max_examples=150, deadline=None)
def test_placing_never_overcommits(fleet: Fleet, steps: list[Demand | int]) -> None:
    ledger = Ledger(fleet)
    for step in steps:
        if isinstance(step, Demand):
            ledger.start(step, place(ledger.fleet, step))
        elif ledger.running:
            ledger.finish(sorted(ledger.running)[step % len(ledger.running)])
        assert ledger.faults() == []


def long_run(steps: int, seed: int) -> int:
    """Play random units of a few kinds on three unequal cards and return how many were placed."""
    chance = random.Random(seed)
    host = Host(name="h", cpus=8, ram_mib=16384)
    sizes = (("a", 24, (8, 6)), ("b", 8, (8, 9)), ("c", 32, (12, 0)))
    cards = [
        Device(name=n, host="h", vram_mib=g << 10, capability=c, features=features_of(c), reserve_mib=512) for n, g, c in sizes
    ]
    ledger = Ledger(Fleet((host,), (*cards, Device(name="h/cpu", host="h", kind="cpu", speed=0.02))))
    kinds = [
        Demand(stage=f"s{i}", vram=f"{v}GiB", resident=f"{v / 2}GiB", features=f, gpus=g, exclusive=e)
        for i, (v, f, g, e) in enumerate([(6, (), 1, False), (14, ("fp8",), 1, False), (20, (), 1, True), (3, (), 2, False)])
    ] + [Demand(stage="cpu", vram="99GiB", cpu_ok=True, cpus=3, ram="3GiB"), Demand(stage="whole")]
    placed = 0
    for _ in range(steps):
        if ledger.running and chance.random() < 0.5:
            ledger.finish(chance.choice(sorted(ledger.running)))
        else:
            demand = chance.choice(kinds)
            placed += ledger.start(demand, place(ledger.fleet, demand)) is not None
        assert ledger.faults() == []
    return placed


def test_placing_never_overcommits_in_a_long_run() -> None:
    assert long_run(steps=3_000, seed=1) > 500


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(10))
def test_placing_never_overcommits_in_very_long_runs(seed: int) -> None:
    assert long_run(steps=100_000, seed=seed) > 20_000


@given(fleets(), demands())
@settings(max_examples=300, deadline=None)
def test_each_device_is_ranked_or_refused_with_reasons_in_order(fleet: Fleet, demand: Demand) -> None:
    decision = place(fleet, demand)
    ranked = [s.device for s in decision.ranking]
    assert sorted([*ranked, *decision.refusals]) == sorted(d.name for d in fleet.devices)
    for name, verdicts in decision.refusals.items():
        order = [REASON_ORDER[v.code] for v in verdicts]
        assert order == sorted(set(order))
        assert order
        assert all(v.device == name and v.need and v.have for v in verdicts)


@given(fleets(), demands())
@settings(max_examples=300, deadline=None)
def test_outcome_and_devices_agree(fleet: Fleet, demand: Demand) -> None:
    decision = place(fleet, demand)
    assert len(decision.devices) == (max(1, demand.gpus) if decision.outcome == "placed" else 0)
    assert set(decision.devices) <= {s.device for s in decision.ranking}
    never = bool(decision.refusals) and not decision.ranking and all(v.never for v in decision.first_verdicts)
    assert (decision.outcome == "never") == never
    if demand.same_host and decision.devices:
        assert len({fleet.by_name[name].host for name in decision.devices}) == 1


@given(fleets(), demands())
@settings(max_examples=200, deadline=None)
def test_only_idle_residents_of_others_are_evicted_and_none_in_vain(fleet: Fleet, demand: Demand) -> None:
    decision = place(fleet, demand)
    lying = {c.holder: c for c in fleet.charges}
    leaving = [lying[holder] for holder in decision.evict]
    assert all(c.evictable and c.device in decision.devices for c in leaving)
    assert not any(c.stage is not None and c.stage == demand.stage for c in leaving)
    if demand.exclusive:
        return
    for spared in leaving:
        staying = fleet.with_charges(c for c in fleet.charges if c not in leaving or c == spared)
        need = next(c for c in charges_of(staying, resolve(demand), decision, "unit") if c.device == spared.device)
        assert need.vram_mib > (staying.free_mib(spared.device) or 0)


@given(fleets(), demands(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_same_input_same_output_whatever_the_order(fleet: Fleet, demand: Demand, chance: random.Random) -> None:
    shuffled = {name: chance.sample(items, len(items)) for name, items in (("d", fleet.devices), ("h", fleet.hosts))}
    other = Fleet(tuple(shuffled["h"]), tuple(shuffled["d"]), fleet.charges, dict(fleet.states))
    assert place(fleet, demand) == place(other, demand)


NARROWER = {
    "compute_capability": ">=8.9",
    "features": ("bf16", "fp4", "fp8"),
    "driver": ">=550",
    "exclusive": True,
    "vram": "60GiB",
    "ram": "12GiB",
    "cpus": 9,
}


@given(fleets(), demands(), st.sampled_from(sorted(NARROWER)))
@settings(max_examples=300, deadline=None)
def test_another_constraint_never_widens(fleet: Fleet, demand: Demand, name: str) -> None:
    """Cards only: a host's CPU comes in by design where the last card falls out."""
    if name == "compute_capability" and demand.capability is not None:
        return  # two conditions would replace one another here, not add up
    narrow = replace(demand, **{name: NARROWER[name]})
    cards = {d.name for d in fleet.gpus()}
    wide_set = {s.device for s in place(fleet, demand).ranking} & cards
    assert {s.device for s in place(fleet, narrow).ranking} & cards <= wide_set


@given(fleets(), demands())
@settings(max_examples=200, deadline=None)
def test_renaming_devices_changes_only_ties(fleet: Fleet, demand: Demand) -> None:
    renamed = {d.name: f"{d.host}/cpu" if d.kind == "cpu" else f"x{99 - i:02}" for i, d in enumerate(fleet.devices)}
    other = Fleet(
        fleet.hosts,
        tuple(replace(d, name=renamed[d.name]) for d in fleet.devices),
        tuple(replace(c, device=renamed[c.device]) for c in fleet.charges),
        {renamed[name]: state for name, state in fleet.states.items()},
    )
    first, second = place(fleet, demand), place(other, demand)
    assert first.outcome == second.outcome
    assert [s.total for s in first.ranking] == [s.total for s in second.ranking]
    assert {renamed[s.device] for s in first.ranking} == {s.device for s in second.ranking}
    codes = {renamed[name]: [v.code for v in verdicts] for name, verdicts in first.refusals.items()}
    assert codes == {name: [v.code for v in verdicts] for name, verdicts in second.refusals.items()}


@given(fleets(), demands(), demands())
@settings(max_examples=100, deadline=None)
def test_never_means_that_no_other_moment_helps(fleet: Fleet, demand: Demand, other: Demand) -> None:
    """Never on a charged fleet is never on the empty one, and the other way round."""
    empty = Fleet(fleet.hosts, tuple(replace(d, cordoned=False) for d in fleet.devices))
    for asked in (demand, other):
        assert (place(fleet, asked).outcome == "never") == (place(empty, asked).outcome == "never")
        if place(fleet, asked).outcome == "wait":
            assert place(empty, asked).outcome == "placed"


def test_filters_stand_in_the_order_in_which_reasons_are_named() -> None:
    order = [REASON_ORDER[code] for code in (*NEVER_FILTERS, *NOT_NOW_FILTERS)]
    assert order == sorted(order)
