"""Generated policies: what facts justify, and what the text carries on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host, features_of
from dgpunet_dask.placement.derive import (
    TRIAL_UNITS,
    Standing,
    card_facts,
    derive,
    host_facts,
    measured_speed,
    read_facts,
    read_standings,
    with_units,
)
from dgpunet_dask.placement.estimate import Estimates
from dgpunet_dask.placement.fleet_file import cpu_of
from dgpunet_dask.placement.lint import lint
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.policy_file import parse_policies, parse_policy
from dgpunet_dask.units import Mib


def card(name, host="a", gib=16, capability=(8, 9), **facts):
    features = features_of(capability)
    return Device(name=name, host=host, vram_mib=gib << 10, capability=capability, features=features, driver=(550,), **facts)


def fleet(*cards, **hosts):
    names = sorted({c.host for c in cards} | set(hosts))
    return Fleet(tuple(hosts.get(name, Host(name=name, ram_mib=1 << 16, cpus=8)) for name in names), cards)


def policy_of(generated):
    return parse_policies([(one.text, f"{one.host}.yaml", "generated") for one in generated])


def standings_of(generated):
    return {name: s for one in generated for name, s in read_standings(one.text).items()}


HOME = fleet(card("big", "a", 32, (12, 0)), card("mid", "b", 24, (8, 6)), card("small", "c", 8))


def test_the_first_cards_of_a_fleet_are_not_on_trial():
    first = derive(HOME, {})
    assert [one.host for one in first] == ["a", "b", "c"]
    assert policy_of(first).rules == ()
    assert all(s.first and s.tried for s in standings_of(first).values())


def test_the_same_facts_give_the_same_text():
    first = derive(HOME, {})
    again = derive(replace(HOME, devices=HOME.devices[::-1], hosts=HOME.hosts[::-1]), standings_of(first))
    assert again == first
    for one in first:
        assert read_facts(one.text) == one.facts
        assert read_standings(one.text) == one.standings


def test_a_new_card_is_kept_from_interactive_work_until_its_units_succeeded():
    known = standings_of(derive(HOME, {}))
    larger = fleet(*HOME.devices, card("new", "d", 16))
    for done in range(TRIAL_UNITS + 1):
        generated = derive(larger, with_units(known, {"new": min(done, 1)}))
        known = standings_of(generated)
        assert known["new"].units == done
        policy = policy_of(generated)
        assert [rule.name for rule in policy.rules] == (["probation-new"] if done < TRIAL_UNITS else [])
        asked = Demand(vram="6GiB", priority="interactive")
        alone = replace(larger, devices=tuple(d for d in larger.devices if d.name == "new"))
        assert place(alone, asked, policy).outcome == ("never" if done < TRIAL_UNITS else "placed")
        assert place(alone, Demand(vram="6GiB"), policy).outcome == "placed"


def test_a_card_that_no_other_can_stand_in_for_gets_no_rule():
    known = standings_of(derive(fleet(card("small", "a", 8)), {}))
    generated = derive(fleet(card("small", "a", 8), card("new", "b", 16)), known)
    assert policy_of(generated).rules == ()
    assert not standings_of(generated)["new"].tried
    # the other way about, one can
    known = standings_of(derive(fleet(card("large", "a", 16)), {}))
    assert [r.name for r in policy_of(derive(fleet(card("large", "a", 16), card("new", "b", 8)), known)).rules] == ["probation-new"]


@pytest.mark.parametrize("stand_in", [{"cordoned": True}, {"runtime_arches": ("sm_70",)}, {"capability": (8, 0)}])
def test_what_cannot_work_stands_in_for_nobody(stand_in):
    large = replace(card("large", "a", 32), **stand_in)
    known = standings_of(derive(fleet(large), {}))
    assert policy_of(derive(fleet(large, card("new", "b", 8)), known)).rules == ()


def test_a_new_driver_starts_the_trial_again_and_other_facts_do_not():
    known = standings_of(derive(HOME, {}))
    upgraded = replace(HOME, devices=tuple(replace(d, driver=(580,)) if d.name == "small" else d for d in HOME.devices))
    generated = derive(upgraded, known)
    assert [rule.name for rule in policy_of(generated).rules] == ["probation-small"]
    assert standings_of(generated)["small"].units == 0
    slower = replace(HOME, devices=tuple(replace(d, speed=0.1, reserve_mib=5) for d in HOME.devices))
    assert [one.text for one in derive(slower, known)] == [one.text for one in derive(HOME, known)]


def test_hashes_follow_the_facts():
    one = card("x")
    for other in (replace(one, driver=(1,)), replace(one, vram_mib=1), replace(one, display=True), replace(one, runtime_arches=())):
        assert card_facts(other) != card_facts(one)
    assert card_facts(replace(one, name="y", host="z", speed=3)) == card_facts(one)
    here = Host(name="h", power="mains", idle_s=4.0)
    assert host_facts(here, [one]) == host_facts(replace(here, idle_s=100.0), [one])
    assert host_facts(here, [one]) != host_facts(replace(here, ram_mib=1), [one])
    laptop = replace(here, battery=True)
    assert host_facts(laptop, [one]) == host_facts(replace(laptop, power="battery"), [one])


LAPTOP = Host(name="lap", power="battery", battery=True, idle_s=3.0)


def test_a_laptop_among_others_is_its_owners():
    mine = card("l", "lap", display=True)
    policy = policy_of(derive(fleet(mine, card("t", "tower"), lap=LAPTOP), {}))
    (rule,) = policy.hosts
    assert (rule.power, rule.idle_s, rule.otherwise) == ("mains", 300.0, {"interactive"})
    seen = fleet(mine, card("t", "tower"), lap=LAPTOP)
    assert [v.code for v in place(seen, Demand(vram="1GiB"), policy).refusals["l"]] == ["owner"]
    assert place(replace(seen, devices=(mine,)), Demand(vram="1GiB", priority="interactive"), policy).device == "l"


@pytest.mark.parametrize(
    ("host", "display", "when"),
    [
        (LAPTOP, False, ("mains", None)),
        (Host(name="lap", battery=True, idle_s=1.0), True, (None, 300.0)),
        (Host(name="lap", battery=True), True, None),
        (Host(name="lap", power="mains", battery=False, idle_s=1.0), True, None),
    ],
)
def test_only_what_is_reported_becomes_a_condition(host, display, when):
    policy = policy_of(derive(fleet(card("l", "lap", display=display), card("t", "tower"), lap=host), {}))
    assert [(h.power, h.idle_s) for h in policy.hosts] == ([] if when is None else [when])


def test_one_machine_alone_has_no_owners_conditions():
    assert policy_of(derive(fleet(card("l", "lap", display=True), lap=LAPTOP), {})).hosts == ()


def test_a_human_entry_for_the_host_replaces_the_generated_one():
    (generated, _) = derive(fleet(card("l", "lap"), card("t", "tower"), lap=LAPTOP), {})
    own = "version: 1\nhosts:\n- {match: {host: lap}, when: {hours: '22:00-08:00'}, otherwise: []}\n"
    policy = parse_policies([(generated.text, "g.yaml", "generated"), (own, "h.yaml", "human")])
    assert [(h.power, h.hours) for h in policy.hosts] == [(None, (22 * 60, 8 * 60))]


def test_what_the_facts_refuse_is_said():
    odd = [
        replace(card("blind"), vram_mib=None),
        replace(card("new5090", capability=(12, 0)), runtime_arches=("sm_86", "sm_90")),
        replace(card("plain"), runtime_arches=(), display=True, model="RTX\n4090 Läptop"),
    ]
    (one,) = derive(fleet(*odd), {})
    assert "vram_unknown" in one.text
    assert "no code for it (sm_86, sm_90)" in one.text
    assert "built without CUDA" in one.text
    assert "A display is attached" in one.text
    assert "RTX?4090 L?ptop" in one.text
    parse_policy(one.text, "a.yaml", "generated")
    decision = place(fleet(*odd[1:]), Demand(vram="1GiB"))
    assert decision.outcome == "never"
    assert {v[0].code for v in decision.refusals.values()} == {"runtime_arch"}


def test_a_trial_makes_nothing_impossible():
    known = standings_of(derive(HOME, {}))
    larger = fleet(*HOME.devices, card("new", "d", 16))
    human = 'version: 1\nrules:\n- {name: mine, match: {user: me}, allow: [{device: new}]}\n'
    generated = [(one.text, one.host, "generated") for one in derive(larger, known)]
    decision = place(larger, Demand(vram="1GiB", priority="interactive", user="me"), parse_policies([*generated, (human, "h", "human")]))
    assert (decision.outcome, decision.final) == ("never", False)
    assert "(probation-new)" in decision.refusals["new"][0].rule


def test_broken_lines_of_state_count_as_not_there():
    assert read_standings("# card x: facts 12, 1 of 3 units\n# card y\nversion: 1") == {}
    assert read_facts("# facts: short\n") is None


def test_counting_ends_with_the_trial():
    past = {"a": Standing("f", 1), "b": Standing("f", first=True)}
    assert with_units(past, {"a": 100, "b": 5}) == {"a": Standing("f", TRIAL_UNITS), "b": Standing("f", first=True)}
    assert with_units(past, {}) == past


def test_speed_is_measured_against_other_cards():
    house = fleet(replace(card("x"), model="X", speed=1.0), replace(card("y"), model="Y", speed=2.0))
    nothing = measured_speed(house.by_name["x"], house, Estimates())
    learned = Estimates().with_run("s", "m", "X", 3.0).with_run("s", "m", "Y", 1.0)
    assert nothing is None
    assert measured_speed(house.by_name["x"], house, learned) == pytest.approx(2 / 3)
    assert measured_speed(house.by_name["y"], house, learned) == pytest.approx(3.0)


def test_the_speed_of_a_new_card_is_measured_when_its_trial_ends_and_kept():
    house = fleet(replace(card("x"), model="X", speed=1.0), replace(card("y"), model="Y", speed=2.0))
    learned = Estimates().with_run("s", "m", "X", 3.0).with_run("s", "m", "Y", 1.0)
    past = {"x": Standing(card_facts(house.by_name["x"]), 2), "y": Standing(card_facts(house.by_name["y"]), first=True)}
    assert derive(house, past, learned)[0].standings["x"].speed is None
    (ended,) = derive(house, with_units(past, {"x": 1}), learned)
    assert read_standings(ended.text)["x"] == Standing(past["x"].facts, TRIAL_UNITS, speed=0.667)
    assert read_standings(ended.text)["y"].speed is None
    slower = learned.with_run("s", "m", "X", 99.0)
    assert derive(house, read_standings(ended.text), slower)[0] == ended
    assert derive(house, read_standings(ended.text))[0] == ended


names = st.text("abcdefgh019._-", min_size=1, max_size=6).filter(lambda t: t[0].isalnum())
facts = st.fixed_dictionaries({
    "vram_mib": st.none() | st.integers(1, 1 << 20),
    "capability": st.none() | st.sampled_from([(7, 5), (8, 9), (12, 0)]),
    "driver": st.none() | st.just((550, 1)),
    "runtime_arches": st.none() | st.sampled_from([(), ("sm_86",), ("compute_120",)]),
    "display": st.none() | st.booleans(),
    "model": st.none() | st.text(max_size=12),
    "cordoned": st.booleans(),
})  # fmt: skip
hosts = st.fixed_dictionaries({
    "power": st.sampled_from([None, "mains", "battery"]),
    "battery": st.none() | st.booleans(),
    "idle_s": st.none() | st.floats(0, 1e6),
})  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, st.tuples(st.integers(0, 2), facts), max_size=5), st.lists(hosts, min_size=3, max_size=3), st.data())
def test_any_facts_give_a_policy_that_parses_and_bars_nothing_for_ever(cards, machines, data):
    devices = [Device(name=name, host=f"h{at}", **fact) for name, (at, fact) in cards.items()]
    here = tuple(Host(name=f"h{i}", **m) for i, m in enumerate(machines))
    found = Fleet(here, (*devices, *map(cpu_of, here)))
    known = data.draw(st.sets(st.sampled_from(sorted(cards)))) if cards else set()
    past = {d.name: Standing(card_facts(d), first=True) for d in devices if d.name in known}
    generated = derive(found, past)
    policy = policy_of(generated)
    assert standings_of(generated).keys() == cards.keys()
    assert lint(policy, found) == ()
    # what could run without the trials can run with them
    for vram in (None, Mib.of(1), Mib.of(8 << 10)):
        asked = Demand(vram=vram, priority="interactive")
        assert (place(found, asked).outcome == "never") == (place(found, asked, policy).outcome == "never")
