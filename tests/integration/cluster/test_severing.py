"""What a removed host keeps of its connections to Dask's servers: none, whatever it has opened them for, and whenever."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from distributed import Client, Nanny, Scheduler, Worker
from distributed.comm import connect

from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.cluster.severing import follow, sever
from dgpunet_dask.plugins.scheduler import PlacementPlugin
from dgpunet_dask.security.identity import Identity
from tests.helpers import until
from tests.unit.security.hosts import Cluster

QUIET = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
TLS = {"protocol": "tls", "host": "127.0.0.1", **QUIET}
HASTE_S = 0.02


class Site:
    """Dask's servers under the certificates of a cluster."""

    def __init__(self, root, stack):
        self.certificates, self.stack = Cluster(root), stack

    def security(self, host, role="node"):
        self.certificates.enrol(host, role=role)
        return ClusterSecurity(self.certificates.folder(host))

    async def start(self):
        self.scheduler = Scheduler(security=self.security("m18", "head"), port=0, **TLS)
        await self.stack.enter_async_context(self.scheduler)
        await self.scheduler.register_scheduler_plugin(PlacementPlugin(), idempotent=True)
        return self

    async def worker(self, host, kind=Worker, every_s=HASTE_S):
        made = kind(self.scheduler.address, security=self.security(host), nthreads=1, **TLS)
        follow(made, every_s)
        return await self.stack.enter_async_context(made)

    async def raw(self, host, address=None):
        """Return a connection that is neither a worker's nor a client's."""
        comm = await connect(address or self.scheduler.address, **self.security(host).get_connection_args("client"))
        self.stack.callback(comm.abort)
        assert await asked(comm) is not None
        return comm

    async def client(self, host):
        client = Client(self.scheduler.address, security=self.security(host), asynchronous=True, timeout=10)
        self.stack.push_async_callback(client.close)
        return await client

    def remove(self, host, *knowing):
        """Revoke a host's certificates; those that know it have the list."""
        assert self.certificates.authority.revoke_host(host, time.time()) >= 1
        for name in knowing:
            self.certificates.publish(name)


async def asked(comm):
    """Return what a server says that it is, ``None`` if the connection has ended."""
    try:
        await comm.write({"op": "identity", "reply": True})
        return (await asyncio.wait_for(comm.read(), 10))["type"]
    except OSError:
        return None


async def ended(comm):
    """Wait until the other side has ended a connection on which nothing is said."""
    with pytest.raises(OSError):
        await asyncio.wait_for(comm.read(), 10)


async def soon(predicate):
    await asyncio.to_thread(until, predicate, 10)


@pytest.fixture
async def site(tmp_path):
    async with AsyncExitStack() as stack:
        yield await Site(tmp_path, stack).start()


# What the head tells its scheduler


async def test_a_connection_that_was_kept_open_is_ended_by_expelling_and_those_of_others_are_not(site):
    evil, good = await site.raw("evil"), await site.raw("xps")
    operator = await site.client("m18")
    await operator.scheduler.dgpunet_expel(host="evil")
    await ended(evil)
    assert await asked(good) == "Scheduler"


async def test_a_client_of_a_removed_host_is_cut_off_and_does_not_come_back(site):
    evil, operator = await site.client("evil"), await site.client("m18")
    assert {evil.id, operator.id} <= set(site.scheduler.client_comms)
    site.remove("evil", "m18")
    await operator.scheduler.dgpunet_expel(host="evil")
    await soon(lambda: evil.id not in site.scheduler.client_comms)
    assert operator.id in site.scheduler.client_comms


async def test_a_worker_that_says_to_be_another_hosts_goes_by_its_certificate(site):
    worker = await site.worker("evil")
    site.scheduler.workers[worker.address].extra["dgpunet"] = {"host": {"name": "xps"}}
    site.remove("evil", "m18")
    operator = await site.client("m18")
    await operator.scheduler.dgpunet_expel(host="evil")
    await soon(lambda: worker.address not in site.scheduler.workers)


# What each server sees for itself


@pytest.mark.parametrize("kind", [Worker, pytest.param(Nanny, marks=pytest.mark.long)])
async def test_a_connection_to_a_worker_or_a_nanny_ends_when_its_certificate_is_revoked(site, kind):
    worker = await site.worker("xps", kind)
    evil, good = await site.raw("evil", worker.address), await site.raw("zen", worker.address)
    site.remove("evil", "xps")
    await ended(evil)
    assert await asked(good) == kind.__name__


async def test_a_connection_that_was_made_before_the_list_came_ends_with_it(site):
    worker = await site.worker("xps")
    site.certificates.enrol("evil")
    security = ClusterSecurity(site.certificates.folder("evil"))
    site.remove("evil")
    comm = await connect(worker.address, **security.get_connection_args("client"))
    assert await asked(comm) == "Worker"
    site.certificates.publish("xps")
    await ended(comm)


async def test_what_a_server_has_opened_itself_ends_too(site):
    there = await site.worker("evil", every_s=60)
    pool, address = site.scheduler.rpc, there.address
    comm = await pool.connect(address)
    assert await asked(comm) == "Worker"
    site.remove("evil", "m18")
    assert sever(site.scheduler, Identity(site.certificates.folder("m18"))) >= 2  # with the worker's own
    assert comm.closed()
    pool.reuse(address, comm)
    assert sever(site.scheduler, Identity(site.certificates.folder("m18"))) == 0


async def test_a_host_that_was_invited_anew_keeps_its_new_connections(site):
    worker = await site.worker("xps")
    site.certificates.enrol("evil")
    site.remove("evil", "xps")
    site.certificates.authority.allow("evil")
    back = await site.raw("evil", worker.address)
    assert sever(worker, Identity(site.certificates.folder("xps"))) == 0
    assert await asked(back) == "Worker"


async def test_a_server_without_certificates_is_left_alone():
    async with Scheduler(host="127.0.0.1", port=0, **QUIET) as scheduler:
        before = set(scheduler.periodic_callbacks)
        follow(scheduler)
        assert set(scheduler.periodic_callbacks) == before
