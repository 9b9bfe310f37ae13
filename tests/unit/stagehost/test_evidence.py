"""What is known of a failed call is read where the system tells it, and is "not reported" where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpunet_dask.errors import DiskFull, MalformedFile, Problem, StageFailed
from dgpunet_dask.stagehost.evidence import Evidence, exit_of, oom_counter, oom_kills, with_evidence
from dgpunet_dask.stagehost.reports import disk_full, error_from_json, error_to_json

EVIDENCE = Evidence(pid=7, device="3090", seconds=1.5, log_tail="last words")


@pytest.mark.parametrize(("returncode", "told"), [(None, (None, None)), (0, (None, 0)), (3, (None, 3)), (-9, ("SIGKILL", None)), (-99, ("signal 99", None))])
def test_how_a_process_ended(returncode: int | None, told: tuple[str | None, int | None]) -> None:
    assert exit_of(returncode) == told


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/user/agent\n", "cg/user/agent/memory.events"),
        ("4:memory:/docker/ab\n0::/\n", "cg/memory/docker/ab/memory.oom_control"),
        ("4:memory:/of/the/host\n0::/\n", "cg/memory/memory.oom_control"),
        ("9:cpu,memory:/x\n", "cg/memory/x/memory.oom_control"),
        ("0::/\n", "proc/vmstat"),
        ("", "proc/vmstat"),
    ],
)
def test_what_the_kernel_killed_is_counted_in_the_nearest_place_that_tells_it(tmp_path: Path, cgroup: str, file: str) -> None:
    for path in (tmp_path / file, tmp_path / "proc/vmstat", tmp_path / "proc/7/cgroup"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("low 0\noom 9\noom_kill 1\n")
    (tmp_path / file).write_text("low 0\noom 9\noom_kill 4\noom_group_kill 2\n")
    (tmp_path / "proc/7/cgroup").write_text(cgroup)
    counter = oom_counter(7, tmp_path / "proc", tmp_path / "cg")
    assert counter == tmp_path / file
    assert oom_kills(counter) == 4


def test_without_any_counter_nothing_is_reported(tmp_path: Path) -> None:
    assert oom_counter(7, tmp_path, tmp_path) is None
    assert oom_kills(None) is None
    assert oom_kills(tmp_path / "gone") is None


def test_evidence_travels_with_an_error_and_never_replaces_what_it_says_itself() -> None:
    raw = error_to_json(StageFailed(stage="s", kind="K", why="w", device="its own"))
    error = error_from_json(with_evidence(raw, EVIDENCE))
    assert (error.fields["pid"], error.fields["log_tail"], error.fields["cgroup_oom_kills"]) == (7, "last words", None)
    assert error.fields["device"] == "its own"
    assert str(error) == str(error_from_json(raw))


def test_a_list_of_mistakes_stays_what_it_is() -> None:
    raw = error_to_json(MalformedFile([Problem("f", 1, 1, "wrong")]))
    assert str(error_from_json(with_evidence(raw, EVIDENCE))) == "f:1:1: wrong"


def test_a_full_disk_tells_what_is_free(tmp_path: Path) -> None:
    told = error_from_json(error_to_json(disk_full(tmp_path)))
    assert isinstance(told, DiskFull)
    assert told.fields["free_disk_bytes"] > 0
    assert disk_full("no such place").fields["free_disk_bytes"] is None
