"""What an agent says of its cards: a row in each heartbeat, a report for each thing that happens."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons.card_canary import CardCanary
from dgpunet_dask.daemons.node_health import NodeHealth
from dgpunet_dask.daemons.spool import Spool
from dgpunet_dask.hardware.card_facts import CardFacts
from dgpunet_dask.hardware.nvml import CardState
from dgpunet_dask.hardware.xids import XidEvent
from dgpunet_dask.model.fleet import Device, Fleet, Host

FLEET = Fleet(hosts=(Host(name="pc"),), devices=(Device(name="rtx3090-0", host="pc", uuid="GPU-a", vram_mib=24576),))


class Cards:
    """A driver that tells what the test says."""

    def __init__(self):
        self.here, self.events, self.opened, self.broken = [CardFacts(index=0, uuid="GPU-a", utilisation=90)], [], 0, False

    @contextlib.contextmanager
    def opening(self):
        self.opened += 1
        yield self

    def facts(self):
        if self.broken:
            raise OSError("the driver is being exchanged")
        return list(self.here)

    def state(self, uuid):
        return CardState(present=False, lost=True, why=f"{uuid} is lost")

    def xids(self):
        found, self.events = self.events, []
        return found

    def reopen(self):
        self.opened += 1


async def became(condition, what):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(what)


@pytest.fixture
async def running(tmp_path):
    cards, spool = Cards(), Spool(tmp_path / "reports.json")
    health = NodeHealth(spool, SystemClock(), monitor=cards.opening, period_s=0.02, xids_s=0.01, canary=CardCanary(SystemClock(), idle_s=1e9))
    names = {}
    task = asyncio.create_task(health.run(lambda: FLEET, list, lambda: names))
    await became(lambda: health.cards, "no card was looked at")
    yield health, cards, spool, names
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_row_says_how_each_card_is_and_how_old_that_is(running):
    health, _, spool, names = running
    await became(lambda: health.row()["cards"]["GPU-a"]["name"] == "rtx3090-0", "the host's own name")
    row = health.row()
    assert (row["cards"]["GPU-a"]["present"], row["cards"]["GPU-a"]["utilisation"], row["canary"]) == (True, 90, [])
    assert 0 <= row["looked_s_ago"] < 10
    names["rtx3090-4"] = "GPU-a"
    await became(lambda: health.row()["cards"]["GPU-a"]["name"] == "rtx3090-4", "the cluster's name")
    assert spool.batch() == []


async def test_errors_and_loss_become_reports(running):
    health, cards, spool, _ = running
    await became(lambda: health.row()["cards"]["GPU-a"]["name"] == "rtx3090-0", "the name")
    cards.events = [XidEvent("GPU-a", 79, 5.0)]
    cards.here = [CardFacts(index=0, present=False)]
    await became(lambda: len(spool.batch()) == 2, "two reports")
    assert [(r["kind"], r["cordon"], r["xid"]) for r in spool.batch()] == [("card_fault", True, 79), ("card_fault", True, None)]
    assert health.row()["cards"]["GPU-a"]["present"] is False
    opened = cards.opened
    cards.here = [CardFacts(index=0, uuid="GPU-a")]
    await became(lambda: len(spool.batch()) == 3, "it is back")
    assert spool.batch()[-1]["kind"] == "card_back"
    assert cards.opened >= opened > 1


async def test_a_failed_call_learns_what_befell_its_card_though_it_was_reported_a_moment_before(running):
    health, cards, _, _ = running
    cards.events = [XidEvent("GPU-a", 31, 5.0)]
    assert await health.befell("GPU-a", 4.0) == {"xid": [31]}
    cards.events = [XidEvent("GPU-a", 31, 30.0)]  # of the same number: no further report so soon
    assert await health.befell("GPU-a", 29.0) == {"xid": [31]}
    assert await health.befell("GPU-a", 40.0) == {}
    assert await health.befell("GPU-none", 0.0) == {}


async def test_a_host_whose_cards_nobody_can_ask_says_nothing_and_keeps_no_one_waiting(tmp_path):
    health = NodeHealth(Spool(tmp_path / "reports.json"), SystemClock(), xids_s=0.01)
    assert await health.befell("GPU-a", 0.0) == {}


async def test_a_look_that_fails_is_not_the_last(running, caplog):
    health, cards, _, _ = running
    cards.broken = True
    await became(lambda: "could not be looked at" in caplog.text, "the failure is told")
    cards.broken, cards.here = False, [CardFacts(index=0, uuid="GPU-a", utilisation=1)]
    await became(lambda: health.row()["cards"]["GPU-a"]["utilisation"] == 1, "it looks again")
