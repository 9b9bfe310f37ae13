"""`up`, `status`, `down`: the round trip, and what goes wrong around it."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import stat

import psutil
import pytest

from dgpunet_dask.cluster.headfile import read_head_file
from dgpunet_dask.daemons.resuming import port_of
from dgpunet_dask.testing.processes import listening_addresses, processes_of

SLOW_YAML = """
version: 1
name: slow
params: {mark: {type: string, default: ""}}
stages:
  numbers: {run: "stages:Numbers"}
  work: {run: "stages:Work", after: numbers}
"""
#: With a mark, the unit says that it has begun and then takes until the test lets it go on.
SLOW_STAGES = """
import pathlib, time
from dgpunet_dask import Demand, Stage
class Numbers(Stage):
    def __call__(self):
        return [1]
class Work(Stage):
    demand = Demand(vram="1GiB")
    def load(self, *, mark: str) -> None:
        self.mark = mark
    def __call__(self, batch):
        if self.mark:
            with pathlib.Path(self.mark).open("a") as calls:
                calls.write("begun\\n")
            while not pathlib.Path(self.mark + ".go").exists():
                time.sleep(0.02)
        return batch
"""
HOME5 = "policies/fleets/home5.yaml"


@contextlib.contextmanager
def listening(address):
    """Be somebody else who listens at `address`."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port_of(address)))
        other.listen()
        yield


def test_up_status_down_leave_nothing(site):
    status = site.up()
    (worker,) = status["workers"]
    assert worker["device"].endswith("/cpu")
    assert worker["state"] == "running"
    assert worker["vram_mib"] is None
    assert status["address"].startswith("tcp://127.0.0.1:")
    assert status["api"].startswith("http://127.0.0.1:")
    assert psutil.pid_exists(status["head_pid"])
    assert stat.S_IMODE(site.home.head_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.home.root.stat().st_mode) == 0o700
    assert site.run("down")[0] == 0
    assert site.left() == []
    assert not site.home.head_file.exists()


def test_nothing_listens_beyond_loopback(site, two_cards):
    site.up("--simulate", two_cards)
    addresses = [a for p in processes_of(site.home.root) for a in listening_addresses(p.pid)]
    assert len(addresses) > 6  # API, scheduler, dashboard, and two for each worker
    assert {a.rpartition(":")[0] for a in addresses} == {"0100007F"}


def test_second_up_changes_nothing_and_another_fleet_is_refused(site, two_cards, tmp_path):
    before = site.up("--simulate", two_cards)
    assert site.up("--simulate", two_cards)["head_pid"] == before["head_pid"]
    other = tmp_path / "other.yaml"
    other.write_text(two_cards.read_text().replace("24GiB", "32GiB"))
    code, _, err = site.run("up", "--simulate", other)
    assert code == 2
    assert "another fleet" in err
    assert site.status()["head_pid"] == before["head_pid"]


def test_down_without_a_head_is_done(site):
    assert site.run("down")[0] == 0
    assert not site.home.root.exists()


def test_status_without_a_head_is_not_found(site):
    code, out, err = site.run("status", "--json")
    assert code == 102
    assert json.loads(out)["error"]["code"] == "no_head"
    assert "dgpunet-dask up" in err


def test_a_malformed_policy_starts_nothing(site, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 1\nrules:\n- {name: a, dny: []}\n- {name: b, priority: high}\n")
    code, _, err = site.run("up", "--policy", bad)
    assert code == 2
    assert f"{bad}:3:" in err
    assert f"{bad}:4:" in err
    assert site.run("up", "--policy", tmp_path / "none.yaml")[0] == 2
    assert not site.home.root.exists()


def test_a_malformed_fleet_starts_nothing(site, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 1\nhosts: {h: {gpus: {3090: {vram: 8}}}}\n")
    code, _, err = site.run("up", "--simulate", bad)
    assert code == 2
    assert f"{bad}:2:" in err
    assert site.run("up", "--simulate", tmp_path / "none.yaml")[0] == 2
    assert not site.home.root.exists()


@pytest.mark.long
def test_five_machines(site):
    status = site.up("--simulate", HOME5)
    workers = {w["name"]: w for w in status["workers"]}
    cards = {"4090l": 16, "4080l": 12, "3090": 24, "4070l": 8, "5090": 32}
    assert {name: w["vram_mib"] for name, w in workers.items() if "/" not in name} == {n: g << 10 for n, g in cards.items()}
    assert sum("/" in name for name in workers) == 5
    assert {w["state"] for w in workers.values()} == {"running"}
    assert all(w["charged_mib"] == 0 for w in workers.values())
    assert site.run("down")[0] == 0
    assert site.left() == []


def test_a_killed_head_comes_back_where_it_was(site, two_cards):
    before, (agent,) = site.up("--simulate", two_cards), site.pids("daemons.agent")
    key = read_head_file(site.home.head_file).key
    two_cards.write_text("no fleet at all")  # what was read from it at the start counts
    os.kill(before["head_pid"], signal.SIGKILL)
    after = site.status()  # waits for it
    assert after["head_pid"] != before["head_pid"]
    assert [after[name] for name in ("api", "address", "dashboard")] == [before[name] for name in ("api", "address", "dashboard")]
    assert read_head_file(site.home.head_file).key == key
    assert site.pids("daemons.agent") == [agent]
    site.until(lambda: {w["state"] for w in site.status()["workers"]} == {"running"})
    assert site.run("down")[0] == 0
    assert site.left() == []


@pytest.mark.long
def test_a_head_whose_ports_are_taken_meanwhile_answers_on_others(site):
    before = site.up()
    (supervisor,) = site.pids("daemons.supervisor")
    os.kill(supervisor, signal.SIGSTOP)  # nobody starts it again until the ports are taken
    os.kill(before["head_pid"], signal.SIGKILL)
    site.until(lambda: not site.pids("dask_scheduler"))
    with listening(before["api"]), listening(before["address"]):
        os.kill(supervisor, signal.SIGCONT)
        after = site.status()
        assert after["api"] != before["api"]
        assert after["address"] != before["address"]
        site.until(lambda: {w["state"] for w in site.status()["workers"]} == {"running"})


def test_a_second_up_in_the_moment_of_a_restart_changes_nothing(site):
    before, supervisor = site.up(), site.pids("daemons.supervisor")
    os.kill(before["head_pid"], signal.SIGKILL)
    after = site.up()
    assert after["api"] == before["api"]
    assert site.pids("daemons.supervisor") == supervisor


@pytest.mark.long
def test_policies_that_have_become_wrong_stay_in_force_over_a_restart(site, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("version: 1\nrules:\n- {name: a, deny: [{host: x}]}\n")
    before = site.up("--policy", file)
    file.write_text("version: 1\nrules:\n- {name: a, dny: []}\n")
    os.kill(before["head_pid"], signal.SIGKILL)
    policy = site.status()["policy"]
    assert policy["digest"] == before["policy"]["digest"]
    assert f"{file}:3:" in policy["error"]["message"]


def test_a_wrong_config_file_ends_the_start(site, two_cards):
    site.home.root.mkdir()
    site.home.config.write_text("version: 1\nquotas: {jobs: seven}\n")
    for words in (["up"], ["head", "--simulate", two_cards]):
        code, _, err = site.run(*words)
        assert (code, f"{site.home.config}:2:16" in err) == (2, True), err
        assert site.left() == []


def test_a_config_file_that_has_become_wrong_leaves_its_quotas_in_force_over_a_restart(site):
    site.home.root.mkdir()
    site.home.config.write_text(f"version: 1\nquotas: {{users: {{{getpass.getuser()}: {{jobs: 1}}}}}}\n")
    before = site.up()
    site.home.config.write_text("version: 1\nquotas: {jobs: seven}\n")
    os.kill(before["head_pid"], signal.SIGKILL)
    path = f"path={site.home.root.parent}"
    code, _, err = site.run("submit", "embed-documents", "--set", path, "--array", "index=a,b", "--detach")
    assert (code, "1 jobs queued or running" in err) == (2, True), err
    code, _, err = site.run("status")
    assert (code, f"{site.home.config}:2:16" in err) == (0, True), err
    assert site.status()["head_pid"] != before["head_pid"]


@pytest.mark.parametrize("victim", ["daemons.head", "daemons.supervisor"])
def test_down_after_a_kill_leaves_nothing(site, victim):
    site.up()
    os.kill(site.pids(victim)[0], signal.SIGKILL)
    code, _, err = site.run("down")
    assert code == 0, err
    assert site.left() == []


@pytest.mark.long
def test_a_killed_supervisor_takes_everything_along_and_up_serves_again(site, two_cards):
    before = site.up("--simulate", two_cards)
    os.kill(site.pids("daemons.supervisor")[0], signal.SIGKILL)
    after = site.up("--simulate", two_cards)  # at once: what is about to end is not taken for a cluster
    assert after["head_pid"] != before["head_pid"]
    assert len(site.pids("daemons.supervisor")) == len(site.pids("daemons.head")) == 1


@pytest.mark.long
def test_down_ends_a_head_that_stands_still(site):
    status = site.up()
    os.kill(status["head_pid"], signal.SIGSTOP)
    code, _, err = site.run("down")
    assert code == 0, err
    assert site.left() == []


def test_down_ends_what_a_killed_supervisor_left(site):
    """A worker that is stopped cannot see that its owner is gone."""
    site.up()
    (worker,) = site.pids("dask_worker")
    os.kill(worker, signal.SIGSTOP)
    os.kill(site.pids("daemons.supervisor")[0], signal.SIGKILL)
    site.until(lambda: not site.pids("dask_scheduler"), 5)
    code, _, err = site.run("down")
    assert code == 0, err
    assert site.left() == []


def test_killed_worker_is_started_again(site, two_cards):
    site.up("--simulate", two_cards)
    old = site.pids("--name b")[0]
    os.kill(old, signal.SIGKILL)
    site.until(lambda: site.pids("--name b") not in ([], [old]))
    site.until(lambda: {w["state"] for w in site.status()["workers"]} == {"running"})


def test_killed_agent_is_started_again(site):
    site.up()
    (old,) = site.pids("daemons.agent")
    os.kill(old, signal.SIGKILL)
    site.until(lambda: site.pids("daemons.agent") not in ([], [old]))
    site.until(lambda: {w["state"] for w in site.status()["workers"]} == {"running"})


@pytest.mark.long
def test_killed_scheduler_is_started_again_on_the_same_address(site, two_cards):
    before = site.up("--simulate", two_cards)
    (old,) = site.pids("dask_scheduler")
    os.kill(old, signal.SIGKILL)
    site.until(lambda: site.pids("dask_scheduler") not in ([], [old]))
    site.until(lambda: {w["state"] for w in site.status()["workers"]} == {"running"}, 40)
    after = site.status()
    assert (after["address"], after["head_pid"]) == (before["address"], before["head_pid"])


@pytest.mark.long
@pytest.mark.parametrize("victim", ["dask_scheduler", "daemons.head", "--name a "])
def test_a_job_outlives_what_it_runs_under_and_its_call_is_made_once(site, two_cards, tmp_path, victim):
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "job.yaml").write_text(SLOW_YAML)
    (folder / "stages.py").write_text(SLOW_STAGES)
    site.up("--simulate", two_cards)
    started = tmp_path / "started"
    job = site.start("submit", folder, "--set", f"mark={started}", "--json")
    site.until(started.exists)
    (old,) = site.pids(victim)
    os.kill(old, signal.SIGKILL)
    site.until(lambda: site.pids(victim) not in ([], [old]))
    started.with_name("started.go").touch()
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    told = json.loads(out)
    assert told["state"] == "done"
    assert told["units"]["done"] == 1
    assert started.read_text().split() == ["begun"]


@pytest.mark.long
def test_a_job_submitted_while_the_scheduler_starts_again_waits_for_it_and_its_workers(site, two_cards, tmp_path):
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "job.yaml").write_text(SLOW_YAML)
    (folder / "stages.py").write_text(SLOW_STAGES)
    site.up("--simulate", two_cards)
    os.kill(site.pids("dask_scheduler")[0], signal.SIGKILL)
    job = site.start("submit", folder, "--json")
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert json.loads(out)["units"]["done"] == 1


@pytest.mark.parametrize("phase", ["daemons.supervisor", "daemons.head", "dask_scheduler", "daemons.agent", "dask_worker"])
def test_ctrl_c_during_the_start_leaves_nothing(site, two_cards, phase):
    up = site.start("up", "--simulate", two_cards)
    site.until(lambda: site.pids(phase))
    up.send_signal(signal.SIGINT)
    _, err = up.communicate(timeout=30)
    assert up.returncode == 130, err
    assert "Traceback" not in err
    site.until(lambda: not site.left(), 5)
    assert not site.home.head_file.exists()


@pytest.mark.parametrize("phase", ["daemons.supervisor", "daemons.head", "dask_worker"])
def test_killed_up_during_the_start_leaves_nothing(site, two_cards, phase):
    up = site.start("up", "--simulate", two_cards)
    site.until(lambda: site.pids(phase))
    up.kill()
    site.until(lambda: not site.left(), 10)
