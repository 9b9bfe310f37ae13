"""Processes that crash, hang, or lose whoever called them: told exactly, and never more than the one is lost."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons import keeping
from dgpunet_dask.daemons.agent import kill_stopped
from dgpunet_dask.errors import BadWorkload, StageFailed, StageHostLost, StageHung
from dgpunet_dask.stagehost.frames import pack, unpack
from tests.helpers import no_file_more
from tests.integration.stagehost.helpers import exists, in_thread, spec, until

STAGES = """
import os, signal, subprocess, sys, threading, time
from dgpunet_dask import Stage

class Waits(Stage):
    def __call__(self, batch):
        print("last words")
        path = batch[0]
        with open(path + ".pid", "w") as f: f.write(str(os.getpid()))
        os.rename(path + ".pid", path + ".began")
        while not os.path.exists(path): time.sleep(0.01)
        return [os.getpid()]

class Hangs(Stage):
    def __call__(self, batch):
        if batch[0] == "go": return [os.getpid()]
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(batch[0] + ".pid", "w") as f: f.write(f"{os.getpid()} {child.pid}")
        os.rename(batch[0] + ".pid", batch[0])
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(600)

class HoldsLock(Stage):
    def __call__(self, batch):
        import ctypes
        with open(batch[0] + ".pid", "w") as f: f.write(str(os.getpid()))
        os.rename(batch[0] + ".pid", batch[0])
        ctypes.PyDLL(None).sleep(600)  # a call that keeps the interpreter's lock

class Slow(Stage):
    def __call__(self, batch):
        for item in batch:
            time.sleep(0.4)
            yield item

class Exits(Stage):
    def __call__(self, batch): os._exit(batch[0])

class NoLoad(Stage):
    def load(self): raise RuntimeError("cannot load")
    def __call__(self, batch): return batch

class DiesInLoad(Stage):
    def load(self):
        print("dying in load")
        os.kill(os.getpid(), signal.SIGSEGV)
    def __call__(self, batch): return batch

class HangsInLoad(Stage):
    def load(self): time.sleep(600)
    def __call__(self, batch): return batch

class Stays(Stage):
    def load(self): threading.Thread(target=time.sleep, args=(600,)).start()
    def __call__(self, batch): return [os.getpid()]

class Counts(Stage):
    def load(self, *, folder): self.folder = folder
    def __call__(self):
        for i in range(1000):
            with open(os.path.join(self.folder, "made"), "w") as f: f.write(str(i + 1))
            yield i
        self.count("after")

class Breaks(Stage):
    def __call__(self):
        yield from range(5)
        raise OSError("the disk left")

class Empty(Stage):
    def __call__(self):
        self.count("skipped.binary", 3)
        return []

class Stuck(Stage):
    def __call__(self):
        yield 1
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def workload(agent):
    agent.write(STAGES)


def call(agent, called, *items):
    return unpack(agent.client.call(called, pack(list(items))).frames)


def test_a_killed_process_is_told_and_the_next_call_gets_a_fresh_one(agent, tmp_path):
    path = tmp_path / "go"
    found, thread = in_thread(lambda: call(agent, spec("Waits"), str(path)))
    pid = int(until((tmp_path / "go.began").exists, "the call runs") and (tmp_path / "go.began").read_text())
    os.kill(pid, signal.SIGKILL)
    thread.join(timeout=30)
    assert isinstance(found[0], StageHostLost)
    assert found[0].fields["how"] == "SIGKILL"
    assert "last words" in found[0].fields["log_tail"]
    assert Path(found[0].fields["log"]).is_file()
    path.touch()
    (fresh,) = call(agent, spec("Waits"), str(path))
    assert fresh != pid
    assert agent.pids() == [fresh]


def test_a_process_killed_while_idle_is_replaced_without_a_word(agent, tmp_path):
    path = tmp_path / "go"
    path.touch()
    for _ in range(5):
        (pid,) = call(agent, spec("Waits"), str(path))
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not exists(pid), "the kernel ended it")
        assert call(agent, spec("Waits"), str(path)) != [pid]


def test_an_idle_process_that_stands_still_is_killed_and_charged_no_more(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "LOOK_S", 0.05)
    monkeypatch.setattr(keeping, "STOPPED_S", 0.2)
    path, looking = tmp_path / "go", []
    path.touch()
    stopped, other = spec("Waits", device="4090l", vram_mib=10), spec("Waits", device="3090", vram_mib=10)
    (pid,), (left,) = call(agent, stopped, str(path)), call(agent, other, str(path))

    async def look():
        looking.append(asyncio.create_task(kill_stopped(agent.hosts, SystemClock())))

    agent.do(look())
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "4090l" not in agent.now(agent.hosts.residents), "nothing is charged")
    assert not exists(pid)
    assert agent.pids() == [left]
    agent.now(looking[0].cancel)
    assert call(agent, stopped, str(path)) != [pid]


@pytest.mark.parametrize("stage", ["Hangs", "HoldsLock"])
def test_a_hanging_process_is_killed_with_its_children_at_the_deadline(agent, tmp_path, stage):
    began = time.monotonic()
    with pytest.raises(StageHung) as caught:
        call(agent, spec(stage, deadline_s=1.0), str(tmp_path / "pids"))
    assert 1.0 <= time.monotonic() - began < 15
    assert caught.value.fields["deadline_s"] == 1.0
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        until(lambda pid=pid: not exists(pid), "the whole group was killed")
    assert call(agent, spec("Hangs", deadline_s=1.0), "go") == agent.pids()


def test_progress_holds_the_deadline_off(agent):
    assert call(agent, spec("Slow", deadline_s=1.2), 1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]


def test_an_exit_status_is_told(agent):
    with pytest.raises(StageHostLost, match="exit status 7"):
        call(agent, spec("Exits"), 7)


def test_a_stage_that_cannot_load_says_so_each_time_and_leaves_no_process(agent):
    for _ in range(2):
        with pytest.raises(StageFailed, match="cannot load"):
            call(agent, spec("NoLoad"), 1)
        until(lambda: not agent.pids(), "the process ended")
    with pytest.raises(BadWorkload):
        call(agent, spec("Missing"), 1)


def test_a_crash_and_a_hang_in_load(agent):
    with pytest.raises(StageHostLost, match="SIGSEGV") as caught:
        call(agent, spec("DiesInLoad"), 1)
    assert "dying in load" in caught.value.fields["log_tail"]
    with pytest.raises(StageHung):
        call(agent, spec("HangsInLoad", deadline_s=0.5), 1)
    assert agent.now(lambda: agent.hosts.book.hosts) == []


def test_a_process_that_does_not_end_by_itself_is_ended(agent):
    stays = spec("Stays", device="4090l", vram_mib=10)
    (pid,) = call(agent, stays, 1)
    assert agent.client.evict("4090l", "stays")
    assert not exists(pid)


def test_a_failed_load_on_a_card_gives_its_place_free(agent):
    for _ in range(3):
        with pytest.raises(StageFailed):
            call(agent, spec("NoLoad", device="4090l", vram_mib=10), 1)
    until(lambda: agent.now(agent.hosts.residents) == {}, "nothing is charged")


CALLER = """
import sys
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.frames import pack
from tests.integration.stagehost.helpers import spec
AgentClient(sys.argv[1]).call(spec("Waits", device="4090l", vram_mib=10), pack([sys.argv[2]]))
"""
ROOT = Path(__file__).parents[3]


def test_a_killed_caller_leaves_the_process_busy_until_the_call_ends(agent, tmp_path):
    path = tmp_path / "go"
    with subprocess.Popen([sys.executable, "-c", CALLER, str(agent.home.agent_socket), str(path)], cwd=ROOT) as caller:
        until((tmp_path / "go.began").exists, "the call runs")
        caller.kill()
        caller.wait(timeout=10)
    pid = int((tmp_path / "go.began").read_text())
    assert agent.now(agent.hosts.residents)["4090l"][0]["busy"]
    assert agent.pids() == [pid]
    path.touch()
    until(lambda: not agent.now(agent.hosts.residents)["4090l"][0]["busy"], "the call ended")
    assert call(agent, spec("Waits", device="4090l", vram_mib=10), str(path)) == [pid]


AGENT = """
import asyncio, sys
from pathlib import Path
from dgpunet_dask.config.home import Home
from dgpunet_dask.stagehost.manager import StageHosts

async def main():
    await StageHosts(Home(Path(sys.argv[1]))).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("stage", ["Waits", "Hangs", "HoldsLock"])
def test_when_the_agent_is_killed_its_processes_end(agent, tmp_path, stage):
    agent.do(agent.hosts.stop())
    with subprocess.Popen([sys.executable, "-c", AGENT, str(agent.home.root)], cwd=ROOT, stdout=subprocess.PIPE) as killed:
        assert killed.stdout.readline() == b"ready\n"
        found, thread = in_thread(lambda: call(agent, spec(stage), str(tmp_path / "go")))
        file = tmp_path / ("go.began" if stage == "Waits" else "go")
        until(file.exists, "the call runs")
        killed.kill()
        killed.wait(timeout=10)
        for pid in map(int, file.read_text().split()):
            until(lambda pid=pid: not exists(pid), "the agent's end ended it", within_s=5)
        thread.join(timeout=10)
    assert isinstance(found[0], StageHostLost)
    assert "agent" in found[0].fields["how"]


def test_without_an_agent_a_call_says_so(agent):
    agent.do(agent.hosts.stop())
    with pytest.raises(StageHostLost, match="does not answer"):
        call(agent, spec("Waits"), "x")


def test_where_no_file_can_be_opened_the_agent_counts_as_away_which_is_waited_for(agent):
    with no_file_more(), pytest.raises(StageHostLost, match="Too many open files") as lost:
        call(agent, spec("Waits"), "x")
    assert lost.value.fields["away"]


def test_a_source_is_only_so_far_ahead_of_its_reader(agent, tmp_path):
    source = spec("Counts", folder=str(tmp_path), load={"folder": str(tmp_path)}, deadline_s=1.0)
    stream = agent.client.stream(source, 10, 1 << 20, read_ahead=2)
    assert unpack(next(stream).frames) == list(range(10))
    made = tmp_path / "made"
    # 1 unit read, 2 ahead, and the one that waits to be sent
    until(lambda: made.read_text() == "30", "the source is two units ahead, with the third made")
    deadline = time.monotonic() + 1.5  # past the source's own deadline: waiting for its reader is no hang
    while time.monotonic() < deadline:
        assert int(made.read_text() or 0) <= 40
        time.sleep(0.05)
    rest = list(stream)
    assert [x for r in rest for x in (unpack(r.frames) if r.items else [])] == list(range(10, 1000))
    assert rest[-1].items == 0
    assert rest[-1].counts == {"after": 1}
    until(lambda: not agent.pids(), "a source's process ends with its stream")


def test_a_source_that_breaks_gives_first_what_it_made(agent, tmp_path):
    stream = agent.client.stream(spec("Breaks", folder=str(tmp_path)), 2, 1 << 20)
    found = []
    with pytest.raises(StageFailed, match="the disk left"):
        for result in stream:
            found += unpack(result.frames)
    assert found == [0, 1, 2, 3]


def test_an_empty_source_still_tells_what_it_counted(agent, tmp_path):
    (only,) = agent.client.stream(spec("Empty", folder=str(tmp_path)), 2, 1 << 20)
    assert (only.items, only.counts) == (0, {"skipped.binary": 3})


@pytest.mark.parametrize("stage", ["Counts", "Stuck"])
def test_a_reader_that_stops_ends_the_source(agent, tmp_path, stage):
    load = {"folder": str(tmp_path)} if stage == "Counts" else {}
    stream = agent.client.stream(spec(stage, folder=str(tmp_path), load=load), 1, 1 << 20)
    assert next(stream).items == 1
    assert agent.pids()
    stream.close()
    until(lambda: not agent.pids(), "its process ended", within_s=15)


def test_the_processes_of_a_cancelled_job_end_and_others_stay(agent, tmp_path):
    shared = tmp_path / "go"
    shared.touch()
    (other,) = call(agent, spec("Waits"), str(shared))
    stream = agent.client.stream(spec("Stuck", folder=str(tmp_path), job_id="j9"), 1, 1 << 20)
    next(stream)
    assert agent.client.end_job("j9") == 1
    assert agent.pids() == [other]
    with pytest.raises(StageHostLost):
        list(stream)
    assert agent.client.end_job("j9") == 0


def test_calls_of_an_ended_worker_end_unless_they_are_short(agent, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    found, threads = zip(*(in_thread(lambda p=p: call(agent, spec("Waits"), str(p))) for p in (short, long)), strict=True)
    for path in (short, long):
        until(path.with_name(f"{path.name}.began").exists, "the call runs")
    short.touch()
    threads[0].join(20)
    (kept,) = found[0][0]
    agent.do(agent.hosts.drop_calls("another", 0.0))
    assert len(agent.pids()) == 2
    agent.do(agent.hosts.drop_calls("h/cpu", 0.05))
    threads[1].join(20)
    assert isinstance(found[1][0], StageHostLost)
    assert agent.pids() == [kept]


def test_stopping_ends_busy_processes_at_once(agent, tmp_path):
    found, thread = in_thread(lambda: call(agent, spec("Waits"), str(tmp_path / "go")))
    until((tmp_path / "go.began").exists, "the call runs")
    pid = int((tmp_path / "go.began").read_text())
    began = time.monotonic()
    agent.stop()
    assert time.monotonic() - began < 10
    assert not exists(pid)
    thread.join(timeout=10)
    assert isinstance(found[0], StageHostLost)


def test_logs_of_ended_processes_are_pruned(agent, monkeypatch):
    monkeypatch.setattr("dgpunet_dask.stagehost.logs.LOGS_KEPT", 3)
    for _ in range(6):
        with pytest.raises(StageHostLost):
            call(agent, spec("Exits"), 1)
    assert len(list(agent.hosts.book.log_folder.glob("*.log"))) <= 5
