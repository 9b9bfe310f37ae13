"""Findings in policies that are no mistakes: dead and shadowed rules, and what a fleet does not have."""

from __future__ import annotations

import pytest

from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.policy import Layer
from dgpunet_dask.placement.lint import Finding, lint
from dgpunet_dask.placement.policy_file import parse_policies, parse_policy
from tests.helpers import ROOT


def rules(*lines: str, rest: str = "") -> str:
    return "version: 1\nrules:\n" + "".join(f"- {{{line}}}\n" for line in lines) + rest


def found(text: str, fleet: Fleet | None = None) -> list[str]:
    """Return the findings without file and name: ``LINE:COL: what; cure``."""
    return [str(finding).removeprefix("p:") for finding in lint(parse_policy(text, "p"), fleet)]


def test_the_shipped_policy_has_no_findings(home5: Fleet) -> None:
    policy = parse_policy((ROOT / "policies" / "home5.yaml").read_text(encoding="utf-8"), "home5.yaml")
    assert lint(policy) == lint(policy, home5) == ()


def test_a_finding_says_where_what_and_how_to_mend_it() -> None:
    (finding,) = lint(parse_policy(rules("name: a, match: {priority: btch}, deny: [{role: r}]"), "p.yaml"))
    cure = "priorities are interactive, batch, idle; did you mean 'batch'?"
    assert finding == Finding("p.yaml", 3, 21, "a", "rule 'a' is dead: no priority matches 'btch'", cure)
    assert str(finding) == f"p.yaml:3:21: rule 'a' is dead: no priority matches 'btch'; {cure}"


@pytest.mark.parametrize("glob", ["urgent", "int", "i", "BATCH", "[!bi]*"])
def test_a_priority_that_no_work_has(glob: str) -> None:
    (told,) = found(rules(f"name: a, match: {{priority: '{glob}'}}, share: {{max_per_gpu: 2}}"))
    assert f"rule 'a' is dead: no priority matches {glob!r}" in told


def test_a_name_that_no_work_can_have() -> None:
    (told,) = found(rules("name: a, match: {stage: embed, model: 'm-[z-a]'}, deny: [{role: r}]"))
    assert told == "3:35: rule 'a' is dead: no name matches 'm-[z-a]'; mend the range in brackets"


def test_a_reserve_for_a_priority_that_no_work_has() -> None:
    (told,) = found(rules(rest="reserve: [{name: r, device: d, vram: 1GiB, for: {priority: high}}]\n").replace("rules:\n", ""))
    assert told.startswith("2:11: reserve 'r' is dead: no priority matches 'high'")


# Shadows


@pytest.mark.parametrize(
    ("lower", "higher", "told"),
    [
        (
            "match: {stage: embed}, share: {max_per_gpu: 4}",
            "match: {stage: 'e*', model: '*'}, share: {max_per_gpu: 2}",
            "rule 'a' is dead",
        ),
        ("match: {stage: embed}, priority: idle", "match: {stage: 'e*', user: '*'}, priority: batch", "rule 'a' is dead"),
        (
            "match: {stage: embed}, priority: idle, deny: [{role: r}]",
            "match: {stage: 'e*', user: '*'}, priority: batch",
            "priority of rule 'a' never counts",
        ),
        (
            "match: {stage: embed}, on_oom: {}, allow: [{role: r}]",
            "match: {stage: 'e*', user: '*'}, on_oom: {}",
            "on_oom of rule 'a' never counts",
        ),
        ("match: {stage: embed}, share: {max_per_gpu: 4}", "exclusive: true", "overridden by exclusive of rule 'b'"),
        (
            "match: {priority: batch}, prefer: [{by: speed, weight: 1}]",
            "match: {priority: '[bi]*', model: '*'}, prefer: []",
            "rule 'a' is dead",
        ),
    ],
)
def test_clauses_that_never_count(lower: str, higher: str, told: str) -> None:
    (line,) = found(rules(f"name: a, {lower}", f"name: b, {higher}"))
    assert told in line
    assert "rule 'b' (p:4)" in line


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("match: {stage: 'e*'}, share: {max_per_gpu: 4}", "match: {stage: embed, model: '*'}, share: {max_per_gpu: 2}"),
        ("match: {stage: embed}, share: {max_per_gpu: 4}", "match: {stage: embed, model: '?*'}, share: {max_per_gpu: 2}"),
        ("match: {stage: embed}, share: {max_per_gpu: 4}", "match: {stage: '*', model: '*'}, priority: batch"),
        ("match: {stage: embed}, deny: [{role: r}]", "match: {stage: '*', model: '*'}, deny: [{role: r}]"),
        ("match: {stage: embed}, priority: idle", "match: {stage: '*', priority: batch}, on_oom: {}"),
        ("match: {stage: embed}, share: {max_per_gpu: 4}", "match: {stage: embed, priority: batch}, share: {max_per_gpu: 2}"),
        ("match: {stage: embed}, share: {max_per_gpu: 4}", "match: {stage: embed, model: x}, exclusive: true"),
    ],
)
def test_clauses_that_count_for_some_work(lower: str, higher: str) -> None:
    assert found(rules(f"name: a, {lower}", f"name: b, {higher}")) == []


def test_a_clause_under_a_higher_layer() -> None:
    low, high = (
        rules("name: a, match: {stage: embed}, share: {max_per_gpu: 4}"),
        rules("name: b, match: {stage: '*'}, share: {max_per_gpu: 2}"),
    )
    layers: tuple[Layer, ...] = ("generated", "human")
    told = lint(parse_policies([(low, "low", layers[0]), (high, "high", layers[1])]))
    assert [(f.file, f.rule) for f in told] == [("low", "a")]
    assert lint(parse_policies([(low, "low", layers[1]), (high, "high", layers[0])])) == ()


def test_a_priority_that_only_work_with_a_priority_could_be_given() -> None:
    (told,) = found(rules("name: a, match: {stage: s, priority: batch}, priority: idle, deny: [{role: r}]"))
    assert told.startswith("3:49: priority of rule 'a' never counts: it is overridden by the priority that its own match demands")
    assert found(rules("name: a, match: {stage: s, priority: '*'}, priority: idle")) == []


def test_features_that_no_card_has(home5: Fleet) -> None:
    text = rules("name: a, require: {features: [fp8, bf61, nvlink]}")
    near, far = found(text)
    assert near == "3:23: no card has the feature 'bf61' by its compute capability; did you mean 'bf16'?"
    assert far == "3:23: no card has the feature 'nvlink' by its compute capability; known: bf16, flash-attention-2, fp4, fp8"
    stated = Fleet((Host(name="h"),), (Device(name="d", host="h", vram_mib=1024, features=frozenset({"nvlink", "bf61", "fp8"})),))
    assert found(text, stated) == []
    assert any("nor does one of the fleet state it" in told for told in found(text, home5))


# On a fleet


@pytest.mark.parametrize(
    ("clause", "told"),
    [
        ("deny: [{role: chat}]", "3:20: deny: role chat picks no device of this fleet; role 'chat': did you mean 'chat-llm'?"),
        (
            "allow: [{device: '5090'}, {device: '4090'}]",
            "3:39: allow: device 4090 picks no device of this fleet; device '4090': did you mean '4090l'?",
        ),
        (
            "prefer: [{host: 'xps1?x', weight: 1}]",
            "3:22: prefer: host xps1?x picks no device of this fleet; host 'xps1?x': did you mean 'xps17'?",
        ),
        ("deny: [{card: '*RTX 6090'}]", "3:20: deny: card *RTX 6090 picks no device of this fleet; card '*RTX 6090':"),
        (
            "deny: [{role: head, device: '5090'}]",
            "role head picks no device of this fleet; each key picks some device, but none is picked by all of them",
        ),
        ("require: {role: medai}", "3:23: require: role medai is of no host of this fleet; role 'medai': did you mean 'media'?"),
    ],
)
def test_what_picks_nothing(home5: Fleet, clause: str, told: str) -> None:
    (line,) = found(rules(f"name: a, {clause}"), home5)
    assert told in line
    assert found(rules(f"name: a, {clause}")) == []


def test_an_owner_of_no_host(home5: Fleet) -> None:
    text = "version: 1\nhosts:\n- {match: {host: m18}, when: {power: mains}}\n- {match: {role: media}, when: {power: mains}}\n"
    assert found(text, home5) == ["3:3: hosts: host m18 picks no host of this fleet; host 'm18': did you mean 'm18r2'?"]


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        (
            ["name: a, require: {vram: 40GiB}"],
            "3090: vram_total, 4070l: vram_total, 4080l: vram_total, 4090l: vram_total, 5090: vram_total",
        ),
        (
            ["name: a, require: {compute_capability: '>=8.9', vram: 12GiB}, deny: [{role: media}, {role: chat-llm}]"],
            "3090: denied, 4070l: vram_total",
        ),
        (
            ["name: a, match: {stage: s}, allow: [{device: '4070l'}]", "name: b, deny: [{host: 'x*'}]"],
            "3090: not_allowed, 4070l: denied",
        ),
        (
            ["name: a, match: {stage: s, priority: idle}, allow: [{device: '3090'}]", "name: b, require: {features: [fp8]}"],
            "3090: feature",
        ),
        (["name: a, require: {driver: '>=550'}"], "3090: driver"),
    ],
)
def test_rules_that_leave_no_device(home5: Fleet, lines: list[str], reasons: str) -> None:
    (line,) = found(rules(*lines), home5)
    assert "no device of this fleet may run what rule 'a' matches" in line
    assert reasons in line


@pytest.mark.parametrize(
    "lines",
    [
        [
            "name: a, match: {stage: s}, allow: [{device: '4070l'}]",
            "name: b, match: {stage: '*', model: '?*'}, deny: [{host: 'x*'}]",
        ],
        ["name: a, match: {stage: chunk}, allow: [{device: '*/cpu'}]"],
        ["name: a, match: {stage: chunk}, require: {ram: 100GiB}, allow: [{device: 'tower*/cpu'}]"],
        ["name: a, require: {vram: 31GiB}"],
        ["name: a, deny: []"],
        ["name: a, match: {stage: s}, share: {max_per_gpu: 2}", "name: b, match: {stage: '[st]'}, deny: [{role: head}]"],
    ],
)
def test_rules_that_leave_a_device(home5: Fleet, lines: list[str]) -> None:
    assert found(rules(*lines), home5) == []


def test_only_the_rule_whose_work_has_no_device_is_named(home5: Fleet) -> None:
    (line,) = found(
        rules(
            "name: a, match: {stage: s}, allow: [{device: '4070l'}]", "name: b, match: {stage: s, model: m}, deny: [{host: 'x*'}]"
        ),
        home5,
    )
    assert line.startswith("4:10: no device of this fleet may run what rule 'b' matches (3090: not_allowed, 4070l: denied")


def test_a_rule_is_not_blamed_for_what_others_keep_away(home5: Fleet) -> None:
    lines = [
        "name: a, require: {vram: 40GiB}",
        "name: b, match: {stage: s}, deny: [{role: head}]",
        "name: c, match: {stage: s}, require: {cpus: 99}",
    ]
    assert [line.split(" (")[0] for line in found(rules(*lines), home5)] == [
        f"{line}:10: no device of this fleet may run what rule {name!r} matches" for line, name in ((3, "a"), (5, "c"))
    ]
    silent = Fleet((Host(name="h"),), (Device(name="d", host="h"),))
    assert found(rules("name: a, deny: []", "name: b, match: {stage: s}, require: {ram: 1GiB}"), silent) == []


def reserve(*entries: str, more: str = "") -> str:
    return "version: 1\nreserve:\n" + "".join(f"- {{name: {e}, for: {{stage: chat}}}}\n" for e in entries) + more


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (reserve("r, device: 4090i, vram: 1GiB"), "3:3: reserve 'r': the fleet has no card '4090i'; did you mean '4090l'?"),
        (reserve("r, device: m18r2/cpu, vram: 1GiB"), "3:3: reserve 'r': the fleet has no card 'm18r2/cpu'; its cards: 3090, 4070l, 4080l, 4090l, 5090"),
        (reserve("r, device: 4070l, vram: 8GiB"), "3:3: reserve 'r': 8GiB is more than the 7680MiB that 4070l can give; keep less"),
        (reserve("r, device: 4090l, vram: 8GiB", "s, device: 4090l, vram: 8GiB"), "4:3: reserve 's': all reserves of 4090l come to 16GiB, and it can give 15872MiB; keep less"),
        (
            reserve("r, device: 4090l, vram: 8GiB", more="rules:\n- {name: a, match: {stage: 'c*'}, deny: [{role: head}]}\n"),
            "3:3: reserve 'r': rule 'a' (p:5) denies 4090l to all work that it is kept for; keep it on a card that the work may use, or change that rule",
        ),
    ],
)  # fmt: skip
def test_reserves_that_cannot_be_kept(home5: Fleet, text: str, told: str) -> None:
    assert found(text, home5) == [told]


def test_a_reserve_on_a_card_that_does_not_report_its_size() -> None:
    fleet = Fleet((Host(name="h"),), (Device(name="d", host="h"),))
    (told,) = found(reserve("r, device: d, vram: 1GiB"), fleet)
    assert told == "3:3: reserve 'r': d does not report its VRAM, so that nothing can be kept there; name a card that reports it"


def test_findings_come_in_the_order_of_the_file(home5: Fleet) -> None:
    text = rules("name: a, require: {features: [zz, yy]}", "name: b, match: {priority: x}, deny: [{role: q}]")
    places = [(f.line, f.col) for f in lint(parse_policy(text, "p"), home5)]
    assert places == sorted(places)
    assert len(places) == 5
