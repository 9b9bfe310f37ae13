"""What becomes of a unit whose attempt failed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import (
    DgpunetError,
    DiskFull,
    FolderMissing,
    OutOfFiles,
    StageFailed,
    StageHostLost,
    StageHung,
    WorkerKilled,
)
from dgpunet_dask.jobs.judging import HOSTS_MAX, SYSTEM_TRIES, SYSTEM_WAIT_MOST_S, Failure, judge

LOST = StageHostLost(stage="s", device="d", how="signal 9", attempts=1, log="-")
HUNG = StageHung(stage="s", device="d", deadline_s=1.0)
RAISED = StageFailed(stage="s", kind="ValueError", why="-")
KILLED = WorkerKilled(stage="s", deaths=3)
FULL = DiskFull(path="/x")
NO_FILES = OutOfFiles(why="-")
AWAY = FolderMissing(kind="model", digest="-", why="-")

failures = st.builds(
    Failure, error=st.sampled_from([LOST, HUNG, RAISED, KILLED, FULL, AWAY, NO_FILES]), host=st.sampled_from([None, "a", "b", "c"]),
    device=st.sampled_from([None, "a0", "b0"]), alone=st.booleans(),
)  # fmt: skip


def on(host: str | None, error: DgpunetError = LOST, **more: Any) -> Failure:
    return Failure(error=error, host=host, device=None if host is None else f"{host}0", **more)


def test_code_that_raises_is_not_tried_again() -> None:
    assert judge([on("a", RAISED)], retries=9).next == "failed"


@pytest.mark.parametrize("error", [LOST, HUNG])
def test_after_a_death_it_is_tried_elsewhere_and_two_hosts_are_enough(error: DgpunetError) -> None:
    first = judge([on("a", error)], retries=2)
    assert (first.next, first.avoid, first.wait_s) == ("again", ("a0",), 0.0)
    assert judge([on("a", error), on("b", error)], retries=2).next == "quarantined"


@pytest.mark.parametrize("host", ["a", None])
def test_on_one_host_it_is_tried_as_often_as_its_stage_allows(host: str | None) -> None:
    found = [judge([on(host)] * n, retries=2).next for n in (1, 2, 3)]
    assert found == ["again", "again", "quarantined"]
    assert judge([on(host)], retries=0).next == "quarantined"


def test_deaths_with_others_in_the_same_process_accuse_nobody() -> None:
    shared = on("a", KILLED, alone=False)
    assert judge([shared] * 20, retries=2).next == "again"
    assert judge([shared, on("a", KILLED)], retries=2).next == "quarantined", "alone it dies too"


@pytest.mark.parametrize("error", [FULL, AWAY])
def test_the_system_s_faults_are_waited_out_longer_each_time_and_not_for_ever(error: DgpunetError) -> None:
    waits = []
    for tried in range(1, SYSTEM_TRIES + 1):
        verdict = judge([on("a", error)] * tried, retries=0)
        assert verdict.next == "again"
        waits.append(verdict.wait_s)
    assert waits == sorted(waits)
    assert 0 < waits[0] < waits[-1] <= SYSTEM_WAIT_MOST_S
    assert judge([on("a", error)] * (SYSTEM_TRIES + 1), retries=0).next == "failed"


def test_the_head_s_want_of_open_files_is_never_a_unit_s_end() -> None:
    waits = [judge([on("a", NO_FILES)] * tried, retries=0) for tried in (1, 5, 50, 5000)]
    assert {verdict.next for verdict in waits} == {"again"}
    assert waits[-1].wait_s == SYSTEM_WAIT_MOST_S


@given(st.lists(failures, min_size=1, max_size=40), st.integers(0, 5))
def test_no_unit_that_dies_alone_is_tried_without_end(found: list[Failure], retries: int) -> None:
    verdict = judge(found, retries)
    deaths = [f for f in found if f.killed and f.alone]
    hosts = {f.host for f in deaths} - {None}
    if found[-1].killed and verdict.next == "again":
        assert len(deaths) <= retries
        assert len(hosts) < HOSTS_MAX
    assert (verdict.next == "quarantined") <= (found[-1].killed and bool(deaths))
    assert set(verdict.avoid) <= {f.device for f in deaths}


def test_other_failures_before_do_not_count_as_deaths() -> None:
    assert judge([on("a", FULL), on("b", FULL), on("a")], retries=2).next == "again"
    assert judge([on("a"), on("b", FULL)], retries=2).next == "again"
