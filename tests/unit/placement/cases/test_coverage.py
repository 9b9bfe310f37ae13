"""Which clauses cases have shown, and from which side."""

from __future__ import annotations

import pytest

from dgpunet_dask.placement.cases.case_file import parse_cases
from dgpunet_dask.placement.cases.coverage import Line, coverage, told
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.policy_file import parse_policy
from tests.helpers import ROOT

HOME5 = parse_fleet((ROOT / "policies" / "fleets" / "home5.yaml").read_text(encoding="utf-8"), "home5.yaml")
WANT = '  want: {on: "5090"}\n'


def lines(policy: str, *cases: str) -> dict[str, Line]:
    """Return what cases show of a policy. Whether they pass does not count."""
    text = "version: 1\nfleet: f\ncases:\n" + "".join(f"- name: c{i}\n  {case}\n  want: wait\n" for i, case in enumerate(cases))
    suite = parse_cases(text, "t.yaml", HOME5, parse_policy(f"version: 1\n{policy}", "p.yaml"))
    return {line.clause.name: line for line in coverage([suite])}


def rule(clauses: str) -> str:
    return f"rules: [{{name: r, match: {{stage: s}}, {clauses}}}]\n"


ANY, OTHER = "submit: {stage: s}", "submit: {stage: t}"


@pytest.mark.parametrize(
    ("clauses", "name", "cases", "seen"),
    [
        ("exclusive: true", "match", [ANY], (1, 0)),
        ("exclusive: true", "match", [ANY, OTHER], (1, 1)),
        ("deny: [{device: 4090l}]", "deny.0", [OTHER], (0, 0)),
        ("deny: [{device: 4090l}]", "deny.0", [ANY], (1, 9)),
        ("deny: [{device: x}]", "deny.0", [ANY], (0, 10)),
        ("allow: [{card: '*3090'}, {role: chat-llm}]", "allow.0", [ANY], (1, 9)),
        ("allow: [{card: '*3090'}, {role: chat-llm}]", "allow.1", [ANY], (2, 8)),
        ("require: {compute_capability: '>=8.9'}", "require.compute_capability", [ANY], (4, 1)),
        ("require: {features: [fp4]}", "require.features", [ANY], (1, 4)),
        ("require: {driver: '>=500'}", "require.driver", [ANY], (0, 5)),
        ("require: {role: media}", "require.role", [ANY], (6, 4)),
        ("require: {ram: 100GiB}", "require.ram", [ANY], (4, 6)),
        ("require: {cpus: 20}", "require.cpus", [ANY], (6, 4)),
        ("require: {vram: 12GiB}", "require.vram", [ANY], (3, 2)),
        ("require: {vram: 12GiB}", "require.vram", [ANY + '\n  foreign: {"5090": 30GiB}'], (2, 3)),
        ("exclusive: true", "exclusive", [ANY], (1, 0)),
        ("exclusive: true", "exclusive", [ANY + '\n  running: [{demand: {vram: 1GiB}, on: "5090"}]'], (1, 1)),
        ("share: {max_per_gpu: 2}", "share", [ANY], (0, 0)),
        ("share: {max_per_gpu: 1}", "share", [ANY], (1, 0)),
        (
            "share: {max_per_gpu: 2}",
            "share",
            ["submit: {stage: s, vram: 1GiB}\n  running: [{demand: {stage: s, vram: 1GiB, work: 1s}, on: 4070l}]"],
            (1, 0),
        ),
        ("priority: idle", "priority", [ANY, "submit: {stage: s, priority: batch}"], (1, 1)),
        ("on_oom: {grow: 2}", "on_oom", [ANY, OTHER], (1, 0)),
        ("prefer: [{by: speed, weight: 1}]", "prefer.0", [ANY], (1, 0)),
        ("prefer: [{device: x, weight: 1}]", "prefer.0", [ANY], (0, 1)),
        ("prefer: [{by: speed, weight: 1}]", "prefer.0", ["submit: {stage: s, vram: 30GiB}"], (0, 0)),
        ("prefer: [{by: finish, weight: 0}, {role: chat-llm, weight: 1}]", "prefer.1", [ANY], (1, 0)),
    ],
)
def test_what_is_seen_of_a_rule(clauses: str, name: str, cases: list[str], seen: tuple[int, int]) -> None:
    assert lines(rule(clauses), *cases)[name].seen == seen


def test_a_clause_that_another_rule_replaces_shows_nothing() -> None:
    policy = "rules:\n- {name: a, allow: [{device: 4090l}]}\n- {name: b, match: {stage: s}, allow: [{device: 4080l}]}\n"
    suite = parse_cases(
        f"version: 1\nfleet: f\ncases:\n- name: c\n  {ANY}\n{WANT}",
        "t.yaml",
        HOME5,
        parse_policy("version: 1\n" + policy, "p.yaml"),
    )
    seen = {line.clause.rule: line.seen for line in coverage([suite]) if line.clause.name == "allow.0"}
    assert seen == {"a": (0, 0), "b": (1, 9)}


RESERVE = "reserve: [{name: k, device: '5090', vram: 20GiB, for: {stage: s}}]\n"


@pytest.mark.parametrize(
    ("case", "seen"),
    [("submit: {stage: t, vram: 20GiB}", (1, 0)), ("submit: {stage: s, vram: 20GiB}", (0, 1)), ("submit: {vram: 40GiB}", (0, 0))],
)
def test_what_is_seen_of_a_reserve(case: str, seen: tuple[int, int]) -> None:
    assert lines(RESERVE, case)["reserve"].seen == seen


def test_what_is_seen_of_an_owner_s_conditions() -> None:
    policy = "hosts: [{match: {host: g16}, when: {idle: '>=15m', power: mains}, otherwise: [interactive]}]\n"
    found = lines(policy, ANY, "submit: {priority: interactive}", ANY + "\n  hosts: {g16: {idle: 20m, power: battery}}")
    assert {name: line.seen for name, line in found.items()} == {"otherwise": (1, 2), "when.idle": (1, 1), "when.power": (1, 1)}


def test_what_was_never_seen_is_named() -> None:
    found = lines(rule("deny: [{device: x}], prefer: [{by: data_local, weight: 1}], priority: idle, share: {max_per_gpu: 2}"), ANY)
    assert {name: line.gap for name, line in found.items()} == {
        "match": "never false", "deny.0": "never true", "prefer.0": "never decided", "priority": None, "share": "never met",
    }  # fmt: skip


def test_lines_tell_place_clause_and_counts() -> None:
    assert list(told(lines(rule("deny: [{device: 4090l}]"), ANY).values())) == [
        "p.yaml:2  r deny.0  true 1 false 9",
        "p.yaml:2  r match  true 1 false 0  NEVER FALSE",
        "1 of 2 clauses seen both ways, or to decide",
    ]


def test_a_burst_shows_the_moment_before_it_starts() -> None:
    text = "version: 1\nfleet: f\ncases:\n- name: c\n  submit_all: {count: 9, demand: {stage: s}}\n  want: {placed: {4090l: 0}}\n"
    suite = parse_cases(text, "t.yaml", HOME5, parse_policy("version: 1\n" + rule("deny: [{device: 4090l}]"), "p.yaml"))
    assert [line.seen for line in coverage([suite])] == [(1, 9), (1, 0)]
