"""Calls of units that outlive their callers: joined, kept, forgotten, and ended when nobody comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgpunet_dask.errors import StageFailed, StageHostLost
from dgpunet_dask.stagehost.frames import pack, unpack
from dgpunet_dask.stagehost.kept import Keep
from dgpunet_dask.stagehost.spec import StageCallSpec
from tests.integration.stagehost.helpers import Agent, exists, in_thread, spec, until

ROOT = Path(__file__).parents[3]
UNIT = "c0ffee"

STAGES = """
import os, time
import numpy as np
from dgpunet_dask import Stage

class Waits(Stage):
    def load(self, *, tag=""): pass
    def __call__(self, batch):
        print("computing")
        path = batch[0]
        with open(path + ".pids", "a") as f: f.write(f"{os.getpid()}\\n")
        while not os.path.exists(path): time.sleep(0.01)
        self.count("computed")
        return [(os.getpid(), self.device)]

class Large(Stage):
    def __call__(self, batch):
        with open(batch[0] + ".pids", "a") as f: f.write(f"{os.getpid()}\\n")
        return [np.arange(batch[1])]

class Fails(Stage):
    def __call__(self, batch):
        with open(batch[0] + ".pids", "a") as f: f.write(f"{os.getpid()}\\n")
        raise ValueError("no")
"""

CALLER = """
import json, sys
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.frames import pack
from dgpunet_dask.stagehost.spec import StageCallSpec
AgentClient(sys.argv[1]).call(StageCallSpec.from_json(json.loads(sys.argv[2])), pack([sys.argv[3]]))
"""


class ByHand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ByHand:
    return ByHand()


@pytest.fixture
def agent(tmp_path: Path, clock: ByHand) -> Iterator[Agent]:
    made = Agent(tmp_path / "home", clock=clock, kept=Keep(join_s=20.0))
    made.start()
    made.write(STAGES)
    yield made
    made.stop()


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file that lets a waiting stage go on."""
    return tmp_path / "go"


def unit(name: str = "Waits", **fields: Any) -> StageCallSpec:
    return spec(name, **{"unit": UNIT, "epoch": 7, **fields})


def call(agent: Agent, called: StageCallSpec, *items: Any) -> Any:
    return agent.client.call(called, pack(list(items)))


def starts(go: Path) -> list[int]:
    """Return the process id of each call that began."""
    file = go.with_name("go.pids")
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def states(agent: Agent) -> list[str]:
    return [held.state for held in agent.client.held()]


def callers(agent: Agent) -> list[int]:
    """Return how many wait for each call."""
    return agent.now(lambda: [held.callers for held in agent.hosts.kept.held()])


def kill_caller(agent: Agent, go: Path, called: StageCallSpec, holds: Callable[[], Any]) -> None:
    """Let a process make a call, and kill it as soon as `holds`."""
    argv = [sys.executable, "-c", CALLER, str(agent.home.agent_socket), json.dumps(called.to_json()), str(go)]
    with subprocess.Popen(argv, cwd=ROOT) as caller:
        until(holds, "the call has come so far")
        caller.kill()
        caller.wait(timeout=10)


def killed_caller(agent: Agent, go: Path, called: StageCallSpec) -> int:
    """Let a process make a call, kill it in the middle, and return the id of the process that computes."""
    before = len(starts(go))
    kill_caller(agent, go, called, lambda: len(starts(go)) > before)
    return starts(go)[-1]


def test_whoever_calls_after_a_killed_caller_joins_its_call(agent: Agent, go: Path) -> None:
    pid = killed_caller(agent, go, unit())
    found, thread = in_thread(lambda: call(agent, unit(epoch=9), str(go)))
    until(lambda: callers(agent) == [1], "the second caller has joined")
    assert [tuple(held) for held in agent.client.held()] == [(UNIT, "waits", "h/cpu", "running")]
    go.touch()
    thread.join(timeout=30)
    (result,) = found
    assert (result.adopted, result.device, result.counts) == (True, "h/cpu", {"computed": 1})
    assert unpack(result.frames) == [(pid, "h/cpu")]
    assert result.log == "computing\n"
    assert starts(go) == [pid]


def test_whoever_comes_late_gets_what_was_kept(agent: Agent, go: Path, clock: ByHand) -> None:
    pid = killed_caller(agent, go, unit())
    go.touch()
    until(lambda: states(agent) == ["done"], "the call ended without a caller")
    for _ in range(2):  # delivered, and kept all the same: the taker may die before it commits
        late = call(agent, unit(), str(go))
        assert (unpack(late.frames), late.adopted) == ([(pid, "h/cpu")], True)
    clock.now += 299.0
    assert call(agent, unit(), str(go)).adopted
    clock.now += 1.0
    assert states(agent) == []
    assert not call(agent, unit(), str(go)).adopted
    assert len(starts(go)) == 2


def test_a_result_that_was_delivered_is_kept_until_it_is_committed(agent: Agent, go: Path) -> None:
    go.touch()
    assert not call(agent, unit(), str(go)).adopted
    assert call(agent, unit(), str(go)).adopted
    assert agent.client.forget(["other", UNIT]) == 1
    assert agent.client.forget([UNIT]) == 0
    assert not call(agent, unit(), str(go)).adopted


@pytest.mark.parametrize("change", [{"unit": "0dd"}, {"job_id": "j2"}, {"digest": "6b" * 32}, {"load": {"tag": "x"}}, {"unit": ""}])
def test_what_decides_the_result_is_not_mixed_up(agent: Agent, go: Path, change: dict[str, Any]) -> None:
    agent.write(STAGES, digest="6b" * 32)
    go.touch()
    call(agent, unit(), str(go))
    assert not call(agent, unit(**change), str(go)).adopted


def test_a_call_that_names_another_device_of_this_agent_joins(agent: Agent, go: Path) -> None:
    killed_caller(agent, go, unit(device="4090l", vram_mib=100, resident_mib=10))
    found, thread = in_thread(lambda: call(agent, unit(device="3090", vram_mib=200, resident_mib=10), str(go)))
    until(lambda: callers(agent) == [1], "it has joined")
    go.touch()
    thread.join(timeout=30)
    assert (found[0].adopted, found[0].device) == (True, "4090l")
    assert list(agent.now(agent.hosts.residents)) == ["4090l"]


def test_a_call_that_nobody_waits_for_keeps_its_charge(agent: Agent, go: Path) -> None:
    def mib() -> int:
        return int(agent.now(agent.hosts.residents)["4090l"][0]["mib"])

    called = unit(device="4090l", vram_mib=100, resident_mib=10)
    killed_caller(agent, go, called)
    until(lambda: mib() == 100, "the whole charge is the resident's while no unit has it")
    _, thread = in_thread(lambda: call(agent, called, str(go)))
    until(lambda: mib() == 10, "the unit that joined is charged for the rest")
    go.touch()
    thread.join(timeout=30)


def test_a_copy_runs_by_itself(agent: Agent, go: Path) -> None:
    first, one = in_thread(lambda: call(agent, unit(), str(go)))
    until(lambda: starts(go), "the call runs")
    second, other = in_thread(lambda: call(agent, unit(copy=True), str(go)))
    until(lambda: len(set(starts(go))) == 2, "both run")
    go.touch()
    for thread in (one, other):
        thread.join(timeout=30)
    assert [found[0].adopted for found in (first, second)] == [False, False]
    assert call(agent, unit(copy=True), str(go)).adopted, "of one that has ended even a copy gets the result"


def test_errors_are_told_to_all_who_wait_and_not_kept(agent: Agent, go: Path) -> None:
    for _ in range(2):
        with pytest.raises(StageFailed):
            call(agent, unit("Fails"), str(go))
    assert len(starts(go)) == 2
    assert states(agent) == []


def test_a_process_that_is_killed_fails_all_who_wait_and_the_next_call_computes_anew(agent: Agent, go: Path) -> None:
    found, threads = zip(*(in_thread(lambda: call(agent, unit(), str(go))) for _ in range(2)), strict=True)
    until(lambda: callers(agent) == [2] and starts(go), "one call with two callers")
    os.kill(starts(go)[0], 9)
    for thread in threads:
        thread.join(timeout=30)
    assert [type(one[0]) for one in found] == [StageHostLost, StageHostLost]
    go.touch()
    assert not call(agent, unit(), str(go)).adopted


def test_large_results_are_kept_in_memory_files_and_private_to_each_taker(agent: Agent, go: Path) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    takers = [unpack(call(agent, unit("Large"), str(go), 1_000_000).frames)[0] for _ in range(3)]
    takers[0][:] = 0
    for taker in takers[1:]:
        np.testing.assert_array_equal(taker, np.arange(1_000_000))
    assert len(starts(go)) == 1
    del taker, takers
    agent.client.forget([UNIT])
    until(lambda: len(os.listdir("/proc/self/fd")) <= fds + 1, "no descriptor is left")


@pytest.mark.parametrize(("kept", "left"), [(Keep(keep_bytes=20_000_000), 2), (Keep(keep_files=1), 1), (Keep(keep_bytes=1000), 0)])
def test_the_oldest_results_go_when_there_is_no_more_room(tmp_path: Path, go: Path, kept: Keep, left: int) -> None:
    agent = Agent(tmp_path / "small", kept=kept)
    agent.start()
    try:
        agent.write(STAGES)
        for number in range(4):
            array = unpack(call(agent, unit("Large", unit=str(number)), str(go), 1_000_000).frames)[0]
            assert len(array) == 1_000_000
        assert [held.unit for held in agent.client.held()] == [str(n) for n in range(4)][4 - left :]
    finally:
        agent.stop()


def test_a_call_that_nobody_comes_back_for_is_ended(tmp_path: Path, go: Path) -> None:
    agent = Agent(tmp_path / "short", kept=Keep(join_s=0.2))
    agent.start()
    try:
        agent.write(STAGES)
        pid = killed_caller(agent, go, unit())
        until(lambda: not exists(pid), "its process was ended")
        until(lambda: states(agent) == [], "the call has left the book")
    finally:
        agent.stop()


def test_an_ended_worker_ends_calls_of_no_unit_and_leaves_those_of_units(agent: Agent, go: Path) -> None:
    kept = killed_caller(agent, go, unit())
    alone = killed_caller(agent, go, unit(unit=""))
    agent.do(agent.hosts.drop_calls("h/cpu", 0.05))
    assert exists(kept)
    assert not exists(alone)
    assert states(agent) == ["running"]


def test_a_cancelled_job_leaves_no_call_running_that_nobody_waits_for(agent: Agent, go: Path) -> None:
    nobody = killed_caller(agent, go, unit())
    other = killed_caller(agent, go, unit(job_id="j2"))
    found, thread = in_thread(lambda: call(agent, unit(unit="beef"), str(go)))
    until(lambda: len(starts(go)) == 3, "a third call runs, of the job, with its caller")
    assert agent.client.end_job("j1") == 1
    assert not exists(nobody)
    assert exists(other)
    go.touch()
    thread.join(timeout=30)
    assert unpack(found[0].frames)


def test_a_call_whose_caller_left_before_its_turn_is_not_made(agent: Agent, go: Path) -> None:
    on_card = unit(device="4090l", vram_mib=10)
    found, thread = in_thread(lambda: call(agent, on_card, str(go)))
    until(lambda: len(starts(go)) == 1, "the card is taken")
    kill_caller(agent, go, replace(on_card, unit="beef"), lambda: states(agent) == ["running", "waiting"])
    until(lambda: callers(agent) == [1, 0], "its end was seen")
    go.touch()
    thread.join(timeout=30)
    until(lambda: states(agent) == ["done"], "what nobody waited for has left the book")
    assert len(starts(go)) == 1
    assert found[0].items == 1
