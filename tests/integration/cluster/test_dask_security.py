"""Dask under the certificates of hosts, on listeners that run: who gets in, who does not, and what changes while they run."""

from __future__ import annotations

import asyncio
import pickle
import ssl
import sys
import time
from contextlib import AsyncExitStack

import pytest
from distributed import Client, Nanny, Scheduler, Worker
from distributed.comm import connect, parse_host_port

from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.errors import NoIdentity
from dgpunet_dask.security.identity import Identity, peer_of
from dgpunet_dask.security.pinning import trusting
from tests.unit.security.hosts import Cluster

DAY = 86_400.0
QUIET = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


class Site:
    """A cluster of certificates and the Dask servers that run under them."""

    def __init__(self, root, stack: AsyncExitStack) -> None:
        self.certificates = Cluster(root)
        self.stack = stack
        self.scheduler = None

    def security(self, host: str, **how) -> ClusterSecurity:
        self.certificates.enrol(host, **how)
        return ClusterSecurity(self.certificates.folder(host))

    async def start(self, security, host="127.0.0.1") -> Scheduler:
        self.scheduler = await self.stack.enter_async_context(
            Scheduler(security=security, protocol="tls", host=host, port=0, **QUIET)
        )
        return self.scheduler

    async def worker(self, security, kind=Worker, **more):
        given = {"security": security, "host": "127.0.0.1", "protocol": "tls", "nthreads": 1, **QUIET, **more}
        return await self.stack.enter_async_context(kind(self.scheduler.address, **given))

    async def client(self, security) -> Client:
        client = Client(self.scheduler.address, security=security, asynchronous=True, timeout=10)
        self.stack.push_async_callback(client.close)  # a client's own block must end in the context that entered it
        return await client


@pytest.fixture
async def site(tmp_path):
    async with AsyncExitStack() as stack:
        yield Site(tmp_path, stack)


async def knock(address: str, context: ssl.SSLContext | None) -> ssl.SSLObject | str:
    """Return the other end's view of the connection if the server at a Dask address speaks to us, else why it does not."""
    host, port = parse_host_port(address.partition("://")[2])
    writer = None
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        if context is None:
            writer.write(b"\x10\0\0\0\0\0\0\0" + bytes(16))  # a Dask frame
        said = await asyncio.wait_for(reader.read(1), 10)
        if not said:
            return "closed"
        return writer.get_extra_info("ssl_object")
    except (ssl.SSLError, ConnectionError) as error:
        return getattr(error, "verify_message", "") or str(getattr(error, "reason", None) or error)
    finally:
        if writer is not None:
            writer.close()


async def serial_at(address: str, security: ClusterSecurity) -> str:
    found = await knock(address, security.get_connection_args("client")["ssl_context"])
    assert isinstance(found, ssl.SSLObject), found
    return found.getpeercert()["serialNumber"]


async def test_hosts_compute_together_and_each_end_knows_the_other(site):
    await site.start(site.security("m18", role="head"))
    await site.worker(site.security("xps"), name="xps")
    await site.worker(site.security("zen"), name="zen")
    client = await site.client(site.security("ann", role="client"))
    one = client.submit(lambda: "a" * 1000, workers=["xps"], pure=False)
    other = client.submit(len, one, workers=["zen"], pure=False)  # the text travels from worker to worker
    assert await other == 1000
    workers = site.scheduler.stream_comms.values()
    hosts = {peer_of(stream.comm.extra_info["peercert"]).host for stream in workers}
    assert hosts == {"xps", "zen"}
    assert all(address.startswith("tls://") for address in (site.scheduler.address, *site.scheduler.workers))


@pytest.mark.parametrize("listener", ["scheduler", "worker"])
async def test_strangers_are_refused_by_every_listener(site, tmp_path, listener):
    scheduler = await site.start(site.security("m18", role="head"))
    worker = await site.worker(site.security("xps"))
    address = {"scheduler": scheduler, "worker": worker}[listener].address
    blind = Cluster(tmp_path, "other").identity("xps").client_context()
    blind.current.check_hostname = False
    blind.current.verify_mode = ssl.CERT_NONE
    assert "UNKNOWN_CA" in await knock(address, blind)
    assert "CERTIFICATE_REQUIRED" in await knock(address, trusting(site.certificates.authority.certificate_pem))
    plain = await knock(address, None)
    assert plain == "closed" or "reset" in plain
    assert isinstance(await knock(address, site.security("zen").get_connection_args("worker")["ssl_context"]), ssl.SSLObject)


async def test_dask_itself_refuses_to_speak_plainly(site):
    security = site.security("m18", role="head")
    scheduler = await site.start(security)
    with pytest.raises(RuntimeError, match="encryption required"):
        await connect(scheduler.address.replace("tls", "tcp"), timeout=1, **security.get_connection_args("client"))
    with pytest.raises(RuntimeError, match="failed to start") as caught:
        await Scheduler(security=security, protocol="tcp", host="127.0.0.1", port=0, **QUIET)
    assert "encryption required" in str(caught.value.__cause__)


async def test_the_certificate_of_another_address_is_refused(site):
    """A host that has the scheduler's address now, but a certificate for its own, is not taken for the scheduler."""
    scheduler = await site.start(site.security("xps"), host="127.0.0.2")
    security = site.security("zen")
    assert "127.0.0.2" in await knock(scheduler.address, security.get_connection_args("client")["ssl_context"])
    with pytest.raises(OSError):
        await connect(scheduler.address, timeout=2, **security.get_connection_args("client"))
    await scheduler.close()
    right = await site.start(site.security("m18", role="head", addresses=("127.0.0.2",)), host="127.0.0.2")
    assert isinstance(await knock(right.address, security.get_connection_args("client")["ssl_context"]), ssl.SSLObject)


async def test_a_certificate_is_renewed_while_the_listener_runs(site):
    security = site.security("m18", role="head")
    scheduler = await site.start(security)
    worker_security = site.security("xps")
    worker = await site.worker(worker_security)
    client = await site.client(site.security("ann", role="client"))
    stream = scheduler.stream_comms[worker.address].comm
    for host, server in (("m18", scheduler), ("xps", worker)):
        before = await serial_at(server.address, security)
        renewed = site.certificates.enrol(host, role="head" if host == "m18" else "node")
        Identity(site.certificates.folder(host)).refresh()
        assert await serial_at(server.address, security) == renewed.serial != before
    assert scheduler.stream_comms[worker.address].comm is stream
    assert not stream.closed()
    assert await client.submit(lambda: 7) == 7
    again = await site.worker(worker_security, name="second")
    assert peer_of(scheduler.stream_comms[again.address].comm.extra_info["peercert"]).serial == renewed.serial


async def test_a_removed_host_is_refused_by_scheduler_and_worker(site):
    scheduler = await site.start(site.security("m18", role="head"))
    worker = await site.worker(site.security("xps"))
    evil = site.security("evil")
    context = evil.get_connection_args("worker")["ssl_context"]
    assert isinstance(await knock(scheduler.address, context), ssl.SSLObject)
    assert site.certificates.authority.revoke_host("evil", time.time()) == 1
    site.certificates.publish("m18", "xps")
    for server in (scheduler, worker):
        assert "CERTIFICATE_REVOKED" in await knock(server.address, context)
    with pytest.raises(OSError):
        await connect(scheduler.address, timeout=1, **evil.get_connection_args("worker"))
    assert isinstance(await knock(worker.address, site.security("zen").get_connection_args("worker")["ssl_context"]), ssl.SSLObject)


async def test_nobody_connects_to_a_removed_host(site):
    scheduler = await site.start(site.security("evil"))
    site.certificates.enrol("xps")
    site.certificates.authority.revoke_host("evil", time.time())
    site.certificates.publish("xps")
    context = ClusterSecurity(site.certificates.folder("xps")).get_connection_args("worker")["ssl_context"]
    assert "revoked" in await knock(scheduler.address, context)


async def test_an_expired_certificate_is_refused_on_both_sides(site):
    fresh, stale = site.security("m18", role="head"), site.security("old", ago_s=2 * DAY)
    scheduler = await site.start(fresh)
    assert "EXPIRED" in await knock(scheduler.address, stale.get_connection_args("worker")["ssl_context"])
    other = await site.start(stale)
    assert "expired" in await knock(other.address, fresh.get_connection_args("worker")["ssl_context"])


def test_a_pickle_holds_the_folder_s_name_alone(tmp_path):
    certificates = Cluster(tmp_path)
    certificates.enrol("xps")
    security = ClusterSecurity(certificates.folder("xps"))
    security.get_listen_args("worker")
    text = pickle.dumps(security)
    assert len(text) < 300
    again = pickle.loads(text)
    assert again.folder == security.folder
    assert again.require_encryption
    assert again.get_listen_args("worker")["ssl_context"] is security.get_listen_args("scheduler")["ssl_context"]
    for shown in (repr(again), again._repr_html_()):
        assert str(security.folder) in shown
        assert "PRIVATE" not in shown


def test_without_a_certificate_nothing_listens(tmp_path):
    with pytest.raises(NoIdentity, match="join TOKEN"):
        ClusterSecurity(tmp_path).get_listen_args("worker")


@pytest.mark.long
async def test_the_child_of_a_nanny_has_contexts_of_its_own_and_follows_the_files(site):
    head = site.security("m18", role="head")
    await site.start(head)
    nanny = await site.worker(site.security("xps"), kind=Nanny, name="xps")
    (worker,) = site.scheduler.workers
    client = await site.client(head)
    assert await client.submit(lambda: __import__("os").getpid()) == nanny.pid
    for address in (nanny.address, worker):
        assert "CERTIFICATE_REQUIRED" in await knock(address, trusting(site.certificates.authority.certificate_pem))
    renewed = site.certificates.enrol("xps")
    deadline = time.monotonic() + 20
    while {await serial_at(address, head) for address in (nanny.address, worker)} != {renewed.serial}:
        assert time.monotonic() < deadline, "neither process follows the files"
        await asyncio.sleep(0.1)
    assert await client.submit(lambda: 7, pure=False) == 7
    await nanny.kill()
    await nanny.instantiate()
    assert await client.submit(lambda: 8, pure=False) == 8


CUDA_WORKER = """
import asyncio, sys
from dask_cuda.cuda_worker import CUDAWorker
from dgpunet_dask.cluster.dask_security import ClusterSecurity

async def main():
    worker = CUDAWorker(sys.argv[1], security=ClusterSecurity(sys.argv[2]), host="127.0.0.1", protocol="tls", dashboard=False,
                        dashboard_address="127.0.0.1:0", memory_limit="0", device_memory_limit="0", name="card")
    async with worker:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="dask-cuda is for Linux")
async def test_dask_cuda_s_worker_runs_under_a_certificate(site, tmp_path):
    from dgpunet_dask.daemons.lifeline import child_env

    head = site.security("m18", role="head")
    scheduler = await site.start(head)
    site.certificates.enrol("xps")
    script = tmp_path / "cuda_worker.py"
    script.write_text(CUDA_WORKER)
    environment = child_env({"CUDA_VISIBLE_DEVICES": "0", "DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC": "1"})
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(script), scheduler.address, str(site.certificates.folder("xps")), env=environment,
        stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        client = await site.client(head)
        await asyncio.wait_for(client.wait_for_workers(1), 60)
        (worker,) = scheduler.workers.values()
        assert await client.submit(lambda: 7) == 7
        assert peer_of(scheduler.stream_comms[worker.address].comm.extra_info["peercert"]).host == "xps"
        for address in (worker.address, worker.nanny):
            assert "CERTIFICATE_REQUIRED" in await knock(address, trusting(site.certificates.authority.certificate_pem))
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.communicate(), 30)
