"""`index` and `search` on the files of the home, and through the head of a cluster that is named: the same words, the same answers."""

from __future__ import annotations

import asyncio
import json

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen
from dgpunet_dask.retrieval import request
from dgpunet_dask.retrieval.index import Index
from tests.unit.daemons.indexed import ANN, BOB, ROOT, Shelf
from tests.unit.daemons.serving import FakeKeys, FakeMembership, make_context


@pytest.fixture
async def shelf(tmp_path, monkeypatch):
    """A head's home, which Ann asks from another machine, whose own home is empty."""
    made = Shelf(Home(tmp_path / "head").ensure(), tmp_path)
    ctx = make_context(tmp_path, [], keys=FakeKeys(), membership=FakeMembership(), indexes=made.indexes)
    server = listen(ctx)
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / "laptop"))
    monkeypatch.setenv("DGPUNET_CLUSTER", f"127.0.0.1:{ctx.port}")
    monkeypatch.setenv("DGPUNET_API_KEY", "ann:submitter")
    yield made
    server.stop()
    made.indexes.close()
    await server.close_all_connections()


@pytest.fixture
def run(capfd):
    async def call(*words):
        code = await asyncio.to_thread(cli_main.run, list(words))
        return code, *capfd.readouterr()

    return call


async def test_what_is_listed_is_what_may_be_read(shelf, run):
    shelf.put("anns", ANN)
    shelf.put("bobs", BOB)
    shelf.put("ours", ROOT, shared=True)
    code, out, _ = await run("index", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["anns", "ours"]
    assert [line.rpartition("Z  ")[2].split("  ") for line in out.splitlines()] == [
        ["ann", "compared with its trees 0 s ago"], ["root, shared", "compared with its trees 0 s ago"],
    ]  # fmt: skip
    code, out, _ = await run("index", "list", "--json")
    assert [(row["index"], row["owner"], row["shared"]) for row in json.loads(out)] == [("anns", "ann", False), ("ours", "root", True)]
    code, out, _ = await run("index", "show", "anns", "--json")
    assert (code, json.loads(out)["owner"], json.loads(out)["error"]) == (0, "ann", None)
    code, out, err = await run("index", "show", "bobs")
    assert (code, out) == (102, "")
    assert "no index 'bobs'" in err


async def test_sharing_and_removing_are_the_owners(shelf, run):
    shelf.put("anns", ANN)
    shelf.put("ours", BOB, shared=True)
    assert json.loads((await run("index", "share", "anns", "--json"))[1]) == {"index": "anns", "shared": True, "error": None}
    assert Index(shelf.home, "anns").manifest().shared
    assert (await run("index", "share", "anns", "--off"))[2] == "anns is its owner's alone.\n"
    assert not Index(shelf.home, "anns").manifest().shared
    for words in (("share", "ours", "--off"), ("remove", "ours")):
        code, _, err = await run("index", *words)
        assert (code, "another user's" in err) == (2, True)
    assert (await run("index", "remove", "anns", "--json"))[0] == 0
    assert not Index(shelf.home, "anns").folder.exists()
    assert (await run("index", "remove", "anns"))[0] == 102


async def test_a_search_goes_to_the_head(shelf, run, tmp_path):
    shelf.put("anns", ANN)
    code, out, _ = await run("search", "anns", "one", "-k", "1", "--json")
    assert (code, json.loads(out)["hits"][0]["text"]) == (0, "one")
    code, out, _ = await run("search", "anns", "one", "--path", "*.md")
    assert (code, out) == (0, "")
    assert (await run("search", "annz", "one"))[0] == 102
    code, _, err = await run("search", "anns", "one", "-k", "1001")
    assert (code, "from 1 to 1000" in err) == (2, True)


async def test_many_queries_are_sent_in_parts_and_answered_in_order(shelf, run, tmp_path, monkeypatch):
    monkeypatch.setattr(request, "BATCH_BYTES", 100)
    shelf.put("anns", ANN)
    file = tmp_path / "queries.jsonl"
    file.write_text("\n".join(json.dumps({"id": n, "query": word}) for n, word in enumerate(["one", "two"] * 20)))
    code, out, _ = await run("search", "anns", "--queries", str(file), "-k", "1", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, [answer["id"] for answer in answers]) == (0, list(range(40)))
    assert [answer["hits"][0]["text"] for answer in answers] == ["one", "two"] * 20
    assert shelf.opened == ["anns"]


async def test_without_a_cluster_the_files_are_meant_and_no_head_is_asked(shelf, run, monkeypatch):
    shelf.put("anns", ANN)
    monkeypatch.delenv("DGPUNET_CLUSTER")
    assert (await run("index", "list"))[:2] == (0, "")
    monkeypatch.setenv("DGPUNET_HOME", str(shelf.home.root))
    assert (await run("index", "share", "anns"))[2] == "anns is shared with every user.\n"
    _, out, _ = await run("index", "list", "--json")
    assert [(row["index"], row["owner"], row["shared"]) for row in json.loads(out)] == [("anns", "ann", True)]
    assert (await run("index", "share", "bnns"))[0] == 102
