"""`token` and `key` against a served API: what is on stdout, what beside it, and exit codes."""

from __future__ import annotations

import json

import pytest

from tests.unit.daemons.serving import FakeMembership

TOKEN = {"id": "t1", "host": "node-a", "state": "open", "created_s": 1.8e9, "expires_s": 1.8e9 + 3600, "used_s": None}
API_KEY = {"id": "k1", "user": "ann\x1b[31m", "scope": "viewer", "created_s": 1.8e9, "expires_s": None}


class Member(FakeMembership):
    """Answers as a head does."""

    async def token_create(self, body):
        await super().token_create(body)
        return {**TOKEN, "token": "DG10-the-token"}

    async def tokens(self):
        return [TOKEN]

    async def key_create(self, body):
        await super().key_create(body)
        return {**API_KEY, "key": "DGK1-the-key"}

    async def keys(self):
        return [API_KEY]


@pytest.fixture
def member():
    return Member()


async def test_a_token_stands_alone_on_stdout(ctx, run):
    code, out, err = await run("token", "create", "node-a", "--ttl", "15m")
    assert (code, out) == (0, "DG10-the-token\n")
    assert "dgpunet-dask join" in err
    assert "DG10-the-token" not in err
    assert ctx.membership.calls == [("token_create", {"host": "node-a", "ttl_s": 900.0})]
    code, out, err = await run("token", "create", "node-a", "--json")
    assert json.loads(out) == {**TOKEN, "token": "DG10-the-token", "error": None}
    assert (code, err) == (0, "")
    assert ctx.membership.calls[-1][1]["ttl_s"] == 3600.0


async def test_a_key_stands_alone_on_stdout(ctx, run):
    code, out, err = await run("key", "create", "ann", "--scope", "submitter", "--ttl", "90d")
    assert (code, out) == (0, "DGK1-the-key\n")
    assert "DGPUNET_API_KEY" in err
    assert ctx.membership.calls == [("key_create", {"user": "ann", "scope": "submitter", "ttl_s": 90 * 86400.0})]
    code, out, err = await run("-q", "key", "create", "ann", "--scope", "viewer", "--json")
    assert (json.loads(out)["key"], err) == ("DGK1-the-key", "")
    assert ctx.membership.calls[-1][1]["ttl_s"] is None


async def test_lists_show_no_control_characters(run):
    code, out, _ = await run("token", "list")
    assert (code, out.splitlines()[0].split()) == (0, ["id", "host", "state", "made", "until"])
    assert out.splitlines()[1].startswith("t1  node-a  open")
    code, out, _ = await run("key", "list")
    assert code == 0
    assert "\\x1b[31m" in out
    assert "\x1b" not in out
    assert out.splitlines()[1].rstrip().endswith("-")
    assert json.loads((await run("key", "list", "--json"))[1]) == {"keys": [API_KEY], "error": None}
    assert json.loads((await run("token", "list", "--json"))[1]) == {"tokens": [TOKEN], "error": None}


async def test_revoking_names_what_was_revoked(ctx, run):
    assert (await run("token", "revoke", "t1"))[:2] == (0, "token t1 is revoked\n")
    assert (await run("key", "revoke", "k1"))[:2] == (0, "key k1 is revoked\n")
    assert ctx.membership.calls == [("token_revoke", "t1"), ("key_revoke", "k1")]


@pytest.mark.parametrize("words", [
    ("token", "create"), ("token", "create", "a", "--ttl", "soon"), ("key", "create", "ann"), ("key", "create", "ann", "--scope", "root"),
])  # fmt: skip
async def test_mistakes_are_usage_errors(ctx, run, words):
    assert (await run(*words))[0] == 2
    assert ctx.membership.calls == []


async def test_a_cluster_that_nobody_can_join_names_the_command(ctx, run):
    ctx.membership = None
    for words in (("token", "create", "a"), ("token", "list"), ("key", "create", "ann", "--scope", "viewer"), ("key", "revoke", "k1")):
        code, out, err = await run(*words)
        assert (code, out) == (2, "")
        assert "dgpunet-dask head" in err


async def test_a_key_that_may_not_is_told_so(run, monkeypatch):
    monkeypatch.setenv("DGPUNET_API_KEY", "ann:submitter")
    code, out, err = await run("key", "list", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "not_allowed")
    assert "submitter" in err


async def test_without_a_cluster_there_is_no_head(run, monkeypatch):
    monkeypatch.delenv("DGPUNET_CLUSTER")
    assert (await run("token", "list"))[0] == 102
