"""A scheduler whose port is taken, a second head on the same home, a supervisor that stands still: the cluster comes back, or says how."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

import psutil
import pytest

from dgpunet_dask.daemons.lifeline import python_argv

SLOW_YAML = "version: 1\nname: slow\nstages:\n  numbers: {run: 'stages:Numbers'}\n  work: {run: 'stages:Work', after: numbers}\n"
SLOW_STAGES = """
import time
from dgpunet_dask import Stage
class Numbers(Stage):
    def __call__(self):
        return list(range(60))
class Work(Stage):
    def __call__(self, batch):
        time.sleep(0.2)
        return batch
"""
SERVING_S = 60.0


@pytest.fixture
def slow(tmp_path):
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "job.yaml").write_text(SLOW_YAML)
    (folder / "stages.py").write_text(SLOW_STAGES)
    return folder


def serves(site):
    code, out, _ = site.run("status", "--json")
    return code == 0 and {worker["state"] for worker in json.loads(out)["workers"]} == {"running"}


def take_port(pid: int, port: int) -> socket.socket:
    """End the scheduler and listen on its port before the next one does."""
    os.kill(pid, signal.SIGKILL)
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    until = time.monotonic() + 0.4
    while True:
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < until, "the next scheduler was quicker"
        else:
            taken.listen()
            return taken


@pytest.mark.long
def test_a_scheduler_whose_port_is_taken_goes_elsewhere_and_its_head_follows(site, two_cards, slow):
    before = site.up("--simulate", two_cards)
    code, out, err = site.run("submit", slow, "--detach", "--json")
    assert code == 0, err
    (scheduler,), port = site.pids("dask_scheduler"), int(before["address"].rpartition(":")[2])
    with take_port(scheduler, port):
        site.until(lambda: serves(site), SERVING_S)
        code, shown, err = site.run("jobs", "wait", json.loads(out)["job_id"], "--json")
        assert code == 0, err
        after = site.status()
    assert json.loads(shown)["units"]["done"] == json.loads(shown)["units"]["total"] > 0
    assert after["address"] != before["address"]
    assert after["head_pid"] != before["head_pid"]
    assert json.loads(site.home.head_file.read_text())["scheduler"] == after["address"]
    assert site.run("down")[0] == 0
    assert site.left() == []


def test_a_second_head_under_one_home_is_refused_and_touches_nothing(site, two_cards):
    before = site.up("--simulate", two_cards)
    schedulers = site.pids("dask_scheduler")
    argv = python_argv("dgpunet_dask.daemons.head", "--home", str(site.home.root), "--simulate", str(two_cards))
    second = subprocess.run(argv, env=site.env, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert f"another head runs under {site.home.root} (process {before['head_pid']})" in second.stdout
    assert site.pids("dask_scheduler") == schedulers
    assert serves(site)
    assert site.run("down")[0] == 0


@pytest.mark.long
def test_a_supervisor_that_stands_still_without_a_head_is_told_and_ended(site, two_cards):
    before = site.up("--simulate", two_cards)
    (supervisor,) = site.pids("daemons.supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(before["head_pid"], signal.SIGKILL)
    site.until(lambda: not site.pids("dask_scheduler"))
    code, _, err = site.run("status")
    assert code == 102
    assert f"process {supervisor} was stopped by a signal" in err
    after = site.up("--simulate", two_cards)
    assert not psutil.pid_exists(supervisor)
    assert serves(site)
    (supervisor,) = site.pids("daemons.supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(after["head_pid"], signal.SIGKILL)
    assert site.run("down")[0] == 0
    assert site.left() == []
