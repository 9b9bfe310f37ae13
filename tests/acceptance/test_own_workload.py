"""A user's own workload in a folder of their own, one stage in an interpreter whose dependency conflicts with ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from dgpunet_dask.client import Client
from tests.acceptance.conftest import Cli

WORDCOUNT = Path(__file__).parent / "workloads" / "wordcount"

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WORDCOUNT, tmp_path / "wordcount"))


def test_it_runs_and_its_results_are_read_back(shared_cluster: Cli, folder: Path, texts: Callable[[int], Path]) -> None:
    done = shared_cluster("submit", folder, "--set", f"path={texts(7)}", "--json")
    assert done.code == 0, done.err
    result = done.json
    assert result["state"] == "done"
    assert result["error"] is None
    assert result["units"] == {"total": 4, "done": 4, "reused": 0, "failed": 0, "attempts": 4}
    assert result["metrics"]["files"] == 7
    with Client(home=shared_cluster.home) as client:
        rows = list(client.results(result["job_id"]))
    assert [(name, words) for name, words, _, _ in rows] == [(f"{n:03d}.txt", n + 1) for n in range(7)]
    assert {version for *_, version, _ in rows} == {"8.0.4"}
    assert click.__version__ != "8.0.4"
    assert len({pid for *_, pid in rows}) <= (os.cpu_count() or 1)  # kept across units; as many as the CPU admits at once


def test_a_crash_of_the_stage_is_tried_again_and_counted(
    shared_cluster: Cli, folder: Path, texts: Callable[[int], Path], tmp_path: Path
) -> None:
    marker = tmp_path / "crashed"
    done = shared_cluster("submit", folder, "--set", f"path={texts(3)}", "--set", f"explode=once:{marker}", "--json")
    assert done.code == 0, done.err
    assert marker.exists()
    assert done.json["units"] == {"total": 2, "done": 2, "reused": 0, "failed": 0, "attempts": 3}
    status = shared_cluster("status", "--json").json
    assert {worker["state"] for worker in status["workers"]} == {"running"}


@pytest.mark.parametrize(("explode", "told"), [("raise", "the count exploded"), ("source", "the source exploded")])
def test_an_error_of_the_users_code_fails_the_job_with_its_traceback(
    shared_cluster: Cli, folder: Path, texts: Callable[[int], Path], explode: str, told: str
) -> None:
    done = shared_cluster("submit", folder, "--set", f"path={texts(3)}", "--set", f"explode={explode}", "--json")
    assert done.code == 100
    assert done.json["state"] == "failed"
    assert told in done.json["error"]["message"]
    logs = shared_cluster("jobs", "logs", done.json["job_id"])
    assert "Traceback" in logs.out
    assert told in logs.out


def test_detach_show_wait_and_list(shared_cluster: Cli, folder: Path, texts: Callable[[int], Path]) -> None:
    submitted = shared_cluster("submit", folder, "--set", f"path={texts(5)}", "--detach", "--json")
    assert submitted.code == 0, submitted.err
    job_id = submitted.json["job_id"]
    assert submitted.json["state"] in {"queued", "running"}
    waited = shared_cluster("jobs", "wait", job_id, "--json")
    assert waited.code == 0
    assert waited.json["state"] == "done"
    assert shared_cluster("jobs", "show", job_id, "--json").json == waited.json
    assert job_id in shared_cluster("jobs", "list").out


def test_a_demand_that_no_device_can_ever_hold_fails_at_once_with_its_reasons(
    shared_cluster: Cli, folder: Path, texts: Callable[[int], Path]
) -> None:
    code = folder / "counting.py"
    code.write_text(code.read_text().replace('vram="2GiB", resident="256MiB", cpu_ok=True', 'vram="900GiB"'))
    done = shared_cluster("submit", folder, "--set", f"path={texts(1)}", "--json")
    assert done.code == 105, done.err
    assert done.json["state"] == "failed"
    assert done.json["error"]["code"] == "unplaceable"
    assert {"device", "code", "need", "have"} <= set(done.json["error"]["reasons"][0])
