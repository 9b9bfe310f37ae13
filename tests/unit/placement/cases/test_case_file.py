"""Policy test files: what they may say, and each mistake at its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import MalformedFile, NewerFormat
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Fleet
from dgpunet_dask.model.policy import NO_POLICY, Policy, Rule
from dgpunet_dask.placement.cases.case_file import parse_cases, references
from dgpunet_dask.placement.cases.values import Burst, Case, Count, Suite, Want
from dgpunet_dask.placement.fleet_file import parse_fleet
from tests.helpers import ROOT

HOME5 = parse_fleet((ROOT / "policies" / "fleets" / "home5.yaml").read_text(encoding="utf-8"), "home5.yaml")
HEAD = "version: 1\nfleet: f.yaml\ncases:\n"
SMALL = HEAD + "- name: a\n  submit: {stage: s}\n  want: wait\n"


def parse(text: str, fleet: Fleet | None = HOME5, policy: Policy | None = NO_POLICY) -> Suite:
    return parse_cases(text, "t.yaml", fleet, policy)


def only(body: str, policy: Policy = NO_POLICY) -> Case:
    (case,) = parse(HEAD + f"- name: a\n  submit: {{stage: s}}\n  want: wait\n{body}", policy=policy).cases
    return case


def mistakes(text: str, fleet: Fleet | None = HOME5, policy: Policy | None = NO_POLICY) -> list[str]:
    with pytest.raises(MalformedFile) as caught:
        parse(text, fleet, policy)
    return [line.removeprefix("t.yaml:") for line in str(caught.value).splitlines()]


def test_the_documented_example() -> None:
    suite = parse(
        """\
version: 1
fleet: ../fleets/home5.yaml
policies: [../home5.yaml]
cases:
- name: fp8 goes to the fastest allowed card
  running: [{demand: {stage: chat, vram: 14GiB}, on: 4090l}]
  submit: {stage: embed, model: bge-fp8, vram: 10GiB}
  want: {on: "5090", then: [4080l]}              # `then`: the ranking that follows, or its beginning
  reasons: {"3090": compute_capability, 4070l: vram_total, 4090l: denied}
- name: a burst spreads by earliest finish
  submit_all: {count: 10, demand: {stage: embed, vram: 4GiB, work: 10s}}
  want: {placed: {"5090": ">=3", 4070l: "<=1"}, makespan_at_most: 40s}   # shape only; devices left out are free
"""
    )
    one, burst = suite.cases
    assert one == Case(
        name="fp8 goes to the fastest allowed card",
        line=5,
        fleet=HOME5.with_charges(
            [Charge(holder="running 1", device="4090l", vram_mib=14336, cpus=1, kind="lease", stage="chat", priority="batch")]
        ),
        want=Want(on=("5090",), then=("4080l",)),
        submit=Demand(stage="embed", model="bge-fp8", vram="10GiB"),
        reasons={"3090": "compute_capability", "4070l": "vram_total", "4090l": "denied"},
    )
    assert burst.bursts == (Burst(10, Demand(stage="embed", vram="4GiB", work=10)),)
    assert burst.want == Want(placed={"5090": Count(">=", 3), "4070l": Count("<=", 1)}, makespan_s=40)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("wait", Want(outcome="wait")),
        ("never", Want(outcome="never")),
        ("{on: 4090l}", Want(on=("4090l",))),
        ("{on: [4090l], then: 4080l}", Want(on=("4090l",), then=("4080l",))),
    ],
)
def test_what_may_be_wanted_of_one_unit(text: str, want: Want) -> None:
    (case,) = parse(HEAD + f"- name: a\n  submit: {{}}\n  want: {text}\n").cases
    assert (case.want, case.submit) == (want, Demand())


@pytest.mark.parametrize(("text", "count"), [("3", "==3"), ('"3"', "==3"), ('"==3"', "==3"), ('"> 2"', ">2"), ('"<7"', "<7")])
def test_counts(text: str, count: str) -> None:
    (case,) = parse(HEAD + f"- name: a\n  submit_all: [{{count: 1, demand: {{}}}}]\n  want: {{placed: {{4090l: {text}}}}}\n").cases
    assert str(case.want.placed["4090l"]) == count


@pytest.mark.parametrize(
    ("count", "units", "holds"),
    [(">=3", 3, True), (">=3", 2, False), ("<=1", 1, True), (">2", 2, False), ("<2", 1, True), ("==0", 0, True)],
)
def test_counts_compare(count: str, units: int, holds: bool) -> None:
    sign = count.rstrip("0123456789")
    assert Count(sign, int(count[len(sign) :])).holds(units) is holds


def test_the_moment_that_a_case_describes() -> None:
    case = only(
        """\
  at: "23:30"
  hosts: {m18r2: {idle: 20m, power: battery, ram: 1GiB, cpus: 2}}
  states: {4090l: lost, "5090": draining}
  foreign: {4070l: 3GiB}
  resident: [{stage: chat, model: m, on: 4080l, vram: 6GiB, reload: 9s}]
"""
    )
    assert case.fleet.minute == 23 * 60 + 30
    host = case.fleet.host_by_name["m18r2"]
    assert (host.idle_s, host.power, host.ram_mib, host.cpus, host.roles) == (1200, "battery", 1024, 2, ("head", "chat-llm"))
    assert case.fleet.host_by_name["g16"] == HOME5.host_by_name["g16"]
    assert case.fleet.states == {"4090l": "lost", "5090": "draining"}
    assert case.fleet.charges == (
        Charge(holder="other programs", device="4070l", vram_mib=3072, kind="foreign"),
        Charge(
            holder="chat loaded",
            device="4080l",
            vram_mib=6144,
            kind="resident",
            stage="chat",
            model="m",
            evictable=True,
            reload_s=9,
        ),
    )


def test_what_runs_is_a_unit_where_it_states_its_work_and_a_lease_where_not() -> None:
    case = only("  running: [{demand: {work: 8, vram: 2GiB}, on: 4070l}, {demand: {vram: 2GiB}, on: 4080l}]\n")
    unit, lease = case.fleet.charges
    assert (unit.kind, unit.ends_s, unit.vram_mib) == ("activation", 10.0, 2048)
    assert (lease.kind, lease.ends_s, lease.share) == ("lease", None, None)


def test_what_runs_alone_takes_its_slot() -> None:
    (charge,) = only("  running: [{demand: {exclusive: true}, on: 4070l}]\n").fleet.charges
    assert (charge.kind, charge.exclusive, charge.ends_s, charge.vram_mib) == ("activation", True, None, 7680)


def test_what_runs_does_so_under_the_policy() -> None:
    policy = Policy((Rule(name="r", max_per_gpu=2, priority="idle"),))
    first, second = only(
        "  running: [{demand: {work: 8, vram: 1GiB}, on: 4070l}, {demand: {work: 8, vram: 1GiB}, on: 4070l}]\n", policy
    ).fleet.charges
    assert (first.share, first.priority, first.ends_s) == (2, "idle", 20.0)
    assert second.ends_s == 20.0


def test_a_loaded_stage_that_runs_is_not_idle_and_is_charged_once() -> None:
    loaded, unit = only(
        "  resident: [{stage: c, on: 4080l, vram: 6GiB}]\n  running: [{demand: {stage: c, vram: 8GiB, work: 1s}, on: 4080l}]\n"
    ).fleet.charges
    assert (loaded.evictable, unit.vram_mib) == (False, 2048)


def test_one_unit_may_run_on_two_cards() -> None:
    charges = only('  running: [{demand: {gpus: 2, vram: 4GiB}, on: ["3090", "5090"]}]\n').fleet.charges
    assert {c.device for c in charges} == {"3090", "5090"}


def test_files_that_are_named() -> None:
    text = "version: 1\nfleet: ../f.yaml\npolicies: [a.yaml, {file: b.yaml, layer: generated}, 3, {file: c.yaml, layer: x}]\n"
    named = references(text, "t.yaml")
    assert named.fleet is not None
    assert named.fleet[:3] == ("../f.yaml", 2, 8)
    assert [(p.path, p.layer, p.line, p.col) for p in named.policies] == [
        ("a.yaml", None, 3, 12),
        ("b.yaml", "generated", 3, 20),
    ]


def test_nothing_is_named_in_a_file_of_another_shape() -> None:
    assert references("- 1\n", "t.yaml") == (None, ())
    assert references("fleet: 3\npolicies: x\n", "t.yaml") == (None, ())


def case(line: str) -> str:
    return HEAD + f"- name: a\n  {line}\n  want: wait\n"


def submitted(demand: str) -> str:
    return case(f"submit: {{{demand}}}")


def wanted(want: str, submit: str = "submit: {stage: s}") -> str:
    return HEAD + f"- name: a\n  {submit}\n  want: {want}\n"


BURST = "submit_all: {count: 1, demand: {}}"
MALFORMED = [
    ("cases: [\n", "2:1", "not valid YAML"),
    ("", "1:1", "mapping"),
    ("- 1\n", "1:1", "mapping"),
    ("version: 1\ncases: []\n", "1:1", "'fleet' is missing"),
    ("version: 1\nfleet: f\n", "1:1", "'cases' is missing"),
    ("version: 0\nfleet: f\ncases: []\n", "1:10", "write 1"),
    ("version: 1\nfleet: 3\ncases: []\n", "2:8", 'in quotes: "3"'),
    ("version: 1\nfleet: f\npolicies: p\ncases: []\n", "3:11", "list"),
    ("version: 1\nfleet: f\npolicies: [{file: p, layer: x}]\ncases: []\n", "3:29", "'human'"),
    ("version: 1\nfleet: f\nflet: g\ncases: []\n", "3:1", "did you mean 'fleet'?"),
    (HEAD + "- 3\n", "4:3", "mapping"),
    (HEAD + "- {submit: {}, want: wait}\n", "4:3", "'name' is missing"),
    (HEAD + '- {name: "", submit: {}, want: wait}\n', "4:10", "name"),
    (HEAD + "- {name: 3, submit: {}, want: wait}\n", "4:10", 'in quotes: "3"'),
    (SMALL + "- {name: a, submit: {}, want: wait}\n", "7:10", "taken by the case in line 4"),
    (HEAD + "- {name: a, want: wait}\n", "4:3", "submits nothing"),
    (HEAD + "- {name: a, submit: {}}\n", "4:3", "'want' is missing"),
    (HEAD + "- {name: a, submit: {}, submit_all: {count: 1, demand: {}}, want: wait}\n", "4:3", "not both"),
    (case("submit: 3"), "5:11", "mapping"),
    (submitted("vram: 10"), "5:18", "write it with its unit"),
    (submitted("vram: [1]"), "5:12", "unit"),
    (submitted("vram:"), "5:17", "a value is missing"),
    (submitted("work: -3"), "5:18", "0 s or more"),
    (submitted("work: soon"), "5:18", "10s, 15m or 2h"),
    (submitted("stage: 3090"), "5:19", 'in quotes: "3090"'),
    (submitted("stag: s"), "5:12", "did you mean 'stage'?"),
    (submitted("priority: urgent"), "5:22", "interactive, batch, idle"),
    (submitted("exclusive: yes"), "5:23", "true or false"),
    (submitted("gpus: two"), "5:18", "whole number"),
    (submitted("compute_capability: 8.9"), "5:32", 'quoted, as ">=8.9"'),
    (submitted("features: bf16"), "5:22", 'write a list, as ["bf16"]'),
    (submitted("features: 3"), "5:22", "features"),
    (submitted("vram: 1GiB, resident: 2GiB"), "5:3", "part of vram"),
    (submitted("inputs: 3"), "5:20", "mapping of sizes"),
    (submitted("inputs: {g16: -1}"), "5:26", "size such as 2GiB"),
    (submitted("inputs: {g17: 1GiB}"), "5:21", "did you mean 'g16'?"),
    (wanted("waits"), "6:9", "'wait' or 'never'"),
    (wanted("3"), "6:9", "mapping"),
    (wanted("{}"), "6:3", "say where"),
    (wanted("{than: [4090l]}"), "6:10", "did you mean 'then'?"),
    (wanted("{on: 4090}"), "6:14", 'in quotes: "4090"'),
    (wanted("{on: 4090x}"), "6:14", "did you mean '4090l'?"),
    (wanted("{on: [4090l, 4080l]}"), "6:10", "2 name(s), but the demand takes 1"),
    (wanted("{on: 4090l}", "submit: {gpus: 2}"), "6:14", "1 name(s), but the demand takes 2"),
    (wanted("{on: [4090l, 4090l]}", "submit: {gpus: 2}"), "6:10", "each card once"),
    (wanted("{on: 4090l, then: [4080l, x]}"), "6:35", "no device 'x'"),
    (wanted("{placed: {4090l: 3}}"), "6:10", "`placed` goes with `submit_all`"),
    (wanted("{on: 4090l}", BURST), "6:10", "`on` goes with `submit`"),
    (wanted("{}", BURST), "6:3", "say what"),
    (wanted("wait", BURST), "6:9", "not a word"),
    (wanted("{placed: {4090l: some}}", BURST), "6:26", "number of units"),
    (wanted("{placed: {4090x: 3}}", BURST), "6:19", "did you mean '4090l'?"),
    (wanted("{makespan_at_most: -1s}", BURST), "6:28", "10s, 15m or 2h"),
    (wanted("{placed: {4090l: 1}}", "submit_all: {count: 0, demand: {}}"), "5:23", "at least 1"),
    (wanted("{placed: {4090l: 1}}", "submit_all: {count: 1, demnd: {}}"), "5:26", "did you mean 'demand'?"),
    (wanted("{placed: {4090l: 1}}", "submit_all: []"), "5:3", "at least 1"),
    (wanted("{placed: {4090l: 1}}", "submit_all: [{count: 1, demand: {vram: 1}}]"), "5:42", "unit"),
    (SMALL + "  reasons: {4090l: deny}\n", "7:20", "did you mean 'denied'?"),
    (SMALL + "  reasons: {4091l: denied}\n", "7:13", "did you mean '4090l'?"),
    (SMALL + "  reasons: {4090l: 3}\n", "7:20", "in quotes"),
    (SMALL + '  at: "24:00"\n', "7:7", "local time"),
    (SMALL + "  at: 5\n", "7:7", "local time"),
    (SMALL + "  hosts: {m18r3: {}}\n", "7:11", "did you mean 'm18r2'?"),
    (SMALL + "  hosts: {m18r2: {power: solar}}\n", "7:26", "'mains' or 'battery'"),
    (SMALL + "  hosts: {m18r2: {idle: long}}\n", "7:25", "10s, 15m or 2h"),
    (SMALL + "  states: {4090l: broken}\n", "7:19", "'lost'"),
    (SMALL + "  states: {4091: lost}\n", "7:12", "quotes"),
    (SMALL + "  foreign: {4090l: 3}\n", "7:20", "unit"),
    (SMALL + "  foreign: {4090l: 30GiB}\n", "7:20", "30GiB would lie on its 16GiB"),
    (SMALL + "  resident: [{stage: s, vram: 1GiB}]\n", "7:14", "'on' is missing"),
    (SMALL + "  resident: [{stage: s, on: 4070l, vram: 9GiB}]\n", "7:14", "9GiB would lie on its 7680MiB"),
    (SMALL + "  running: [{demand: {vram: 9GiB}, on: 4070l}]\n", "7:13", "9GiB would lie on its 7680MiB"),
    (SMALL + "  running: [{demand: {vram: 4GiB}, on: 4070l}, {demand: {vram: 4GiB}, on: 4070l}]\n", "7:48", "8GiB would lie"),
    (SMALL + "  running: [{demand: {vrm: 4GiB}, on: 4070l}]\n", "7:23", "did you mean 'vram'?"),
    (SMALL + "  running: [{demand: {}, on: nowhere}]\n", "7:30", "no device 'nowhere'"),
    (SMALL + "  running: 3\n", "7:12", "list"),
    (SMALL + "  wants: 3\n", "7:3", "did you mean 'want'?"),
    (SMALL + "  name: b\n", "7:3", "given twice"),
]


@pytest.mark.parametrize(("text", "place", "what"), MALFORMED)
def test_each_mistake_is_told_where_it_stands(text: str, place: str, what: str) -> None:
    told = mistakes(text)
    assert any(line.startswith(f"{place}: ") and what in line for line in told), told


def test_all_mistakes_are_told_at_once() -> None:
    text = HEAD + "- name: a\n  submit: {vram: 3, stag: s}\n  want: {on: x}\n  reasons: {y: z}\n- {}\n"
    assert [line.split(": ")[0] for line in mistakes(text)] == ["5:18", "5:21", "6:14", "7:13", "7:16", "8:3", "8:3", "8:3"]


def test_a_newer_format() -> None:
    with pytest.raises(NewerFormat):
        parse("version: 2\n")


def test_where_the_fleet_cannot_be_read_the_rest_is_looked_at() -> None:
    assert mistakes(wanted("{on: anywhere, thn: x}"), fleet=None) == ["6:24: unknown key 'thn'; did you mean 'then'?"]
    assert parse(SMALL, fleet=None).cases == ()
    assert parse(SMALL, policy=None).cases == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["4090l", "wait", "2GiB", "10s", "x", "lost", ">=3"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["stage", "vram", "on", "then", "demand", "count", "placed", "4090l", "idle", "inputs"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["name", "at", "hosts", "states", "resident", "foreign", "running", "submit", "submit_all", "want", "reasons", "other"]
)


@given(st.dictionaries(KEYS, VALUES), VALUES)
@settings(max_examples=300, deadline=None)
def test_whatever_a_case_holds_it_is_a_case_or_told_to_be_none(body: dict, policies: object) -> None:
    text = json.dumps({"version": 1, "fleet": "f", "policies": policies, "cases": [body]})
    problems = []
    try:
        references(text, "t.yaml")
        parse(text)
    except MalformedFile as error:
        problems = error.problems
    assert all(problem.line >= 1 and problem.what for problem in problems)
