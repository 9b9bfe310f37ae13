"""What is kept of a failed attempt, and that it is enough to tell its cause."""

from __future__ import annotations

import ast
import errno
import json
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import dgpunet_dask
from dgpunet_dask.errors import (
    DgpunetError,
    DiskFull,
    OutOfFiles,
    StageDiskFull,
    StageFailed,
    StageHostLost,
    StageOutOfMemory,
    Unplaceable,
    UsageError,
)
from dgpunet_dask.jobs import causes
from dgpunet_dask.jobs.causes import Other, attribute
from dgpunet_dask.jobs.evidence import evidence_of, others_of, ran, told
from dgpunet_dask.jobs.rows import AttemptRow
from dgpunet_dask.stagehost.evidence import Evidence
from dgpunet_dask.stagehost.reports import failure_of


def lost(**more: Any) -> StageHostLost:
    return StageHostLost(stage="s", device="a0", how="signal", attempts=1, log="-", **more)


class LikeNumpy(MemoryError):
    """An error for want of memory under a name of its own."""


def row(unit_id: str, state: Any, evidence: Any = None, host: str | None = "a") -> AttemptRow:
    return AttemptRow("j", unit_id, 0, 1, state, False, 1, "a0", host, 0.0, 1.0, None, False, None, evidence)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (lost(exit_signal="SIGKILL", cgroup_oom_kills=1), "host-oom"),
        (lost(exit_signal="SIGSEGV"), "user"),
        (lost(xid=[79]), "gpu-hardware"),
        (DiskFull(path="/x"), "disk"),
        (StageDiskFull(stage="s", path=None, why="-"), "disk"),
        (OutOfFiles(why="-"), "system"),
        (StageFailed(stage="s", kind="ValueError", why="-"), "user"),
        (failure_of(MemoryError(), "s"), "host-oom"),
        (failure_of(LikeNumpy("8 TiB"), "s"), "host-oom"),
        (failure_of(ModuleNotFoundError("No module named 'x'"), "s"), "version"),
        (failure_of(ConnectionResetError(errno.ECONNRESET, "reset"), "s"), "network"),
        (failure_of(ConnectionResetError("without a number"), "s"), "network"),
        (failure_of(TimeoutError("read timed out"), "s"), "network"),
        (failure_of(socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "s"), "network"),
        (failure_of(RuntimeError("CUDA driver version is insufficient for CUDA runtime version"), "s"), "version"),
        (failure_of(OSError(errno.ENOMEM, "no memory"), "s"), "host-oom"),
        (failure_of(OSError(errno.ENOSPC, "no room"), "s"), "disk"),
        (failure_of(OSError(errno.EIO, "broken"), "s"), "user"),
        (StageFailed(stage="s", kind="MemoryError", why="told by an earlier release"), "host-oom"),
        (StageOutOfMemory(stage="s", peak="-", charge="-", cards="-", attempts=1), "gpu-oom"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.code} {value.fields.get('error_kind', '')}",
)
def test_what_is_kept_tells_the_cause(error: DgpunetError, cause: str) -> None:
    kept = json.loads(json.dumps(evidence_of(error, device="a0", host="a", units_done=0)))
    assert attribute(kept).code == cause
    assert kept["error_code"] == error.code


def test_a_number_behind_a_library_s_error_is_found_and_none_behind_another() -> None:
    wrapped, own = OSError("a library's word"), ValueError("x")
    wrapped.__context__ = own.__context__ = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    assert failure_of(wrapped, "s").fields["errno"] == errno.ECONNREFUSED
    assert failure_of(own, "s").fields["errno"] is None


def read_by_causes() -> set[str]:
    """Return the names of evidence that a rule reads."""
    tree = ast.parse(Path(causes.__file__).read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("case", "self")}
    return read - set(vars(causes._Case)) - {"evidence", "others"}


def set_by_the_product() -> set[str]:
    """Return the names that code which makes errors or tells evidence sets: keywords, keys of mappings, fields of `Evidence`."""
    found = {field.name for field in fields(Evidence)}
    package = Path(dgpunet_dask.__file__).parent
    for file in (*(package / "stagehost").glob("*.py"), package / "jobs" / "evidence.py", package / "daemons" / "card_log.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        found |= {str(word.arg) for node in nodes if isinstance(node, ast.Call) for word in node.keywords}
        found |= {str(key.value) for node in nodes if isinstance(node, ast.Dict) for key in node.keys if isinstance(key, ast.Constant)}
        found |= {str(node.slice.value) for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant)}
    return found


def test_whatever_a_rule_reads_is_set_somewhere_and_kept() -> None:
    read = read_by_causes()
    assert {"error_code", "error_kind", "errno", "exit_signal", "xid"} <= read
    assert read <= set_by_the_product()
    made = dict.fromkeys(read - {"error_code", "host", "device", "usage"}, 1)
    kept = evidence_of(DgpunetError(detail="-", **made), device="a0", host="a", units_done=0)
    assert read - {"usage"} <= kept.keys()
    assert evidence_of(UsageError(detail="-"), device=None, host=None, units_done=0)["usage"] is True


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


def test_where_a_unit_ran_is_known_though_it_ended_before_it_was_told_where_it_was_placed() -> None:
    ended = row("v", "committed", {"stages": {"read": ["a0", 0.1], "work": ["a1", 0.1], "pack": [None, 0.1]}}, host=None)._replace(device=None)
    assert [other.device for other in others_of([ended], "u")] == ["a1"]
    killed = row("u", "failed", {"error_code": "stage_host_lost", "exit_signal": "SIGKILL"})
    assert [other.exit_signal for other in others_of([killed], "u")] == ["SIGKILL"]


def test_where_no_device_could_take_it_nothing_ran() -> None:
    never = Unplaceable(what="s", summary="-", verdicts=[])
    assert not ran(never)
    held = StageOutOfMemory(stage="s", peak="-", charge="-", cards="-", attempts=1)
    assert ran(held)
    held.__cause__ = never
    assert not ran(held)
