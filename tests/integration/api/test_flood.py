"""Connections that never begin: they take no descriptor from the head's own work, and no place from those who speak."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import psutil

from dgpunet_dask.daemons.api import server as server_module
from dgpunet_dask.daemons.api.accepting import AT_ONCE
from dgpunet_dask.daemons.api.limits import Sockets, sockets_of
from dgpunet_dask.hardware.system import FileLimits
from dgpunet_dask.security.pinning import trusting
from tests.helpers import no_file_more
from tests.integration.api.talk import Talk
from tests.integration.cluster.test_api_tls import Site, serving
from tests.unit.daemons.serving import FakeKeys

ANN = {"Authorization": "Bearer ann:submitter"}


@contextlib.contextmanager
def silent(port, count):
    """Connections that send nothing."""
    with contextlib.ExitStack() as held:
        yield [held.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


async def test_who_says_nothing_before_the_handshake_holds_few_descriptors_and_no_place(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "file_limits", lambda: FileLimits(256, 256), raising=False)
    bound = sockets_of(256).of_address
    async with serving(Site(tmp_path / "home")) as site:
        site.ctx.keys = FakeKeys()
        context = trusting(site.authority.certificate_pem)
        before = psutil.Process().num_fds()
        with silent(site.ctx.tls_port, 200) as ours:
            for _ in range(3):
                talk = await Talk.open(site.ctx.tls_port, context)
                assert (await talk.ask("GET", "/v1/status", **ANN)).status == 200
                await talk.close()
            assert psutil.Process().num_fds() - before - len(ours) <= bound + 3


async def test_where_no_file_can_be_opened_it_is_told_once_and_who_waits_is_served_later(site, caplog):
    with silent(site.ctx.port, 3) as ours:
        with no_file_more(), caplog.at_level(logging.WARNING):
            await asyncio.sleep(2.5)
        assert len([record for record in caplog.records if "Too many open files" in record.getMessage()]) == 1
        await asyncio.sleep(1.5)
        ours[0].sendall(b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer ann:submitter\r\n\r\n" % site.ctx.port)
        answer = await asyncio.to_thread(ours[0].recv, 4096)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_burst_of_connections_leaves_no_more_than_the_bound():
    async def never(scope, receive, send):
        raise AssertionError("nobody asks anything")

    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    server = server_module.ApiServer(never, [listening], None, Sockets(32, 32, 16))
    with contextlib.ExitStack() as held:
        for _ in range(300):
            ours = held.enter_context(socket.socket())
            ours.setblocking(False)
            ours.connect_ex(address)
        most = 0
        for _ in range(200):
            await asyncio.sleep(0.005)
            most = max(most, server.connections)
        assert 0 < server.connections <= 32
        assert most <= 32 + AT_ONCE
    server.stop()
    await server.close_all_connections()
