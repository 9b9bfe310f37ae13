"""The peer port with the product's own certificates: renewed and revoked while it runs."""

import time
from contextlib import asynccontextmanager

import pytest

from dgpunet_dask.cluster.blobs import Blobs
from dgpunet_dask.cluster.peer import PeerServer
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import PeerFailed
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.identity import Identity, install, install_crl, make_request


def member(authority: Authority, folder, host: str, role: str) -> Identity:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = time.time()
    issued = authority.issue(make_request(folder, host), host=host, addresses=["127.0.0.1"], role=role, now=now)
    install(folder, issued.certificate_pem, authority.certificate_pem, authority.crl_pem(now))
    return Identity(folder)


@asynccontextmanager
async def served(authority: Authority, folder, host: str):
    """Serve the peer port of `host`; give its identity, and how others see it."""
    identity = member(authority, folder / host, host, "head")
    client = PeerClient(identity.client_context())
    blobs = Blobs(Home(folder / f"home-{host}").ensure(), client)
    server = PeerServer(host, identity.server_context("required"), blobs, revoked=lambda: identity.revoked)
    port = await server.start("127.0.0.1", 0)
    try:
        yield identity, Peer(host, "127.0.0.1", port)
    finally:
        await server.stop()


@pytest.fixture
def authority(tmp_path):
    (tmp_path / "ca").mkdir(mode=0o700)
    return Authority.create(tmp_path / "ca", "test", time.time())


async def test_hosts_of_one_authority_talk_and_users_do_not(authority, tmp_path):
    async with served(authority, tmp_path, "h") as (_, peer):
        node = PeerClient(member(authority, tmp_path / "a", "a", "node").client_context())
        assert (await node.ping(peer)).host == "h"
        user = PeerClient(member(authority, tmp_path / "u", "u", "client").client_context())
        with pytest.raises(PeerFailed, match="hosts of the cluster"):
            await user.ping(peer)


async def test_a_renewed_certificate_serves_new_connections_and_old_ones_go_on(authority, tmp_path):
    async with served(authority, tmp_path, "h") as (identity, peer):
        client = PeerClient(member(authority, tmp_path / "a", "a", "node").client_context())
        async with client.link(peer) as old:
            before = old.writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
            member(authority, tmp_path / "h", "h", "head")
            identity.refresh()
            async with client.link(peer) as new:
                await new.ask("ping")
                assert new.writer.get_extra_info("ssl_object").getpeercert()["serialNumber"] != before
            assert (await old.ask("ping"))["host"] == "h"


async def test_a_revoked_host_gets_nothing_more(authority, tmp_path):
    async with served(authority, tmp_path, "h") as (identity, peer):
        client = PeerClient(member(authority, tmp_path / "a", "a", "node").client_context())
        assert (await client.ping(peer)).host == "h"
        authority.revoke_host("a", time.time())
        install_crl(tmp_path / "h", authority.crl_pem(time.time()))
        identity.refresh()
        with pytest.raises(PeerFailed):
            await client.ping(peer)


async def test_a_connection_that_stands_gets_nothing_more_once_its_certificate_is_revoked(authority, tmp_path):
    async with served(authority, tmp_path, "h") as (identity, peer):
        evil = PeerClient(member(authority, tmp_path / "a", "a", "node").client_context())
        good = PeerClient(member(authority, tmp_path / "b", "b", "node").client_context())
        async with evil.link(peer) as removed, good.link(peer) as staying:
            assert (await removed.ask("ping"))["host"] == "h"
            authority.revoke_host("a", time.time())
            install_crl(tmp_path / "h", authority.crl_pem(time.time()))
            identity.refresh()
            with pytest.raises(PeerFailed, match="closed"):
                await removed.ask("ping")
            assert (await staying.ask("ping"))["host"] == "h"
