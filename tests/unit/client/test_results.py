"""Which files a job's results are read from, and in which order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dgpunet_dask.client.results import result_files, results_of
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DamagedFile, NewerFormat, ResultsElsewhere
from dgpunet_dask.jobs.sidecar import results_manifest
from dgpunet_dask.model.job import JobStatus, UnitCounts


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    for name in ("b.read.2.frames", "a.read.3.frames", "c.read.1.frames"):
        (tmp_path / "results" / name).touch()
    return tmp_path


def names(job: Path) -> list[str]:
    return [path.relative_to(job).as_posix() for path in result_files(job)]


def test_the_manifest_gives_the_order(job: Path) -> None:
    (job / "results" / "manifest.json").write_text(results_manifest(["c.read.1.frames", "a.read.3.frames"]))
    assert names(job) == ["results/c.read.1.frames", "results/a.read.3.frames"]


def test_without_a_manifest_names_give_it(job: Path) -> None:
    assert names(job) == ["results/a.read.3.frames", "results/b.read.2.frames", "results/c.read.1.frames"]


def test_what_was_gathered_is_the_result(job: Path) -> None:
    (job / "result.frames").touch()
    assert names(job) == ["result.frames"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", DamagedFile),
        ("[]", DamagedFile),
        ('{"version": 1}', DamagedFile),
        (json.dumps({"version": 1, "files": ["../../else"]}), DamagedFile),
        (json.dumps({"version": 2, "files": []}), NewerFormat),
    ],
)
def test_a_manifest_that_is_none(job: Path, text: str, error: type[Exception]) -> None:
    (job / "results" / "manifest.json").write_text(text)
    with pytest.raises(error):
        result_files(job)


def test_a_job_that_did_something_and_left_nothing_here_is_told(tmp_path: Path) -> None:
    home, units = Home(tmp_path), UnitCounts(done=1)
    (home.jobs / "j").mkdir(parents=True)
    status = JobStatus(job_id="j", workload="w", state="done", params={}, units=units, metrics={}, seconds=1.0, submitted_at=0.0)
    with pytest.raises(ResultsElsewhere):
        results_of(home, status)
    assert list(results_of(home, replace(status, units=UnitCounts()))) == []
