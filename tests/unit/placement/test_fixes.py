"""The nearest fix: the smallest change that helps, and that it does help."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.model.decision import REASON_ORDER
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host, features_of
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES
from dgpunet_dask.placement.fixes import LIFTS, nearest
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.policy_file import parse_policy
from dgpunet_dask.testing.fleets import demands, fleets
from dgpunet_dask.testing.policies import policies


def card(name: str, gib: int, cc: tuple[int, int], host: str = "h", **more: object) -> Device:
    return Device(name=name, host=host, vram_mib=gib << 10, capability=cc, features=features_of(cc), **more)  # type: ignore[arg-type]


FLEET = Fleet(
    (Host(name="h", roles=("batch",), cpus=4, ram_mib=8192), Host(name="c", roles=("chat",), cpus=4, ram_mib=65536, power="battery")),
    (
        card("old", 24, (8, 6), driver=(550, 90)),
        card("new", 8, (8, 9), reserve_mib=512),
        card("chat", 16, (8, 9), host="c"),
        Device(name="h/cpu", host="h", kind="cpu", speed=0.02),
    ),
)
CARDS = Fleet(FLEET.hosts, tuple(FLEET.gpus()))
FULL = [Charge(holder="x", device="old", vram_mib=20 << 10, share=4), Charge(holder="y", device="chat", vram_mib=12 << 10, share=4)]

CASES = [
    ({"vram": "30GiB"}, "", "vram 30GiB -> 24GiB would fit old"),
    ({"vram": "10GiB", "features": ["fp8"]}, "deny: [{role: chat}]", "vram 10GiB -> 7680MiB would fit new"),
    ({"vram": "10GiB", "features": ["fp4"]}, "", "features fp4 -> none would fit chat"),
    ({"vram": "20GiB", "compute_capability": ">=8.9"}, "", "vram 20GiB -> 16GiB would fit chat"),
    ({"vram": "24GiB", "compute_capability": ">=8.9"}, "", "vram 24GiB -> 16GiB would fit chat"),
    ({"vram": "1GiB", "driver": ">=580"}, "", "driver >=580 -> >=550.90 would fit old"),
    ({"vram": "1GiB"}, "require: {ram: 128GiB}", "require.ram at p.yaml:3 128GiB -> 64GiB would fit chat"),
    ({"vram": "1GiB", "cpus": 8}, "", "cpus 8 -> 4 would fit chat"),
    ({"vram": "20GiB"}, "deny: [{device: old}]", "vram 20GiB -> 16GiB would fit chat"),
    ({"vram": "1GiB"}, "deny: [{device: '*'}]", "remove deny (device *) at p.yaml:3 would fit chat"),
    ({"vram": "1GiB"}, "allow: [{device: none}]", "add {device: chat} to allow at p.yaml:3 would fit chat"),
    ({"vram": "1GiB"}, "require: {role: media}", "remove require.role media at p.yaml:3 would fit chat"),
    ({"vram": "12GiB"}, "require: {vram: 40GiB}", "require.vram at p.yaml:3 40GiB -> 24GiB would fit old"),
    ({"vram": "20GiB", "gpus": 2}, "", "vram 20GiB -> 16GiB would fit chat"),
    ({"gpus": 4, "vram": "1GiB"}, "", "gpus -> 3 would fit chat"),
]


def policy_of(clause: str) -> Policy:
    return parse_policy(f"version: 1\nrules:\n- {{name: r, {clause}}}\n", "p.yaml") if clause else NO_POLICY


@pytest.mark.parametrize(("demand", "clause", "told"), CASES)
def test_the_smallest_change_is_named_and_helps(demand: dict[str, object], clause: str, told: str) -> None:
    policy = policy_of(clause)
    assert place(FLEET, Demand.parse(demand), policy).outcome == "never"
    fix = nearest(FLEET, Demand.parse(demand), policy)
    assert fix is not None
    assert str(fix) == told
    assert fix.device in {s.device for s in place(FLEET, fix.demand, fix.policy).ranking}


def test_waiting_work_is_told_what_would_start_it_now() -> None:
    busy = FLEET.with_charges(FULL)
    policy = policy_of("share: {max_per_gpu: 4}, deny: [{device: new}]")
    fix = nearest(busy, Demand(vram="10GiB"), policy)
    assert str(fix) == "vram 10GiB -> 4GiB would fit chat"
    assert place(busy, Demand(vram="4GiB"), policy).outcome == "placed"
    whole = nearest(busy, Demand(), policy)
    assert str(whole) == "vram not stated, the whole card -> 4GiB would fit chat"


def test_work_that_will_do_needs_no_fix_and_some_has_none() -> None:
    assert nearest(FLEET, Demand(vram="1GiB"), NO_POLICY) is None
    assert nearest(Fleet(), Demand(vram="1GiB"), NO_POLICY) is None
    unknown = Fleet((Host(name="h"),), (Device(name="x", host="h"),))
    assert nearest(unknown, Demand(vram="1GiB"), NO_POLICY) is None, "memory that a card does not report is no matter of words"


def test_a_learned_peak_is_not_argued_with() -> None:
    learned = NO_ESTIMATES.with_peak("llm", None, 40 << 10)
    assert str(nearest(FLEET, Demand(stage="llm"), NO_POLICY, learned)) == "cpu_ok: true would fit h/cpu"


def test_the_resident_part_is_not_cut() -> None:
    fix = nearest(FLEET, Demand(vram="30GiB", resident="20GiB"), NO_POLICY)
    assert str(fix) == "vram 30GiB -> 24GiB would fit old"
    assert nearest(CARDS, Demand(vram="30GiB", resident="26GiB"), NO_POLICY) is None


def test_an_owner_who_is_in_the_way_can_be_asked() -> None:
    policy = parse_policy('version: 1\nhosts:\n- {match: {host: "*"}, when: {power: mains}, otherwise: [interactive]}\n', "p.yaml")
    fix = nearest(FLEET, Demand(vram="1GiB"), policy)
    assert str(fix) == "add batch to otherwise of host * at p.yaml:3 would fit chat"
    assert fix is not None
    assert place(FLEET, fix.demand, fix.policy).outcome == "placed"


@given(fleets(), demands(), policies(), st.booleans())
def test_whatever_is_named_helps(fleet: Fleet, demand: Demand, policy: Policy, busy: bool) -> None:
    fleet = fleet if busy else fleet.with_charges([])
    decision = place(fleet, demand, policy)
    fix = nearest(fleet, demand, policy)
    if decision.ranking:
        assert fix is None
    if fix is None:
        return
    assert fix.changes
    after = place(fleet, fix.demand, fix.policy)
    refused = after.refusals.get(fix.device, ())
    assert not any(v.never for v in refused)
    assert fix.at_once == (fix.device in {s.device for s in after.ranking})
    assert fix.at_once or decision.outcome == "never"


def test_every_code_that_words_can_lift_has_a_fix() -> None:
    left = {"vram_unknown", "runtime_arch", "lost", "draining", "cordoned", "exclusive", "share_limit", "busy"}
    assert set(LIFTS) == set(REASON_ORDER) - left
