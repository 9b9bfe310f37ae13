"""What is kept of a failed attempt, and that it is enough to tell its cause."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dgpunet_dask.errors import DgpunetError, DiskFull, OutOfFiles, StageFailed, StageHostLost, StageOutOfMemory, Unplaceable
from dgpunet_dask.jobs.causes import Other, attribute
from dgpunet_dask.jobs.evidence import evidence_of, others_of, ran, told
from dgpunet_dask.jobs.rows import AttemptRow


def lost(**more: Any) -> StageHostLost:
    return StageHostLost(stage="s", device="a0", how="signal", attempts=1, log="-", **more)


def row(unit_id: str, state: Any, evidence: Any = None, host: str | None = "a") -> AttemptRow:
    return AttemptRow("j", unit_id, 0, 1, state, False, 1, "a0", host, 0.0, 1.0, None, False, None, evidence)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (lost(exit_signal="SIGKILL", cgroup_oom_kills=1), "host-oom"),
        (lost(exit_signal="SIGSEGV"), "user"),
        (lost(xid=[79]), "gpu-hardware"),
        (DiskFull(path="/x"), "disk"),
        (OutOfFiles(why="-"), "system"),
        (StageFailed(stage="s", kind="ValueError", why="-"), "user"),
        (StageOutOfMemory(stage="s", peak="-", charge="-", cards="-", attempts=1), "gpu-oom"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code,
)
def test_what_is_kept_tells_the_cause(error: DgpunetError, cause: str) -> None:
    kept = json.loads(json.dumps(evidence_of(error, device="a0", host="a", units_done=0)))
    assert attribute(kept).code == cause
    assert kept["error_code"] == error.code


def test_what_is_not_known_is_not_told_and_what_was_printed_is_bounded() -> None:
    kept = evidence_of(lost(log_tail="x" * 10**6), device=None, host=None, units_done=3)
    assert not {"device", "host", "exit_signal"} & kept.keys()
    assert len(kept["log_tail"]) < 10_000
    assert "log_tail" not in told(kept)
    assert kept["units_done"] == 3


def test_only_attempts_that_ended_well_or_failed_are_others() -> None:
    rows = [row("u", "failed", {"error_code": "stage_hung"}), row("v", "committed"), row("w", "lost"), row("x", "leased"), row("y", "failed")]
    assert others_of(rows, "u") == [
        Other(same_unit=True, host="a", device="a0", error_code="stage_hung"),
        Other(same_unit=False, host="a", device="a0"),
        Other(same_unit=False, host="a", device="a0", error_code="unknown"),
    ]


def test_where_no_device_could_take_it_nothing_ran() -> None:
    never = Unplaceable(what="s", summary="-", verdicts=[])
    assert not ran(never)
    held = StageOutOfMemory(stage="s", peak="-", charge="-", cards="-", attempts=1)
    assert ran(held)
    held.__cause__ = never
    assert not ran(held)
