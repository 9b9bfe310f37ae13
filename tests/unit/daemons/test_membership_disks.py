"""What a head tells hosts about copies of its ledger, and hosts whose disks are full."""

from __future__ import annotations

import pytest

from tests.unit.daemons.members import HEAD, Members


@pytest.fixture
async def members(home):
    return Members(home)


class Copies:
    """What is offered to one host."""

    def offered_to(self, host):
        return {"name": "n"} if host == "node-a" else None

    def status(self):
        return {"at": 1.0}


async def test_the_host_that_keeps_copies_is_told_which_and_where(members):
    members.now.backing = Copies()
    assert (await members.beat())["backup"] is None  # the head's own agent has not been heard of
    await members.beat(HEAD, address="10.0.0.1", facts=None)
    assert (await members.beat())["backup"] == {"name": "n", "peer": {"host": HEAD, "address": "10.0.0.1", "port": 8788, "is_head": True}}
    assert (await members.beat("node-b", address="10.0.0.3"))["backup"] is None
    assert (await members.now.doctor({}))["backup"] == {"at": 1.0}


async def test_hosts_that_could_keep_copies_are_those_that_are_there_but_the_heads_own(members):
    await members.beat(HEAD, address="10.0.0.1")
    await members.beat()
    await members.beat("node-b", address="10.0.0.3")
    await members.now.node_action("node-b", "cordon", {})
    assert sorted(members.now.others_here()) == ["node-a", "node-b"]
    members.passed(20)
    await members.beat()
    assert members.now.others_here() == ["node-a"]


@pytest.mark.parametrize(("said", "known"), [({"name": "n", "at": 1.0}, {"name": "n", "at": 1.0}), (None, None), ("odd", None)])
async def test_what_a_host_says_of_its_copies_is_known(members, said, known):
    assert members.now.backup_of("node-a") is None
    await members.beat(health={"cards": {}, "backup": said})
    assert members.now.backup_of("node-a") == known


async def test_nothing_new_goes_to_a_host_whose_disk_is_full_until_it_has_room(members):
    await members.beat(health={"disk": {"low": True}})
    await members.now.look()
    assert members.scheduler.held == {"rtx3090-0": "cordoned", "node-a/cpu": "cordoned"}
    await members.now.node_action("node-a", "drain", {})
    assert members.scheduler.held["rtx3090-0"] == "draining"
    await members.now.node_action("node-a", "uncordon", {})
    await members.beat(health={"disk": {"low": False}})
    await members.now.look()
    assert members.scheduler.held == {}
    await members.beat(health={"disk": "odd"})
    await members.now.look()
    assert members.scheduler.held == {}
