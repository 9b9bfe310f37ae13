"""Models of users on the API and in `model`: who sees and shares them."""

from __future__ import annotations

import asyncio
import json

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen
from dgpunet_dask.jobs.model_owners import Brought
from dgpunet_dask.model.owner import User
from tests.unit.daemons.serving import FakeKeys, FakeMembership, Served, make_context

FOLDER = Brought(name="/m/\x1b[31mred", digest="d1", public=False)
HUB = Brought(name="some/model", digest="d2", public=True)


@pytest.fixture
async def served(tmp_path, monkeypatch):
    home = Home(tmp_path / "home").ensure()
    ctx = make_context(tmp_path, [], keys=FakeKeys(), membership=FakeMembership())
    ctx.models.use([FOLDER, HUB], User("ann"), 1.8e9)
    assert home.model_owners.exists()
    server = listen(ctx)
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / "laptop"))
    monkeypatch.setenv("DGPUNET_CLUSTER", f"127.0.0.1:{ctx.port}")
    yield Served(ctx)
    server.stop()
    await server.close_all_connections()


@pytest.fixture
def run(monkeypatch, capfd):
    async def call(key, *words):
        monkeypatch.setenv("DGPUNET_API_KEY", key)
        code = await asyncio.to_thread(cli_main.run, list(words))
        return code, *capfd.readouterr()

    return call


@pytest.mark.parametrize(("key", "name", "status"), [
    ("ann:submitter", FOLDER, 200), ("root:operator", FOLDER, 200), ("ann:viewer", FOLDER, 403), ("bob:submitter", FOLDER, 404),
    ("bob:submitter", HUB, 403), ("bob:viewer", HUB, 403), ("bob:submitter", Brought(name="/none", digest=None, public=False), 404),
])  # fmt: skip
async def test_who_may_share_a_model(served, key, name, status):
    before = served.ctx.models.list(User("bob"))
    found, answer = await served.ask("POST", f"/v1/models/{name.id}/share", b'{"shared": true}', Authorization=f"Bearer {key}")
    assert found == status
    assert (served.ctx.models.list(User("bob")) == before) is (status != 200)
    assert status != 200 or (answer["id"], answer["shared"], answer["owner"]) == (name.id, True, "ann")


async def test_sharing_says_which_way(served):
    for body in (b"{}", b'{"shared": 1}'):
        status, answer = await served.ask("POST", f"/v1/models/{FOLDER.id}/share", body)
        assert (status, answer["error"]["code"]) == (400, "bad_value")


async def test_the_command_lists_and_shares(served, run):
    code, out, _ = await run("ann:submitter", "model", "list", "--json")
    assert (code, [m["name"] for m in json.loads(out)["models"]]) == (0, [FOLDER.name, HUB.name])
    code, out, _ = await run("ann:submitter", "model", "list")
    assert (code, "\x1b" in out, FOLDER.id in out) == (0, False, True)
    assert FOLDER.id not in (await run("bob:submitter", "model", "list"))[1]
    assert (await run("bob:submitter", "model", "share", FOLDER.id))[0] == 102
    code, _, err = await run("bob:submitter", "model", "share", HUB.id, "--off")
    assert (code, "another user's" in err) == (2, True)
    assert (await run("ann:submitter", "model", "share", FOLDER.id))[2] == f"model {FOLDER.id} is shared with every user\n"
    assert FOLDER.id in (await run("bob:submitter", "model", "list"))[1]
    assert json.loads((await run("ann:submitter", "model", "share", FOLDER.id, "--off", "--json"))[1])["shared"] is False
