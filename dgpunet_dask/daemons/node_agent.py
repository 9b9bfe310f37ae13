"""The agent of one host of a cluster of real machines.

It holds what must not die with the head: the stage hosts. It tells the head every two seconds what is here and takes the answer: the
scheduler's address, the names of its cards, whether workers may run, what to measure. Workers come and go with the scheduler; stage hosts
stay, are taken over under the next head's epoch, and end when no head has answered for `ORPHAN_S`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import logging
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster import backups
from dgpunet_dask.cluster.agent_api import MOVED, AgentApi, renew_expired
from dgpunet_dask.cluster.backups import BackupKeeper
from dgpunet_dask.cluster.blobs import Blobs
from dgpunet_dask.cluster.config import ClusterConfig, join_host_port, read_config
from dgpunet_dask.cluster.nodes import BEAT_S
from dgpunet_dask.cluster.peer import PeerServer
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.cluster.workers import Meeting, WorkerSite, plan_workers
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.agent import ORPHAN_S as CALL_ORPHAN_S
from dgpunet_dask.daemons.agent import end_with_children, kill_stopped
from dgpunet_dask.daemons.agent_disk import agent_disk
from dgpunet_dask.daemons.followers import Followers
from dgpunet_dask.daemons.keeping import WorkerKeeper
from dgpunet_dask.daemons.lifeline import watch
from dgpunet_dask.daemons.listeners import own_listeners
from dgpunet_dask.daemons.node_facts import facts_of, named, probe_node
from dgpunet_dask.daemons.node_health import NodeHealth
from dgpunet_dask.daemons.spool import Spool
from dgpunet_dask.errors import CertificateRefused, DgpunetError, StartFailed
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.security.identity import Identity, install, install_crl, make_request
from dgpunet_dask.stagehost.manager import StageHosts

log = logging.getLogger(__name__)

#: How long stage hosts are kept without any head: long enough for a restart or an update, not for a head that is gone for good.
ORPHAN_S: Final = 900.0
#: The machine is looked at anew this often: cards and drivers change while it runs, too.
PROBE_S: Final = 300.0
#: What listens here is looked at this often.
LIST_S: Final = 20.0
#: A head that refuses a certificate that often in a row, though it has not expired, has removed this host.
REFUSALS_MAX: Final = 5
#: A head that is silent for longer than a restart may have moved. What lasts is told this often.
MOVED_S: Final = 60.0
COMPLAIN_S: Final = 600.0
#: How long leaving in good order may take.
LEAVE_S: Final = 2.0


class NodeAgent:
    """Runs what belongs to one host.

    Parameters
    ----------
    home, config
        Where its state lies, and which host of which cluster this is.
    api
        The head.
    clock
        Time.
    """

    def __init__(self, home: Home, config: ClusterConfig, identity: Identity, api: AgentApi, clock: Clock | None = None) -> None:
        self.home, self.config, self.identity, self.api = home, config, identity, api
        self.clock = clock or SystemClock()
        self.boot = secrets.token_hex(8)
        self.spool = Spool(home.run / "reports.json")
        measuring = asyncio.Lock()
        self.client = PeerClient(identity.client_context(), clock=self.clock, measuring=measuring)
        self.blobs = Blobs(home, self.client, clock=self.clock)
        self.peers: tuple[Peer, ...] = ()
        self.backups = BackupKeeper(home, self.client)
        self.server = PeerServer(
            config.host, identity.server_context("required"), self.blobs, clock=self.clock, measuring=measuring, revoked=lambda: identity.revoked,
            private={backups.KIND: functools.partial(backups.OfferedShelf, home)} if config.membership == "head" else {},
        )  # fmt: skip
        self.health = NodeHealth(self.spool, self.clock)
        self.hosts = StageHosts(
            home, self.clock, {}, fetch=lambda kind, digest: self.blobs.ensure(kind, digest, self.peers), befell=self.health.befell
        )
        self.workers = WorkerKeeper(home, self.clock, lambda device: self.hosts.drop_calls(device, CALL_ORPHAN_S))
        self.disk = agent_disk(home, self.hosts.specs, self.clock, beside_head=config.membership == "head")
        self.beside = Followers(self.clock)
        self.fleet: Fleet | None = None
        self.facts: dict[str, Any] = {}
        self.listeners: list[dict[str, Any]] = []
        self.epoch: int | None = None
        self.answered_s = self.taken_s = self.clock.monotonic()
        self._silent_till_s = 0.0
        self._needs_facts = True
        self._orphaned = self._asked_anew = False
        self._refusals = 0
        self._running: tuple[Any, ...] | None = None
        self._measurement: asyncio.Task[None] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then end the workers and the stage hosts, and say goodbye.

        Raises
        ------
        StartFailed
            If the peer port is taken.
        """
        shutil.rmtree(self.home.run / "scratch" / "workers", ignore_errors=True)
        await self._open()
        beating, ended = asyncio.create_task(self._beats()), asyncio.create_task(stop.wait())
        self.beside.begin("listeners", self._list)
        self.beside.begin("cards", lambda: self.health.run(lambda: self.fleet, self.hosts.rows, lambda: self.hosts.cards))
        self.beside.begin("disk", self.disk.run)
        self.beside.begin("stage hosts", lambda: kill_stopped(self.hosts, self.clock))
        try:
            await asyncio.wait({beating, ended}, return_when=asyncio.FIRST_COMPLETED)
            if beating.done():
                beating.result()
        finally:
            tasks = [beating, ended, *([self._measurement] if self._measurement else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, self.beside.stop(), self.backups.stop(), return_exceptions=True)
            await self._close()

    async def _list(self) -> None:
        """Look at what this host's processes listen on, now and then."""
        while True:
            self.listeners = await asyncio.to_thread(own_listeners, self.config.ports)
            await asyncio.sleep(LIST_S)

    async def _open(self) -> None:
        await self.hosts.start()
        await asyncio.to_thread(self.blobs.clean)
        try:
            await self.server.start(self.config.address, self.config.ports.peer)
        except OSError as error:
            await self.hosts.stop()
            where = join_host_port(self.config.address, self.config.ports.peer)
            raise StartFailed(why=f"the agent cannot listen on {where} ({error.strerror})", logs=self.home.run / "logs") from error

    async def _close(self) -> None:
        with contextlib.suppress(DgpunetError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.to_thread(self.api.leave)
        await self.workers.stop()
        await self.server.stop()
        await self.hosts.stop()

    # Heartbeats

    async def _beats(self) -> None:
        probed_s = -PROBE_S
        while True:
            if self.clock.monotonic() - probed_s >= PROBE_S:
                await self._probe()
                probed_s = self.clock.monotonic()
            began = self.clock.monotonic()
            self.identity.refresh()  # on the head's host the head renews it, too
            try:
                answer = await asyncio.to_thread(self.api.heartbeat, self._body())
                await self._take(answer)
            except DgpunetError as error:
                await self._unanswered(error)
            except (OSError, LookupError, TypeError, ValueError) as error:
                # A full disk, say, where a certificate should lie, or an answer of another release: ending would end the loaded stages.
                self._complain("what the head says cannot be done now", error, began - self.taken_s)
            await asyncio.sleep(max(0.2, BEAT_S - (self.clock.monotonic() - began)))

    async def _probe(self) -> None:
        """Look at the machine; facts are sent when they have changed."""
        try:
            fleet = await asyncio.to_thread(probe_node, self.home, self.config)
            facts = await asyncio.to_thread(facts_of, self.home, fleet, self.config)
        except Exception:
            if self.fleet is None:
                raise
            log.exception("the machine cannot be looked at; what was known of it stays")  # ending would end the loaded stages
            return
        if facts != self.facts:
            self._needs_facts = True
        self.fleet, self.facts = fleet, facts

    def _body(self) -> dict[str, Any]:
        return {
            "boot": self.boot,
            "epoch": self.epoch,
            "address": self.config.address,
            "peer_port": self.config.ports.peer,
            "roles": list(self.config.roles),
            "facts": self.facts if self._needs_facts else None,
            "facts_digest": self.facts.get("fleet_digest"),
            "workers": self.workers.rows(),
            "stagehosts": [{**row, "epoch": self.epoch} for row in self.hosts.rows()],
            "health": {**self.health.row(), "disk": self._room(), "backup": self.backups.row(), "followers": self.beside.rows()},
            "listeners": self.listeners,
            "reports": self.spool.batch(),
            "spool": self.spool.id,
            "crl": crl_digest(self.home.pki),
            "certificate_expires": self.identity.expires_s,
        }

    def _room(self) -> dict[str, Any]:
        room = self.disk.room()
        return {"path": str(self.home.root), "total": room.total_bytes, "free": room.free_bytes, "floor": room.floor_bytes, "low": room.low}

    async def _unanswered(self, error: DgpunetError) -> None:
        silent_s, self._needs_facts = self.clock.monotonic() - self.answered_s, True  # a new head may answer next
        cure = f"; {MOVED.format(host=self.config.host)}" if silent_s >= MOVED_S else ""
        self._complain(f"the head does not answer since {silent_s:.0f} s{cure}", error, silent_s)
        if silent_s >= ORPHAN_S and not self._orphaned:
            self._orphaned = True
            ended = await self.hosts.end_all()
            log.error("no head has answered for %.0f s: %d stage hosts were ended, so that their memory is free", silent_s, ended)
        await self._renew_expired()
        self._refusals = self._refusals + 1 if isinstance(error, CertificateRefused) and self.identity.expires_s > self.clock.wall() else 0
        if self._refusals >= REFUSALS_MAX:
            raise error  # it was removed: what it says is the way back

    def _complain(self, what: str, error: Exception, since_s: float) -> None:
        """Tell of what has been wrong for so long, each time after twice as long: a head may be away for weeks."""
        if since_s >= self._silent_till_s:
            log.warning("%s: %s", what, error, exc_info=None if isinstance(error, DgpunetError) else error)
            self._silent_till_s = min(max(2 * since_s, BEAT_S), since_s + COMPLAIN_S)

    async def _take(self, answer: Mapping[str, Any]) -> None:
        """Do as the head says."""
        self._refusals = 0
        self.answered_s, self._orphaned, self._needs_facts = self.clock.monotonic(), False, bool(answer["need_facts"])
        self.spool.acknowledged(int(answer["acked"]))
        self.peers = tuple(Peer(**peer) for peer in answer["peers"])
        if self.epoch != answer["epoch"]:
            if self.epoch is not None:
                log.info("%d stage hosts go on under epoch %s", len(self.hosts.rows()), answer["epoch"])
            self.epoch = int(answer["epoch"])
        if answer.get("crl"):
            install_crl(self.home.pki, str(answer["crl"]))
            self.identity.refresh()
        if answer["lost"]:
            self.workers.restart("the head had lost sight of this host")
        await self._run_workers(answer)
        await self._renew()
        self._measure(answer.get("measure"))
        self.backups.take(answer.get("backup"))
        self.taken_s, self._silent_till_s = self.clock.monotonic(), 0.0

    async def _run_workers(self, answer: Mapping[str, Any]) -> None:
        """Run the workers that the head wants, under the names that it gives."""
        assert self.fleet is not None, "probed before the first heartbeat"
        if answer["run_workers"] is None:  # a new head, that has not heard yet what is here
            return
        fleet = named(self.fleet, answer["names"])
        wanted = (answer["scheduler"], answer.get("compression"), fleet.devices, fleet.hosts[0].roles) if answer["run_workers"] else None
        if wanted == self._running:
            return
        await self.workers.stop()
        self._running = wanted
        if wanted is not None:
            self.hosts.cards = {card.name: str(card.uuid) for card in fleet.gpus()}
            self.workers.start(plan_workers(fleet, self._site(str(answer["scheduler"]), answer.get("compression"))))

    def _site(self, scheduler: str, compression: str | None) -> WorkerSite:
        ports = self.config.ports
        return WorkerSite(
            scheduler_file=self.home.run / "scheduler.json",
            facts_folder=self.home.run / "facts",
            scratch=self.home.run / "scratch" / "workers",
            agent_socket=self.home.agent_socket,
            home=self.home.root,
            cores=usable_cpus(),
            probed=True,
            spill_bytes=self.disk.limits.spill,
            meeting=Meeting(
                scheduler=scheduler, address=self.config.address, worker_port=ports.workers, nanny_port=ports.nannies,
                compression=compression,
            ),
        )

    # Certificates

    async def _renew(self) -> None:
        """Ask for a new certificate at half the life of the present one, or where this host has another address now."""
        moved = self.config.address not in self.identity.addresses and not self._asked_anew
        if moved or self.identity.due(self.clock.wall()):
            self._asked_anew = True  # once: the head may have its reason to leave an address out
            request = make_request(self.home.pki, self.config.host)
            await asyncio.to_thread(self._install, await asyncio.to_thread(self.api.renew, request))

    async def _renew_expired(self) -> None:
        """Come back after a long sleep: the key of an expired certificate still proves who this is."""
        if self.identity.expires_s <= self.clock.wall():
            try:
                answer = await asyncio.to_thread(renew_expired, self.config, self.home.pki)
            except DgpunetError as error:
                log.warning("the certificate has expired, and the head gives no new one: %s", error)
            else:
                self._install(answer)

    def _install(self, answer: Mapping[str, Any]) -> None:
        install(self.home.pki, str(answer["certificate"]), str(answer["ca"]), str(answer["crl"]))
        self.identity.refresh()
        log.info("the certificate is renewed until %.0f", self.identity.expires_s)

    # Measuring

    def _measure(self, order: Mapping[str, Any] | None) -> None:
        """Measure the way to another host, one at a time; the result is a report."""
        if order is None or (self._measurement is not None and not self._measurement.done()):
            return
        self._measurement = asyncio.create_task(self._measured(Peer(**order)))

    async def _measured(self, peer: Peer) -> None:
        try:
            ping = await self.client.ping(peer)
            rate = await self.client.bandwidth(peer)
        except DgpunetError as error:
            self.spool.add("link", src=self.config.host, dst=peer.host, error=str(error), at=self.clock.wall())
            return
        self.spool.add(
            "link", src=self.config.host, dst=peer.host, bytes_per_s=rate, rtt_s=ping.rtt_s, offset_s=ping.offset_s, at=self.clock.wall()
        )


def crl_digest(folder: Path) -> str | None:
    """Return the SHA-256 of the revocation list here, ``None`` without one: the head sends another."""
    try:
        return hashlib.sha256((folder / "ca.crl").read_bytes()).hexdigest()
    except OSError:
        return None


async def _main(home: Home, config: ClusterConfig) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    identity = Identity(home.pki)
    await NodeAgent(home, config, identity, AgentApi(config.api, identity)).run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until SIGTERM, or until its owner is gone."""
    watch(end_with_children)
    parser = argparse.ArgumentParser(prog="dgpunet-dask-node-agent", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    home = Home(parser.parse_args(argv).home).ensure()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = read_config(home.cluster_file)
        if config is None:
            raise StartFailed(why="this host belongs to no cluster", logs=home.run / "logs")
        asyncio.run(_main(home, config))
    except DgpunetError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
