"""The engine and a second writing of the format's text answer alike, on small fleets of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Match, Policy, Preference, Require, Reserve, Rule, Selector
from dgpunet_dask.placement.cases.generate import Generator
from dgpunet_dask.placement.cases.properties import Trial, shrunk
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.place import place
from dgpunet_dask.testing.fleets import demands, fleets
from dgpunet_dask.testing.oracle import Answer, Oracle
from dgpunet_dask.testing.policies import owned, policies, worked


def answer(fleet: Fleet, demand: Demand, policy: Policy, estimates: Estimates = NO_ESTIMATES) -> Answer:
    decision = place(fleet, demand, policy, estimates)
    first = {name: verdicts[0].code for name, verdicts in decision.refusals.items()}
    return Answer(first, [scored.device for scored in decision.ranking], decision.devices or decision.outcome, decision.evict)


def differs(trial: Trial, decision: Decision) -> str | None:
    """Return both answers where they are not one."""
    ours, theirs = answer(*trial), Oracle(*trial).answer()
    return None if ours == theirs else f"{ours}\n{theirs}"


def tight(chance: Random) -> Trial:
    """Draw a trial of few values, so that sizes, times and totals are often equal."""
    pick = chance.choice
    hosts = [
        Host(name=f"h{i}", cpus=pick([2, 3, None]), ram_mib=pick([2048, 4096, None]), link=pick([None, 1e9, 2e9]))
        for i in range(pick([1, 2]))
    ]
    cards = [
        Device(
            name=f"g{i}",
            host=pick(hosts).name,
            vram_mib=1024 * pick([8, 8, 16]),
            speed=pick([1.0, 1.0, 2.0]),
            reserve_mib=pick([0, 1024]),
        )
        for i in range(pick([1, 2, 3, 4]))
    ]
    cpus = [Device(name=h.cpu_device, host=h.name, kind="cpu", speed=pick([0.5, 0.02])) for h in hosts]
    devices = tuple(cards + cpus)
    charges = tuple(_charge(pick, f"c{i}", pick(devices)) for i in range(pick([0, 1, 2, 4, 6])))
    booked = {d.name: pick([0.5, 3.0]) for d in devices if pick([True, False])}
    demand = Demand(
        stage=pick("abc"),
        model=pick([None, "m"]),
        vram=pick([None, "0MiB", "2GiB", "4GiB", "6GiB", "8GiB"]),
        ram=pick(["0MiB", "1GiB", "2GiB"]),
        cpus=pick([1, 2]),
        gpus=pick([0, 1, 1, 1, 1, 2]),
        same_host=pick([True, False]),
        cpu_ok=pick([True, False]),
        exclusive=pick([True] + 5 * [False]),
        priority=pick([None, "batch", "interactive"]),
        work=pick([None, 1.0, 2.0, 4.0]),
        larger_than=pick(5 * [None] + ["8GiB", "15GiB"]),
        avoid=pick(5 * [()] + [("g0",), ("g1", "h0/cpu")]),
        inputs=pick([{}, {}, {"g0": 10**9}, {"h1": 2 * 10**9, "g1": 10**9}]),
    )
    kept = Reserve(
        name="k", device="g0", vram_mib=pick([2048, 6144]), match=Match(stage=pick("ab"), priority=pick([None, "batch"]))
    )
    policy = Policy(tuple(_rule(pick, f"r{i}") for i in range(pick([0, 0, 1, 2, 3]))), (kept,) * pick([0, 1]))
    links = {way: pick([5e8, 4e9]) for way in [("h0", "h1"), ("h1", "h0")] if pick([True, False])}
    return Trial(Fleet(tuple(hosts), devices, charges, {}, None, booked, links), demand, policy)


def _charge(pick: Callable[[Sequence[Any]], Any], holder: str, device: Device) -> Charge:
    kind = pick(["activation", "activation", "lease", "resident", "resident", "foreign"])
    ours, unit, loaded = kind != "foreign", kind == "activation", kind == "resident"
    return Charge(
        holder=holder,
        device=device.name,
        kind=kind,
        vram_mib=1024 * pick([0, 1, 2, 2, 4, 6]) if device.kind == "gpu" else 0,
        cpus=pick([0, 1]),
        ram_mib=pick([0, 1024]),
        stage=pick("abc") if ours else None,
        model=pick([None, "m"]) if ours else None,
        priority=pick(["batch", "interactive"]) if ours else None,
        share=pick([None, 1, 2, 3]) if unit else None,
        exclusive=unit and pick([True] + 7 * [False]),
        evictable=loaded and pick([True, True, False]),
        reload_s=pick([None, 1.0, 2.0]) if loaded else None,
        ends_s=pick([None, 0.5, 1.0, 3.0]) if unit or kind == "lease" else None,
    )


def _rule(pick: Callable[[Sequence[Any]], Any], name: str) -> Rule:
    def seldom(*values: Any) -> Any:
        return pick([None, None, *values])

    wishes = [
        Preference("finish", 50.0),
        Preference("speed", 50.0),
        Preference("data_local", 50.0),
        Preference("selector", 50.0, Selector("g0")),
    ]
    return Rule(
        name=name,
        match=Match(stage=pick([None, "a", "[ab]", "*"]), model=pick([None, "m", "*"])),
        layer=pick(["built-in", "generated", "human"]),
        max_per_gpu=seldom(1, 2, 3),
        prefer=seldom(None, (pick(wishes),), ()),
        exclusive=seldom(None, None, None, True),
        allow=seldom(None, (Selector("g*"),), (Selector(host="h0"), Selector("*/cpu"))),
        deny=seldom(None, None, (Selector("g1"),)),
        priority=seldom("batch", "interactive"),
        require=seldom(None, Require(vram_mib=pick([2048, 6144]))),
    )


def taught(chance: Random) -> Estimates:
    """Draw what was learned."""
    pick, found = chance.choice, NO_ESTIMATES
    for _ in range(pick([1, 2, 4])):
        stage, model, kind = pick("abc"), pick([None, "m"]), pick(["g0", "g1", "g2", "cpu"])
        found = found.with_run(stage, model, kind, pick([0.5, 1.0, 2.0]), speed=pick([1.0, 2.0]))
        found = found.with_load(stage, model, kind, pick([0.5, 2.0])) if pick([True, False]) else found
        found = found.with_peak(stage, model, pick([900, 3700])) if pick([True, False]) else found
        if chance.random() < 0.2:
            found = found.with_oom(stage, model, need_mib=pick([None, 6144]), too_small_mib=pick([None, 8192]))
    return found


@pytest.mark.parametrize("trials", [1_000, pytest.param(50_000, marks=pytest.mark.long)])
def test_they_agree_on_what_was_learned(trials: int) -> None:
    for i in range(trials):
        chance = Random(f"learned/{i}")
        (fleet, demand, policy), estimates = tight(chance), taught(chance)
        demand = replace(demand, work=None)
        theirs = Oracle(fleet, demand, policy, estimates).answer()
        assert answer(fleet, demand, policy, estimates) == theirs, (i, fleet, demand, policy, estimates)


def check_tight(seed: int, trials: int) -> None:
    for i in range(trials):
        trial = tight(Random(f"{seed}/{i}"))
        if differs(trial, trial.decide()) is not None:
            small = shrunk(trial, differs)
            pytest.fail(f"{differs(small, small.decide())}\n{small}")


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_where_much_is_equal(seed: int) -> None:
    check_tight(seed, trials=1_000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_they_agree_in_many_trials_where_much_is_equal(seed: int) -> None:
    check_tight(seed, trials=20_000)


def check(seed: int, policy: Policy, moments: int) -> None:
    """Ask both about moments that the policy has something to say about."""
    generator = Generator(policy, Random(seed))
    for _ in range(moments):
        fleet, demand = generator.fleet(), generator.demand()
        assert answer(fleet, demand, policy) == Oracle(fleet, demand, policy).answer()


@given(fleets(most_cards=4).flatmap(owned), demands().flatmap(worked), policies())
@settings(max_examples=200, deadline=None)
def test_they_agree_on_whatever_can_be_drawn(fleet: Fleet, demand: Demand, policy: Policy) -> None:
    assert answer(fleet, demand, policy) == Oracle(fleet, demand, policy).answer()


@given(st.integers(0, 1 << 30), policies())
@settings(max_examples=60, deadline=None)
def test_they_agree_on_fleets_at_work(seed: int, policy: Policy) -> None:
    check(seed, policy, moments=10)


@pytest.mark.long
@given(st.integers(0, 1 << 30), policies())
@settings(max_examples=1_500, deadline=None)
def test_they_agree_on_many_fleets_at_work(seed: int, policy: Policy) -> None:
    check(seed, policy, moments=20)


def test_a_loaded_stage_that_another_unit_still_uses_does_not_leave_with_the_first() -> None:
    cards = (Device(name="fast", host="h", vram_mib=32000, speed=4.0), Device(name="slow", host="h", vram_mib=32000))
    units = (
        Charge(holder=f"u{i}", device="fast", vram_mib=100, share=4, stage="s", ends_s=end) for i, end in enumerate((1.0, 50.0))
    )
    loaded = Charge(holder="s", device="fast", vram_mib=20000, kind="resident", stage="s")
    fleet = Fleet((Host(name="h"),), cards, (*units, loaded))
    demand = Demand(vram="14GiB", work=20.0, stage="t")
    assert place(fleet, demand).devices == ("slow",)
    assert answer(fleet, demand, NO_POLICY) == Oracle(fleet, demand, NO_POLICY).answer()
