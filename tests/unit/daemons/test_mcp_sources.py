"""Whom the tools ask: the head beside the files while one runs, else the files."""

from __future__ import annotations

import asyncio

import pytest

from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen
from dgpunet_dask.daemons.mcp.sources import Beside, Files
from dgpunet_dask.errors import NoSuchIndex
from dgpunet_dask.retrieval.request import asked_for
from tests.unit.daemons.indexed import ROOT, Shelf
from tests.unit.daemons.serving import FakeKeys, FakeMembership, make_context

ASKED = asked_for({"queries": [{"query": "one"}], "k": 1})


@pytest.fixture
async def head(tmp_path):
    """A head on a home with one index, its address, and the way to end it."""
    shelf = Shelf(Home(tmp_path / "home").ensure(), tmp_path)
    shelf.put("x", ROOT)
    ctx = make_context(tmp_path, [], keys=FakeKeys(), membership=FakeMembership(), indexes=shelf.indexes)
    server = listen(ctx)
    shelf.api = ApiClient(f"http://127.0.0.1:{ctx.port}", "root:operator")

    async def end():
        server.stop()
        await server.close_all_connections()

    shelf.end = end
    yield shelf
    await end()
    shelf.indexes.close()


async def test_the_head_answers_while_it_runs_and_then_the_files(head):
    own = []

    def opened(home, name, loaded):
        own.append(name)
        return head._open(home, name, loaded)

    running = [None]
    source = Beside(Files(head.home, opened), lambda: running[0])
    first = await asyncio.to_thread(source.search, "x", ASKED)
    assert own == ["x"], "no head runs"
    running[0] = head.api
    own.clear()
    second = await asyncio.to_thread(source.search, "x", ASKED)
    assert own == []
    assert second["hits"] == first["hits"]
    with pytest.raises(NoSuchIndex):
        await asyncio.to_thread(source.search, "y", ASKED)
    found = await asyncio.to_thread(source.lines, "x", "a.py", 1, 1)
    assert found["source"] == "disk", "what is read is the file, not what a head may show of it"
    await head.end()
    assert (await asyncio.to_thread(source.search, "x", ASKED))["hits"] == first["hits"]
    assert [row["index"] for row in source.indexes()] == ["x"]
    assert source.index("x")["error"] is None
    assert source.cluster() is None


async def test_a_reranker_that_the_settings_name_is_used_by_head_and_files_alike(head):
    head.name_reranker("tiny")
    asked = asked_for({"queries": [{"query": "one"}], "k": 1, "rerank": "tiny"})
    files = Files(head.home, head._open)
    files._rerankers = head.rerankers
    by_head = await asyncio.to_thread(Beside(files, lambda: head.api).search, "x", asked)
    by_files = await asyncio.to_thread(Beside(files, lambda: None).search, "x", asked)
    assert by_head["hits"] == by_files["hits"]
    assert by_head["rerank"] == by_files["rerank"] == {"model": "tiny", "read": 2, "of": 2}
