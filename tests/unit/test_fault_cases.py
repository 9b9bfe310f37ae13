"""The matrix of faults is whole: no point without its failures, and the same cases for the same seed."""

from __future__ import annotations

import pytest

from dgpunet_dask.failpoints import POINTS, parse
from dgpunet_dask.testing.faults import AGAIN, STAGES, Arming, Case, cases

UNITS = 12


@pytest.mark.parametrize("point", [name for name, entry in POINTS.items() if entry.role != "publisher"])
def test_every_point_meets_every_failure_that_it_can(point):
    found = {case.fault for case in cases(1, UNITS) if case.point == point}
    assert found >= {"kill", "stop"}
    assert ("enospc" in found) is POINTS[point].disk


def test_stage_hosts_fail_in_each_kind_of_call():
    for point in (name for name, entry in POINTS.items() if entry.role == "child"):
        assert {case.where for case in cases(1, UNITS) if case.point == point and case.fault == "kill"} == {(("stage", s),) for s in STAGES}


def test_every_role_ends_somewhere_and_has_its_limit():
    assert {case.role for case in cases(1, UNITS)} == set(AGAIN) == {"client", "head", "worker", "scheduler", "child", "agent", "supervisor"}


def test_names_are_unique():
    names = [case.name for case in cases(1, UNITS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("seed", range(20))
def test_the_seed_decides_when_and_nothing_else(seed):
    found = cases(seed, UNITS)
    assert found == cases(seed, UNITS)
    assert all(1 <= case.at <= UNITS + 1 for case in found)
    assert [(c.point, c.fault, c.then, c.where) for c in found] == [(c.point, c.fault, c.then, c.where) for c in cases(0, UNITS)]


def test_seeds_differ():
    assert [c.at for c in cases(1, UNITS)] != [c.at for c in cases(2, UNITS)]


def test_arming_replaces_what_was_armed(tmp_path):
    arming = Arming(tmp_path)
    arming.arm(Case("commit.before", "kill", at=3))
    arming.arm(Case("stage.before", "pause", "scheduler", at=2, where=(("stage", "heavy"),)))
    assert [file.name for file in arming.armed.iterdir()] == ["stage.before"]
    assert parse("stage.before" + (arming.armed / "stage.before").read_text())._failures[0].argument == str(arming.gate)
    assert arming.gate.exists()
    arming.clear()
    assert not arming.gate.exists()
    assert list(arming.armed.iterdir()) == []
