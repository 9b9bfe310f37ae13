"""Two users with keys, each on a machine of their own, and one head under TLS: whose indexes and models are whose."""

from __future__ import annotations

import asyncio
import json

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import NoSuchIndex
from dgpunet_dask.jobs.model_owners import Brought, ModelOwners
from dgpunet_dask.model.owner import User
from tests.integration.cluster.test_api_tls import Site, serving
from tests.unit.daemons.indexed import Shelf


@pytest.fixture
async def site(tmp_path):
    shelf = Shelf(Home(tmp_path / "home").ensure(), tmp_path)
    async with serving(Site(tmp_path / "site", indexes=shelf.indexes, models=ModelOwners(shelf.home.model_owners))) as made:
        made.shelf = shelf
        yield made
    shelf.indexes.close()


@pytest.fixture
def run(site, monkeypatch, capfd, tmp_path):
    """Run a command as a user on their own machine."""
    keys = {}

    async def call(user, *words):
        name, _, scope = user.partition(":")
        keys.setdefault(user, site.key(name, scope or "submitter"))
        monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / f"machine-of-{name}"))
        monkeypatch.setenv("DGPUNET_API_KEY", keys[user])
        code = await asyncio.to_thread(cli_main.run, ["--cluster", site.api, *words])
        return code, *capfd.readouterr()

    return call


async def names(run, user):
    code, out, _ = await run(user, "index", "list", "--json")
    assert code == 0
    return [row["index"] for row in json.loads(out)]


async def test_each_user_reads_what_is_theirs_or_shared(site, run):
    site.shelf.put("anns", User("ann"), text="the lazy dog")
    site.shelf.put("bobs", User("bob"))
    assert [await names(run, user) for user in ("ann", "bob", "eve:viewer", "root:operator")] == [["anns"], ["bobs"], [], ["anns", "bobs"]]
    code, out, _ = await run("ann", "search", "anns", "dog", "-k", "1", "--json")
    assert (code, json.loads(out)["hits"][0]["text"]) == (0, "the lazy dog")
    for words in (("search", "anns", "dog"), ("index", "show", "anns"), ("index", "share", "anns"), ("index", "remove", "anns")):
        code, out, err = await run("bob", *words)
        assert (code, out, str(NoSuchIndex(name="anns", hint=".")) in err) == (102, "", True)
        assert "lazy" not in err
    assert site.shelf.opened == ["anns"]


async def test_what_is_shared_is_read_by_all_and_stays_its_owners(site, run):
    site.shelf.put("anns", User("ann"))
    assert (await run("ann", "index", "share", "anns"))[0] == 0
    assert [await names(run, user) for user in ("bob", "eve:viewer")] == [["anns"], ["anns"]]
    assert (await run("bob", "search", "anns", "one", "--json"))[0] == 0
    for words in (("index", "share", "anns", "--off"), ("index", "remove", "anns")):
        for user in ("bob", "eve:viewer"):
            assert (await run(user, *words))[0] == 2
    assert (await run("root:operator", "index", "share", "anns", "--off"))[0] == 0
    assert (await run("bob", "search", "anns", "one"))[0] == 102
    assert (await run("ann", "index", "remove", "anns"))[0] == 0
    assert await names(run, "root:operator") == []


async def test_a_model_is_its_users_until_they_share_it(site, run):
    model = Brought(name="/srv/anns-model", digest="d1", public=False)
    site.ctx.models.use([model], User("ann"), 1.8e9)
    assert [model.id in (await run(user, "model", "list"))[1] for user in ("ann", "bob", "root:operator")] == [True, False, True]
    assert (await run("bob", "model", "share", model.id))[0] == 102
    assert (await run("ann", "model", "share", model.id))[0] == 0
    assert model.id in (await run("bob", "model", "list"))[1]
