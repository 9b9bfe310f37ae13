"""Ctrl-C, kill -9 and the end of a wait: the documented exit codes, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dgpunet_dask.client import Client
from tests.acceptance.conftest import Cli
from tests.acceptance.counting import kill_head, workload
from tests.helpers import processes_with_home, until

WORKLOAD = """\
version: 1
name: slow
params: {marker: {type: string, required: true}, count: {type: int, default: 1000}}
stages:
  read: {run: "stages:Read", unit: {items: 1}}
  wait: {run: "stages:Wait", after: read}
"""

WAIT = """\
class Wait(Stage):
    demand = Demand(vram="1GiB", cpu_ok=True)

    def load(self, *, marker: str) -> None:
        self.marker = Path(marker)

    def __call__(self, batch):
        self.marker.touch()
        time.sleep(0.2)
        return batch
"""

pytestmark = pytest.mark.long


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return workload(tmp_path / "slow", WORKLOAD, WAIT)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_embedded_job_ends_with_its_command(cli: Cli, slow: Path, tmp_path: Path, signum: int, code: int) -> None:
    marker = tmp_path / "running"
    command = cli.start("submit", slow, "--set", f"marker={marker}")
    until(marker.exists, timeout_s=60)
    command.send_signal(signum)
    _, told = command.communicate(timeout=60)
    assert command.returncode == code, told
    until(lambda: not processes_with_home(cli.home), timeout_s=20)
    records = [json.loads(f.read_text()) for f in (cli.home / "jobs").glob("*/job.json")]
    assert [r["state"] for r in records] == ["cancelled"]
    assert not list((cli.home / "jobs").glob("*/results/*"))


def test_ctrl_c_detaches_from_a_job_on_a_head(shared_cluster: Cli, slow: Path, tmp_path: Path) -> None:
    marker = tmp_path / "running"
    command = shared_cluster.start("submit", slow, "--set", f"marker={marker}")
    until(marker.exists, timeout_s=60)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=60)
    assert command.returncode == 130
    job_id = told.split("jobs wait ")[1].split("`")[0]
    assert shared_cluster("jobs", "show", job_id, "--json").json["state"] == "running"
    timed_out = shared_cluster("jobs", "wait", job_id, "--timeout", "1", "--json")
    assert timed_out.code == 101
    assert timed_out.json["error"]["code"] == "still_running"
    assert shared_cluster("jobs", "cancel", job_id).code == 0
    ended = shared_cluster("jobs", "wait", job_id, "--json")
    assert ended.code == 103
    assert ended.json["state"] == "cancelled"


def test_a_job_of_an_embedded_cluster_whose_head_is_killed_is_lost_at_once(cli: Cli, slow: Path, tmp_path: Path) -> None:
    marker = tmp_path / "running"
    command = cli.start("submit", slow, "--set", f"marker={marker}", "--json")
    until(marker.exists, timeout_s=60)
    began = time.monotonic()
    kill_head(cli)
    out, told = command.communicate(timeout=60)
    assert command.returncode == 104, told
    assert json.loads(out)["error"]["code"] == "lost"
    assert time.monotonic() - began < 30
    until(lambda: not processes_with_home(cli.home), timeout_s=20)


@pytest.mark.parametrize(("module", "least"), [("distributed.cli.dask_worker", 30), ("dgpunet_dask.stagehost.child", 31)])
def test_a_killed_process_costs_its_unit_another_attempt_at_most(cli: Cli, slow: Path, tmp_path: Path, module: str, least: int) -> None:
    assert cli("up").code == 0
    marker = tmp_path / "running"
    command = cli.start("submit", slow, "--set", f"marker={marker}", "--set", "count=30", "--json")
    until(marker.exists, timeout_s=60)
    victim = next(p for p in processes_with_home(cli.home) if module in p.cmdline() and (module.endswith("worker") or runs_stage(p)))
    victim.send_signal(signal.SIGKILL)
    out, told = command.communicate(timeout=120)
    assert command.returncode == 0, told
    result = json.loads(out)
    assert (result["units"]["done"], result["units"]["failed"]) == (30, 0)
    assert least <= result["units"]["attempts"] <= 34  # what a worker's calls were doing goes on without it
    with Client(home=cli.home) as client:
        assert list(client.results(result["job_id"])) == list(range(30))


def runs_stage(process: psutil.Process) -> bool:
    """Whether a stage host runs the waiting stage, not the source: only that one has been written a log of its name."""
    return any("wait-" in file.path for file in process.open_files())


def shown(cli: Cli) -> dict[str, object]:
    """Return what is told of the index, but for how long ago that was."""
    told: dict[str, object] = cli("index", "show", "i", "--json").json
    return {name: value for name, value in told.items() if name != "age_s"}


def test_a_full_disk_fails_the_job_and_keeps_the_old_index(tmp_path: Path, home_on_small_disk: Cli, texts: Callable[[int], Path]) -> None:
    folder = texts(3)
    first = home_on_small_disk("submit", "embed-codebase", "--set", f"path={folder}", "--set", "index=i", "--json")
    assert first.code == 0, first.err
    before = shown(home_on_small_disk)
    filler = home_on_small_disk.home / "filler"
    for number in range(4):
        (folder / f"more{number}.txt").write_text(f"different text number {number}\n" * 20)
    with open(filler, "wb") as file:
        free = shutil.disk_usage(home_on_small_disk.home).free
        file.write(b"\0" * max(0, free - 16384))
    full = home_on_small_disk("submit", "embed-codebase", "--set", f"path={folder}", "--set", "index=i", "--json")
    assert full.code == 100, full.err
    assert full.json["error"]["code"] == "disk_full"
    filler.unlink()
    assert shown(home_on_small_disk) == before
    again = home_on_small_disk("submit", "embed-codebase", "--set", f"path={folder}", "--set", "index=i", "--json")
    assert again.code == 0
    assert again.json["metrics"]["files"] == 7


@pytest.fixture
def home_on_small_disk(tmp_path: Path) -> Iterator[Cli]:
    """A home on a file system of 16 MiB, with a cluster running on it."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(mount)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.strip()}")
    made = Cli(mount / "h")
    try:
        up = made("up")
        assert up.code == 0, up.err
        yield made
    finally:
        made("down")
        subprocess.run(["umount", "-l", str(mount)], check=True)
