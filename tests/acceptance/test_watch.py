"""`submit --watch` and what it makes: real files, a real cluster, a command that goes on until Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.acceptance.conftest import Cli

pytestmark = pytest.mark.long

#: For telling a hang from work.
END_S = 120.0


class Watching:
    """A `submit --watch` that runs."""

    def __init__(self, cli: Cli, root: Path) -> None:
        self.process = cli.start("submit", "embed-codebase", "--set", f"path={root}", "--set", "index=x", "--watch", "--json")
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def next(self) -> dict[str, Any]:
        """Return the result of the next job."""
        found: dict[str, Any] = json.loads(self._lines.get(timeout=END_S))
        return found

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(END_S)


@pytest.fixture
def watching(shared_cluster: Cli, tmp_path: Path) -> Iterator[Watching]:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("def first():\n    return 1\n")
    made = Watching(shared_cluster, tmp_path / "tree")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    for stream in (made.process.stdout, made.process.stderr):
        assert stream is not None
        stream.close()


def hits(cli: Cli, query: str) -> list[str]:
    found = cli("search", "x", query, "-k", "5", "--json")
    assert found.code == 0, found.err
    return [hit["path"] for hit in found.json["hits"]]


def test_an_index_follows_its_tree_until_ctrl_c(watching: Watching, shared_cluster: Cli, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    first = watching.next()
    assert (first["state"], first["metrics"]["files"]) == ("done", 1)
    (root / "sub").mkdir()
    (root / "sub" / "b.py").write_text("def second_thing():\n    return 'penguins of the antarctic'\n")
    second = watching.next()
    while second["metrics"]["files"] < 2:  # the folder alone may have been seen first
        second = watching.next()
    assert hits(shared_cluster, "antarctic penguins")[0] == "sub/b.py"
    (root / "sub" / "b.py").rename(root / "c.py")
    third = watching.next()
    while "c.py" not in hits(shared_cluster, "antarctic penguins"):
        third = watching.next()
    assert third["metrics"]["embedded"] == 0
    shown = shared_cluster("index", "show", "x", "--json").json
    assert shown["watch"] == {"behind_s": 0.0, "paths": 0}
    (root / "c.py").touch()
    touched = watching.next()
    assert (touched["metrics"]["version"], touched["metrics"]["files"]) == (third["metrics"]["version"], 2)
    after = shared_cluster("index", "show", "x", "--json").json
    assert (after["published_s"], after["scanned_s"] > shown["scanned_s"]) == (shown["published_s"], True)
    assert after["reconciled_s"] == shown["reconciled_s"], "only what was heard of was looked at"
    assert watching.interrupt() == 130
    assert shared_cluster("index", "show", "x", "--json").json["watch"] is None
    jobs = shared_cluster("jobs", "list", "--json").json
    assert {job["state"] for job in (jobs if isinstance(jobs, list) else jobs["jobs"])} == {"done"}
    assert shared_cluster("index", "verify", "x").code == 0


@pytest.mark.parametrize("also", [["--detach"], ["--dry-run"], ["--timeout", "5"], ["--key", "k"], ["--after", "J"]])
def test_what_does_not_go_with_watching(shared_cluster: Cli, tmp_path: Path, also: list[str]) -> None:
    done = shared_cluster("submit", "embed-codebase", "--set", f"path={tmp_path}", "--watch", *also)
    assert (done.code, "until Ctrl-C" in done.err) == (2, True)


def test_a_first_job_that_fails_ends_the_watching(shared_cluster: Cli, tmp_path: Path) -> None:
    done = shared_cluster("submit", "embed-codebase", "--set", f"path={tmp_path}", "--set", "index=y", "--set", "model=./none", "--watch")
    assert done.code == 2


def test_a_workload_without_a_path_cannot_be_watched(shared_cluster: Cli, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "job.yaml").write_text('version: 1\nname: w\nstages: {a: {run: "stages:A"}}\n')
    (tmp_path / "w" / "stages.py").write_text("from dgpunet_dask import Stage\nclass A(Stage):\n    def __call__(self):\n        yield 1\n")
    done = shared_cluster("submit", tmp_path / "w", "--watch", timeout_s=60)
    assert (done.code, "has none set" in done.err) == (2, True)


def test_ctrl_c_without_a_cluster_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def first():\n    return 1\n")
    made = Watching(cli, tmp_path / "a.py")
    try:
        assert made.next()["state"] == "done"
        assert made.interrupt() == 130
        assert cli("status").code == 102
    finally:
        made.process.kill()
        assert isinstance(made.process, subprocess.Popen)
        made.process.communicate()
