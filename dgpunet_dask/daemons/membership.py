"""The head's side of a cluster of real machines: who may join, what agents report and are told, which hosts are held or lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.cluster.heartbeats import Beat, beat_from, differences, refusal, texts_of
from dgpunet_dask.cluster.link_keeper import LinkKeeper
from dgpunet_dask.cluster.nodes import (
    LOST_S,
    Node,
    Roll,
    Seen,
    absent,
    drained,
    held_devices,
    node_row,
    renamed,
    roll_from,
    state_of,
)
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.backing import Backing
from dgpunet_dask.daemons.invitations import Invitations, Inviting, number_of, text_of
from dgpunet_dask.daemons.reach import Reach
from dgpunet_dask.errors import BadValue, CertificateRefused, DgpunetError, JoinRefused, NoSuchNode
from dgpunet_dask.hardware.software import software_facts
from dgpunet_dask.security.authority import LIFE_S, Authority, Role, request_digest
from dgpunet_dask.security.files import write_private

log = logging.getLogger(__name__)

#: How often silence, draining and what is held are looked at.
PERIOD_S: Final = 1.0
#: How often what does not belong any more is looked for.
SWEEP_S: Final = 5.0
#: Machines whose ports are tried at the same time before they join.
KNOCKS_MAX: Final = 8
#: How often a host that cannot be reached from here is tried again: a firewall was opened perhaps.
REACH_AGAIN_S: Final = 60.0
#: How long workers may take to hand their results over when they leave.
RETIRE_S: Final = 60.0
#: Reports that are kept for `nodes`, `doctor` and `report`.
REPORTS_KEPT: Final = 200


class Membership(Inviting):
    """All hosts of one cluster. Errors are DgpunetErrors."""

    def __init__(
        self, home: Home, config: ClusterConfig, reach: Reach, clock: Clock | None = None, life_s: float = LIFE_S
    ) -> None:
        self.home, self.config, self.reach, self.life_s = home, config, reach, life_s
        self.clock = clock or SystemClock()
        self.boot = secrets.token_hex(8)
        self.authority = Authority.open(home.pki)
        self.invitations = Invitations(home.pki, config, self.authority, self.clock)
        self.links = LinkKeeper(home.links_file, self.clock)
        # Read here: a file of a newer release is to stop the start, not every heartbeat. One codec for the length of this head.
        self.compression = self.links.compression()
        self.software = software_facts()
        self.set_aside = False  # whether `nodes.json` was damaged, and so nobody knows who belongs
        self.roll = self._read()
        self.seen: dict[str, Seen] = {}
        self.lost: set[str] = set()
        self.reports: list[dict[str, Any]] = []
        self._acked: dict[str, tuple[str, int]] = {}  # host -> its spool, and the number of its last report
        self._given_up: dict[str, set[int]] = {}  # host -> workers that ran while it was lost
        self._held: dict[str, str] | None = None
        self.knocking = asyncio.Semaphore(KNOCKS_MAX)
        self._reaching: dict[str, asyncio.Task[None]] = {}
        self._reached_s: dict[str, float] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._swept_s = 0.0
        self.began_s = self.clock.monotonic()
        self.backing: Backing | None = None

    def _read(self) -> Roll:
        """Return the hosts that earlier heads knew, under the next epoch."""
        roll = Roll()
        try:
            roll = roll_from(self.home.nodes_file.read_text(encoding="utf-8"), self.home.nodes_file)
        except FileNotFoundError:
            log.info("the first head of this cluster")
        except ValueError as error:
            damaged = self.home.nodes_file.with_name(f"{self.home.nodes_file.name}.damaged")
            log.error("%s is set aside; hosts appear again with their next heartbeat, held back no more: %s", self.home.nodes_file, error)
            self.home.nodes_file.replace(damaged)
            self.set_aside = True
        roll = replace(roll, epoch=roll.epoch + 1)
        self._write(roll)
        return roll

    def _write(self, roll: Roll) -> None:
        write_private(self.home.nodes_file, roll.to_json())

    def _put(self, node: Node) -> None:
        roll = self.roll.put(node)
        if roll != self.roll:
            self._write(roll)
            self.roll = roll

    def _node(self, host: str) -> Node:
        if host not in self.roll.nodes:
            raise NoSuchNode(name=host, known=", ".join(sorted(self.roll.nodes)) or "none")
        return self.roll.nodes[host]

    # Joining

    async def ca_pem(self) -> str:
        """Return the authority's certificate."""
        return self.authority.certificate_pem

    async def enrol(self, request: dict[str, Any], peer_address: str) -> dict[str, Any]:
        """Take a host in for a token, or one back whose certificate has expired; raises what says that it may not."""
        text = {name: request.get(name) for name in ("token", "certificate", "host", "csr")}
        if not all(isinstance(text[name], str) for name in ("host", "csr")):
            raise BadValue(what="request", value=sorted(request), why="send host, csr, addresses, software and a token")
        host, csr = str(text["host"]), str(text["csr"])
        addresses, roles = texts_of(request, "addresses") or (peer_address,), texts_of(request, "roles")
        back, token = text["certificate"], (str(text["token"] or ""), host, request_digest(csr))
        if isinstance(back, str):
            self.authority.recognise(back, csr, host=host, now=self.clock.wall())
        else:
            self.invitations.check(*token)  # who has none learns nothing of what runs here
        warnings = differences(self.software, request.get("software"), force=bool(request.get("force")))
        if host == self.config.host and back is None:
            raise JoinRefused(host=host, why="the head's own host has that name. Choose another with `--name`, and make a token for it")
        if not isinstance(back, str):
            self.invitations.redeem(*token)
            self.authority.allow(host)
        given = self._certificate(host, csr, addresses)
        node = self.roll.nodes.get(host) or Node(host=host, address=addresses[0], joined_at=self.clock.wall())
        forced = node.forced if isinstance(back, str) else bool(request.get("force"))
        self._put(replace(node, address=addresses[0], roles=roles or node.roles, forced=forced))
        return {**given, "cluster": self.config.cluster, "warnings": warnings}

    def _certificate(self, host: str, csr: str, addresses: Sequence[str]) -> dict[str, Any]:
        now = self.clock.wall()
        role: Role = "head" if host == self.config.host else "node"
        issued = self.authority.issue(csr, host=host, addresses=list(addresses), role=role, now=now, life_s=self.life_s)
        return {
            "certificate": issued.certificate_pem, "expires_s": issued.expires_s, "ca": self.authority.certificate_pem,
            "crl": self.authority.crl_pem(now), "left_out": list(issued.left_out),
        }  # fmt: skip

    async def join_check(self, request: dict[str, Any], peer_address: str) -> dict[str, Any]:
        """Tell who has a good token what runs here and which of its ports are reached from here; the token is as good as before."""
        token, host = (text_of(request, name) for name in ("token", "host"))
        self.invitations.check(token, host, "")
        async with self.knocking:
            reach = await self.reach.knock(host, peer_address)
        ports = {"scheduler": self.config.ports.scheduler, "peer": self.config.ports.peer}
        return {"head": self.config.host, "software": asdict(self.software), "ports": ports, "seen_as": peer_address, "reach": list(reach)}

    async def renew(self, host: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return a new certificate for the same host."""
        node = self._node(host)
        return self._certificate(host, str(body.get("csr", "")), [node.address])

    async def leave(self, host: str) -> None:
        """Note that a host's agent ends in good order; its workers end with it."""
        seen = self.seen.get(host)
        if seen is not None:
            self.seen[host] = replace(seen, left=True)
        await self._lose(host)

    # Heartbeats

    async def heartbeat(self, host: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take what a host reports; return what its agent shall do.

        Raises
        ------
        CertificateRefused
            If the host was removed; its certificates are revoked, and every listener follows within seconds.
        BadValue
            If it is not what a host may say; what it said before stays.
        """
        if self.authority.is_denied(host):
            raise CertificateRefused(why=f"the host {host} was removed from the cluster. Invite it anew with `dgpunet-dask token create`")
        beat = beat_from(body)
        node = self.roll.nodes.get(host) or Node(host=host, address=beat.address, joined_at=self.clock.wall())
        before = self.seen.get(host)
        facts = beat.facts or (before.facts if before and before.facts and before.facts_digest == beat.facts_digest else None)
        if facts is not None:
            node = self._named(node, facts)
        node = replace(node, address=beat.address, peer_port=beat.peer_port, roles=beat.roles or node.roles)
        self._put(node)
        self.seen[host] = Seen(
            at_s=self.clock.monotonic(), boot=beat.boot, facts=facts or {}, facts_digest=beat.facts_digest, workers=beat.workers,
            stagehosts=beat.stagehosts, health=beat.health, listeners=beat.listeners, refused=None if node.forced else refusal(self.software, facts),
            unreachable=before.unreachable if before else None,
        )  # fmt: skip
        if before is None or before.boot != beat.boot or (before.unreachable and self.clock.monotonic() - self._reached_s[host] >= REACH_AGAIN_S):
            self._reach(host)
        acked = self._take_reports(host, beat.spool, beat.reports)
        return self._answer(self.roll.nodes[host], beat, acked=acked, lost=self._to_restart(host, beat), need_facts=facts is None)

    def _to_restart(self, host: str, beat: Beat) -> bool:
        """Whether workers run that were given up while the host was lost. Said until they are others: an answer may not arrive."""
        running = {worker["pid"] for worker in beat.workers if worker.get("pid") is not None}
        if host in self.lost:
            self.lost.discard(host)
            self._given_up[host] = running
        self._given_up[host] = self._given_up.get(host, set()) & running
        return bool(self._given_up[host])

    def _named(self, node: Node, facts: Mapping[str, Any]) -> Node:
        """Give each card of the host its name in the fleet; those of cards that were taken out stay free for a while."""
        named = renamed(node, self.roll.nodes.values(), [(uuid, wish) for uuid, wish in facts.get("cards") or ()])
        before, now = set(node.cards.values()), set(named.cards.values())
        if before not in (now, set()):
            log.info("host %s has other cards: %s new, %s gone", node.host, sorted(now - before), sorted(before - now))
        return named

    def _answer(self, node: Node, beat: Beat, *, acked: int, lost: bool, need_facts: bool) -> dict[str, Any]:
        seen = self.seen[node.host]
        crl = self.authority.crl_pem(self.clock.wall())
        digest = hashlib.sha256(crl.encode()).hexdigest()
        others = [other for other in self.roll.nodes.values() if other.host != node.host and other.peer_port]
        return {
            "boot": self.boot,
            "epoch": self.roll.epoch,
            "scheduler": self.config.scheduler, "compression": self.compression,
            "names": dict(node.cards),
            "run_workers": None if need_facts else seen.refused is None and node.hold != "drained",  # None: as they are
            "why": seen.refused or node.hold_why,
            "acked": acked,
            "lost": lost,
            "need_facts": need_facts,
            "crl": None if beat.crl == digest else crl,
            "peers": [self._peer(other) for other in others if state_of(other, self.seen.get(other.host), self.clock.monotonic()) == "ready"],
            "measure": self._to_measure(node.host),
            "backup": self._backup_for(node.host),
        }

    def _backup_for(self, host: str) -> dict[str, Any] | None:
        """Return the copy of the ledger that a host shall fetch, and from where; ``None``: none."""
        offer, own = None if self.backing is None else self.backing.offered_to(host), self.roll.nodes.get(self.config.host)
        return None if offer is None or own is None or not own.peer_port else {**offer, "peer": self._peer(own)}

    def _peer(self, node: Node) -> dict[str, Any]:
        return {"host": node.host, "address": node.address, "port": node.peer_port, "is_head": node.host == self.config.host}

    def _to_measure(self, host: str) -> dict[str, Any] | None:
        """Return the host to which `host` shall measure its way now, if it is its turn."""
        now = self.clock.monotonic()
        here = [name for name, node in self.roll.nodes.items() if state_of(node, self.seen.get(name), now) == "ready" and node.peer_port]
        other = self.links.due(host, here)
        return None if other is None else self._peer(self.roll.nodes[other])

    def _take_reports(self, host: str, spool: str, reports: Iterable[Mapping[str, Any]]) -> int:
        """Take each report once, also where its acknowledgement was lost; return the number of the last."""
        last, known = self._acked.get(host, (spool, 0))
        known = known if last == spool else 0
        for report in reports:
            if report["n"] > known:
                known = report["n"]
                self._report(host, report)
        self._acked[host] = (spool, known)
        return known

    def _report(self, host: str, report: Mapping[str, Any]) -> None:
        self.reports.append({**report, "host": host})
        del self.reports[:-REPORTS_KEPT]
        if report["kind"] == "link" and report.get("dst") in self.roll.nodes:
            self.links.measured({**report, "src": host})
        elif report["kind"] == "card_fault" and host in self.roll.nodes:
            node = self.roll.nodes[host]
            log.error("host %s: %s", host, report.get("what"))
            if report.get("cordon") and node.hold is None:
                self._put(replace(node, hold="cordoned", hold_why=str(report.get("what"))))

    def _reach(self, host: str) -> None:
        """Try the host's peer port from here; what stands in the way is shown with the host."""
        node = self.roll.nodes[host]
        self._reached_s[host] = self.clock.monotonic()

        async def reach() -> None:
            why = await self.reach.reachable(node)
            known = self.seen.get(host)
            if known is None or known.unreachable == why:
                return
            self.seen[host] = replace(known, unreachable=why)
            if why is not None:
                log.error("host %s reaches the head, and the head does not reach it: %s", host, why)

        if host in self._reaching:
            self._reaching[host].cancel()
        self._reaching[host] = asyncio.create_task(reach())

    # What goes on by itself

    async def run(self) -> None:
        """Follow silence, draining, held and vanished devices, and links, until cancelled."""
        self.began_s = self.clock.monotonic()  # hosts are answered from now on
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                await self._look_again()
        finally:
            for task in (*self._leaving.values(), *self._reaching.values()):
                task.cancel()

    async def _look_again(self) -> None:
        try:
            await self.look()
        except DgpunetError as error:  # the scheduler is being started again
            self.scheduler_lost()
            log.debug("the scheduler is away: %s", error)
        except Exception:  # a full disk, say: who is silent has to be noticed all the same, the next time
            log.exception("the hosts could not be looked after")

    async def look(self) -> None:
        """Do once what is due now."""
        now = self.clock.monotonic()
        for host, node in self.roll.nodes.items():
            if host not in self.seen and node.peer_port and (overdue := Seen.overdue(self.began_s, now)) is not None:
                self.seen[host] = overdue
            if host not in self.lost and state_of(node, self.seen.get(host), now) == "lost":
                log.error("host %s is lost: nothing was heard of it for %.0f s", host, now - self.seen[host].at_s)
                self.lost.add(host)
                await self._lose(host)
        await self._hold()
        for node in list(self.roll.nodes.values()):
            if node.hold == "draining" and node.host not in self._leaving:
                await self._drain(node)
        await self._tell_links()
        if now - max(self._swept_s, self.began_s + LOST_S) >= SWEEP_S:  # not before all had time to be heard of: nodes.json may have been damaged
            self._swept_s = now
            await self._sweep()

    async def _tell_links(self) -> None:
        fresh = self.links.news()
        if fresh is None:
            return
        try:
            await self.reach.ask("dgpunet_links", links=fresh)
        except DgpunetError:
            self.links.told = None
            raise

    def scheduler_lost(self) -> None:
        """Tell the next scheduler everything anew."""
        self._held = None
        self.links.told = None

    async def _lose(self, host: str) -> None:
        with contextlib.suppress(DgpunetError):
            await self.reach.ask("dgpunet_lose", host=host)

    async def _hold(self) -> None:
        held = held_devices(self.roll.nodes.values(), [host for host, seen in self.seen.items() if _is_low(seen)])
        if held != self._held:
            await self.reach.ask("dgpunet_hold", holds=held)
            self._held = held

    async def _drain(self, node: Node) -> None:
        """Let the workers of a draining host leave once they are idle, or its deadline has passed. Nothing else waits for that."""
        here = (await self.reach.ask("dgpunet_hosts")).get(node.host, {"workers": [], "tasks": 0})
        if drained(node, busy=bool(here["tasks"]), now=self.clock.wall()):
            self._leaving[node.host] = asyncio.create_task(self._leave(node.host, here["workers"]))

    async def _leave(self, host: str, workers: Sequence[str]) -> None:
        try:
            if workers:
                async with asyncio.timeout(RETIRE_S):
                    await self.reach.retire(workers)
        except (TimeoutError, OSError, DgpunetError) as error:
            log.warning("the workers of %s did not hand over everything and are ended: %s", host, error)
            await self._lose(host)
        finally:
            del self._leaving[host]
        present = self.roll.nodes.get(host)
        if present is not None and present.hold == "draining":  # nobody changed their mind meanwhile
            self._put(replace(present, hold="drained", hold_until=None))

    async def _sweep(self) -> None:
        """Take out what does not belong any more: cards that are in no machine, workers of hosts that were removed."""
        known = {name for node in self.roll.nodes.values() for name in (*node.cards.values(), f"{node.host}/cpu")}
        gone = [row["name"] for row in await self.reach.fleet() if row["name"] not in known and row["state"] == "lost"]
        if gone:
            await self.reach.ask("dgpunet_forget", devices=gone)
        for host in set(await self.reach.ask("dgpunet_hosts")) - set(self.roll.nodes):
            await self.reach.ask("dgpunet_expel", host=host)

    # Who is there

    def others_here(self) -> Collection[str]:
        """Return the hosts whose agents do as they are told now, the head's own left out."""
        now = self.clock.monotonic()
        here = [host for host, node in self.roll.nodes.items() if state_of(node, self.seen.get(host), now) in ("ready", "cordoned")]
        return [host for host in here if host != self.config.host]

    def backup_of(self, host: str) -> Mapping[str, Any] | None:
        """Return what a host says of the copies of the ledger that it keeps."""
        seen = self.seen.get(host)
        found = None if seen is None else seen.health.get("backup")
        return found if isinstance(found, Mapping) else None

    # What people ask

    async def me(self, host: str) -> dict[str, Any]:
        """Return one host as `nodes` has it, and whether its cards are known."""
        self._node(host)
        row = next(row for row in await self.nodes() if row["host"] == host)
        seen = self.seen.get(host)
        return {**row, "facts_known": seen is not None and bool(seen.facts)}

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the hosts with their devices."""
        try:
            rows = await self.reach.fleet()
        except DgpunetError:
            rows = []
        now = self.clock.monotonic()
        return [node_row(node, self.seen.get(host), now, self._devices(node, rows)) for host, node in sorted(self.roll.nodes.items())]

    def _devices(self, node: Node, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the host's devices as placement sees them; of those that it does not see, what the host told of its cards."""
        found = {str(row["name"]): row for row in rows if row["host"] == node.host}
        seen = self.seen.get(node.host)
        told = {d.get("uuid"): d for d in (seen.facts.get("fleet", {}).get("devices", ()) if seen else ())}
        cards = {name: told.get(uuid, {}) for uuid, name in node.cards.items()} | {f"{node.host}/cpu": {}}
        return [found.get(name) or absent(name, node.host, cards[name]) for name in sorted(cards)]

    async def node_action(self, host: str, action: str, body: dict[str, Any]) -> dict[str, Any]:
        """Cordon, uncordon, drain or remove a host; return it as `nodes` shows it."""
        node = self._node(host)
        if action == "remove":
            return await self._remove(node)
        if action == "drain":
            deadline = body.get("deadline_s")
            until = None if deadline is None else self.clock.wall() + number_of(body, "deadline_s", 0.0)
            node = node if node.hold == "drained" else replace(node, hold="draining", hold_until=until, hold_why=None)
        elif action == "cordon" and node.hold == "drained":
            log.info("host %s is drained, which is more than cordoned", host)
        elif action == "cordon":
            node = replace(node, hold="cordoned", hold_until=None, hold_why=None)
        else:
            node = replace(node, hold=None, hold_until=None, hold_why=None)
        self._put(node)
        with contextlib.suppress(DgpunetError):
            await self._hold()
        return next(row for row in await self.nodes() if row["host"] == host)

    async def _remove(self, node: Node) -> dict[str, Any]:
        """Put a host out of the cluster: its certificates are revoked, everywhere, and its workers taken out."""
        if node.host == self.config.host:
            raise BadValue(what="node", value=node.host, why="it is the head's own host; `dgpunet-dask down` stops the cluster")
        revoked = self.authority.revoke_host(node.host, self.clock.wall())
        self.invitations.revoke_host(node.host)
        self.roll = self.roll.without(node.host)
        self._write(self.roll)
        for kept in (self.seen, self._acked, self._given_up, self._reached_s):
            kept.pop(node.host, None)
        self.lost.discard(node.host)
        self.links.forget(list(self.roll.nodes))
        with contextlib.suppress(DgpunetError):
            await self.reach.ask("dgpunet_expel", host=node.host)
        return {"host": node.host, "removed": True, "certificates_revoked": revoked}

    async def doctor(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what `doctor` examines: hosts with their facts, ports tried now, links with their baseline, the last reports."""
        now = self.clock.monotonic()
        states = {host: state_of(node, self.seen.get(host), now) for host, node in self.roll.nodes.items()}
        found = await self.reach.survey([self.roll.nodes[h] for h, state in states.items() if state in ("ready", "cordoned", "draining")])
        hosts = {host: self._examined(host, state, found.offsets.get(host), now) for host, state in states.items()}
        head = {"host": self.config.host, "software": asdict(self.software), "epoch": self.roll.epoch, "address": self.config.address}
        listeners = [{"host": host, **row} for host, seen in self.seen.items() for row in seen.listeners]
        found_now = {"reach": list(found.reach), "listeners": listeners, "reports": list(self.reports)}
        copies = {} if self.backing is None else {"backup": self.backing.status()}
        return {"head": head, "hosts": hosts, **self.links.to_json(), **found_now, **copies}

    def _examined(self, host: str, state: str, offset_s: float | None, now: float) -> dict[str, Any]:
        seen = self.seen.get(host)
        if seen is None:
            return {"facts": {}, "seen_s_ago": None, "state": state}
        return {
            "facts": dict(seen.facts), "doctor": seen.facts.get("doctor"), "seen_s_ago": round(now - seen.at_s, 1), "state": state, "health": dict(seen.health),
            "workers": list(seen.workers), "unreachable": seen.unreachable, "clock_offset_s": offset_s,
        }  # fmt: skip


def _is_low(seen: Seen) -> bool:
    """Whether a host says that there is no room on its disk for work."""
    disk = seen.health.get("disk")
    return isinstance(disk, Mapping) and disk.get("low") is True
