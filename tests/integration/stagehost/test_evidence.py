"""Failures carry facts from which their cause can be told, and results what the stage printed: of this call alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.daemons.lifeline import child_env
from dgpunet_dask.errors import StageFailed, StageHostLost, StageHung
from dgpunet_dask.jobs import task
from dgpunet_dask.jobs.causes import attribute
from dgpunet_dask.jobs.evidence import evidence_of
from dgpunet_dask.jobs.task import Parcel, StageCall, run_stage
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.stagehost import evidence, hosts, logs
from dgpunet_dask.stagehost.frames import pack, unpack
from dgpunet_dask.stagehost.inline import call_light
from dgpunet_dask.testing.fake_nvml import FakeCard, FakeUse, build, compiler, environment, write_uses
from tests.integration.stagehost.helpers import Agent, exists, in_thread, spec, until

STAGES = """
import os, signal, subprocess, sys, time
from dgpunet_dask import Stage

class Says(Stage):
    def load(self, *, tag="t"): print("loading", tag)
    def __call__(self, batch):
        for item in batch:
            print("says", item, self.context.job_id)
        subprocess.run(["echo", "of a child"])
        return [os.getpid()]

class Breaks(Stage):
    def __call__(self, batch):
        print("before it broke")
        raise ValueError("no")

class Dies(Stage):
    def __call__(self, batch):
        print("last words of", batch[0])
        if batch[1] == "signal": os.kill(os.getpid(), signal.SIGKILL)
        if batch[1] == "once" and os.path.exists(batch[2]): return ["lived"]
        if batch[1] == "once": open(batch[2], "w").close()
        os._exit(9)

class Hangs(Stage):
    def __call__(self, batch):
        print("hanging")
        time.sleep(600)

class Source(Stage):
    def __call__(self):
        for n in range(4):
            print("item", n)
            yield n
        print("after the last")

class Gather(Stage):
    def __call__(self, items):
        print("gathering")
        return list(items)

class Light(Stage):
    def __call__(self, batch):
        print("in the worker")
        if batch[0] == "break": raise ValueError("no")
        return batch

class Chatty(Stage):
    def __call__(self, batch):
        for n in range(batch[0]): print("x" * 99)
        return [os.getpid()]
"""


#: Light stages are imported into this process, where another test's module may have the usual digest.
LIGHT = "1e" * 32


@pytest.fixture(autouse=True)
def workload(agent: Agent) -> None:
    agent.write(STAGES)
    agent.write(STAGES, digest=LIGHT)


def call(agent: Agent, called: Any, *items: Any) -> Any:
    return agent.client.call(called, pack(list(items)))


def test_each_result_has_what_its_own_call_printed(agent: Agent) -> None:
    first = call(agent, spec("Says", job_id="j1"), 1)
    second = call(agent, spec("Says", job_id="j2"), 2, 3)
    assert first.log == "loading t\nsays 1 j1\nof a child\n"
    assert second.log == "says 2 j2\nsays 3 j2\nof a child\n"
    assert unpack(first.frames) == unpack(second.frames)


def test_sources_and_gather_stages_tell_too(agent: Agent, tmp_path: Path) -> None:
    pieces = list(agent.client.stream(spec("Source", folder=str(tmp_path)), 2, 1 << 20))
    assert "".join(piece.log for piece in pieces) == "".join(f"item {n}\n" for n in range(4)) + "after the last\n"
    assert pieces[0].log.startswith("item 0\nitem 1\n")
    assert agent.client.gather(spec("Gather", folder=str(tmp_path)), []).log == "gathering\n"


def test_a_light_stage_tells_from_within_its_worker(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_light(spec("Light", digest=LIGHT), pack([1]), agent.home.workloads).log == "in the worker\n"
    with pytest.raises(StageFailed) as caught:
        call_light(spec("Light", digest=LIGHT), pack(["break"]), agent.home.workloads)
    assert caught.value.fields["log_tail"] == "in the worker\n"
    assert capsys.readouterr().out == "in the worker\n" * 2


def test_an_exception_comes_with_its_place_and_the_last_of_its_own_call(agent: Agent) -> None:
    call(agent, spec("Breaks", stage="breaks", run="stages:Says", job_id="other"), "secret of another job")
    with pytest.raises(StageFailed) as caught:
        call(agent, spec("Breaks"), 1)
    told = caught.value.fields
    assert (told["device"], told["exit_signal"], told["exit_status"]) == ("h/cpu", None, None)
    assert told["pid"] in agent.pids()
    assert 0 <= told["seconds"] < 10
    assert told["log_tail"].startswith("before it broke\n")
    assert "ValueError: no" in told["log_tail"]
    assert "secret" not in told["log_tail"]


@pytest.mark.parametrize(("way", "name", "status"), [("signal", "SIGKILL", None), ("exit", None, 9)])
def test_a_lost_process_tells_how_it_ended(agent: Agent, way: str, name: str | None, status: int | None) -> None:
    with pytest.raises(StageHostLost) as caught:
        call(agent, spec("Dies"), "me", way)
    told = caught.value.fields
    assert (told["exit_signal"], told["exit_status"]) == (name, status)
    assert told["log_tail"] == "last words of me\n"
    assert told["cgroup_oom_kills"] in {0, None}
    assert told["pid"] > 0


def test_what_the_kernel_killed_meanwhile_is_told(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 5\n")
    monkeypatch.setattr("dgpunet_dask.stagehost.process.oom_counter", lambda pid: counter)
    found, thread = in_thread(lambda: call(agent, spec("Hangs"), 1))
    pid = until(agent.pids, "it has started")[0]
    until(lambda: "hanging" in "".join(p.read_text() for p in agent.hosts.book.log_folder.glob("hangs-*.log")), "the call runs")
    counter.write_text("oom_kill 6\n")
    os.kill(pid, signal.SIGKILL)
    thread.join(30)
    assert found[0].fields["cgroup_oom_kills"] == 1
    assert evidence.oom_kills(counter) == 6


def test_a_hanging_stage_tells_what_it_said_before(agent: Agent) -> None:
    with pytest.raises(StageHung) as caught:
        call(agent, spec("Hangs", deadline_s=0.5), 1)
    assert caught.value.fields["log_tail"] == "hanging\n"
    assert caught.value.fields["seconds"] >= 0.5


def test_a_log_that_grows_too_long_is_shortened_while_its_process_lives(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 20_000)
    call(agent, spec("Chatty"), 150)
    (log,) = agent.hosts.book.log_folder.glob("chatty-*.log")
    until(lambda: log.stat().st_size == 0, "it is emptied")
    assert log.with_name(log.name + ".1").stat().st_size == 10_000
    told = call(agent, spec("Chatty"), 2).log
    assert told == ("x" * 99 + "\n") * 2


# A unit through a stage, as a worker's task runs it


@pytest.fixture
def worker(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Let this process stand for a worker that speaks for a CPU."""
    device = Device(name="h/cpu", host="h", kind="cpu", speed=1.0)
    monkeypatch.setenv("DGPUNET_AGENT_SOCKET", str(agent.home.agent_socket))
    monkeypatch.setenv("DGPUNET_HOME", str(agent.home.root))
    for name, value in {"current_device": "h/cpu", "current_host": "h", "current_vram_mib": None, "sharing": 1}.items():
        monkeypatch.setattr(task, name, lambda value=value: value)
    monkeypatch.setattr(task, "device_facts", lambda name: device)
    return device


def test_attempts_that_failed_are_told_with_the_one_that_did_not(agent: Agent, worker: Device, tmp_path: Path) -> None:
    stage = StageCall(spec("Dies"), light=False, retries=2).of_unit("ab", 7)
    parcel = run_stage(stage, Parcel(pack(["me", "once", str(tmp_path / "died")]), 1))
    record = parcel.records["dies"]
    assert (record.attempts, record.device, record.host, record.adopted, record.log) == (2, "h/cpu", "h", False, "last words of me\n")
    (failure,) = record.failures
    assert (failure["code"], failure["exit_status"], failure["host"], failure["device"]) == ("stage_host_lost", 9, "h", "h/cpu")
    assert failure["log_tail"] == "last words of me\n"
    again = run_stage(stage, Parcel(pack(["me", "once", str(tmp_path / "died")]), 1)).records["dies"]
    assert (again.adopted, again.seen, again.attempts) == (True, None, 1)


def test_the_last_failure_tells_of_all_attempts(agent: Agent, worker: Device) -> None:
    with pytest.raises(StageHostLost) as caught:
        run_stage(StageCall(spec("Dies"), light=False, retries=1), Parcel(pack(["me", "exit"]), 1))
    told = caught.value.fields
    assert (told["attempts"], told["host"], told["device"]) == (2, "h", "h/cpu")
    assert [failure["exit_status"] for failure in told["failures"]] == [9, 9]
    assert len({failure["pid"] for failure in told["failures"]}) == 2


def test_a_light_stage_that_fails_tells_its_host(agent: Agent, worker: Device) -> None:
    with pytest.raises(StageFailed) as caught:
        run_stage(StageCall(spec("Light", digest=LIGHT), light=True, retries=0), Parcel(pack(["break"]), 1))
    told = caught.value.fields
    assert (told["host"], told["device"], len(told["failures"])) == ("h", None, 1)
    parcel = run_stage(StageCall(spec("Light", digest=LIGHT), light=True, retries=0), Parcel(pack([1]), 1))
    assert (parcel.records["light"].log, parcel.records["light"].host) == ("in the worker\n", "h")


# The memory of a card


class Driver:
    """Lists processes on a card until a test lets them go."""

    def __init__(self) -> None:
        self.pids: frozenset[int] | None = frozenset()
        self.asked: list[str] = []

    async def __call__(self, uuid: str) -> frozenset[int] | None:
        self.asked.append(uuid)
        return self.pids


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def with_card(tmp_path: Path, driver: Driver) -> Iterator[Agent]:
    made = Agent(tmp_path / "cards", cards={"3090": "GPU-77"}, listed=driver)
    made.start()
    made.write(STAGES)
    yield made
    made.stop()


def test_a_hung_stage_is_charged_until_the_driver_lists_it_no_more(with_card: Agent, driver: Driver) -> None:
    agent, on_card = with_card, {"device": "3090", "vram_mib": 100, "resident_mib": 50}
    found, thread = in_thread(lambda: call(agent, spec("Hangs", deadline_s=0.8, **on_card), 1))
    pid = until(agent.pids, "it has started")[0]
    driver.pids = frozenset([pid, 1])
    thread.join(30)
    assert isinstance(found[0], StageHung)
    assert not exists(pid)
    later, waiting = in_thread(lambda: call(agent, spec("Says", stage="hangs", **on_card), 1))
    until(lambda: len(driver.asked) >= 3, "the driver is asked again and again")
    assert [r["mib"] for r in agent.now(agent.hosts.residents)["3090"]] == [50], "its charge stays"
    assert later == [], "and nothing takes its place"
    driver.pids = frozenset([1])
    waiting.join(30)
    assert later[0].items == 1
    assert set(driver.asked) == {"GPU-77"}


@pytest.mark.parametrize("stage", ["Dies", "Breaks"])
def test_a_call_that_failed_on_a_card_tells_what_befell_the_card_since_it_began(tmp_path: Path, stage: str) -> None:
    asked: list[tuple[str, float]] = []

    async def befell(uuid: str, since_s: float) -> dict[str, Any]:
        asked.append((uuid, since_s))
        return {"xid": [79]}

    agent, before_s = Agent(tmp_path / "cards", cards={"3090": "GPU-77"}, listed=Driver(), befell=befell), time.time()
    agent.start()
    agent.write(STAGES)
    try:
        for device, vram_mib in (("3090", 100), ("h/cpu", None)):
            with pytest.raises((StageHostLost, StageFailed)) as caught:
                call(agent, spec(stage, device=device, vram_mib=vram_mib), "me", "exit")
            assert caught.value.fields.get("xid") == ([79] if vram_mib else None)
            kept = evidence_of(caught.value, device=device, host="h", units_done=0)
            assert (attribute(kept).code == "gpu-hardware") == (device == "3090")
    finally:
        agent.stop()
    ((uuid, since_s),) = asked
    assert uuid == "GPU-77"
    assert before_s <= since_s <= time.time()


def test_where_the_driver_tells_nothing_the_end_of_the_process_counts(with_card: Agent, driver: Driver) -> None:
    driver.pids = None
    call(with_card, spec("Says", device="3090", vram_mib=100), 1)
    assert with_card.client.evict("3090", "says")
    assert with_card.now(with_card.hosts.residents) == {}


def test_a_process_that_the_driver_lists_for_ever_is_given_up_in_the_end(
    with_card: Agent, driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hosts, "UNLISTED_WITHIN_S", 0.3)
    call(with_card, spec("Says", device="3090", vram_mib=100), 1)
    driver.pids = frozenset(with_card.pids())
    assert with_card.client.evict("3090", "says")
    assert "still lists it on 3090" in caplog.text


@pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake driver is compiled, for Linux")
def test_the_driver_is_asked_for_the_processes_on_one_card(tmp_path: Path) -> None:
    cards = [FakeCard("NVIDIA GeForce RTX 3090", f"GPU-00000000-0000-0000-0000-00000000309{n}", 24576, 0, (8, 6)) for n in range(2)]
    state = tmp_path / "state"
    write_uses(state, [FakeUse(cards[0].uuid, 900, True, {10: 100, 11: None}), FakeUse(cards[1].uuid, 0)])
    ask = (
        "import asyncio; from dgpunet_dask.stagehost.hosts import listed_by_driver as ask;"
        f"print(*[asyncio.run(ask(uuid)) for uuid in {[cards[0].uuid, cards[1].uuid, 'GPU-none']!r}])"
    )
    env = child_env(environment(build(tmp_path), cards, state))
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[0] == "frozenset({10, 11}) frozenset() None"
