"""The agent of a host against a head that answers what a test wants, with time moved by hand. Nothing is started."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl

import pytest

from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.cluster.peer_client import Peer
from dgpunet_dask.daemons import node_agent
from dgpunet_dask.daemons.node_agent import COMPLAIN_S, MOVED_S, ORPHAN_S, REFUSALS_MAX, NodeAgent, crl_digest
from dgpunet_dask.errors import CertificateRefused, NoHead, StartFailed
from dgpunet_dask.model.fleet import Device, Fleet, Host
from tests.unit.daemons.members import WALL, ManualClock

HOST = Host(name="xps", roles=("batch",))
SILENT = NoHead(where="10.0.0.1:8787")
REFUSED = CertificateRefused(why="it was revoked")


def fleet(*uuids):
    cards = [Device(name=f"gpu-{n}", host="xps", kind="gpu", uuid=uuid, vram_mib=8192) for n, uuid in enumerate(uuids)]
    return Fleet(hosts=(HOST,), devices=(*cards, Device(name="xps/cpu", host="xps", kind="cpu")))


def answer(**changes):
    """Return what a head says to a heartbeat."""
    return {
        "need_facts": False, "acked": 0, "peers": [], "epoch": 3, "crl": None, "lost": False, "run_workers": True, "names": {"GPU-1": "rtx3090-0"},
        "scheduler": "tls://10.0.0.1:8786", "compression": None, "measure": None, **changes,
    }  # fmt: skip


class Identity:
    """A certificate that holds until it is told otherwise."""

    def __init__(self):
        self.expires_s, self.addresses, self.is_due, self.refreshed = WALL + 1e6, ("10.0.0.2",), False, 0

    def client_context(self):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def server_context(self, clients):
        assert clients == "required"
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def due(self, now):
        return self.is_due

    def refresh(self):
        self.refreshed += 1
        return True


class Api:
    """Gives answers, one after the other, the last for ever; an error is raised."""

    def __init__(self, *answers):
        self.answers, self.bodies, self.renewed = iter(itertools.chain(answers, itertools.repeat(answers[-1] if answers else SILENT))), [], []

    def heartbeat(self, body):
        self.bodies.append(body)
        found = next(self.answers)
        if isinstance(found, Exception):
            raise found
        return found

    def renew(self, csr):
        self.renewed.append(csr)
        return {"certificate": "C", "ca": "A", "crl": "L"}


class Workers:
    """Notes what it is told."""

    def __init__(self):
        self.did = []

    def start(self, plans):
        self.did.append(("start", [plan.device.name for plan in plans]))

    async def stop(self):
        self.did.append("stop")

    def restart(self, why):
        self.did.append("restart")

    def rows(self):
        return []


@pytest.fixture
def agent(home, monkeypatch):
    config = ClusterConfig(
        membership="node", cluster="c", host="xps", address="10.0.0.2", api=("10.0.0.1:8787",), fingerprint="0" * 64, roles=("batch",)
    )
    made = NodeAgent(home, config, Identity(), Api(), ManualClock())
    made.workers = Workers()
    made.ended = []

    async def end_all():
        made.ended.append(made.clock.now)
        return 2

    monkeypatch.setattr(made.hosts, "end_all", end_all)
    made.machine = fleet("GPU-1")
    monkeypatch.setattr(node_agent, "probe_node", lambda home, config: made.machine)
    monkeypatch.setattr(node_agent, "facts_of", lambda home, found, config: {"fleet_digest": str(len(found.devices)), "cards": [d.uuid for d in found.gpus()]})
    made.installed = []
    monkeypatch.setattr(node_agent, "install", lambda folder, certificate, ca, crl: made.installed.append((certificate, ca, crl)))
    monkeypatch.setattr(node_agent, "make_request", lambda folder, host: f"request of {host}")
    return made


async def taken(agent, **changes):
    await agent._take(answer(**changes))


# What it says


async def test_facts_are_sent_until_the_head_has_them_and_again_when_they_change(agent):
    await agent._probe()
    assert agent._body()["facts"] == agent.facts != {}
    await taken(agent, need_facts=True)
    assert agent._body()["facts"] is not None
    await taken(agent)
    assert (agent._body()["facts"], agent._body()["facts_digest"]) == (None, "2")
    await agent._probe()
    assert agent._body()["facts"] is None
    agent.machine = fleet("GPU-1", "GPU-2")
    await agent._probe()
    assert agent._body()["facts"]["fleet_digest"] == "3"


async def test_after_silence_facts_are_sent_again_for_another_head_may_answer(agent):
    await agent._probe()
    await taken(agent)
    await agent._unanswered(SILENT)
    assert agent._body()["facts"] is not None


async def test_a_machine_that_cannot_be_looked_at_stays_what_it_was_unless_nothing_is_known(agent, monkeypatch, caplog):
    def broken(home, config):
        raise OSError("the driver hangs")

    with monkeypatch.context() as patch:
        patch.setattr(node_agent, "probe_node", broken)
        with pytest.raises(OSError, match="hangs"):
            await agent._probe()
    await agent._probe()
    monkeypatch.setattr(node_agent, "probe_node", broken)
    await agent._probe()
    assert agent.fleet == fleet("GPU-1")
    assert "what was known of it stays" in caplog.text


async def test_reports_are_sent_until_they_are_acknowledged(agent):
    for number in (1, 2, 3):
        agent.spool.add("note", what=number)
    assert [report["n"] for report in agent._body()["reports"]] == [1, 2, 3]
    await agent._probe()
    await taken(agent, acked=2)
    assert [report["n"] for report in agent._body()["reports"]] == [3]
    assert agent._body()["spool"] == agent.spool.id


# What it does


async def test_workers_run_under_the_names_of_the_head_and_are_left_alone_while_nothing_changes(agent):
    await agent._probe()
    await taken(agent, run_workers=None)
    assert agent.workers.did == []  # a new head has not heard what is here
    for _ in range(3):
        await taken(agent)
    assert agent.workers.did == ["stop", ("start", ["rtx3090-0", "xps/cpu"])]
    assert agent.hosts.cards == {"rtx3090-0": "GPU-1"}
    await taken(agent, run_workers=None)
    assert len(agent.workers.did) == 2


@pytest.mark.parametrize("change", [{"scheduler": "tls://10.0.0.9:8786"}, {"compression": "lz4"}, {"names": {"GPU-1": "rtx3090-7"}}])
async def test_what_changes_for_workers_starts_them_anew(agent, change):
    await agent._probe()
    await taken(agent)
    await taken(agent, **change)
    name = change.get("names", {}).get("GPU-1", "rtx3090-0")
    assert agent.workers.did[2:] == ["stop", ("start", [name, "xps/cpu"])]


async def test_a_card_that_was_put_in_for_another_gets_its_worker(agent):
    await agent._probe()
    await taken(agent)
    agent.machine = fleet("GPU-9")
    await agent._probe()
    assert agent._body()["facts"]["cards"] == ["GPU-9"]
    await taken(agent, names={"GPU-9": "rtx5090-0"})
    assert agent.workers.did[2:] == ["stop", ("start", ["rtx5090-0", "xps/cpu"])]
    assert agent.hosts.cards == {"rtx5090-0": "GPU-9"}


async def test_a_card_without_a_name_has_no_worker_and_one_that_is_held_back_stops_all(agent):
    agent.machine = fleet("GPU-1", "GPU-2")
    await agent._probe()
    await taken(agent)
    assert agent.workers.did[-1] == ("start", ["rtx3090-0", "xps/cpu"])
    await taken(agent, run_workers=False)
    await taken(agent, run_workers=False)
    assert agent.workers.did[2:] == ["stop"]


async def test_workers_that_were_given_up_are_replaced(agent):
    await agent._probe()
    await taken(agent)
    await taken(agent, lost=True)
    assert agent.workers.did[2:] == ["restart"]


async def test_the_stages_go_on_under_a_new_heads_epoch(agent):
    await agent._probe()
    await taken(agent)
    await taken(agent, epoch=4)
    assert agent._body()["epoch"] == 4
    assert agent.ended == []


# Silence


async def test_without_a_head_for_long_the_stages_end_once(agent):
    for _ in range(3):
        agent.clock.now += ORPHAN_S / 2
        await agent._unanswered(SILENT)
    assert len(agent.ended) == 1
    await agent._probe()
    await taken(agent)
    agent.clock.now += ORPHAN_S
    await agent._unanswered(SILENT)
    assert len(agent.ended) == 2


async def test_a_host_that_was_removed_ends_with_what_the_head_says(agent):
    for _ in range(REFUSALS_MAX - 1):
        await agent._unanswered(REFUSED)
    await agent._unanswered(SILENT)  # not in a row
    for _ in range(REFUSALS_MAX - 1):
        await agent._unanswered(REFUSED)
    with pytest.raises(CertificateRefused, match="revoked"):
        await agent._unanswered(REFUSED)


async def test_an_expired_certificate_is_no_removal_and_is_renewed_by_its_key(agent, monkeypatch):
    agent.identity.expires_s = WALL
    monkeypatch.setattr(node_agent, "renew_expired", lambda config, pki: {"certificate": "new", "ca": "A", "crl": "L"})
    for _ in range(REFUSALS_MAX + 1):
        await agent._unanswered(REFUSED)
    assert agent.installed[0] == ("new", "A", "L")


async def test_silence_is_told_more_and_more_seldom_and_with_the_cure(agent, caplog):
    caplog.set_level(logging.WARNING, "dgpunet_dask.daemons.node_agent")
    for _ in range(2 * 1800):
        agent.clock.now += 2.0
        await agent._unanswered(SILENT)
    told = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert 8 <= len(told) <= 16 + 7200 / COMPLAIN_S
    assert "join TOKEN" not in told[0]
    assert all(("token create xps" in text) == (float(text.split("since ")[1].split()[0]) >= MOVED_S) for text in told)
    await agent._probe()
    await taken(agent)
    await agent._unanswered(SILENT)
    assert "since 0 s" in caplog.records[-1].getMessage()  # a new silence is told at once


async def test_an_answer_that_cannot_be_understood_does_not_end_the_agent(agent, monkeypatch, caplog):
    monkeypatch.setattr(node_agent, "BEAT_S", 0.0)
    agent.api = Api({}, answer(peers=[{"host": "a", "from": "a newer release"}]), answer(epoch="odd"), answer())
    beats = asyncio.create_task(agent._beats())
    async with asyncio.timeout(20):
        while not agent.workers.did:  # noqa: ASYNC110  # heartbeats run in a thread
            await asyncio.sleep(0.01)
    beats.cancel()
    await asyncio.gather(beats, return_exceptions=True)
    assert len(agent.api.bodies) >= 4
    assert "cannot be done now" in caplog.text


# Certificates


async def test_a_certificate_is_renewed_when_it_is_due(agent):
    await agent._probe()
    await taken(agent)
    assert agent.api.renewed == []
    agent.identity.is_due = True
    await taken(agent)
    assert (agent.api.renewed, agent.installed) == (["request of xps"], [("C", "A", "L")])


async def test_one_for_a_former_address_is_asked_for_once(agent):
    await agent._probe()
    agent.identity.addresses = ("192.0.2.1",)
    for _ in range(3):
        await taken(agent)
    assert len(agent.api.renewed) == 1


async def test_a_new_revocation_list_counts_at_once(agent, monkeypatch):
    lists = []
    monkeypatch.setattr(node_agent, "install_crl", lambda folder, text: lists.append(text))
    await agent._probe()
    await taken(agent, crl="the list")
    assert (lists, agent.identity.refreshed) == (["the list"], 1)


def test_the_digest_of_a_revocation_list_that_is_not_here(tmp_path):
    assert crl_digest(tmp_path) is None
    (tmp_path / "ca.crl").write_bytes(b"")
    assert crl_digest(tmp_path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# Measuring


async def test_links_are_measured_one_at_a_time_and_reported(agent, monkeypatch):
    asked, go = [], asyncio.Event()

    class Client:
        async def ping(self, peer):
            asked.append(peer.host)
            await go.wait()
            if peer.host == "far":
                raise StartFailed(why="nobody answers", logs="there")
            return type("Ping", (), {"rtt_s": 0.001, "offset_s": 0.5})

        async def bandwidth(self, peer):
            return 1e9

    agent.client = Client()
    order = {"host": "pc", "address": "10.0.0.1", "port": 8788, "is_head": True}
    assert Peer(**order).is_head
    for host in ("pc", "far"):
        agent._measure({**order, "host": host})
        await asyncio.sleep(0)
    go.set()
    await agent._measurement
    agent._measure({**order, "host": "far"})
    await agent._measurement
    assert asked == ["pc", "far"]
    good, bad = agent.spool.reports
    assert (good["dst"], good["bytes_per_s"], good["rtt_s"], good["offset_s"]) == ("pc", 1e9, 0.001, 0.5)
    assert (bad["dst"], "nobody answers" in bad["error"], "bytes_per_s" in bad) == ("far", True, False)


async def test_what_ends_beside_the_heartbeats_and_the_disk_are_in_them(agent):
    health = agent._body()["health"]
    assert (health["followers"], health["backup"]) == ([], None)
    assert health["disk"]["path"] == str(agent.home.root)
    assert 0 < health["disk"]["free"] <= health["disk"]["total"]


async def test_a_copy_of_the_ledger_that_the_head_offers_is_taken_and_a_head_that_offers_none_is_understood(agent):
    taken_up = []
    agent.backups.take = taken_up.append
    await agent._probe()
    await taken(agent)
    await taken(agent, backup={"name": "n"})
    assert taken_up == [None, {"name": "n"}]
