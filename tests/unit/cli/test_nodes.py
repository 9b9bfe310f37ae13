"""`nodes`, `cordon`, `uncordon`, `drain`, `remove-node` against a served API."""

from __future__ import annotations

import asyncio
import json

import pytest

from dgpunet_dask.cli import nodes as nodes_command
from dgpunet_dask.cli.cluster import say_up
from dgpunet_dask.cli.context import CliContext
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.headfile import HeadFile
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import NoHead
from tests.unit.daemons.serving import KEY, FakeMembership


def row(state="ready", **more):
    return {
        "host": "node-a", "state": state, "why": None, "address": "10.0.0.2", "roles": [], "seen_s_ago": 1.4, "unreachable": None,
        "devices": [{"name": "rtx3090-0", "state": "running"}, {"name": "node-a/cpu", "state": "cordoned"}],
        "stagehosts": [{"stage": "embed"}, {"stage": "embed"}, {"stage": "chat"}], "software": None, **more,
    }  # fmt: skip


class Member(FakeMembership):
    """Answers `rows` one after the other, the last for ever."""

    def __init__(self):
        super().__init__()
        self.rows = [[row()]]

    async def nodes(self):
        return self.rows.pop(0) if len(self.rows) > 1 else self.rows[0]

    async def node_action(self, host, action, body):
        await super().node_action(host, action, body)
        if action == "remove":
            return {"host": host, "removed": True, "certificates_revoked": 2}
        return row({"drain": "draining", "cordon": "cordoned", "uncordon": "ready"}[action])


@pytest.fixture
def member(monkeypatch):
    monkeypatch.setattr(nodes_command, "_POLL_S", 0.01)
    return Member()


async def test_hosts_are_listed_with_what_is_the_matter(ctx, run):
    ctx.membership.rows = [[row("refused", why="too old\x1b[31m", unreachable="filtered", seen_s_ago=None)]]
    code, out, err = await run("nodes")
    assert code == 0
    line = out.splitlines()[1].split("  ")
    assert [field.strip() for field in line if field.strip()] == ["node-a", "refused", "-", "10.0.0.2", "rtx3090-0, node-a/cpu (cordoned)", "chat, embed"]
    assert err.splitlines() == ["node-a: too old\\x1b[31m", "node-a: filtered"]


@pytest.mark.parametrize(
    ("health", "told"),
    [
        ({"disk": {"low": True, "free": 1 << 30}}, ["node-a: nothing new is placed here: only 1.0 GiB are free on its disk, below the floor"]),
        ({"disk": {"low": False}, "backup": {"name": "n", "at": 0.0, "error": None}}, ["node-a: it keeps a copy of the ledger of 1970-01-01"]),
        ({"backup": {"at": 0.0, "error": "no room\x1b"}}, ["node-a: it cannot fetch the copy of the ledger: no room\\x1b"]),
        ({"backup": None, "disk": "odd"}, []),
        ({"backup": [1], "disk": {"low": 1}}, []),
    ],
)
async def test_what_hosts_say_of_their_disks_and_copies_is_told(ctx, run, health, told):
    ctx.membership.rows = [[row(health=health)]]
    code, _, err = await run("nodes")
    assert code == 0
    assert [line[: len(want)] for line, want in zip(err.splitlines(), told, strict=True)] == told


async def test_hosts_as_json_are_the_rows(ctx, run):
    code, out, err = await run("nodes", "--json")
    assert (code, json.loads(out), err) == (0, {"nodes": [row()], "error": None}, "")


@pytest.mark.parametrize(("command", "state"), [("cordon", "cordoned"), ("uncordon", "ready")])
async def test_a_host_is_held_and_let_go(ctx, run, command, state):
    assert (await run(command, "node-a"))[:2] == (0, f"node-a is {state}\n")
    assert ctx.membership.calls == [(command, "node-a", {})]


async def test_drain_waits_until_the_workers_have_left(ctx, run):
    ctx.membership.rows = [[row("draining")], [row("draining")], [row("drained")]]
    code, out, _ = await run("drain", "node-a", "--deadline", "30s")
    assert (code, out) == (0, "node-a is drained\n")
    assert ctx.membership.calls == [("drain", "node-a", {"deadline_s": 30.0})]


async def test_drain_returns_at_once_where_asked(ctx, run):
    code, out, _ = await run("drain", "node-a", "--no-wait", "--json")
    assert (code, json.loads(out)["state"]) == (0, "draining")


async def test_a_host_that_is_removed_while_it_drains_is_not_found(ctx, run):
    ctx.membership.rows = [[row("draining")], []]
    code, _, err = await run("drain", "node-a")
    assert code == 102
    assert "node-a" in err


@pytest.mark.parametrize("deadline", ["soon", "-1s", "", "1x"])
async def test_a_deadline_that_is_none_is_a_usage_error(ctx, run, deadline):
    assert (await run("drain", "node-a", "--deadline", deadline))[0] == 2
    assert ctx.membership.calls == []


async def test_a_removed_host_is_told_with_its_certificates(ctx, run):
    assert (await run("remove-node", "node-a"))[:2] == (0, "node-a is removed, 2 certificate(s) revoked\n")


async def test_a_drain_is_waited_for_while_the_head_starts_again(ctx, run, monkeypatch):
    ctx.membership.rows = [[row("drained")]]
    asked, nodes = [], ApiClient.nodes

    def away_twice(api):
        asked.append(api)
        if len(asked) < 3:
            raise NoHead(where="here")
        return nodes(api)

    monkeypatch.setattr(ApiClient, "nodes", away_twice)
    code, out, _ = await run("drain", "node-a")
    assert (code, out, len(asked)) == (0, "node-a is drained\n", 3)


async def test_up_tells_the_dashboard_that_users_reach_and_not_where_dask_serves_it(ctx, capfd):
    async def status():
        return {"dashboard": "https://head.example:8787/dashboard/status"}

    ctx.status = status
    head = HeadFile(pid=1, created=1.0, api=f"http://127.0.0.1:{ctx.port}", key=KEY, scheduler="tls://head.example:8786", dashboard="http://127.0.0.1:9/secret/status")
    await asyncio.to_thread(say_up, CliContext(Home(ctx.uploads)), head)
    assert capfd.readouterr().err == "the cluster is up: Dask scheduler tls://head.example:8786, dashboard https://head.example:8787/dashboard/status\n"
