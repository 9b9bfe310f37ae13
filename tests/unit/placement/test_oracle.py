"""The engine and a second writing of the format's text answer alike, on small fleets of every kind."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.cases.generate import Generator
from dgpunet_dask.placement.place import place
from dgpunet_dask.testing.fleets import demands, fleets
from dgpunet_dask.testing.oracle import Answer, Oracle
from dgpunet_dask.testing.policies import owned, policies, worked


def answer(fleet: Fleet, demand: Demand, policy: Policy) -> Answer:
    decision = place(fleet, demand, policy)
    first = {name: verdicts[0].code for name, verdicts in decision.refusals.items()}
    return Answer(first, [scored.device for scored in decision.ranking], decision.devices or decision.outcome)


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
    units = (Charge(holder=f"u{i}", device="fast", vram_mib=100, share=4, stage="s", ends_s=end) for i, end in enumerate((1.0, 50.0)))
    loaded = Charge(holder="s", device="fast", vram_mib=20000, kind="resident", stage="s")
    fleet = Fleet((Host(name="h"),), cards, (*units, loaded))
    demand = Demand(vram="14GiB", work=20.0, stage="t")
    assert place(fleet, demand).devices == ("slow",)
    assert answer(fleet, demand, NO_POLICY) == Oracle(fleet, demand, NO_POLICY).answer()
