"""Folders copied between real peer ports: checked, resumed, never twice, and never from one that lies."""

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from dgpunet_dask.cluster.blobs import ABANDONED_S, BAN_S
from dgpunet_dask.cluster.peer_client import PeerClient
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DiskFull, FolderMissing
from dgpunet_dask.jobs.store import add_workload, digest_of, pack_workload
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.fetching import find_folder, note_model
from dgpunet_dask.stagehost.folders import FileEntry
from dgpunet_dask.stagehost.manager import StageHosts
from tests.integration.cluster.peers import ManualClock, nodes

WEIGHTS = os.urandom(3 << 20)


@pytest.fixture
async def three(tmp_path):
    async with nodes(tmp_path, ["h", "a", "b"]) as made:
        yield made


def model_in(folder: Path, weights: bytes = WEIGHTS) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "empty").touch()
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    (folder / "model.safetensors").write_bytes(weights)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "left").write_text("not weights")
    return folder


def workload_in(folder: Path) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "job.yaml").write_text("version: 1\nname: w\nstages: {s: {run: 'stages:S'}}\n")
    (folder / "stages.py").write_text("from dgpunet_dask import Stage\nclass S(Stage): pass\n")
    (folder / "lib" / "ünï code.py").write_text("X = 1\n")
    return folder


def serve_workload(home: Home, tmp_path: Path) -> str:
    folder = workload_in(tmp_path / "submitted")
    digest = digest_of(folder)
    add_workload(home.workloads, digest, pack_workload(folder))
    return digest


def peers_of(*made):
    return [node.peer for node in made]


async def test_a_workload_is_copied_byte_for_byte(three, tmp_path):
    h, a, _ = three
    digest = serve_workload(h.home, tmp_path)
    folder = await a.blobs.ensure("workload", digest, peers_of(h))
    assert folder == a.home.workloads / digest
    assert digest_of(folder) == digest
    assert (folder / "lib" / "ünï code.py").read_text() == "X = 1\n"
    assert folder.stat().st_mode & 0o077 == 0


async def test_a_model_is_copied_and_then_given_by_the_host_that_copied_it(three, tmp_path):
    h, a, b = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    assert find_folder(h.home, "model", digest) == tmp_path / "model"
    folder = await a.blobs.ensure("model", digest, peers_of(h))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "empty").read_bytes() == b""
    assert not (folder / ".cache").exists()
    await h.server.stop()
    again = await b.blobs.ensure("model", digest, peers_of(h, a))
    assert (again / "1_Pooling" / "config.json").read_text() == '{"mean": true}'


async def test_the_heads_host_is_spared_where_another_has_it(three, tmp_path):
    h, a, b = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    await a.blobs.ensure("model", digest, peers_of(h))
    reads = []
    h.blobs.file = lambda *args: reads.append(args)
    await b.blobs.ensure("model", digest, peers_of(h, a))
    assert reads == []


async def test_many_who_ask_at_once_cause_one_copy(three, tmp_path):
    h, a, _ = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    reads, found = [], h.blobs.file

    def counted(kind, digest, name):
        reads.append(name)
        return found(kind, digest, name)

    h.blobs.file = counted
    folders = await asyncio.gather(*(a.blobs.ensure("model", digest, peers_of(h)) for _ in range(8)))
    assert len(set(folders)) == 1
    assert sorted(reads) == ["1_Pooling/config.json", "config.json", "model.safetensors"]  # an empty file is not asked for


async def test_a_copy_that_broke_off_goes_on_where_it_was(three, tmp_path):
    h, a, _ = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    part = a.home.models / f".part-{digest}"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(WEIGHTS[: 2 << 20])
    (part / "stranger.py").write_text("import this")
    sizes, send = [], h.server._send_file

    async def told(call, file, offset):
        sizes.append(offset)
        await send(call, file, offset)

    h.server._send_file = told
    folder = await a.blobs.ensure("model", digest, peers_of(h))
    assert 2 << 20 in sizes
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not (folder / "stranger.py").exists()


@pytest.mark.parametrize("left", [b"x" * 1000, WEIGHTS + b"more", b"x" * len(WEIGHTS)], ids=["wrong start", "too long", "wrong"])
async def test_a_wrong_leftover_is_brought_anew_and_blames_nobody(three, tmp_path, left):
    h, a, _ = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    part = a.home.models / f".part-{digest}"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(left)
    folder = await a.blobs.ensure("model", digest, peers_of(h))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_peer_that_dies_in_the_middle_is_replaced_by_another(three, tmp_path):
    h, a, b = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    await a.blobs.ensure("model", digest, peers_of(h))

    async def dies(call, file, offset):
        await call.answer({"size": len(WEIGHTS) - offset})
        call.writer.write(WEIGHTS[offset : offset + 100_000])
        await call.writer.drain()
        raise ConnectionResetError("power cut")

    a.server._send_file = dies
    folder = await b.blobs.ensure("model", digest, peers_of(h, a))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [p.name for p in b.home.models.glob(".part*")] == []


async def test_a_connection_that_ends_is_made_again_while_each_brings_something(three, tmp_path):
    h, a, _ = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    offsets, send = [], h.server._send_file

    async def flaky(call, file, offset):
        offsets.append(offset)
        if "safetensors" in file.name and offset < 2 << 20:
            await call.answer({"size": len(WEIGHTS) - offset})
            call.writer.write(WEIGHTS[offset : offset + (1 << 20)])
            await call.writer.drain()
            call.writer.close()
            raise ConnectionResetError("out of reach")
        await send(call, file, offset)

    h.server._send_file = flaky
    folder = await a.blobs.ensure("model", digest, peers_of(h))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {1 << 20, 2 << 20} <= set(offsets)


# Peers that lie


async def test_wrong_bytes_are_found_their_giver_left_alone_for_a_while(tmp_path):
    clock = ManualClock()
    async with nodes(tmp_path, ["h", "a", "b"], clock=clock) as (h, a, b):
        digest = note_model(h.home, model_in(tmp_path / "model"))
        copied = await a.blobs.ensure("model", digest, peers_of(h))
        assert len(a.blobs.files("model", digest)) == 4
        (copied / "model.safetensors").write_bytes(os.urandom(len(WEIGHTS)))
        with pytest.raises(FolderMissing, match="a: it gave wrong bytes"):
            await b.blobs.ensure("model", digest, peers_of(a))
        with pytest.raises(FolderMissing, match="short while ago"):
            await b.blobs.ensure("model", digest, peers_of(a))
        clock.advance(BAN_S + 1)
        (copied / "model.safetensors").write_bytes(WEIGHTS)
        assert (await b.blobs.ensure("model", digest, peers_of(a)) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("kind", ["model", "workload"])
async def test_a_damaged_folder_is_not_given_to_others(three, tmp_path, kind, caplog):
    h, a, b = three
    digest = note_model(h.home, model_in(tmp_path / "model")) if kind == "model" else serve_workload(h.home, tmp_path)
    copied = await a.blobs.ensure(kind, digest, peers_of(h))
    (copied / ("config.json" if kind == "model" else "stages.py")).write_text("damaged")
    with pytest.raises(FolderMissing, match="a: it is not on this host"):
        await b.blobs.ensure(kind, digest, peers_of(a))
    assert "damaged: its files have another digest" in caplog.text
    assert await b.blobs.ensure(kind, digest, peers_of(a, h)) == find_folder(b.home, kind, digest)


async def test_another_peer_is_asked_after_one_that_lied(three, tmp_path):
    h, a, b = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    copied = await a.blobs.ensure("model", digest, peers_of(h))
    assert len(a.blobs.files("model", digest)) == 4
    (copied / "config.json").write_text("[]")
    assert (await b.blobs.ensure("model", digest, peers_of(h, a)) / "config.json").read_text() == "{}"


LIES = {
    "leads out": [["../../evil.py", 4, "0" * 64]],
    "absolute": [["/tmp/evil.py", 4, "0" * 64]],
    "twice": [["a", 1, "0" * 64], ["a", 1, "0" * 64]],
    "file and folder": [["a", 1, "0" * 64], ["a/b", 1, "0" * 64]],
    "too large": [["a", 1 << 50, "0" * 64]],
    "negative": [["a", -1, "0" * 64]],
    "no digest": [["a", 1, "zz"]],
    "empty": [],
    "no list": "abc",
    "flat": [1, 2, 3],
    "other files": [["a", 1, "0" * 64]],
}


@pytest.mark.parametrize("kind", ["model", "workload"])
@pytest.mark.parametrize("listed", LIES.values(), ids=LIES)
async def test_lists_of_files_that_lie_bring_nothing(three, tmp_path, kind, listed):
    h, a, _ = three
    h.blobs.has = lambda kind, digest: True
    h.blobs.files = lambda kind, digest: listed
    h.blobs.file = lambda kind, digest, name: tmp_path / "evil"
    (tmp_path / "evil").write_text("evil")
    before = {p for p in tmp_path.rglob("*") if "evil" in p.name}
    with pytest.raises(FolderMissing):
        await a.blobs.ensure(kind, "ab" * 32, peers_of(h))
    assert {p for p in tmp_path.rglob("*") if "evil" in p.name} == before
    assert find_folder(a.home, kind, "ab" * 32) is None


async def test_a_file_that_the_digest_does_not_count_is_not_let_in(three, tmp_path):
    h, a, _ = three
    digest = serve_workload(h.home, tmp_path)
    stray = h.home.workloads / digest / "__pycache__" / "stages.cpython-311.pyc"
    stray.parent.mkdir()
    stray.write_bytes(b"evil")
    files, file = h.blobs.files, h.blobs.file
    name = "__pycache__/stages.cpython-311.pyc"
    sha256 = hashlib.sha256(b"evil").hexdigest()
    h.blobs.files = lambda kind, digest: [*files(kind, digest), FileEntry(name, 4, sha256)]
    h.blobs.file = lambda kind, digest, wanted: stray if wanted == name else file(kind, digest, wanted)
    with pytest.raises(FolderMissing, match="does not count"):
        await a.blobs.ensure("workload", digest, peers_of(h))
    assert find_folder(a.home, "workload", digest) is None


async def test_what_is_nowhere_is_missing_and_every_peer_says_why(three):
    h, a, b = three
    await b.server.stop()
    with pytest.raises(FolderMissing, match=r"(?s)b: .*h: it does not have it"):
        await a.blobs.ensure("model", "ab" * 32, peers_of(h, b))
    with pytest.raises(FolderMissing, match="no other host"):
        await a.blobs.ensure("model", "ab" * 32, [])
    for kind, digest in [("env", "ab" * 32), ("model", "../../x")]:
        with pytest.raises(ValueError, match=r"no kind|no digest"):
            await a.blobs.ensure(kind, digest, peers_of(h))


async def test_a_full_disk_is_told_before_anything_comes(three, tmp_path, monkeypatch):
    h, a, _ = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    monkeypatch.setattr("dgpunet_dask.cluster.blobs.SPARE_BYTES", 1 << 62)
    with pytest.raises(DiskFull):
        await a.blobs.ensure("model", digest, peers_of(h))


async def test_a_peer_that_lies_about_sizes_fills_no_disk_and_keeps_nobody_from_the_next(three, tmp_path):
    """A model's digest counts names and contents: sizes are what a peer says."""
    h, a, b = three
    digest = note_model(h.home, model_in(tmp_path / "model"))
    true = h.blobs.files("model", digest)
    a.blobs.has = lambda kind, digest: True
    a.blobs.files = lambda kind, digest: [entry._replace(size=(1 << 40) // len(true)) for entry in true]
    found = await b.blobs.ensure("model", digest, peers_of(h, a))
    assert (found / "model.safetensors").read_bytes() == WEIGHTS


async def test_a_changed_folder_is_not_given_under_its_old_digest(three, tmp_path):
    h, a, _ = three
    folder = model_in(tmp_path / "model")
    digest = note_model(h.home, folder)
    (folder / "config.json").write_text('{"other": 1}')
    with pytest.raises(FolderMissing, match="does not have it"):
        await a.blobs.ensure("model", digest, peers_of(h))
    assert note_model(h.home, folder) != digest


async def test_abandoned_copies_are_removed_and_new_ones_kept(tmp_path):
    clock = ManualClock()
    async with nodes(tmp_path, ["h"], clock=clock) as (h,):
        old, new = h.home.models / ".part-old", h.home.models / ".part-new"
        for part in (old, new):
            part.mkdir(parents=True)
        os.utime(old, (clock.wall() - ABANDONED_S - 1,) * 2)
        os.utime(new, (clock.wall(),) * 2)
        h.blobs.clean()
        assert not old.exists()
        assert new.exists()


# Through the agent's socket, as a worker asks


async def test_a_worker_gets_a_missing_workload_through_its_agent(three, tmp_path):
    h, a, _ = three
    digest = serve_workload(h.home, tmp_path)
    hosts = StageHosts(a.home, fetch=lambda kind, digest: a.blobs.ensure(kind, digest, peers_of(h)))
    await hosts.start()
    try:
        client = AgentClient(a.home.agent_socket)
        folder = await asyncio.to_thread(client.ensure, "workload", digest)
        assert folder == a.home.workloads / digest
        assert digest_of(folder) == digest
        with pytest.raises(FolderMissing):
            await asyncio.to_thread(client.ensure, "model", digest)
    finally:
        await hosts.stop()


def test_a_client_context_is_shared_by_loops_in_other_threads(tmp_path):
    """The agent asks from its loop, `doctor` from another: one context serves both."""
    seen = []

    async def ping_from_another_loop():
        async with nodes(tmp_path, ["h", "a"]) as (h, a):
            client = PeerClient(a.authority.contexts("a", "node")[1])
            await client.ping(h.peer)
            thread = threading.Thread(target=lambda: seen.append(asyncio.run(client.ping(h.peer)).host))
            thread.start()
            await asyncio.to_thread(thread.join)

    asyncio.run(ping_from_another_loop())
    assert seen == ["h"]
