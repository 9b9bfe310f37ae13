"""Hosts that an earlier head knew and this one never hears of."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.cluster.nodes import LOST_S
from dgpunet_dask.daemons import membership
from tests.unit.daemons.members import Members


@pytest.fixture
def members(home):
    return Members(home)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # a log gives no event
            await asyncio.sleep(0.001)


async def test_a_host_that_never_comes_back_to_a_new_head_is_lost(members):
    await members.beat()
    members.start()
    members.passed(LOST_S - 1)
    await members.now.look()
    assert (await members.row())["state"] == "joining"
    members.passed(2)
    await members.now.look()
    assert (await members.row())["state"] == "lost"
    await members.beat()
    assert (await members.row())["state"] == "ready"


async def test_a_drained_host_stays_drained_when_it_is_cordoned(members):
    await members.beat()
    await members.now.node_action("node-a", "drain", {})
    await members.now.look()
    for _ in range(10):  # let the task that drains it come to its end
        await asyncio.sleep(0)
    assert (await members.now.node_action("node-a", "cordon", {}))["state"] == "drained"
    assert (await members.now.node_action("node-a", "uncordon", {}))["state"] == "ready"


@pytest.mark.parametrize(("rate", "codec"), [(5e6, "zlib"), (1.2e9, None)])
async def test_a_head_that_knows_slow_links_has_connections_compressed(members, rate, codec):
    assert (await members.beat())["compression"] is None
    members.now.links.measured({"src": "node-a", "dst": "node-b", "bytes_per_s": rate, "rtt_s": 0.001})
    assert (await members.beat())["compression"] is None, "not in the middle of a head's life"
    members.start()
    assert (await members.beat())["compression"] == codec


async def test_silence_is_noticed_again_once_what_broke_a_look_is_mended(members, monkeypatch, caplog):
    """A full disk, say, fails a look; the next one must come all the same."""
    monkeypatch.setattr(membership, "PERIOD_S", 0.001)
    await members.beat()

    async def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(members.now, "_hold", full)
        running = asyncio.create_task(members.now.run())
        await until(lambda: "could not be looked after" in caplog.text)
    members.passed(LOST_S + 1)
    await until(lambda: "node-a" in members.now.lost)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
