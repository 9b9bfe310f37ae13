"""`doctor --pre TOKEN` and joining against a head's real API: real TLS, a real authority, real tokens."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, replace

import pytest

from dgpunet_dask.cli import doctor as doctor_module
from dgpunet_dask.cli.main import run
from dgpunet_dask.cluster.agent_api import AgentApi
from dgpunet_dask.cluster.config import ClusterConfig, Ports, read_config, write_config
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen_tls
from dgpunet_dask.daemons.api.limits import FAILURES_MAX
from dgpunet_dask.daemons.embedded import quietly
from dgpunet_dask.daemons.joining import certify_head, enrol
from dgpunet_dask.daemons.membership import Membership
from dgpunet_dask.hardware.software import software_facts
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.identity import Identity
from tests.unit.daemons.members import FakeScheduler, body
from tests.unit.daemons.serving import make_context
from tests.unit.observe.facts import facts

HERE = "127.0.0.1"


class Asked:
    """A head's API under TLS, and a machine that asks it with what it has of software."""

    def __init__(self, membership, ctx, identity):
        self.membership, self.ctx, self.identity, self.port = membership, ctx, identity, ctx.tls_port
        self.software = json.loads(json.dumps(asdict(software_facts()))) | {"torch_cuda": "12.8", "torch_arches": ["sm_86"]}

    async def token(self, host="new", port=None):
        text = (await self.membership.token_create({"host": host}))["token"]
        return text.replace(f"{HERE}:8787", f"{HERE}:{port or self.port}")

    async def doctor(self, token, capfd, *words, checks=("software", "join_token", "head_api", "address")):
        """Return the exit code of `doctor --pre TOKEN` and its findings of versions and of the token, by check."""
        code = await asyncio.to_thread(run, ["doctor", "--pre", token, "--no-canary", "--json", *words])
        found = json.loads(capfd.readouterr().out)["findings"]
        return code, {f["check"]: f for f in found if f["check"] in checks}


@pytest.fixture
async def asked(tmp_path, monkeypatch):
    home = Home(tmp_path / "head").ensure()
    fingerprint = Authority.create(home.pki, "home", time.time()).fingerprint
    config = ClusterConfig(membership="head", cluster="home", host="boss", address=HERE, api=(f"{HERE}:8787",), fingerprint=fingerprint)
    certify_head(home.pki, config, time.time())
    membership = Membership(home, config, FakeScheduler().reach())
    ctx = make_context(tmp_path, [], membership=membership, keys=membership.invitations.store)
    identity = Identity(home.pki)
    server = listen_tls(ctx, identity, [HERE])
    made = Asked(membership, ctx, identity)
    monkeypatch.setattr(doctor_module, "local_facts", lambda *_, **__: facts("new", software=made.software))
    yield made
    server.stop()
    await server.close_all_connections()


async def test_a_machine_that_fits_is_told_so_and_its_token_still_lets_it_in(asked, capfd):
    token = await asked.token()
    for _ in range(2):
        _, found = await asked.doctor(token, capfd, "--name", "new")
        assert {name: f["level"] for name, f in found.items()} == {"head_api": "ok", "join_token": "ok", "software": "ok"}
    assert [row["state"] for row in await asked.membership.tokens()] == ["open"]


async def test_other_versions_are_a_fault_or_a_warning_before_anything_is_joined(asked, capfd):
    token = await asked.token()
    asked.software["distributed"] = "2025.1.0"
    code, found = await asked.doctor(token, capfd, "--name", "new")
    assert (code, found["software"]["level"]) == (3, "fault")
    assert "2025.1.0" in found["software"]["what"]
    assert "boss" in found["software"]["what"]
    asked.software |= {"distributed": software_facts().distributed, "numpy": "1.0.0"}
    _, found = await asked.doctor(token, capfd, "--name", "new")
    assert found["software"]["level"] == "warn"


async def test_the_ports_that_the_head_names_are_tried(asked, capfd):
    asked.membership.config = replace(asked.membership.config, ports=Ports(scheduler=asked.port, peer=asked.port))
    code, found = await asked.doctor(await asked.token(), capfd, "--name", "new", checks=("port_reach",))
    assert (code, found["port_reach"]["level"]) == (0, "ok")  # which is the exit code of a machine that fits


async def test_a_token_that_would_be_refused_is_a_fault_with_its_cure(asked, capfd):
    code, found = await asked.doctor(await asked.token("other"), capfd, "--name", "new")
    assert (code, found["join_token"]["level"]) == (3, "fault")
    assert "made for another host" in found["join_token"]["what"]
    assert "token create" in found["join_token"]["cure"]
    assert "software" not in found


async def test_guessing_by_the_check_is_slowed_down(asked, capfd):
    good = await asked.token()
    secret = good.split("::")[1].partition(".")[2]
    bad = good.replace(secret, "A" * len(secret))
    for _ in range(FAILURES_MAX):
        code, found = await asked.doctor(bad, capfd, "--name", "new")
        assert "no such token" in found["join_token"]["what"]
    code, found = await asked.doctor(good, capfd, "--name", "new")
    assert (code, "Wait" in found["join_token"]["what"]) == (3, True)
    assert [row["state"] for row in await asked.membership.tokens()] == ["open"]


async def joined(home, token, **options):
    return await asyncio.to_thread(
        enrol, home, token, **{"name": None, "listen": None, "roles": (), "force": False, "say": quietly, **options}
    )


async def beaten(home, config):
    """Send a heartbeat; return the names of the cards that the head answers."""
    answer = await asyncio.to_thread(AgentApi(config.api, Identity(home.pki)).heartbeat, body(address=HERE))
    return answer["names"]


async def test_a_host_that_joins_again_learns_where_its_head_is_and_stays_who_it_is(asked, home):
    first = await joined(home, await asked.token(), name="new", listen=HERE, roles=("batch",))
    write_config(home.cluster_file, replace(first, ports=Ports(peer=9001)))
    names = await beaten(home, first)
    moved = listen_tls(asked.ctx, asked.identity, [HERE])
    again = await joined(home, await asked.token(port=asked.ctx.tls_port))
    assert again == replace(first, api=(f"{HERE}:{asked.ctx.tls_port}",), ports=Ports(peer=9001)) == read_config(home.cluster_file)
    assert await beaten(home, again) == names
    (row,) = await asked.membership.nodes()
    assert (row["host"], row["roles"], row["state"]) == ("new", ["batch"], "ready")
    moved.stop()
    await moved.close_all_connections()
