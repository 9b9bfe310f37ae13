"""The canary runs on cards that are idle, one at a time, and a wrong result is a fault of the card."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.daemons import card_canary
from dgpunet_dask.daemons.card_canary import IDLE_PERCENT, CardCanary, run_apart
from tests.unit.daemons.moved import Hand

GOOD = {"ok": True, "seconds": 0.5, "gflops": 9.0, "why": None}
BAD = {"ok": False, "mismatches": 3, "failed": ["matmul", "memory"]}
NAMES = {"GPU-a": "rtx3090-0", "GPU-b": "rtx5090-0"}
IDLE = {"present": True, "utilisation": 0, "vram_mib": 24576, "used_mib": 500}
DAY = 86400.0


class Runs:
    """Stands in for the processes: each canary ends when the test gives its result."""

    def __init__(self):
        self.asked = []
        self.answer = None

    async def __call__(self, uuid, seed):
        self.asked.append(uuid)
        self.answer = asyncio.get_running_loop().create_future()
        return await self.answer


@pytest.fixture
def made():
    clock, runs = Hand(), Runs()
    return CardCanary(clock, runs, every_s=DAY, idle_s=60.0), clock, runs


async def settled():
    for _ in range(3):
        await asyncio.sleep(0)


async def given(canary, runs, result, cards):
    """Let the running canary end so, and return what is told."""
    await settled()
    if isinstance(result, Exception):
        runs.answer.set_exception(result)
    else:
        runs.answer.set_result(result)
    await settled()
    return canary.look(cards, NAMES, [])


async def test_cards_take_turns_once_they_have_been_idle(made):
    canary, clock, runs = made
    cards = {"GPU-a": IDLE, "GPU-b": IDLE}
    assert canary.look(cards, NAMES, []) == []
    await settled()
    assert runs.asked == []
    clock.now = 61.0
    canary.look(cards, NAMES, [])
    canary.look(cards, NAMES, [])
    await settled()
    assert runs.asked == ["GPU-a"]
    assert await given(canary, runs, GOOD, cards) == []
    await settled()
    assert runs.asked == ["GPU-a", "GPU-b"]
    assert await given(canary, runs, GOOD, cards) == []
    clock.now = DAY
    canary.look(cards, NAMES, [])
    await settled()
    assert len(runs.asked) == 2
    assert [(row["device"], row["ok"], row["why"]) for row in canary.rows()] == [("rtx3090-0", True, None), ("rtx5090-0", True, None)]


@pytest.mark.parametrize(
    ("row", "stagehosts"),
    [
        ({"utilisation": IDLE_PERCENT + 1}, []),
        ({"used_mib": 24000}, []),
        ({"present": False}, []),
        ({"present": None}, []),
        ({}, [{"device": "rtx3090-0", "busy": True}]),
    ],
)
async def test_a_card_that_is_in_use_is_left_alone(made, row, stagehosts):
    canary, clock, runs = made
    for clock.now in (0.0, 61.0, 122.0):
        canary.look({"GPU-a": {**IDLE, **row}}, NAMES, stagehosts)
        await settled()
    assert runs.asked == []
    for clock.now in (130.0, 200.0):
        canary.look({"GPU-a": IDLE}, NAMES, [{"device": "rtx3090-0", "busy": False}, {"device": "rtx5090-0", "busy": True}])
    await settled()
    assert runs.asked == ["GPU-a"]
    await canary.stop()


async def test_a_wrong_result_is_a_fault_and_the_card_is_out(made):
    canary, clock, runs = made
    cards = {"GPU-a": IDLE}
    for clock.now in (0.0, 61.0):
        canary.look(cards, NAMES, [])
    (told,) = await given(canary, runs, BAD, cards)
    assert (told["kind"], told["cordon"], told["cause"], told["uuid"], told["device"]) == ("card_fault", True, "hardware", "GPU-a", "rtx3090-0")
    assert told["what"] == "rtx3090-0: a known computation gave another result (3 wrong numbers in matmul, memory)"
    clock.now = 10 * DAY
    assert canary.look(cards, NAMES, []) == []
    await settled()
    assert len(runs.asked) == 1
    assert canary.rows()[0]["ok"] is False


async def test_what_cannot_run_is_no_fault_and_shown(made):
    canary, clock, runs = made
    for clock.now in (0.0, 61.0):
        canary.look({"GPU-a": IDLE}, NAMES, [])
    assert await given(canary, runs, OSError("no memory"), {"GPU-a": IDLE}) == []
    assert (canary.rows()[0]["ok"], canary.rows()[0]["why"]) == (None, "no memory")


async def test_one_that_runs_ends_with_the_agent(made):
    canary, clock, runs = made
    for clock.now in (0.0, 61.0):
        canary.look({"GPU-a": IDLE}, NAMES, [])
    await settled()
    await canary.stop()
    assert runs.answer.cancelled()


async def test_a_process_that_hangs_inside_the_driver_is_left_alone(monkeypatch):
    class Child:
        killed = False

        async def communicate(self):
            await asyncio.Event().wait()

        wait = communicate

        def kill(self):
            self.killed = True

    async def spawn(*_, **__):
        return child

    child = Child()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    monkeypatch.setattr(card_canary, "LIMIT_S", 0.01)
    monkeypatch.setattr(card_canary, "KILL_S", 0.01)
    found = await asyncio.wait_for(run_apart("GPU-a", 1), 10)
    assert (found["ok"], child.killed, "did not end" in found["why"]) == (None, True, True)


@pytest.mark.long
async def test_a_machine_without_the_card_says_why():
    found = await run_apart("GPU-00000000-0000-0000-0000-000000000000", 1)
    assert found["ok"] is None
    assert found["why"]
