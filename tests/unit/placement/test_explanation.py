"""Explanations as data and as lines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host, features_of
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES, device_class
from dgpunet_dask.placement.explanation import explanation, lines
from dgpunet_dask.placement.place import place
from dgpunet_dask.placement.policy_file import parse_policy
from dgpunet_dask.testing.fleets import demands, fleets
from dgpunet_dask.testing.policies import policies

FLEET = Fleet(
    (Host(name="h", roles=("batch",), cpus=4, ram_mib=8192), Host(name="c", roles=("chat",), cpus=4, power="battery")),
    (
        Device(name="big", host="h", vram_mib=24 << 10, capability=(8, 9), features=features_of((8, 9)), speed=2.0),
        Device(name="old", host="h", vram_mib=24 << 10, capability=(8, 6), features=features_of((8, 6))),
        Device(name="small", host="h", vram_mib=8 << 10, capability=(8, 9), features=features_of((8, 9))),
        Device(name="chat", host="c", vram_mib=16 << 10, capability=(8, 9), features=features_of((8, 9))),
        Device(name="h/cpu", host="h", kind="cpu", speed=0.02),
        Device(name="c/cpu", host="c", kind="cpu", speed=0.02),
    ),
)
POLICY = parse_policy(
    'version: 1\nrules:\n- {name: fp8, match: {stage: embed}, require: {vram: 10GiB, features: [fp8]}, deny: [{host: "c"}]}\n', "p.yaml"
)
BUSY = FLEET.with_charges([Charge(holder="asr-7", device="big", vram_mib=20 << 10, ends_s=41.0)])


def test_waiting_work_is_told_by_kind_of_reason_what_wakes_it_and_what_would_help() -> None:
    found = explanation(BUSY, Demand(stage="embed", model="bge"), POLICY)
    assert lines(found, "embed") == [
        f"embed: waits for big  (policy {POLICY.digest})",
        "  asks   : stage embed, model bge, vram 10GiB, features fp8, priority batch",
        "  rules  : fp8 (p.yaml:3)",
        "  never  : old  feature: needs fp8, has bf16, flash-attention-2 [p.yaml:3 (fp8)]",
        "           small  vram_total: needs 10GiB, has 8GiB [p.yaml:3 (fp8)]",
        "  by rule: c/cpu  denied: needs not host c, has host c [p.yaml:3 (fp8)] · not_allowed: needs a GPU, has a CPU",
        "           chat  denied: needs not host c, has host c [p.yaml:3 (fp8)]",
        "           h/cpu  not_allowed: needs a GPU, has a CPU",
        "  not now: big  vram_free: needs 10GiB, has 4GiB · busy: needs a free unit slot, has running asr-7",
        "  wakes  : release of big in ~41 s (held by asr-7)",
        "           join of a card with vram >= 10GiB and fp8",
        "           another policy than p.yaml:3 (fp8)",
        "  fix    : require.vram at p.yaml:3 10GiB -> 8GiB would fit small",
    ]


def test_placed_work_shows_the_ranking_and_its_parts() -> None:
    found = explanation(FLEET, Demand(stage="embed"), POLICY)
    assert (found["outcome"], found["on"], found["fix"], found["wakes"]) == ("placed", ["big"], None, [])
    assert "       1. big  100.0 = finish 100.0" in lines(found)


def test_the_seconds_of_a_unit_are_told_where_they_are_known_and_not_those_of_its_load() -> None:
    demand = Demand(stage="parse", gpus=0)
    fleet = Fleet(FLEET.hosts, tuple(device for device in FLEET.devices if device.name == "h/cpu"))
    assert explanation(fleet, demand)["run_s"] is None, "a prior is no knowledge"
    kind = device_class(fleet.devices[0])
    learned = NO_ESTIMATES.with_run("parse", None, kind, 0.02, speed=0.02).with_load("parse", None, kind, 7.0)
    assert explanation(fleet, demand, estimates=learned)["run_s"] == pytest.approx(0.02)
    assert explanation(fleet, replace(demand, work=1.0), estimates=learned)["run_s"] == 50.0, "what is stated counts"
    assert explanation(fleet, Demand(stage="parse", vram="1GiB"), estimates=learned)["run_s"] is None, "it goes nowhere"


def test_what_ends_by_itself_is_no_change_of_policy() -> None:
    owner = parse_policy("version: 1\nhosts:\n- {match: {host: c}, when: {power: mains}}\n", "p.yaml")
    trial = parse_policy("version: 1\nrules:\n- {name: probation-big, deny: [{device: big}]}\n", "g.yaml")
    chat = Fleet(FLEET.hosts, tuple(d for d in FLEET.devices if d.name == "chat"))
    big = Fleet(FLEET.hosts, tuple(d for d in FLEET.devices if d.name == "big"))
    (first, *_) = explanation(chat, Demand(vram="1GiB"), owner)["wakes"]
    assert (first["event"], first["text"]) == ("owner", "chat: power mains (now battery)")
    (first, *_) = explanation(big, Demand(vram="1GiB"), trial)["wakes"]
    assert (first["event"], first["text"]) == ("trial", "end of the trial of big")
    assert explanation(big, Demand(vram="1GiB"), trial)["fix"] is None
    assert lines(explanation(chat, Demand(vram="1GiB"), owner))[0].startswith("work: may not run yet, and waits")
    assert lines(explanation(chat, Demand(vram="99GiB"), owner))[0].startswith("work: can never run here")


def test_nothing_is_released_on_an_empty_card_that_is_kept_for_others() -> None:
    kept = parse_policy("version: 1\nreserve: [{name: chat, device: big, vram: 20GiB, for: {stage: chat}}]\n", "p.yaml")
    big = Fleet(FLEET.hosts, tuple(d for d in FLEET.devices if d.name == "big"))
    found = explanation(big, Demand(stage="embed", vram="10GiB"), kept)
    assert (found["outcome"], [wake["event"] for wake in found["wakes"]]) == ("wait", ["join", "policy"])
    assert found["wakes"][-1]["text"] == "another policy than p.yaml:2 (chat)"


def test_states_wake_by_their_end() -> None:
    fleet = Fleet(FLEET.hosts, FLEET.devices, states={"big": "lost", "old": "draining", "chat": "cordoned", "small": "cordoned"})
    texts = [wake["text"] for wake in explanation(fleet, Demand(vram="1GiB"))["wakes"]]
    assert texts[:4] == ["return of big", "end of the cordon of chat", "end of the draining of old", "end of the cordon of small"]


@given(fleets(), demands(), policies())
def test_it_says_what_place_says_is_plain_json_and_can_be_printed(fleet: Fleet, demand: Demand, policy: Policy) -> None:
    found = explanation(fleet, demand, policy)
    decision = place(fleet, demand, policy)
    assert json.loads(json.dumps(found)) == found
    assert (found["outcome"], found["on"], found["policy"]) == (decision.outcome, list(decision.devices), policy.digest)
    told = {(v["device"], v["code"]) for v in found["verdicts"]}
    assert told == {(v.device, v.code) for verdicts in decision.refusals.values() for v in verdicts}
    text = "\n".join(lines(found))
    assert all(name in text for name in decision.refusals)
