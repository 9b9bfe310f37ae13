"""The properties hold of the engine, and each tells when the engine is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.decision import Decision, Scored
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet
from dgpunet_dask.model.policy import NO_POLICY, Policy, Rule, Selector
from dgpunet_dask.placement.cases import properties
from dgpunet_dask.placement.cases.generate import Generator
from dgpunet_dask.placement.cases.properties import PROPERTIES, Trial, failures, told
from dgpunet_dask.placement.place import place
from dgpunet_dask.testing.policies import policies

DENY = Policy((Rule(name="no", deny=(Selector(device="card1"),)),))


@given(policies(), st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None)
def test_they_hold_of_every_policy(policy: Policy, seed: int) -> None:
    assert [told(failure) for failure in failures(policy, seed, 5, Random)] == []


@pytest.mark.long
@given(policies(), st.integers(0, 1 << 30))
@settings(max_examples=1_500, deadline=None)
def test_they_hold_of_many_policies(policy: Policy, seed: int) -> None:
    assert [told(failure) for failure in failures(policy, seed, 10, Random)] == []


def careless(fleet: Fleet, demand: Demand, policy: Policy) -> Decision:
    """Take the first device by name, whatever lies on it."""
    ranking = tuple(Scored(d.name, 0.0) for d in fleet.devices)
    return Decision("placed", ranking, {}, (ranking[0].device,)) if ranking else Decision("wait")


def forgetful(fleet: Fleet, demand: Demand, policy: Policy) -> Decision:
    found = place(fleet, demand, policy)
    return replace(found, refusals=dict(list(found.refusals.items())[1:]))


def fickle(fleet: Fleet, demand: Demand, policy: Policy) -> Decision:
    """Look at the order in which hosts are written down."""
    found = place(fleet, demand, policy)
    return (
        found
        if [h.name for h in fleet.hosts] == sorted(h.name for h in fleet.hosts)
        else replace(found, ranking=(), devices=(), outcome="wait")
    )


def contrary(fleet: Fleet, demand: Demand, policy: Policy) -> Decision:
    """Take whatever was refused, where a rule asks for more."""
    found = place(fleet, demand, policy)
    return (
        replace(found, ranking=tuple(Scored(name, 0.0) for name in found.refusals))
        if any(r.name == "~" for r in policy.rules)
        else found
    )


def nominal(fleet: Fleet, demand: Demand, policy: Policy) -> Decision:
    """Score by name."""
    found = place(fleet, demand, policy)
    return replace(found, ranking=tuple(replace(s, total=float(ord(s.device[0]))) for s in found.ranking))


def hasty(fleet: Fleet, demand: Demand, policy: Policy) -> Decision:
    """Give up where something runs."""
    found = place(fleet, demand, policy)
    return replace(found, outcome="never") if fleet.charges and found.outcome == "wait" else found


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (careless, {"no card is overcommitted", "what is denied is never used", "exclusive work is alone"}),
        (forgetful, {"every device will do or is refused, with its reasons"}),
        (fickle, {"the same input gives the same output"}),
        (contrary, {"another constraint never widens"}),
        (nominal, {"renaming devices changes only ties"}),
        (hasty, {"never is for ever"}),
    ],
)
def test_each_tells_when_the_engine_is_broken(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Decision], names: set[str]
) -> None:
    monkeypatch.setattr(properties, "place", broken)
    found = {failure.name: failure for failure in failures(DENY, 0, 200, Random)}
    assert names <= set(found)
    for failure in found.values():
        assert failure.fault
        assert PROPERTIES[failure.name](failure.trial, failure.trial.decide()) == failure.fault


def test_a_failure_is_small_and_told_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "place", careless)
    failure = next(f for f in failures(DENY, 7, 200, Random) if f.name == "what is denied is never used")
    assert len(failure.trial.fleet.devices) == 1
    assert failure.trial.fleet.charges == ()
    lines = told(failure)
    assert lines[0] == "card1 will do, though no denies it"
    assert lines[1].startswith("seed 7, example ")
    assert any(line.startswith("device name=card1 host=") for line in lines)


def test_a_seed_gives_the_same_fleets() -> None:
    first, second = (Generator(NO_POLICY, Random(3)) for _ in range(2))
    assert [(first.fleet(), first.demand()) for _ in range(5)] == [(second.fleet(), second.demand()) for _ in range(5)]


def test_generated_names_are_such_as_the_policy_means() -> None:
    policy = Policy((Rule(name="r", allow=(Selector(device="big*"), Selector(role="chat"))),))
    generator = Generator(policy, Random(0))
    fleets = [generator.fleet() for _ in range(40)]
    devices: list[Device] = [d for f in fleets for d in f.gpus()]
    assert any(d.name.startswith("big") for d in devices)
    assert any(not d.name.startswith("big") for d in devices)
    assert any("chat" in h.roles for f in fleets for h in f.hosts)


def test_a_trial_decides() -> None:
    assert Trial(Fleet(), Demand(), NO_POLICY).decide().outcome == "wait"
