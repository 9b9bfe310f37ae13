"""Hosts that an earlier head knew and this one never hears of."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.cluster.nodes import LOST_S
from tests.unit.daemons.members import Members


@pytest.fixture
def members(home):
    return Members(home)


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
