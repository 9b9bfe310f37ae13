"""The head daemon of a cluster of real machines: what `Head` is on 127.0.0.1, and beside it the membership and the TLS listeners."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from distributed import Client

from dgpunet_dask.cluster.config import ClusterConfig, read_config
from dgpunet_dask.cluster.dask_security import ClusterSecurity
from dgpunet_dask.cluster.fleets import charged_by_device
from dgpunet_dask.cluster.nodes import LOST_S, Node, state_of
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.cluster.workers import comm_env
from dgpunet_dask.daemons import children
from dgpunet_dask.daemons.api import ApiContext, listen_tls
from dgpunet_dask.daemons.api.server import ApiServer
from dgpunet_dask.daemons.head import Head, HeadOptions
from dgpunet_dask.daemons.joining import certify_head
from dgpunet_dask.daemons.membership import Membership
from dgpunet_dask.daemons.reach import Reach
from dgpunet_dask.daemons.secret import http_prefix
from dgpunet_dask.daemons.surveying import knock, survey
from dgpunet_dask.errors import DgpunetError, NeedsHead, StartFailed
from dgpunet_dask.security.authority import LIFE_S
from dgpunet_dask.security.identity import Identity

if TYPE_CHECKING:
    from dgpunet_dask.jobs.service import JobService as Jobs

log = logging.getLogger(__name__)

#: How many seconds the certificates of hosts live, where it is not a day: to see them renewed.
LIFE_VARIABLE: Final = "DGPUNET_CERTIFICATE_LIFE_S"
#: How often the head looks whether its own certificate is due.
CERTIFY_S: Final = 1.0
#: How often, and how many seconds in all, a host's peer port is tried before it is called unreachable.
REACH_TRIES: Final = 3
REACH_WAIT_S: Final = 2.0


class ClusterHead(Head):
    """The head of real machines. Its scheduler, API and workers are under TLS; the agents are nobody's children here."""

    def __init__(self, options: HeadOptions, report: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(options, report)
        config = read_config(self.home.cluster_file)
        if config is None or config.membership != "head":
            raise NeedsHead(what="this command")
        self.config: ClusterConfig = config
        self.children = children.Children(self.home, fatal=self.stop, on_scheduler_lost=self._scheduler_lost, cluster=config)
        self.find_model = _folder_of_model
        self.settling.awaited = self._awaited
        self.began_s = self.policies.clock.monotonic()

    async def run(self) -> None:
        """Start everything under a fresh certificate, serve until `stop`, end everything."""
        self.life_s = float(os.environ.get(LIFE_VARIABLE) or LIFE_S)
        certify_head(self.home.pki, self.config, self.policies.clock.wall(), self.life_s)
        self.identity = Identity(self.home.pki)
        self.peers = PeerClient(self.identity.client_context())
        reach = Reach(
            self._ask, self._retire, self._rows, self._reachable, partial(survey, self.peers, self.config), partial(knock, self.config)
        )
        self.membership = Membership(self.home, self.config, reach, self.policies.clock, self.life_s)
        self.membership.backing, self.backing.host = self.backing, self.config.host
        self.backing.ports = replace(self.backing.ports, hosts=self.membership.others_here, kept=self.membership.backup_of)
        self.children.comm_env = comm_env(self.membership.compression)
        await super().run()

    def _security(self) -> Any:
        return ClusterSecurity(self.home.pki)

    async def _workers_joined(self, client: Client) -> None:
        """Agents bring their workers by themselves, once the API answers them."""

    @property
    def head_device(self) -> str:
        """The CPU of this host."""
        return f"{self.config.host}/cpu"

    def _make_context(self, jobs: Jobs) -> ApiContext:
        ctx = super()._make_context(jobs)
        ctx.membership, ctx.keys = self.membership, self.membership.invitations.store
        ctx.dashboard_upstream = self._dashboard_upstream
        return ctx

    def _listen(self, ctx: ApiContext) -> list[ApiServer]:
        try:
            secured = listen_tls(ctx, self.identity, [self.config.address], self.config.ports.api)
        except OSError as error:
            where = f"{self.config.address}:{self.config.ports.api}"
            raise StartFailed(why=f"the API cannot listen on {where} ({error.strerror})", logs=self.home.run / "logs") from error
        return [*super()._listen(ctx), secured]

    def _dashboard_upstream(self) -> str | None:
        base = (self.children.dashboard or "").removesuffix("/status")
        return f"{base}/{http_prefix(self.home.run)}" if base else None

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with super()._serving():
            following = [asyncio.create_task(follower) for follower in (self.membership.run(), self._certify())]
            try:
                yield
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)

    async def _certify(self) -> None:
        """Renew the head's own certificate, also one that expired while this machine slept: nobody else could, for nobody would come in."""
        while True:
            await asyncio.sleep(CERTIFY_S)
            now = self.policies.clock.wall()
            if self.identity.due(now):
                try:
                    await asyncio.to_thread(certify_head, self.home.pki, self.config, now, self.life_s)
                except (DgpunetError, OSError) as error:  # a full disk; it is tried again
                    log.error("the head's certificate cannot be renewed: %s", error)
                else:
                    self.identity.refresh()
                    log.info("the head's certificate is renewed until %.0f", self.identity.expires_s)

    async def _scheduler_lost(self, why: str) -> None:
        self.membership.scheduler_lost()
        await super()._scheduler_lost(why)

    async def _retire(self, workers: Sequence[str]) -> None:
        await self._dask().retire_workers(workers=list(workers), close_workers=True, remove=True)

    async def _rows(self) -> list[dict[str, Any]]:
        """Return the devices as the scheduler's plugin sees them."""
        seen = await self._fleet()
        charged = charged_by_device(seen["charges"])
        return [
            {
                "name": device["name"], "host": device["host"], "model": device.get("model"), "vram_mib": device.get("vram_mib"),
                "charged_mib": charged.get(device["name"], 0), "state": seen["states"].get(device["name"], "running"),
            }
            for device in seen["devices"]
        ]  # fmt: skip

    async def _reachable(self, node: Node) -> str | None:
        """Try a host's peer port from here."""
        why: str | None = None
        for attempt in range(REACH_TRIES):
            try:
                await self.peers.ping(Peer(node.host, node.address, node.peer_port))
            except DgpunetError as error:
                why = str(error)
                await asyncio.sleep(REACH_WAIT_S * (attempt < REACH_TRIES - 1))
            else:
                return None
        return why

    def _awaited(self) -> frozenset[str]:
        """A new head waits for all hosts that may come back, later only for those that are there."""
        now = self.policies.clock.monotonic()
        early = now - self.began_s < LOST_S
        roll, seen = self.membership.roll.nodes, self.membership.seen
        states = {host: state_of(node, seen.get(host), now) for host, node in roll.items()}
        hosts = [host for host, state in states.items() if state in ("ready", "cordoned") or (early and state == "joining")]
        return frozenset(name for host in hosts for name in (*roll[host].cards.values(), f"{host}/cpu"))

    def _belonging(self) -> frozenset[str] | None:
        if self.membership.set_aside:
            return None
        nodes = [node for node in self.membership.roll.nodes.values() if node.hold != "drained"]
        return frozenset(name for node in nodes for name in (*node.cards.values(), f"{node.host}/cpu"))

    async def status(self) -> dict[str, Any]:
        """Return the object of ``status --json``; its workers are those of all hosts."""
        rows = [device for node in await self.membership.nodes() for device in node["devices"]]
        workers = [{"name": r["name"], "host": r["host"], "device": r["name"], **_told(r)} for r in rows]
        api = f"https://{self.config.api[0]}"
        found = {**await super().status(), "workers": sorted(workers, key=lambda w: str(w["name"]))}
        return {**found, "cluster_api": api, "dashboard": f"{api}/dashboard/status"}


def _folder_of_model(name: str) -> Path | None:
    from dgpunet_dask.retrieval.modelfiles import find_model

    return find_model(name).folder


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("vram_mib", "charged_mib", "state")}
