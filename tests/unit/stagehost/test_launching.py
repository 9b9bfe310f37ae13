"""What a stage host is started with."""

from __future__ import annotations

from pathlib import Path

from dgpunet_dask.stagehost.launching import environ
from dgpunet_dask.stagehost.spec import StageCallSpec


def started_with(folder: str | None) -> dict[str, str]:
    spec = StageCallSpec(stage="s", run="stages:S", digest="ab" * 32, folder=folder)
    return environ(spec, False, Path("/import"), 7, None, {"TMPDIR": "/elsewhere"})


def test_temporary_files_of_a_stage_with_a_folder_go_with_its_job() -> None:
    assert started_with("/jobs/1/scratch")["TMPDIR"] == "/jobs/1/scratch"
    assert started_with(None)["TMPDIR"] == "/elsewhere"
