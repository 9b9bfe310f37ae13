"""The peer port over real TLS: what hosts ask of one another, and what everybody else gets."""

import asyncio
import json
import os
import ssl
import struct

import pytest

from dgpunet_dask.cluster.peer import Limits, PeerServer
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.cluster.peer_wire import receive
from dgpunet_dask.errors import PeerBusy, PeerFailed
from dgpunet_dask.stagehost.fetching import note_model
from tests.helpers import until
from tests.integration.cluster.peers import Authority, nodes

SAFE = "0" * 64


@pytest.fixture
async def pair(tmp_path):
    async with nodes(tmp_path, ["h", "a"]) as made:
        yield made


async def test_a_host_tells_its_name_clock_and_round_trip(pair):
    h, a = pair
    ping = await a.client.ping(h.peer)
    assert ping.host == "h"
    assert 0 < ping.rtt_s < 1
    assert abs(ping.offset_s) < 0.5


async def test_ports_are_tried_at_the_callers_address(pair):
    h, a = pair
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    assert await a.client.probe_ports(h.peer, [port]) == {port: "open"}
    taken.close()
    await taken.wait_closed()
    assert await a.client.probe_ports(h.peer, [port]) == {port: "refused"}


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_bandwidth_is_bytes_that_arrived_per_second(pair, direction):
    h, a = pair
    rate = await a.client.bandwidth(h.peer, direction, nbytes=8 << 20, seconds=1.0)
    assert rate > 1 << 20


async def test_a_measurement_ends_with_its_time(pair):
    h, a = pair
    began = asyncio.get_running_loop().time()
    for _ in range(10):  # the answer must come through though more was on its way
        assert await a.client.bandwidth(h.peer, "up", nbytes=1 << 30, seconds=0.05) > 0
    assert asyncio.get_running_loop().time() - began < 5.0


async def test_one_measurement_runs_on_a_host_at_a_time(pair):
    h, a = pair
    async with h.server.measuring:
        with pytest.raises(PeerBusy, match="another measurement"):
            await a.client.bandwidth(h.peer)
    async with a.server.measuring:
        with pytest.raises(PeerBusy, match="on this host"):
            await a.client.bandwidth(h.peer)
    assert await a.client.bandwidth(h.peer, nbytes=4 << 20) > 0


# Who may not ask


async def test_a_host_that_is_another_is_not_believed(pair):
    h, a = pair
    with pytest.raises(PeerFailed, match="certificate is not accepted"):
        await a.client.ping(Peer("b", h.peer.address, h.peer.port))


async def test_a_users_certificate_is_refused_in_words(pair):
    h, a = pair
    other = PeerClient(a.authority.contexts("user", "client")[1])
    with pytest.raises(PeerFailed, match="hosts of the cluster"):
        await other.ping(h.peer)


async def test_other_authorities_and_callers_without_certificate_are_refused(pair, tmp_path):
    h, _ = pair
    stranger = Authority(tmp_path / "other").contexts("a", "node")[1]
    stranger.load_verify_locations(tmp_path / "ca" / "ca.crt")
    bare = ssl.create_default_context(cafile=tmp_path / "ca" / "ca.crt")
    for context in (stranger, bare):
        with pytest.raises(PeerFailed):
            await PeerClient(context).ping(h.peer)


async def test_plain_text_gets_nothing(pair):
    h, _ = pair
    reader, writer = await asyncio.open_connection(h.peer.address, h.peer.port)
    writer.write(frame({"request": "ping"}))
    try:
        answer = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        answer = b""
    assert b"host" not in answer
    writer.close()


async def test_a_server_without_client_certificates_does_not_start(tmp_path):
    server = PeerServer("h", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None)
    with pytest.raises(AssertionError):
        await server.start("127.0.0.1", 0)


# What a caller of the cluster may not send


def frame(message: object) -> bytes:
    content = json.dumps(message).encode()
    return struct.pack(">I", len(content)) + content


async def told(node, caller, *sent: bytes) -> dict | None:
    """Return the answer to raw bytes, ``None`` if the connection was ended."""
    async with caller.client.link(node.peer) as link:
        for piece in sent:
            link.writer.write(piece)
        try:
            return await receive(link.reader, 1 << 20, 10.0)
        except (OSError, asyncio.IncompleteReadError):
            return None


REQUESTS = [
    {},
    {"request": "shutdown"},
    {"request": ["ping"]},
    {"request": {"ping": 1}},
    {"request": "has"},
    {"request": "has", "kind": "../run", "digest": SAFE},
    {"request": "has", "kind": "workload", "digest": "../../../etc"},
    {"request": "has", "kind": "model", "digest": SAFE.upper().replace("0", "A")},
    {"request": "files", "kind": "workload", "digest": SAFE + "\n"},
    {"request": "files", "kind": ["workload"], "digest": 7},
    {"request": "read", "kind": "workload", "digest": SAFE, "name": "x", "offset": 0},
    {"request": "read", "kind": "workload", "digest": SAFE, "name": "x", "offset": -1},
    {"request": "read", "kind": "workload", "digest": SAFE, "name": "x", "offset": "0"},
    {"request": "bandwidth", "direction": "down", "bytes": 1 << 40, "seconds": 1},
    {"request": "bandwidth", "direction": "down", "bytes": 1024, "seconds": 3600},
    {"request": "bandwidth", "direction": "down", "bytes": 1024, "seconds": float("nan")},
    {"request": "bandwidth", "direction": "down", "bytes": float("inf"), "seconds": 1},
    {"request": "bandwidth", "direction": "down", "bytes": 1024, "seconds": 10**400},
    {"request": "bandwidth", "direction": "aside", "bytes": 1024, "seconds": 1},
    {"request": "bandwidth", "direction": [], "bytes": 1024, "seconds": 1},
    {"request": "probe_ports", "ports": [0]},
    {"request": "probe_ports", "ports": [70_000]},
    {"request": "probe_ports", "ports": list(range(1, 200))},
    {"request": "probe_ports", "ports": [True]},
    {"request": "probe_ports", "ports": {"22": 1}},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
async def test_requests_that_are_wrong_are_refused_in_words(pair, request_):
    h, a = pair
    answer = await told(h, a, frame(request_))
    assert answer is not None
    assert answer["code"] in {"bad_request", "missing"}
    assert (await a.client.ping(h.peer)).host == "h"


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff\xff", struct.pack(">I", 1 << 20) + b"x" * 100, struct.pack(">I", 4) + b"nope", frame([1]), frame("x"), frame([[]]).replace(b"[[]]", b"[" * 4), struct.pack(">I", 60_000) + b"[" * 60_000],
)  # fmt: skip
async def test_bytes_that_are_no_request_end_the_connection(pair, sent):
    h, a = pair
    assert await told(h, a, sent) is None
    assert (await a.client.ping(h.peer)).host == "h"


@pytest.mark.parametrize("name", ["../w.bin", "/etc/passwd", "sub/../../secret", "sub/../w.bin", "./w.bin", "w.bin\0", ".hidden", "", 7, None, ["w.bin"]])
async def test_only_names_of_the_folders_files_can_be_read(pair, tmp_path, name):
    h, a = pair
    (tmp_path / "secret").write_text("no")
    model = tmp_path / "model"
    model.mkdir()
    (model / "w.bin").write_text("weights")
    (model / ".hidden").write_text("no")
    digest = note_model(h.home, model)
    good = {"request": "read", "kind": "model", "digest": digest, "name": "w.bin", "offset": 2}
    assert (await told(h, a, frame(good)))["ok"] == {"size": 5}
    assert (await told(h, a, frame(good | {"name": name})))["code"] == "missing"
    assert (await told(h, a, frame(good | {"offset": 1 << 70})))["ok"] == {"size": 0}


async def test_silent_and_stalling_callers_are_given_up(tmp_path):
    async with nodes(tmp_path, ["h", "a"], limits=Limits(idle_s=0.3, stall_s=0.3)) as (h, a):
        async with a.client.link(h.peer) as silent:
            assert await receive(silent.reader, 100, 10.0) is None
        model = tmp_path / "model"
        model.mkdir()
        with (model / "w.bin").open("wb") as file:
            file.truncate(64 << 20)
        digest = note_model(h.home, model)
        async with a.client.link(h.peer) as stalling:
            await stalling.ask("read", kind="model", digest=digest, name="w.bin", offset=0)
            stalling.writer.transport.pause_reading()
            await asyncio.to_thread(until, lambda: not h.server._open)
        assert (await a.client.ping(h.peer)).host == "h"


async def test_a_file_that_becomes_shorter_while_it_is_sent_ends_the_connection(pair, tmp_path):
    """Whatever came in place of its bytes would be taken for them."""
    h, a = pair
    model = tmp_path / "model"
    model.mkdir()
    with (model / "w.bin").open("wb") as file:
        file.truncate(64 << 20)  # more than all buffers on the way hold
    digest = note_model(h.home, model)
    async with a.client.link(h.peer) as link:
        size = (await link.ask("read", kind="model", digest=digest, name="w.bin", offset=0))["size"]
        os.truncate(model / "w.bin", 0)
        got, ended = 0, False
        try:
            while piece := await asyncio.wait_for(link.reader.read(1 << 20), 10):
                got += len(piece)
                assert not piece.strip(b"\0")
            ended = True
        except ConnectionError:
            ended = True
    assert ended
    assert got < size


async def test_a_caller_that_measures_and_sends_nothing_is_given_up(pair):
    h, a = pair
    async with a.client.link(h.peer) as silent:
        await silent.ask("bandwidth", direction="up", bytes=1 << 20, seconds=0.1)
        assert h.server.measuring.locked()
        assert await silent.answer("bandwidth") == {"bytes": 0, "seconds": 0.0}
    assert await a.client.bandwidth(h.peer, nbytes=4 << 20) > 0


async def test_a_peer_that_promises_bytes_and_sends_none_is_given_up(pair):
    h, a = pair

    async def promise(reader, writer):
        await receive(reader, 1000, 10.0)
        writer.write(frame({"ok": {}}))

    context, _ = h.authority.contexts("h", "node")
    async with await asyncio.start_server(promise, "127.0.0.1", 0, ssl=context) as mute:
        port = mute.sockets[0].getsockname()[1]
        assert await asyncio.wait_for(a.client.bandwidth(Peer("h", "127.0.0.1", port), "down", seconds=0.1), 10) is None
    assert not a.server.measuring.locked()


async def test_an_old_connection_ends_though_it_goes_on_asking(tmp_path):
    async with nodes(tmp_path, ["h", "a"], limits=Limits(life_s=0.2)) as (h, a):
        async with a.client.link(h.peer) as link:
            with pytest.raises(PeerFailed, match="closed"):
                while True:
                    await link.ask("ping")
        assert (await a.client.ping(h.peer)).host == "h"


async def test_more_connections_than_allowed_are_closed(tmp_path):
    async with nodes(tmp_path, ["h", "a"], limits=Limits(connections=2)) as (h, a):
        async with a.client.link(h.peer) as one, a.client.link(h.peer) as two:
            await one.ask("ping")
            await two.ask("ping")
            with pytest.raises(PeerFailed):
                await a.client.ping(h.peer)
        await asyncio.to_thread(until, lambda: not h.server._open)
        assert (await a.client.ping(h.peer)).host == "h"


async def test_a_stopped_port_ends_its_connections(pair):
    h, a = pair
    async with a.client.link(h.peer) as link:
        await link.ask("ping")
        await h.server.stop()
        with pytest.raises(PeerFailed):
            await link.ask("ping")
    with pytest.raises(PeerFailed, match="onnection refused"):
        await a.client.ping(h.peer)
