"""The example policies do what their tests say, and the tests look at every clause from both sides."""

from __future__ import annotations

from random import Random

import pytest

from dgpunet_dask.cluster.policy_tests import find_cases, load_suites
from dgpunet_dask.placement.cases.coverage import coverage
from dgpunet_dask.placement.cases.properties import failures, told
from dgpunet_dask.placement.cases.run import Result, run_suite
from tests.helpers import ROOT

FILES = find_cases([ROOT / "policies" / "tests"])
SUITES = load_suites(FILES)
RESULTS = [result for suite in SUITES for result in run_suite(suite)]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.case.name)
def test_a_shipped_case(result: Result) -> None:
    assert result.passed, "\n".join([*result.faults, *result.details])


def test_there_are_cases_for_each_rule() -> None:
    assert len(FILES) >= 4
    assert [f"{line.clause.rule} {line.clause.name} {line.gap}" for line in coverage(SUITES) if line.gap] == []


def test_what_holds_of_any_policy_holds_of_the_shipped_ones() -> None:
    policies = {suite.policy.digest: suite.policy for suite in SUITES}.values()
    assert [told(failure) for policy in policies for failure in failures(policy, 1, 100, Random)] == []
