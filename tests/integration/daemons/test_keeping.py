"""Workers that are killed, stopped or cannot start come back; those that are ended leave nothing. Real processes stand for workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.cluster.workers import Backoff, WorkerPlan
from dgpunet_dask.daemons import keeping
from dgpunet_dask.daemons.keeping import WorkerKeeper, blamed, family, how_ended, kill_tree, stands_still
from dgpunet_dask.daemons.register import Register
from dgpunet_dask.model.fleet import Device, Host

ROOT = Path(__file__).resolve().parents[3]
CHILD = "tests.integration.daemons.child"


def plan(home, name, *words):
    device = Device(name=name, host="a", kind="cpu")
    env = {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}" if "PYTHONPATH" in os.environ else str(ROOT), "DGPUNET_HOME": str(home.root)}
    argv = (*words, str(home.run))
    return WorkerPlan(device=device, host=Host(name="a"), module=CHILD, argv=argv, env=env, facts_file=home.run / "facts" / f"{name}.json")


@pytest.fixture
async def kept(home, monkeypatch):
    monkeypatch.setattr(keeping, "LOOK_S", 0.05)
    monkeypatch.setattr(keeping, "STOPPED_S", 0.2)
    orphaned = []

    async def drop(device):
        orphaned.append(device)

    keeper = WorkerKeeper(home, SystemClock(), drop)
    keeper.backoff = Backoff(first_s=0.05, most_s=0.1)
    keeper.orphaned_devices = orphaned
    yield keeper
    await keeper.stop()


async def until(condition, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not (found := condition()):  # noqa: ASYNC110  # processes tell nobody
            await asyncio.sleep(0.01)
    return found


def pids(home, name):
    return [int(file.suffix[1:]) for file in home.run.glob(f"{name}.*")]


async def one_running(home, kept, name="wait", but=()):
    def found():
        pid = kept.rows()[0]["pid"]
        return pid if pid in pids(home, name) and pid not in but else None

    return await until(found)


async def test_a_killed_worker_comes_back_and_what_it_called_is_dropped(home, kept):
    kept.start([plan(home, "cpu-0", "wait")])
    first = await one_running(home, kept)
    assert [entry.what for entry in Register(home.run / "processes").running()] == ["worker cpu-0"]
    os.kill(first, signal.SIGKILL)
    second = await one_running(home, kept, but=[first])
    row = kept.rows()[0]
    assert (row["restarts"], row["why"], row["state"]) == (1, "killed by SIGKILL", "running")
    assert kept.orphaned_devices == ["cpu-0"]
    assert [entry.pid for entry in Register(home.run / "processes").running()] == [second]


async def test_a_worker_is_kept_hold_of_where_the_register_cannot_be_written(home, kept, caplog):
    (home.run / "processes").write_text("a file, where the folder should be")
    kept.start([plan(home, "cpu-0", "wait")])
    first = await one_running(home, kept)
    assert kept.rows()[0]["restarts"] == 0
    assert "register" in caplog.text
    await kept.stop()
    assert not psutil.pid_exists(first)
    assert pids(home, "wait") == [first]


async def test_one_that_is_killed_by_a_signal_without_a_name_comes_back_too(home, kept):
    kept.start([plan(home, "cpu-0", "wait")])
    first = await one_running(home, kept)
    os.kill(first, 40)
    await one_running(home, kept, but=[first])
    assert kept.rows()[0]["why"] == "killed by signal 40"


async def test_a_worker_that_ends_in_good_order_comes_back_too(home, kept):
    kept.start([plan(home, "cpu-0", "exit", "0")])
    await until(lambda: kept.rows()[0]["restarts"] >= 2)
    assert kept.rows()[0]["why"] == "exit status 0"


@pytest.fixture
def stopped():
    with subprocess.Popen(["sleep", "600"]) as process:
        os.kill(process.pid, signal.SIGSTOP)
        yield process.pid
        process.kill()


async def test_a_stopped_worker_of_a_killed_agent_is_ended(home, kept, stopped):
    register = Register(home.run / "processes")
    register.add(stopped, "worker cpu-0")
    kept.start([plan(home, "cpu-0", "wait")])
    assert not psutil.pid_exists(stopped)
    new = await one_running(home, kept)
    assert [entry.pid for entry in register.running()] == [new]


async def test_a_stopped_worker_is_replaced(home, kept):
    kept.start([plan(home, "cpu-0", "wait")])
    first = await one_running(home, kept)
    os.kill(first, signal.SIGSTOP)
    await one_running(home, kept, but=[first])
    assert kept.rows()[0]["why"] == "killed by SIGKILL"


async def test_a_worker_whose_own_child_is_stopped_is_replaced_with_it(home, kept):
    kept.start([plan(home, "cpu-0", "family")])
    first = await one_running(home, kept, "family")
    below = pids(home, "grandchild")[0]
    os.kill(below, signal.SIGSTOP)
    await one_running(home, kept, "family", but=[first])
    await until(lambda: not psutil.pid_exists(below))


async def test_a_worker_that_was_stopped_for_a_moment_goes_on(home, kept, monkeypatch):
    monkeypatch.setattr(keeping, "STOPPED_S", 60.0)
    kept.start([plan(home, "cpu-0", "wait")])
    first = await one_running(home, kept)
    os.kill(first, signal.SIGSTOP)
    await until(lambda: stands_still(first))
    os.kill(first, signal.SIGCONT)
    await until(lambda: not stands_still(first))
    assert kept.rows()[0]["restarts"] == 0


async def test_stopping_leaves_nothing_behind(home, kept):
    kept.start([plan(home, "cpu-0", "family"), plan(home, "cpu-1", "deaf"), plan(home, "cpu-2", "exit", "3")])
    await until(lambda: pids(home, "deaf") and pids(home, "family") and pids(home, "exit"))
    await kept.stop()
    left = [pid for name in ("family", "grandchild", "deaf", "exit") for pid in pids(home, name)]
    await until(lambda: not [pid for pid in left if psutil.pid_exists(pid)])
    assert (kept.running, kept.rows()) == (False, [])
    assert list(Register(home.run / "processes").entries()) == []


async def test_a_restart_replaces_every_worker(home, kept):
    kept.start([plan(home, "cpu-0", "wait")])
    first = await one_running(home, kept)
    kept.restart("the head had lost sight of this host")
    await one_running(home, kept, but=[first])


async def test_what_cannot_start_is_tried_again_with_its_reason(home, kept, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "write_private", full)
    kept.start([plan(home, "cpu-0", "wait")])
    await until(lambda: kept.rows()[0]["restarts"] >= 2)
    assert "No space left" in kept.rows()[0]["why"]
    monkeypatch.undo()
    await one_running(home, kept)


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit status 0"), (3, "exit status 3"), (-9, "killed by SIGKILL"), (-40, "killed by signal 40"), ("no file", "no file")]
)
def test_an_end_is_told_in_words(status, words):
    assert how_ended(status) == words


def test_ends_that_others_bring_about_keep_a_worker_waiting_for_seconds_only():
    backoff, failures, waits = Backoff(), 0, {}
    for status in (0, -signal.SIGKILL, 1):
        for _ in range(9):
            failures, waits[status] = backoff.next(blamed(failures, status), 1.0)
    assert waits == {0: 2.0, -signal.SIGKILL: 2.0, 1: 30.0}


def test_a_process_that_is_gone_has_no_family():
    child = psutil.Popen(["true"])
    child.wait()
    assert family(child.pid) == []
    assert stands_still(child.pid) is False
    kill_tree(child.pid)
