"""Generated policies, estimates and charges with ends, for property tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st

from dgpunet_dask.model.demand import PRIORITIES, Demand
from dgpunet_dask.model.fleet import Charge, Fleet, Host
from dgpunet_dask.model.policy import HostRule, Match, Policy, Preference, Require, Reserve, Rule, Selector
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.testing.fleets import STAGES
from dgpunet_dask.units import VersionSpec

USERS = ("ann", "bob", None)
ROLES = ("chat-llm", "batch")
Drawn = TypeVar("Drawn")
_GLOBS = st.sampled_from(["embed", "chat", "*", "e*", "p?se"])


def sometimes(value: st.SearchStrategy[Drawn], one_in: int = 3) -> st.SearchStrategy[Drawn | None]:
    """Draw `value` once in `one_in` times, else ``None``."""
    return st.integers(1, one_in).flatmap(lambda n: value if n == 1 else st.none())


@st.composite
def matches(draw: st.DrawFn) -> Match:
    """Draw a match of up to three keys."""
    return Match(
        stage=draw(sometimes(_GLOBS, 2)),
        user=draw(sometimes(st.sampled_from(["ann", "*", "b*"]))),
        priority=draw(sometimes(st.sampled_from([*PRIORITIES, "*"]), 4)),
    )


@st.composite
def selectors(draw: st.DrawFn) -> Selector:
    """Draw a selector of one or two keys."""
    known = [Selector(device="g1"), Selector(device="g*"), Selector(host="h0"), Selector(role="chat-llm"), Selector(card="RTX*")]
    return draw(st.sampled_from([*known, Selector(device="*/cpu"), Selector(device="g[02]", role="b*")]))


@st.composite
def preferences(draw: st.DrawFn) -> Preference:
    """Draw one weighted wish."""
    by = draw(st.sampled_from(["finish", "speed", "data_local", "selector"]))
    weight = draw(st.sampled_from([1.0, 20.0, 100.0]))
    return Preference(by, weight, draw(selectors()) if by == "selector" else None)  # type: ignore[arg-type]  # a literal, drawn


@st.composite
def rules(draw: st.DrawFn, number: int) -> Rule:
    """Draw a rule with some clauses."""
    require = Require(
        vram_mib=draw(sometimes(st.sampled_from([512, 6144, 14336]))),
        compute_capability=VersionSpec(">=8.0") if draw(st.integers(0, 4)) == 0 else None,
        role=draw(sometimes(st.sampled_from(ROLES), 5)),
    )
    return Rule(
        name=f"r{number}",
        match=draw(matches()),
        require=require if draw(st.booleans()) else None,
        allow=draw(sometimes(st.lists(selectors(), min_size=1, max_size=2).map(tuple), 5)),
        deny=draw(sometimes(st.lists(selectors(), min_size=1, max_size=1).map(tuple), 4)),
        prefer=draw(sometimes(st.lists(preferences(), min_size=1, max_size=3).map(tuple), 4)),
        max_per_gpu=draw(sometimes(st.integers(1, 4), 2)),
        exclusive=draw(sometimes(st.booleans(), 6)),
        priority=draw(sometimes(st.sampled_from(PRIORITIES), 4)),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Draw a policy; some of its clauses may be void on the fleet at hand."""
    count = draw(st.integers(0, 3))
    reserve = st.builds(
        Reserve, name=st.just("kept"), device=st.sampled_from(["g0", "g1", "h0/cpu"]), vram_mib=st.sampled_from([1024, 6144]), match=matches()
    )
    owner = st.builds(
        HostRule,
        match=selectors(),
        idle_s=sometimes(st.just(900.0)),
        power=sometimes(st.just("mains")),
        hours=sometimes(st.sampled_from([(1320, 480), (480, 1020)])),
        otherwise=st.sampled_from([frozenset(), frozenset({"interactive"}), frozenset(PRIORITIES)]),
    )
    return Policy(
        rules=tuple(draw(rules(i)) for i in range(count)),
        reserves=tuple(draw(st.lists(reserve, max_size=1))),
        hosts=tuple(draw(st.lists(owner, max_size=1))),
    )


@st.composite
def estimates(draw: st.DrawFn) -> Estimates:
    """Draw what was learned of some stages on some classes of devices."""
    found = NO_ESTIMATES
    for _ in range(draw(st.integers(0, 4))):
        stage = draw(st.sampled_from(STAGES))
        kind, seconds = draw(st.sampled_from(["g0", "RTX 3090", "cpu"])), draw(st.sampled_from([0.5, 2.0, 8.0]))
        found = found.with_run(stage, None, kind, seconds, speed=draw(st.sampled_from([1.0, 2.0])))
        if draw(st.booleans()):
            found = found.with_load(stage, None, kind, draw(st.sampled_from([0.5, 3.0])))
        if draw(st.integers(0, 3)) == 0:
            found = found.with_peak(stage, None, draw(st.sampled_from([900, 3000])))
    return found


@st.composite
def worked(draw: st.DrawFn, demand: Demand) -> Demand:
    """Draw who asks for `demand`, how urgently, and for how long."""
    return replace(
        demand,
        user=draw(st.sampled_from(USERS)),
        priority=draw(sometimes(st.sampled_from(PRIORITIES), 4)),
        work=draw(sometimes(st.sampled_from([0.25, 1.0, 10.0]), 2)),
        inputs={"g0": 1 << 20} if draw(st.integers(1, 8)) == 1 else {},
    )


@st.composite
def owned(draw: st.DrawFn, fleet: Fleet) -> Fleet:
    """Draw roles, models, what the owner does, and charges that say whose they are and when they end."""
    hosts = tuple(draw(owned_host(h)) for h in fleet.hosts)
    cards = tuple(replace(d, model=draw(st.sampled_from([None, "RTX 3090", "RTX 5090"])) if d.kind == "gpu" else None) for d in fleet.devices)
    charges = tuple(draw(owned_charge(c)) for c in fleet.charges)
    return Fleet(hosts, cards, charges, fleet.states, draw(st.sampled_from([None, 60, 720])))


@st.composite
def owned_host(draw: st.DrawFn, host: Host) -> Host:
    """Draw roles, power and presence."""
    return replace(
        host,
        roles=tuple(draw(st.lists(st.sampled_from(ROLES), max_size=2, unique=True))),
        power=draw(st.sampled_from(["mains", "battery", None])),
        idle_s=draw(st.sampled_from([None, 10.0, 3600.0])),
        link=draw(st.sampled_from([None, 1e6, 1e8])),
    )


@st.composite
def owned_charge(draw: st.DrawFn, charge: Charge) -> Charge:
    """Draw whose a charge is, how many may share with it, and when it ends."""
    if charge.kind != "activation":
        return replace(charge, reload_s=draw(st.sampled_from([None, 1.0, 9.0])))
    return replace(
        charge,
        user=draw(st.sampled_from(USERS)),
        priority=draw(st.sampled_from(PRIORITIES)),
        share=draw(st.sampled_from([None, 1, 2, 3])),
        ends_s=draw(st.sampled_from([None, 0.0, 0.5, 3.0, 20.0])),
    )
