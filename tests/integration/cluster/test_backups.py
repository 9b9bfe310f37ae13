"""Copies of the ledger fetched between real peer ports: by the host that is meant, checked, resumed, the last two kept."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, replace

import pytest

from dgpunet_dask.cluster import backups
from dgpunet_dask.cluster.backups import BackupKeeper
from dgpunet_dask.errors import DiskFull, PeerFailed
from tests.integration.cluster.peers import nodes

LEDGER = os.urandom(3 << 20)


@pytest.fixture
async def three(tmp_path):
    async with nodes(tmp_path, ["h", "a", "b"]) as made:
        yield made


def offer(head, at=1.8e9, host="a", ledger=LEDGER):
    """Let the head's host make a copy and offer it."""
    head.home.backups.mkdir(mode=0o700, exist_ok=True)
    draft = head.home.backups / ".making-1"
    draft.mkdir()
    (draft / backups.LEDGER).write_bytes(ledger)
    made = replace(backups.make(draft, {"at": at, "host": "h", "boot": 1}, ['{"job_id": "j"}']), host=host)
    backups.write_offer(head.home, made)
    return made


def keeper(node):
    return BackupKeeper(node.home, node.client)


async def test_the_host_that_is_meant_fetches_the_copy_and_keeps_it_private(three):
    h, a, _ = three
    made = offer(h)
    folder = await keeper(a).fetch(made, h.peer)
    assert folder == a.home.backups / made.name
    assert backups.is_whole(folder)
    assert (folder / "ledger.db").read_bytes() == LEDGER
    assert {path.stat().st_mode & 0o077 for path in (a.home.backups, folder)} == {0}
    assert keeper(a).row() == {"name": made.name, "at": 1.8e9, "error": None}


async def test_no_other_host_gets_it_nor_learns_that_it_is_there(three):
    h, a, b = three
    made = offer(h)
    with pytest.raises(PeerFailed, match="not on this host"):
        await keeper(b).fetch(made, h.peer)
    assert not await b.client.has(h.peer, backups.KIND, made.digest)
    assert await a.client.has(h.peer, backups.KIND, made.digest)
    async with b.client.link(h.peer) as link:
        with pytest.raises(PeerFailed, match="no file"):
            await link.ask("read", kind=backups.KIND, digest=made.digest, name="ledger.db", offset=0)
    backups.write_offer(h.home, replace(made, host=None))
    assert not await a.client.has(h.peer, backups.KIND, made.digest)


@pytest.mark.parametrize("name", ["../offer.json", "offer.json", "../../ledger.db", "/etc/passwd", "backup.json/../../x"])
async def test_nothing_beside_the_copy_is_given(three, name):
    h, a, _ = three
    made = offer(h)
    async with a.client.link(h.peer) as link:
        with pytest.raises(PeerFailed):
            await link.ask("read", kind=backups.KIND, digest=made.digest, name=name, offset=0)


async def test_an_offer_that_names_another_path_is_none(three):
    h, _, _ = three
    made = offer(h)
    for changes in ({"name": "../x"}, {"name": "20260101T000000Z-" + "0" * 16}, {"digest": "x"}, {"size": "1"}, {"at": None}, {"host": 1}):
        with pytest.raises(ValueError, match="no copy of a ledger"):
            backups.Offer.from_json({**asdict(made), **changes})
        (h.home.backups / "offer.json").write_text("{")
        assert backups.read_offer(h.home) is None


async def test_a_copy_that_the_disk_has_changed_does_not_arrive(three):
    h, a, _ = three
    made = offer(h)
    with (h.home.backups / made.name / "ledger.db").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(ValueError, match="another digest"):
        await keeper(a).fetch(made, h.peer)
    assert backups.copies(a.home) == []


async def test_a_fetch_goes_on_where_an_earlier_one_ended_and_what_others_left_goes(three):
    h, a, _ = three
    made = offer(h)
    part = a.home.backups / f".part-{made.name}"
    part.mkdir(parents=True)
    (part / "ledger.db").write_bytes(LEDGER[: 2 << 20])
    (a.home.backups / ".part-20250101T000000Z-0123456789abcdef").mkdir()
    folder = await keeper(a).fetch(made, h.peer)
    assert (folder / "ledger.db").read_bytes() == LEDGER
    assert not list(a.home.backups.glob(".part-*"))


async def test_the_last_two_stay(three):
    h, a, _ = three
    taker = keeper(a)
    made = [offer(h, at=1.8e9 + 60 * number) for number in range(4)]
    for one in made:
        backups.write_offer(h.home, one)
        await taker.fetch(one, h.peer)
    assert [folder.name for folder in backups.copies(a.home)] == [one.name for one in made[-2:]]


async def test_what_the_head_orders_is_fetched_beside_the_heartbeats_once_and_told(three):
    h, a, _ = three
    made, taker = offer(h), keeper(a)
    assert taker.row() is None
    taker.take(None)
    order = {**asdict(made), "peer": asdict(h.peer)}
    taker.take(order)
    taker.take(order)  # while it is fetched
    await asyncio.wait_for(taker._task, 20)
    assert taker.row()["name"] == made.name
    before = taker._task
    taker.take(order)
    assert taker._task is before
    backups.write_offer(h.home, replace(made, host="b"))
    other = offer(h, at=1.9e9, host="b")
    taker.take({**asdict(other), "peer": asdict(h.peer)})
    await asyncio.wait_for(taker._task, 20)
    assert "not on this host" in taker.row()["error"]
    assert taker.row()["name"] == made.name
    await taker.stop()


async def test_a_host_without_room_says_so(three, monkeypatch):
    h, a, _ = three
    made = offer(h)
    monkeypatch.setattr("dgpunet_dask.cluster.blobs.SPARE_BYTES", 1 << 62)
    with pytest.raises(DiskFull):
        await keeper(a).fetch(made, h.peer)
