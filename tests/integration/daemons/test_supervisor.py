"""Daemons come back, each alone; what was told to end ends everything; nothing outlives its supervisor. Real processes stand for daemons."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dgpunet_dask.cluster.workers import Backoff
from dgpunet_dask.daemons import keeping
from dgpunet_dask.daemons import supervisor as supervisor_module
from dgpunet_dask.daemons.lifeline import child_env, spawn
from dgpunet_dask.daemons.register import Register, supervisor_of
from dgpunet_dask.daemons.starter import Outlet
from dgpunet_dask.daemons.supervisor import FAILURES_MAX, Daemon, Supervisor, daemons_of, local_daemons
from tests.integration.daemons.test_keeping import CHILD, ROOT, pids, until

PROGRAM = """
import asyncio, sys
from pathlib import Path
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.lifeline import end_now, watch
from dgpunet_dask.daemons.supervisor import Daemon, supervise
watch(end_now)
home = Home(Path(sys.argv[1]))
sys.exit(asyncio.run(supervise(home, [Daemon(name, ("tests.integration.daemons.child", name, str(home.run))) for name in sys.argv[2:]])))
"""


@pytest.fixture
def said():
    return []


@pytest.fixture
async def run(home, monkeypatch, said):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    running = []

    def start(*daemons, **first):
        made = [Daemon(words[0], (CHILD, *words, str(home.run))) for words in daemons]
        supervisor = Supervisor(home, [replace(made[0], **first), *made[1:]], said.append)
        supervisor.backoff = Backoff(first_s=0.02, most_s=0.05)
        running.append((supervisor, asyncio.create_task(supervisor.run())))
        return running[-1]

    yield start
    for supervisor, task in running:
        supervisor.stop.set()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 30)


async def live(home, name, but=()):
    return await until(lambda: next((pid for pid in pids(home, name) if pid not in but and psutil.pid_exists(pid)), None))


async def test_a_killed_daemon_comes_back_and_the_other_lives_on(home, run, said):
    run(("wait",), ("idle",))
    first, other = await live(home, "wait"), await live(home, "idle")
    os.kill(first, signal.SIGKILL)
    second = await live(home, "wait", but=[first])
    assert psutil.pid_exists(other)
    assert pids(home, "idle") == [other]
    assert {entry.pid for entry in Register(home.run / "processes").running()} == {second, other}
    assert len(said) == 1
    assert "killed by SIGKILL" in said[0]
    assert "wait.log" in said[0]


async def test_a_daemon_that_was_told_to_end_ends_everything(home, run, said):
    _, task = run(("exit", "0"), ("wait",))
    assert await asyncio.wait_for(task, 30) == 0
    assert said == []
    assert [pid for pid in pids(home, "wait") if psutil.pid_exists(pid)] == []
    assert list(Register(home.run / "processes").entries()) == []


@pytest.mark.parametrize("status", ["0", "2", "7"])
async def test_an_agent_that_ends_takes_no_head_along(home, run, said, status):
    _, task = run(("wait",), ("exit", status))
    head = await live(home, "wait")
    await until(lambda: len(pids(home, "exit")) > FAILURES_MAX)
    assert not task.done()
    assert psutil.pid_exists(head)
    assert f"exit status {status}" in said[-1]


async def test_a_daemon_that_cannot_run_as_configured_is_not_tried_again(home, run, said):
    _, task = run(("exit", "2"), ("wait",))
    assert await asyncio.wait_for(task, 30) == 2
    assert len(pids(home, "exit")) == 1
    assert "exit status 2" in said[0]


async def test_one_that_ends_again_and_again_is_given_up(home, run, said):
    _, task = run(("exit", "7"),)
    assert await asyncio.wait_for(task, 60) == 7
    assert len(pids(home, "exit")) == FAILURES_MAX == len(said)


async def test_one_that_lacks_room_is_waited_for_however_often_and_told(home, run, said, monkeypatch):
    monkeypatch.setattr(supervisor_module, "SHORT_WAIT_S", 0.02)
    _, task = run(("short", str(FAILURES_MAX + 1)),)
    await until(lambda: len(pids(home, "short")) == FAILURES_MAX + 2)
    last = await until(lambda: next((pid for pid in pids(home, "short") if psutil.pid_exists(pid)), None))
    assert psutil.pid_exists(last)
    assert not task.done()
    assert "waits for" in said[0]
    assert "is started again" in said[-1]


async def test_one_that_has_served_is_never_given_up(home, run, said):
    _, task = run(("serve", "7"), proof="serves.json")
    await until(lambda: len(pids(home, "serve")) > FAILURES_MAX + 1)
    assert not task.done()


async def test_one_that_stands_still_is_replaced(home, run, said, monkeypatch):
    monkeypatch.setattr(keeping, "LOOK_S", 0.02)
    monkeypatch.setattr(supervisor_module, "STOPPED_S", 0.1)
    run(("wait",), ("idle",))
    first, other = await live(home, "wait"), await live(home, "idle")
    os.kill(first, signal.SIGSTOP)
    await live(home, "wait", but=[first])
    assert pids(home, "idle") == [other]
    assert "was stopped" in said[0]


async def test_what_a_daemon_leaves_is_gone_before_it_starts_again(home, run):
    _, _ = run(("wait",), leaves=("scheduler.json",))
    first = await live(home, "wait")
    (home.run / "scheduler.json").write_text("{}")
    os.kill(first, signal.SIGKILL)
    await live(home, "wait", but=[first])
    assert not (home.run / "scheduler.json").exists()


async def test_the_first_ends_while_the_others_are_there(home, run):
    supervisor, task = run(("last",), ("idle",))
    other = (await live(home, "last"), await live(home, "idle"))[1]
    supervisor.stop.set()
    assert await asyncio.wait_for(task, 30) == 0
    assert (home.run / "beside").read_text() == str(other)
    assert not psutil.pid_exists(other)


async def test_who_waits_for_the_first_daemon_reads_what_it_says_and_why_it_ended(home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    read, write = os.pipe()
    outlet = Outlet(write)
    supervisor = Supervisor(home, [Daemon("told", (CHILD, "told", str(home.run)))], outlet.warn, outlet=outlet)
    supervisor.backoff = Backoff(first_s=0.02, most_s=0.05)
    assert await asyncio.wait_for(supervisor.run(), 60) == 3
    os.close(write)
    with os.fdopen(read) as lines:
        told = [json.loads(line) for line in lines]
    assert [line for line in told if "progress" in line] == [{"progress": "on the way"}] * FAILURES_MAX
    assert "exit status 3" in told[-1]["warning"]


async def test_a_daemon_goes_on_where_nobody_reads_any_more(home, monkeypatch, caplog):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    read, write = os.pipe()
    os.close(read)
    outlet = Outlet(write)
    supervisor = Supervisor(home, [Daemon("told", (CHILD, "told", str(home.run)))], outlet.warn, outlet=outlet)
    supervisor.backoff = Backoff(first_s=0.02, most_s=0.05)
    assert await asyncio.wait_for(supervisor.run(), 60) == 3
    os.close(write)
    assert (home.run / "logs" / "told.log").read_text().count("on the way") == FAILURES_MAX
    assert "exit status 3" in caplog.text


async def test_one_that_cannot_be_started_is_given_up_with_its_reason(home, run, said):
    (home.run / "logs").mkdir()
    (home.run / "logs" / "wait.log").mkdir()
    _, task = run(("wait",))
    assert await asyncio.wait_for(task, 30) == 1
    assert "directory" in said[-1]


async def test_daemons_are_kept_where_the_register_cannot_be_written(home, run, caplog):
    (home.run / "processes").write_text("a file, where the folder should be")
    supervisor, task = run(("wait",))
    first = await live(home, "wait")
    assert "register" in caplog.text
    os.kill(first, signal.SIGKILL)
    second = await live(home, "wait", but=[first])
    supervisor.stop.set()
    assert await asyncio.wait_for(task, 30) == 0
    assert not psutil.pid_exists(second)


def supervise(home, *names):
    env = child_env({"DGPUNET_HOME": str(home.root), "PYTHONPATH": str(ROOT)})
    return spawn([sys.executable, "-c", PROGRAM, str(home.root), *names], env=env, log_file=home.run / "logs" / "supervisor.log", cwd=home.run)


async def test_what_a_killed_supervisor_kept_ends_with_it(home):
    process = supervise(home, "wait", "deaf")
    kept = [await live(home, "wait"), await live(home, "deaf")]
    assert supervisor_of(home).pid == process.pid
    process.kill()
    await until(lambda: not [pid for pid in kept if psutil.pid_exists(pid)])
    assert supervisor_of(home) is None


async def test_sigterm_ends_the_daemons_in_good_order(home):
    process = supervise(home, "wait", "idle")
    kept = [await live(home, "wait"), await live(home, "idle")]
    process.process.terminate()
    assert await asyncio.wait_for(process.ended(), 30) == 0
    assert [pid for pid in kept if psutil.pid_exists(pid)] == []


def test_the_heads_host_runs_the_head_first_and_others_an_agent_alone(home):
    head, agent = daemons_of("head", home, [home.policy / "a.yaml"])
    assert (head.name, agent.name) == ("head", "agent")
    assert head.argv[1:] == ("--home", str(home.root), "--cluster", "--policy", str(home.policy / "a.yaml"))
    assert daemons_of("node", home) == (agent,)


def test_a_cluster_on_one_machine_has_both_and_they_meet_by_files(home):
    head, agent = local_daemons(home, Path("/five.yaml"), [home.policy / "a.yaml"])
    policy = ("--policy", str(home.policy / "a.yaml"))
    assert head.argv[1:] == ("--home", str(home.root), "--supervised", "--simulate", "/five.yaml", *policy)
    assert (head.leaves, head.proof) == (("scheduler.json",), "head.json")
    assert agent.argv[0] == "dgpunet_dask.daemons.agent"
    assert local_daemons(home)[0].argv[1:] == ("--home", str(home.root), "--supervised")
