"""Cases run: what passes, and what a failure says."""

from __future__ import annotations

import pytest

from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.cases.case_file import parse_cases
from dgpunet_dask.placement.cases.run import Result, run_suite
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.policy_file import parse_policy
from tests.helpers import ROOT

HOME5 = parse_fleet((ROOT / "policies" / "fleets" / "home5.yaml").read_text(encoding="utf-8"), "home5.yaml")
FP8 = parse_policy(
    """\
version: 1
rules:
- name: embed-fp8
  match:   {stage: embed, model: "*-fp8"}
  require: {vram: 10GiB, compute_capability: ">=8.9", features: [fp8]}
  deny:    [{role: chat-llm}]
""",
    "p.yaml",
)


def run(body: str, policy: Policy = NO_POLICY) -> Result:
    text = f"version: 1\nfleet: f\ncases:\n- name: a case\n  {body}\n"
    (result,) = run_suite(parse_cases(text, "t.yaml", HOME5, policy))
    return result


PASS = [
    'submit: {stage: embed, model: bge-fp8}\n  want: {on: "5090", then: [4080l]}\n  reasons: {"3090": compute_capability}',
    'submit: {vram: 4GiB}\n  want: {on: "5090", then: [4090l, "3090"]}',
    'submit: {vram: 48GiB}\n  want: never\n  reasons: {"5090": vram_total}',
    'submit: {vram: 30GiB}\n  running: [{demand: {vram: 20GiB}, on: "5090"}]\n  want: wait\n  reasons: {"5090": vram_free}',
    'submit: {vram: 1GiB, work: 40s}\n  running: [{demand: {work: 1s, vram: 1GiB}, on: "5090"}]\n  want: wait',
    'submit: {vram: 20GiB, gpus: 2}\n  want: {on: ["3090", "5090"]}',
    'submit: {vram: 10GiB, gpus: 2}\n  want: {on: ["5090", 4090l], then: "3090"}',
    'submit: {vram: 1GiB}\n  states: {"5090": lost}\n  want: {on: 4090l}\n  reasons: {"5090": lost}',
    'submit_all: {count: 10, demand: {vram: 4GiB, work: 10s}}\n  want: {placed: {"5090": ">=3", 4070l: "<=1"}, makespan_at_most: 40s}',
    "submit_all: [{count: 1, demand: {vram: 30GiB, work: 4.2s}}, {count: 1, demand: {work: 1s}}]\n  want: {makespan_at_most: 1s}",
    'submit_all: {count: 3, demand: {vram: 48GiB}}\n  want: {placed: {"5090": 0}}',
]


@pytest.mark.parametrize("body", PASS)
def test_what_is_as_wanted_passes(body: str) -> None:
    result = run(body, FP8)
    assert result.faults == ()
    assert result.passed


FAIL = [
    ('submit: {vram: 4GiB}\n  want: {on: "3090"}', "wanted on 3090, but it goes on 5090"),
    ("submit: {vram: 4GiB}\n  want: never", "wanted never, but it goes on 5090"),
    ("submit: {vram: 48GiB}\n  want: {on: 4090l}", "wanted on 4090l, but it can never run here"),
    ("submit: {vram: 48GiB}\n  want: wait", "wanted wait, but it can never run here"),
    ('submit: {vram: 30GiB}\n  states: {"5090": paused}\n  want: never', "wanted never, but it waits"),
    (
        'submit: {vram: 4GiB}\n  want: {on: "5090", then: ["3090"]}',
        "wanted 3090 to follow in the ranking, but there follow 4090l, 3090, 4080l, 4070l",
    ),
    ('submit: {vram: 30GiB}\n  want: {on: "5090", then: ["3090"]}', "wanted 3090 to follow in the ranking, but there follow none"),
    ('submit: {vram: 4GiB}\n  want: {on: "5090"}\n  reasons: {"3090": driver}', "wanted 3090 refused as driver, but it would do"),
    (
        'submit: {vram: 10GiB, compute_capability: ">=9"}\n  want: {on: "5090"}\n  reasons: {4070l: compute_capability}',
        "wanted 4070l refused as compute_capability, but its first reason is vram_total",
    ),
    (
        'submit: {vram: 1GiB, work: 40s}\n  running: [{demand: {work: 1s, vram: 1GiB}, on: "5090"}]\n  want: {on: 4090l}',
        "wanted on 4090l, but it waits by choice: 5090, busy now, would finish it before 4090l or any other free device",
    ),
    ('submit: {vram: 20GiB, gpus: 2}\n  want: {on: ["5090", 4090l]}', "wanted on 5090 + 4090l, but it goes on 5090 + 3090"),
    (
        'submit_all: {count: 2, demand: {vram: 30GiB, work: 1s}}\n  want: {placed: {"5090": 1}}',
        "wanted ==1 unit(s) on 5090, but 2 ran there",
    ),
    (
        "submit_all: {count: 2, demand: {vram: 1GiB, work: 42s}}\n  want: {makespan_at_most: 9s}",
        "wanted an end after 9 s at most, but it came after 20.000 s",
    ),
    (
        "submit_all: {count: 2, demand: {vram: 99GiB}}\n  want: {makespan_at_most: 9s}",
        "wanted an end after 9 s at most, but 2 unit(s) never ran: 5 not_allowed, 5 vram_total",
    ),
]


@pytest.mark.parametrize(("body", "fault"), FAIL)
def test_what_is_otherwise_fails_and_says_how(body: str, fault: str) -> None:
    result = run(body)
    assert result.faults == (fault,)
    assert not result.passed


def test_a_failure_is_told_with_ranking_reasons_and_policy_lines() -> None:
    told = "\n".join(run('submit: {stage: embed, model: bge-fp8}\n  want: {on: "3090"}', FP8).details)
    assert "5090  100.0 = finish 100.0" in told
    assert "compute_capability: needs >=8.9, has 8.6 [p.yaml:5 (embed-fp8)]" in told
    assert "denied: needs not role chat-llm" in told
    assert run('submit: {stage: embed, model: bge-fp8}\n  want: {on: "5090"}', FP8).details == ()


def test_a_burst_that_fails_is_told_with_its_counts() -> None:
    first, second, *table = run('submit_all: {count: 2, demand: {vram: 30GiB, work: 42s}}\n  want: {placed: {"5090": 1}}').details
    assert first == "units: 5090 2; 0 left; the last ended after 20.000 s"
    assert second.startswith("units 1.*, before the burst: ")
    assert any("vram_total" in line for line in table)


def test_several_faults_are_all_told() -> None:
    assert len(run('submit: {vram: 4GiB}\n  want: {on: "3090"}\n  reasons: {4090l: busy, 4070l: lost}').faults) == 3
