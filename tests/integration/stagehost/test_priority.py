"""Bulk work gives way: the OS priority of real stage hosts, and what it is worth."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dgpunet_dask.stagehost import lowering
from dgpunet_dask.stagehost.frames import pack, unpack
from tests.integration.stagehost.helpers import in_thread, spec, until

STAGES = """
import os, subprocess, sys, time
from dgpunet_dask import Stage

class Tells(Stage):
    def load(self): pass
    def __call__(self, batch):
        child = subprocess.run([sys.executable, "-c", "import os; print(os.nice(0))"], capture_output=True, text=True, check=True)
        session = open("/proc/self/autogroup").read() if os.path.exists("/proc/self/autogroup") else None
        return [(os.nice(0), int(child.stdout), os.sched_getscheduler(0), session)]

class Spins(Stage):
    def load(self): pass
    def __call__(self, batch):
        os.sched_setaffinity(0, {batch[0]["core"]})
        while not os.path.exists(batch[0]["until"]):
            for _ in range(10_000): pass
        return [time.process_time()]
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's scheduler")


def asked(agent, name, item=None, **fields):
    return unpack(agent.client.call(spec(name, **fields), pack([item])).frames)[0]


def test_a_stage_host_of_bulk_work_has_the_lowest_priority_and_so_has_what_it_starts(agent):
    agent.write(STAGES)
    niceness, of_child, policy, session = asked(agent, "Tells")
    assert (niceness, of_child, policy) == (19, 19, os.SCHED_BATCH)
    assert session is None or session.split()[1:] == ["nice", "19"]
    (pid,) = agent.pids()
    family = [psutil.Process(pid), *psutil.Process(pid).children()]
    assert len(family) == 2, "its guard as well"
    assert {process.nice() for process in family} == {19}


def test_one_that_people_wait_for_keeps_the_priority_of_its_agent_in_a_process_of_its_own(agent):
    agent.write(STAGES)
    asked(agent, "Tells")
    niceness, of_child, policy, session = asked(agent, "Tells", interactive=True)
    assert (niceness, of_child, policy) == (os.nice(0), os.nice(0), os.sched_getscheduler(0))
    assert session is None or session.split()[1:] == ["nice", "0"]
    assert len(agent.pids()) == 2


def test_who_shares_a_core_with_bulk_work_has_nearly_all_of_it(agent, tmp_path):
    """Niceness alone gives half of it where the kernel groups processes by session: a stage host has one of its own."""
    agent.write(STAGES)
    asked(agent, "Tells")
    core, stop = min(os.sched_getaffinity(0)), tmp_path / "stop"
    spins = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    given, calling = in_thread(lambda: asked(agent, "Spins", {"core": core, "until": str(stop)}))
    until(lambda: len(agent.pids()) == 2, "the spinning stage is loaded")
    bulk = next(p for p in map(psutil.Process, agent.pids()) if "spins" in os.readlink(f"/proc/{p.pid}/fd/1"))
    until(lambda: bulk.cpu_affinity() == [core], "it spins on the core")
    rival = subprocess.Popen([sys.executable, "-c", spins], start_new_session=True)
    try:
        rivals = psutil.Process(rival.pid)
        until(lambda: rivals.cpu_affinity() == [core], "the other one spins there too")
        before = (used(bulk), used(rivals))
        until(lambda: used(rivals) - before[1] > 0.8, "the other one has worked for a while", 60.0)
        assert used(bulk) - before[0] < 0.25 * (used(rivals) - before[1])
    finally:
        rival.kill()
        rival.wait()
        stop.touch()
        calling.join(30)
    assert isinstance(given[0], float)


def used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_what_the_system_refuses_is_told_and_the_rest_is_done(monkeypatch, capsys, tmp_path):
    def refused(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    done: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    monkeypatch.setattr(os, "nice", done.append)
    monkeypatch.setattr(lowering, "AUTOGROUP", tmp_path / "none")  # these tests may lead their session
    lowering.lower_priority()
    assert done == [lowering.NICENESS]
    assert "does not let this process set batch scheduling" in capsys.readouterr().err


@pytest.mark.skipif(not lowering.AUTOGROUP.exists(), reason="this kernel does not group by session")
def test_no_other_process_of_a_session_is_slowed():
    """Only the leader of a session sets what counts for all of it."""
    code = "from dgpunet_dask.stagehost.lowering import lower_priority, AUTOGROUP\nlower_priority()\nprint(AUTOGROUP.read_text())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split()[1:] == Path("/proc/self/autogroup").read_text().split()[1:]
