"""`doctor` and `report` as a user has them: a real process, with and without a head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dgpunet_dask.testing.fake_nvml import HOME5, FakeCard, FakeUse, build, compiler, environment, write_uses
from tests.acceptance.conftest import Cli
from tests.helpers import ROOT


def test_a_machine_without_a_head_without_a_home(tmp_path: Path) -> None:
    home = tmp_path / "none"
    done = Cli(home)("doctor", "--json")
    assert done.code in {0, 3}, done.err
    assert (done.code == 3) == (done.json["summary"]["fault"] > 0)
    checks = {finding["check"] for finding in done.json["findings"]}
    assert {"driver", "disk", "memory", "home"} <= checks
    assert "probe" not in checks
    assert not home.exists()


def test_it_needs_no_network(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("network namespaces are not permitted here")
    cli = Cli(tmp_path)
    done = subprocess.run(["unshare", "-rn", *cli.argv("doctor")], env=cli.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, 3}
    assert "could not be looked at" not in done.stdout
    assert done.stderr == ""


def test_a_home_that_is_read_only_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    home = tmp_path / "h"
    home.mkdir()
    script = f'mount -t tmpfs -o ro none {home} && exec "$@"'
    wrap = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mount namespaces are not permitted here")
    cli = Cli(home)
    done = subprocess.run([*wrap, *cli.argv("doctor")], env=cli.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert "cannot be written" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_it_runs_as_anybody() -> None:
    cli = Cli(Path("/nonexistent/home"))
    # once as root, for whoever it becomes may be unable to read what it imports
    script = "import os; from dgpunet_dask.cli.main import run; run(['-q', 'doctor']); os.setgid(65534); os.setuid(65534); print(); run(['doctor', '--json'])"
    done = subprocess.run([cli.argv()[0], "-c", script], env=cli.env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout.partition("\n\n{")[2].join(["{", ""]))
    assert {"driver", "disk", "memory", "home"} <= {finding["check"] for finding in found["findings"]}
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake is compiled, for Linux")
def test_cards_and_who_holds_them(tmp_path: Path) -> None:
    card = FakeCard("NVIDIA GeForce RTX 5090", "GPU-00000000-0000-0000-0000-000000005090", 32607, 9000, (12, 0))
    state = tmp_path / "state"
    write_uses(state, [FakeUse(card.uuid, 9000, display=True, computing={os.getpid(): 8000, 999_999_999: 500})])
    cli = Cli(tmp_path / "h")
    env = {**cli.env, **environment(build(tmp_path / "nvml"), [card], state)}
    done = subprocess.run(cli.argv("doctor", "--json", "--no-canary"), env=env, capture_output=True, text=True, timeout=120, check=False)
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"] if finding["subject"].endswith("/rtx5090-0")}
    assert found["foreign_memory"]["level"] == "warn"
    assert f"(pid {os.getpid()}, 8000 MiB)" in found["foreign_memory"]["what"]
    assert found["display_reserve"]["level"] == "ok"
    assert "canary stands in" in found["ecc"]["what"]


@pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake is compiled, for Linux")
def test_a_card_that_fell_off_and_one_that_is_too_hot(tmp_path: Path) -> None:
    lost, hot = HOME5["tower3090"], HOME5["tower5090"]
    state = tmp_path / "state"
    write_uses(state, [FakeUse(lost.uuid, 0, lost=True), FakeUse(hot.uuid, 0, throttle=0x40, utilisation=99, pcie=(4, 4))])
    cli = Cli(tmp_path / "h")
    env = {**cli.env, **environment(build(tmp_path / "nvml"), [lost, hot], state)}
    done = subprocess.run(cli.argv("doctor", "--json", "--no-canary"), env=env, capture_output=True, text=True, timeout=120, check=False)
    found = {(f["check"], f["level"]) for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 3
    assert {("card_lost", "fault"), ("throttle", "warn"), ("pcie_link", "warn")} <= found


@pytest.mark.long
def test_with_a_head_its_workers_count_and_a_report_holds_its_logs_and_no_key(shared_cluster: Cli, tmp_path: Path) -> None:
    done = shared_cluster("doctor", "--json")
    assert done.code in {0, 3}, done.err
    assert [f["what"] for f in done.json["findings"] if f["check"] == "worker" and f["level"] == "ok"]
    path = tmp_path / "r.tar.gz"
    listed = shared_cluster("report", "--json")
    assert listed.json["path"] is None
    assert shared_cluster("report", "--yes", "--out", path).code == 0
    with tarfile.open(path) as archive:
        found = {m.name.partition("/")[2]: archive.extractfile(m).read().decode() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert {"status.json", "fleet.json", "jobs.json", "logs/head.log", "logs/scheduler.log"} <= set(found)
    key = (shared_cluster.home / "run" / "head.json").read_text().partition('"key": "')[2].partition('"')[0]
    assert len(key) > 10
    assert key not in "\n".join(found.values())


@pytest.mark.long
def test_before_joining_a_head_that_is_away(tmp_path: Path) -> None:
    done = Cli(tmp_path)("doctor", "--pre", "--head", "127.0.0.1:1")
    assert done.code == 3
    assert "× " in done.out
    assert "the head does not answer" in done.out
