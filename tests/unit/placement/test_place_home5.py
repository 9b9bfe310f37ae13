"""Small clusters written down: what runs, what is asked, where it goes and why not elsewhere. The fleet is the shipped one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, DeviceState, Fleet
from dgpunet_dask.placement.place import charges_of, place
from dgpunet_dask.placement.resolve import resolve


@dataclass(frozen=True)
class Case:
    """`on` is the chosen devices, or the outcome; `then` the ranking that follows; `reasons` all codes of a device, in order."""

    name: str
    submit: dict[str, Any]
    on: str
    then: list[str] | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    running: list[Charge] = field(default_factory=list)
    states: dict[str, DeviceState] = field(default_factory=dict)
    evict: list[str] = field(default_factory=list)


def unit(device: str, gib: float, **fields: Any) -> Charge:
    return Charge(holder=f"unit-{device}", device=device, vram_mib=int(gib * 1024), **fields)


def loaded(device: str, stage: str, gib: float, evictable: bool = True) -> Charge:
    return Charge(holder=stage, device=device, vram_mib=int(gib * 1024), kind="resident", stage=stage, evictable=evictable)


ALL_LOST: dict[str, DeviceState] = dict.fromkeys(["3090", "4070l", "4080l", "4090l", "5090"], "lost")

CASES = [
    Case(
        "fp8 goes to the fastest card that has it",
        {"stage": "embed", "vram": "10GiB", "features": ["fp8"]},
        on="5090", then=["4090l", "4080l"],
        reasons={"3090": "feature", "4070l": "vram_total", "xps17/cpu": "not_allowed"},
    ),
    Case(
        "a card fails for each of its reasons",
        {"vram": "30GiB", "compute_capability": ">=8.9", "features": ["fp8"], "driver": ">=550", "ram": "100GiB", "cpus": 14},
        on="never",
        reasons={
            "3090": "vram_total host_cpus compute_capability feature driver",
            "4080l": "vram_total host_ram driver",
            "5090": "driver",
            "g16/cpu": "not_allowed host_ram",
        },
    ),
    Case("fp4 is for the newest card alone", {"vram": "1GiB", "features": ["fp4"]}, on="5090", then=[], reasons={"4090l": "feature"}),
    Case("12.0 is more than 8.9", {"vram": "1GiB", "compute_capability": ">8.9"}, on="5090", then=[]),
    Case("nothing holds 48 GiB", {"vram": "48GiB"}, on="never", reasons={"5090": "vram_total", "g16/cpu": "not_allowed"}),
    Case("the reserve is not for us", {"vram": "32GiB"}, on="never", reasons={"5090": "vram_total"}),
    Case("all but the reserve is", {"vram": "32256MiB"}, on="5090", then=[]),
    Case(
        "vram not stated takes the whole card",
        {"stage": "llm"},
        on="3090", then=["4080l", "4070l"],
        running=[loaded("5090", "chat", 1, evictable=False), unit("4090l", 1)],
        reasons={"5090": "vram_free", "4090l": "vram_free busy"},
    ),
    Case(
        "one unit at a time on a card, and it waits for the only one that fits",
        {"vram": "20GiB", "features": ["fp8"]},
        on="wait", running=[unit("5090", 1)],
        reasons={"5090": "busy", "4090l": "vram_total"},
    ),
    Case(
        "a loaded model that is in use leaves less room",
        {"vram": "10GiB", "features": ["fp8"]},
        on="4090l", then=["4080l"], running=[loaded("5090", "chat", 25, evictable=False)],
        reasons={"5090": "vram_free"},
    ),
    Case(
        "idle models make room, the smallest first",
        {"vram": "10GiB", "features": ["fp8"], "work": 100},
        on="5090", then=["4090l", "4080l"], evict=["asr", "pose"],
        running=[loaded("5090", "chat", 20), loaded("5090", "pose", 2), loaded("5090", "asr", 4)],
    ),
    Case(
        "what would be loaded again for long stays where another card does it sooner",
        {"vram": "10GiB", "features": ["fp8"], "work": 1},
        on="4090l", then=["4080l", "5090"],
        running=[loaded("5090", "chat", 20), loaded("5090", "pose", 2), loaded("5090", "asr", 4)],
    ),
    Case(
        "small ones stay where they are not needed after all",
        {"vram": "20GiB", "features": ["fp8"]},
        on="5090", then=[], evict=["chat"],
        running=[loaded("5090", "chat", 20), loaded("5090", "pose", 2), loaded("5090", "asr", 4)],
    ),
    Case(
        "a stage's own loaded part counts as its own",
        {"stage": "embed", "vram": "30GiB", "resident": "20GiB"},
        on="5090", then=[], running=[loaded("5090", "embed", 20)],
    ),
    Case(
        "alone on the card",
        {"vram": "1GiB", "exclusive": True},
        on="4090l", then=["3090", "4080l", "4070l"], running=[loaded("5090", "chat", 1, evictable=False)],
        reasons={"5090": "exclusive"},
    ),
    Case(
        "alone on the card sends idle models away",
        {"vram": "1GiB", "exclusive": True, "work": 10},
        on="5090", evict=["chat"], running=[loaded("5090", "chat", 1)],
    ),
    Case(
        "nobody joins one that is alone",
        {"vram": "1GiB"}, on="4090l", running=[unit("5090", 1, exclusive=True)], reasons={"5090": "exclusive busy"},
    ),
    Case(
        "each state has its name",
        {"vram": "1GiB"},
        on="5090", then=[],
        states={"3090": "lost", "4070l": "draining", "4080l": "cordoned", "4090l": "paused"},
        reasons={"3090": "lost", "4070l": "draining", "4080l": "cordoned", "4090l": "busy"},
    ),
    Case("a lost fleet may come back", {"vram": "1GiB"}, on="wait", states=ALL_LOST),
    Case(
        "a CPU stands in for cards that are away",
        {"vram": "1GiB", "cpu_ok": True}, on="g16/cpu", states=ALL_LOST, reasons={"5090": "lost"},
    ),
    Case("a CPU will do where no card ever can", {"vram": "48GiB", "cpu_ok": True, "features": ["fp8"]}, on="g16/cpu", then=[
        "m18r2/cpu", "tower3090/cpu", "tower5090/cpu", "xps17/cpu"]),
    Case(
        "a CPU takes units until its cores are taken",
        {"vram": "48GiB", "cpu_ok": True, "cpus": 8},
        on="m18r2/cpu",
        running=[Charge(holder="a", device="g16/cpu", cpus=8), Charge(holder="b", device="g16/cpu", cpus=5)],
        reasons={"g16/cpu": "busy"},
    ),
    Case(
        "or its memory",
        {"vram": "48GiB", "cpu_ok": True, "ram": "40GiB"},
        on="m18r2/cpu",
        running=[Charge(holder="a", device="g16/cpu", ram_mib=30 << 10)],
        reasons={"g16/cpu": "busy"},
    ),
    Case(
        "no card asked for, none given",
        {"gpus": 0, "ram": "100GiB"}, on="tower3090/cpu", then=["tower5090/cpu"],
        reasons={"5090": "not_allowed", "4090l": "not_allowed host_ram", "g16/cpu": "host_ram"},
    ),
    Case("two cards at once", {"vram": "10GiB", "gpus": 2}, on="5090 4090l", then=None, reasons={"4070l": "vram_total"}),
    Case(
        "all of them or none",
        {"vram": "14GiB", "gpus": 3}, on="wait", running=[unit("3090", 1)],
        reasons={"5090": "busy", "4090l": "busy", "3090": "busy", "4080l": "vram_total"},
    ),
    Case(
        "more cards than the fleet has",
        {"vram": "14GiB", "gpus": 4, "cpu_ok": True}, on="never",
        reasons={"5090": "not_allowed", "4080l": "vram_total", "g16/cpu": "not_allowed"},
    ),
    Case("no host has two cards", {"gpus": 2, "same_host": True}, on="never", reasons={"5090": "not_allowed"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(home5: Fleet, case: Case) -> None:
    fleet = replace(home5, charges=tuple(case.running), states=case.states)
    decision = place(fleet, Demand(**case.submit))
    assert (" ".join(decision.devices) or decision.outcome) == case.on
    if case.then is not None:
        assert [s.device for s in decision.ranking][1:] == case.then
    assert {name: " ".join(v.code for v in decision.refusals[name]) for name in case.reasons} == case.reasons
    assert list(decision.evict) == case.evict


def test_same_speed_prefers_the_card_that_leaves_less_over_then_the_lower_name(home5: Fleet) -> None:
    even = replace(home5, devices=tuple(replace(d, speed=1.0) for d in home5.devices))
    ranking = place(even, Demand(vram="6GiB")).ranking
    assert [s.device for s in ranking] == ["4070l", "4080l", "4090l", "3090", "5090"]
    twins = replace(home5, devices=tuple(replace(d, speed=1.0, vram_mib=8192) for d in home5.devices if d.kind == "gpu"))
    assert [s.device for s in place(twins, Demand(vram="6GiB")).ranking] == ["3090", "4070l", "4080l", "4090l", "5090"]


def test_same_host_takes_the_host_with_the_best_cards(home5: Fleet) -> None:
    paired = {"4090l": "left", "4080l": "left", "3090": "right", "5090": "right", "4070l": "left"}
    hosts = tuple(replace(home5.hosts[0], name=name) for name in ("left", "right"))
    fleet = Fleet(hosts, tuple(replace(d, host=paired[d.name]) for d in home5.gpus()))
    assert place(fleet, Demand(vram="6GiB", gpus=2, same_host=True)).devices == ("5090", "3090")
    assert place(fleet, Demand(vram="6GiB", gpus=3, same_host=True)).devices == ("4090l", "4080l", "4070l")
    decision = place(fleet, Demand(vram="6GiB", gpus=3, same_host=True))
    assert [v.code for v in decision.refusals["5090"]] == ["not_allowed"]


def test_scores_are_named_parts_of_the_total(home5: Fleet) -> None:
    best = place(home5, Demand(vram="1GiB")).ranking[0]
    assert (best.device, best.total, best.parts) == ("5090", 100.0, {"finish": 100.0})


def test_an_empty_fleet_waits() -> None:
    decision = place(Fleet(), Demand(vram="1GiB"))
    assert (decision.outcome, decision.device, decision.summary()) == ("wait", None, "the fleet is empty")


def test_a_card_that_does_not_tell_its_vram_says_so(home5: Fleet) -> None:
    mute = replace(home5, devices=tuple(replace(d, vram_mib=None) for d in home5.devices))
    assert {v.code for v in place(mute, Demand(vram="1GiB")).first_verdicts} == {"vram_unknown", "not_allowed"}
    assert place(mute, Demand(vram="0MiB")).device == "5090"


def test_a_runtime_that_was_not_built_for_a_card_keeps_it_out(home5: Fleet) -> None:
    built = replace(home5, devices=tuple(replace(d, runtime_arches=("sm_80", "sm_89")) for d in home5.devices))
    decision = place(built, Demand(vram="1GiB"))
    assert decision.device == "4090l"
    assert [(v.code, v.need, v.have) for v in decision.refusals["5090"]] == [
        ("runtime_arch", "a runtime built for 12.0", "sm_80, sm_89")
    ]


def test_the_charge_is_what_the_decision_counted_on(home5: Fleet) -> None:
    demand = Demand(stage="embed", vram="8GiB", resident="3GiB", ram="2GiB", cpus=2)
    fleet = home5.with_charges([loaded("5090", "embed", 3)])
    (charge,) = charges_of(fleet, resolve(demand), place(fleet, demand), "unit-1")
    assert charge == Charge(holder="unit-1", device="5090", vram_mib=5 << 10, ram_mib=2 << 10, cpus=2, stage="embed", priority="batch")
