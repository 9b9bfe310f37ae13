"""Messages cross a socket whole, inline or through a memory file, and leave no descriptor behind."""

import asyncio
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.stagehost.asyncwire import AsyncWire
from dgpunet_dask.stagehost.frames import pack, unpack
from dgpunet_dask.stagehost.wire import INLINE_LIMIT, Packet, Wire

needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd: payloads go inline")


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def _open_fds():
    return set(os.listdir("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=3000), max_size=6), st.booleans())
def test_frames_of_any_size_arrive_as_they_were(frames, memfd):
    left, right = socket.socketpair()
    with left, right:
        Wire(left, memfd=memfd).send("call", {"n": len(frames)}, frames)
        packet = Wire(right).receive()
        assert packet is not None
        assert (packet.kind, packet.fields) == ("call", {"n": len(frames)})
        assert [bytes(f) for f in packet.frames()] == frames


@needs_memfd
def test_large_frames_go_through_a_memory_file_and_small_ones_inline():
    small, large = Packet.of("x", frames=[bytes(INLINE_LIMIT)]), Packet.of("x", frames=[bytes(INLINE_LIMIT + 1)])
    assert small.fd is None
    assert large.fd is not None
    assert large.inline == b""
    large.close()


@pytest.mark.parametrize("memfd", [pytest.param(True, marks=needs_memfd), False])
def test_arrays_arrive_aligned_writable_and_apart_from_the_senders(pair, memfd):
    sent = np.arange(1_000_000)
    sender = threading.Thread(target=Wire(pair[0], memfd=memfd).send, args=("call", {}, pack(["head", sent])))
    sender.start()
    packet = Wire(pair[1]).receive()
    sender.join()
    found = unpack(packet.frames())[1]
    np.testing.assert_array_equal(found, sent)
    found[:] = 0
    assert found.flags.aligned
    assert sent[5] == 5


@needs_memfd
def test_no_descriptor_is_left_once_a_large_message_was_read(pair):
    before = _open_fds()
    Wire(pair[0]).send("call", {}, [bytes(1 << 20), b"", b"x"])
    packet = Wire(pair[1]).receive()
    frames = packet.frames(keep=True)
    assert _open_fds() == before
    assert [len(f) for f in frames] == [1 << 20, 0, 1]


@needs_memfd
def test_mapped_frames_let_go_of_everything_when_they_are_dropped(pair):
    before = _open_fds()
    Wire(pair[0]).send("call", {}, [bytes(1 << 20)])
    frames = Wire(pair[1]).receive().frames()
    assert len(frames[0]) == 1 << 20
    del frames
    assert _open_fds() == before


@needs_memfd
def test_more_frames_than_one_write_takes():
    frames = [bytes([i % 251]) * (i % 130) for i in range(5000)]
    packet = Packet.of("x", frames=frames)
    assert packet.fd is not None
    assert [bytes(f) for f in packet.frames()] == frames


def test_a_closed_connection_ends_receiving_and_a_cut_message_is_an_error(pair):
    head = Packet.of("call", {"a": 1}, [b"abc"]).head()
    pair[0].sendall(head[:-1])
    pair[0].close()
    with pytest.raises(ConnectionError):
        Wire(pair[1]).receive()
    assert Wire(pair[1]).receive() is None


def test_a_stranger_is_refused(pair):
    pair[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with pytest.raises(ConnectionError, match="does not speak"):
        Wire(pair[1]).receive()


def test_shutdown_wakes_a_thread_that_waits(pair):
    wire, found = Wire(pair[1]), []
    waiting = threading.Thread(target=lambda: found.append(wire.receive()))
    waiting.start()
    wire.shutdown()
    waiting.join(timeout=10)
    assert found == [None]


@pytest.mark.parametrize("nbytes", [10, 300_000, 5_000_000])
@pytest.mark.parametrize("memfd", [pytest.param(True, marks=needs_memfd), False])
async def test_the_event_loop_passes_packets_on_without_reading_them(nbytes, memfd):
    (client, agent_in), (agent_out, child) = socket.socketpair(), socket.socketpair()
    before = _open_fds()
    payload = os.urandom(nbytes)
    source, sink = AsyncWire(agent_in), AsyncWire(agent_out)
    with client, child:
        sending = asyncio.to_thread(Wire(client, memfd=memfd).send, "call", {}, [payload])
        receiving = asyncio.to_thread(Wire(child).receive)

        async def passing():
            packet = await source.receive()
            await sink.send(packet)

        _, _, packet = await asyncio.gather(sending, passing(), receiving)
        assert bytes(packet.frames()[0]) == payload
        assert _open_fds() == before
    assert source.closed_by_peer()
    assert await source.receive() is None
    source.close()
    sink.close()
