"""Indexes on the API: whose they are, what a search may ask for, and that nobody learns of another's."""

from __future__ import annotations

import asyncio
import json
from itertools import product

import pytest

from dgpunet_dask.client import AsyncClient, Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen
from dgpunet_dask.errors import BadValue, NoSuchFile, NoSuchIndex, NoSuchLines, NotAllowed, RerankerUnavailable
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.request import (
    BATCH_BYTES,
    HITS_MAX,
    K_MAX,
    QUERIES_MAX,
    QUERY_CHARS_MAX,
    RERANKED_MAX,
    asked_for,
    batches,
)
from tests.unit.daemons.indexed import ANN, ROOT, Shelf
from tests.unit.daemons.serving import FakeKeys, FakeMembership, Served, make_context

ASKED = {"queries": [{"query": "one"}]}
LINES = {"path": "a.py", "start_line": 1, "end_line": 2}


@pytest.fixture
async def served(tmp_path):
    shelf = Shelf(Home(tmp_path / "home").ensure(), tmp_path)
    ctx = make_context(tmp_path, [], keys=FakeKeys(), membership=FakeMembership(), user="owner", indexes=shelf.indexes)
    server = listen(ctx)
    made = Served(ctx)
    made.shelf = shelf
    yield made
    server.stop()
    shelf.indexes.close()
    await server.close_all_connections()


ACTS = {
    "show": lambda client: client.index("x"),
    "search": lambda client: client.search("x", ASKED),
    "lines": lambda client: client.index_lines("x", LINES),
    "share": lambda client: client.index_share("x", shared=True),
    "verify": lambda client: client.index_verify("x"),
    "compact": lambda client: client.index_compact("x"),
    "remove": lambda client: client.index_remove("x"),
}
#: What a caller gets for an index of Ann's: that it is private, and that it is shared.
TABLE = {
    "ann:submitter": {"show": (None, None), "search": (None, None), "lines": (None, None), "share": (None, None), "verify": (None, None), "compact": (None, None), "remove": (None, None)},
    "ann:viewer": {"show": (None, None), "search": (None, None), "lines": (None, None), "share": (NotAllowed, NotAllowed), "verify": (NotAllowed, NotAllowed), "compact": (NotAllowed, NotAllowed), "remove": (NotAllowed, NotAllowed)},
    "bob:submitter": {
        "show": (NoSuchIndex, None), "search": (NoSuchIndex, None), "lines": (NoSuchIndex, None), "share": (NoSuchIndex, NotAllowed), "verify": (NoSuchIndex, NotAllowed), "compact": (NoSuchIndex, NotAllowed), "remove": (NoSuchIndex, NotAllowed),
    },
    "bob:viewer": {
        "show": (NoSuchIndex, None), "search": (NoSuchIndex, None), "lines": (NoSuchIndex, None), "share": (NotAllowed, NotAllowed), "verify": (NotAllowed, NotAllowed), "compact": (NotAllowed, NotAllowed), "remove": (NotAllowed, NotAllowed),
    },
    "root:operator": {"show": (None, None), "search": (None, None), "lines": (None, None), "share": (None, None), "verify": (None, None), "compact": (None, None), "remove": (None, None)},
}  # fmt: skip


@pytest.mark.parametrize(("key", "act", "shared"), product(TABLE, ACTS, (False, True)))
async def test_who_may_what_with_an_index(served, key, act, shared):
    before = served.shelf.put("x", ANN, shared=shared)
    wanted = TABLE[key][act][shared]
    if wanted is None:
        assert await asyncio.to_thread(ACTS[act], served.as_user(key))
        return
    with pytest.raises(wanted) as told:
        await asyncio.to_thread(ACTS[act], served.as_user(key))
    assert Index(served.shelf.home, "x").manifest() == before
    if wanted is NoSuchIndex:
        assert str(told.value) == str(NoSuchIndex(name="x", hint="."))
        assert served.shelf.opened == []


async def test_an_index_is_listed_to_whom_it_is_readable(served):
    for name, by, shared in (("anns", ANN, False), ("roots", ROOT, False), ("ours", ANN, True)):
        served.shelf.put(name, by, shared=shared)
    for key, names in (("ann:viewer", ["anns", "ours"]), ("bob:submitter", ["ours"]), ("root:operator", ["anns", "ours", "roots"])):
        found = await asyncio.to_thread(served.as_user(key).indexes)
        assert [row["index"] for row in found] == names
        assert all(row["error"] is None for row in found)
    (shown,) = [row for row in found if row["index"] == "ours"]
    assert (shown["owner"], shown["shared"], shown["chunks"]) == ("ann", True, 2)
    assert {**await asyncio.to_thread(served.client.index, "ours"), "error": None} == {**shown, "resident": []}


async def test_a_missing_name_is_never_answered_with_anothers(served):
    served.shelf.put("secret", ANN)
    with pytest.raises(NoSuchIndex) as told:
        await asyncio.to_thread(served.as_user("bob:viewer").index, "secrets")
    assert "did you mean" not in str(told.value)
    with pytest.raises(NoSuchIndex, match="did you mean 'secret'"):
        await asyncio.to_thread(served.as_user("ann:viewer").index, "secrets")


async def test_a_search_gives_what_the_command_gives(served):
    served.shelf.put("x", ANN)
    asked = {"queries": [{"id": 7, "query": "one"}, {"query": "two"}], "k": 1, "path": "*.py", "lang": "python"}
    first, second = await asyncio.to_thread(served.as_user("ann:viewer").search, "x", asked)
    assert (first["id"], first["index"], first["hits"][0]["text"]) == (7, "x", "one")
    assert set(first["hits"][0]) == {"path", "start_line", "end_line", "score", "text", "symbol", "language", "kind", "scope"}
    assert "id" not in second
    assert [hit["text"] for hit in second["hits"]] == ["two"]
    none = await asyncio.to_thread(served.client.search, "x", {**asked, "path": "*.md"})
    assert [answer["hits"] for answer in none] == [[], []]
    assert served.shelf.opened == ["x"]


async def test_a_client_that_waits_and_one_that_does_not_search_alike(served, tmp_path, monkeypatch):
    served.shelf.put("x", ANN)
    served.shelf.name_reranker("tiny")
    monkeypatch.setenv("DGPUNET_API_KEY", "ann:viewer")
    where = {"cluster": f"127.0.0.1:{served.ctx.port}", "home": tmp_path / "laptop"}
    wanted = {"k": 1, "path": "*.py", "lang": "python", "rerank": "tiny"}

    def waits():
        with Client(**where) as client:
            return client.search("x", "one", **wanted)

    async with AsyncClient(**where) as client:
        answer = await client.search("x", "one", **wanted)
        assert (await client.search("x", "one", kind="class"))["hits"] == []
        with pytest.raises(BadValue, match="kinds are"):
            await client.search("x", "one", kind=["class", "routine"])
    assert (await asyncio.to_thread(waits))["hits"] == answer["hits"]
    assert (answer["index"], len(answer["hits"]), answer["rerank"]["read"]) == ("x", 1, 2)


async def test_a_search_is_reranked_by_a_model_of_the_settings_and_by_no_other(served):
    served.shelf.put("x", ANN)
    ann = served.as_user("ann:viewer")
    before = (await asyncio.to_thread(ann.search, "x", ASKED))[0]
    folder = served.shelf.name_reranker("tiny")
    answer = (await asyncio.to_thread(ann.search, "x", {**ASKED, "k": 1, "rerank": "tiny"}))[0]
    assert [hit["text"] for hit in answer["hits"]] == [before["hits"][-1]["text"]], "the fake prefers what comes last in the alphabet"
    assert answer["rerank"] == {"model": "tiny", "read": 2, "of": 2}
    assert "rerank" not in before
    for name in ("tinny", str(folder), "../tiny"):
        with pytest.raises(RerankerUnavailable, match=r"there is none of this name.*there are tiny") as refused:
            await asyncio.to_thread(ann.search, "x", {**ASKED, "rerank": name})
        assert refused.value.fields["status"] == 404
    with pytest.raises(NoSuchIndex):
        await asyncio.to_thread(served.as_user("bob:viewer").search, "x", {**ASKED, "rerank": "tinny"})
    with pytest.raises(BadValue, match=f"send {RERANKED_MAX} at most"):
        await asyncio.to_thread(ann.search, "x", {"queries": [{"query": "x"}] * (RERANKED_MAX + 1), "rerank": "tiny"})
    assert served.shelf.loaded == [folder]


async def test_sharing_and_taking_back(served):
    served.shelf.put("x", ANN)
    ann, bob = served.as_user("ann:submitter"), served.as_user("bob:viewer")
    assert (await asyncio.to_thread(ann.index_share, "x", shared=True))["shared"] is True
    assert await asyncio.to_thread(bob.search, "x", ASKED)
    assert (await asyncio.to_thread(ann.index_share, "x", shared=False))["shared"] is False
    with pytest.raises(NoSuchIndex):
        await asyncio.to_thread(bob.search, "x", ASKED)
    assert await asyncio.to_thread(ann.index_remove, "x") == {"index": "x", "removed": True}
    assert await asyncio.to_thread(ann.indexes) == []
    assert not served.shelf.searchers._places


async def test_the_head_answers_others_while_a_search_takes_its_time(served):
    import threading

    served.shelf.put("x", ANN)
    go = threading.Event()
    served.shelf.before_opening = lambda: go.wait(20)
    search = asyncio.create_task(asyncio.to_thread(served.client.search, "x", ASKED))
    while not served.shelf.opened:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)
    assert (await asyncio.to_thread(served.client.status))["head_pid"] == 1
    assert not search.done()
    go.set()
    assert await search


BAD = [
    ({}, "queries"), ({"queries": []}, "queries"), ({"queries": "one"}, "queries"), ({"queries": [{"id": 1}]}, "queries"),
    ({"queries": ["one"]}, "queries"), ({"queries": [{"query": 1}]}, "queries"), ({"queries": [{"query": "x"}] * (QUERIES_MAX + 1)}, "queries"),
    ({"queries": [{"query": "x" * (QUERY_CHARS_MAX + 1)}]}, "query"), ({**ASKED, "k": 0}, "k"), ({**ASKED, "k": -1}, "k"),
    ({**ASKED, "k": K_MAX + 1}, "k"), ({**ASKED, "k": "5"}, "k"), ({**ASKED, "k": True}, "k"), ({**ASKED, "k": 1.5}, "k"), ({**ASKED, "k": None}, "k"),
    ({"queries": [{"query": "x"}] * 11, "k": 1000}, "k"), ({**ASKED, "path": 1}, "path"), ({**ASKED, "path": "x" * 201}, "path"),
    ({**ASKED, "path": "*a*a*a*a*a"}, "path"), ({**ASKED, "path": "********~"}, "path"),
    ({"queries": [{"query": "\ud800"}]}, "queries"), ({**ASKED, "lang": "\udfff"}, "lang"), ({**ASKED, "lang": ["python"]}, "lang"), ({**ASKED, "lang": "x" * 201}, "lang"),
    ({**ASKED, "kind": "routine"}, "kind"), ({**ASKED, "kind": ["class", "x" * 500]}, "kind"), ({**ASKED, "kind": [1]}, "kind"), ({**ASKED, "kind": {}}, "kind"), ({**ASKED, "kind": "\udfff"}, "kind"),
    ({**ASKED, "rerank": 1}, "rerank"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "what"), BAD)
async def test_a_search_beyond_the_bounds_is_refused_with_the_reason(served, body, what):
    served.shelf.put("x", ANN)
    status, answer = await served.ask("POST", "/v1/indexes/x/search", json.dumps(body).encode())
    assert (status, answer["error"]["code"], answer["error"]["exit_code"]) == (400, "bad_value", 2)
    assert answer["error"]["message"].startswith(f"{what} ")
    assert len(answer["error"]["message"]) < 300
    assert served.shelf.opened == []


async def test_a_path_filter_that_is_none_is_refused(served):
    served.shelf.put("x", ANN)
    with pytest.raises(BadValue, match="--path"):
        await asyncio.to_thread(served.client.search, "x", {**ASKED, "path": "!"})


async def test_lines_are_those_of_the_index_and_never_of_the_head_s_disk(served):
    served.shelf.put("x", ANN)
    (served.shelf.folder / "tree-x" / "a.py").write_text("ein\n\nzwei")
    found = await asyncio.to_thread(served.as_user("ann:viewer").index_lines, "x", {**LINES, "end_line": 99})
    assert (found["text"], found["start_line"], found["end_line"], found["source"]) == ("one\n\ntwo", 1, 3, "index")


@pytest.mark.parametrize("path", ["../tree-x/a.py", "/etc/passwd", "./a.py", "a.py/", "A.PY", "b.py", "a.py\0"])
async def test_no_other_path_has_lines(served, path):
    served.shelf.put("x", ANN)
    with pytest.raises(NoSuchFile):
        await asyncio.to_thread(served.client.index_lines, "x", {**LINES, "path": path})


@pytest.mark.parametrize("wanted", [{"start_line": 4, "end_line": 9}, {"start_line": 3}])
async def test_lines_that_are_not_there_are_not_found(served, wanted):
    served.shelf.put("x", ANN)
    with pytest.raises(NoSuchLines, match="has 3 lines"):
        await asyncio.to_thread(served.client.index_lines, "x", {**LINES, **wanted})


@pytest.mark.parametrize("wrong", [{"start_line": 0}, {"end_line": 1.5}, {"end_line": "2"}, {"path": ""}, {"path": "\ud800"}, {"more": 1}])
async def test_lines_that_cannot_be_are_refused_with_the_reason(served, wrong):
    served.shelf.put("x", ANN)
    status, answer = await served.ask("POST", "/v1/indexes/x/lines", json.dumps({**LINES, **wrong}).encode())
    assert (status, answer["error"]["code"], answer["error"]["exit_code"]) == (400, "bad_value", 2)
    assert next(iter(wrong)) in answer["error"]["message"]


@pytest.mark.parametrize("body", [b"{}", b'{"shared": null}', b'{"shared": "yes"}', b'{"shared": 1}'])
async def test_sharing_says_which_way(served, body):
    before = served.shelf.put("x", ANN)
    status, answer = await served.ask("POST", "/v1/indexes/x/share", body)
    assert (status, answer["error"]["code"]) == (400, "bad_value")
    assert Index(served.shelf.home, "x").manifest() == before


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%2Fb", "-x", ".x", "x" * 201, "a%00", "a%0a"])
async def test_names_that_no_index_can_have_have_no_route(served, name):
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/search"), ("POST", "/lines"), ("POST", "/share")):
        status, _ = await served.ask(method, f"/v1/indexes/{name}{rest}", b'{"shared": true}')
        assert status == 404, (method, name)
    assert served.shelf.home.indexes.is_dir()


def test_what_is_left_out_of_a_search_has_its_default():
    assert asked_for(ASKED) == {**ASKED, "k": 10, "path": None, "lang": None, "kind": [], "rerank": None}
    assert asked_for({**ASKED, "kind": "Class"})["kind"] == ["class"]
    assert asked_for({**ASKED, "kind": ["method", "function", "method"]})["kind"] == ["method", "function"]
    assert asked_for({**ASKED, "path": "/src/**/test_*.py", "lang": "c"})["path"] == "/src/**/test_*.py"


@pytest.mark.parametrize(("count", "size", "k"), [(1, 1, 10), (QUERIES_MAX * 2 + 1, 10, 10), (50, 10, K_MAX), (40, QUERY_CHARS_MAX, 1), (3, BATCH_BYTES * 2, 1), (2, 1, HITS_MAX * 2)])
def test_many_queries_go_in_requests_that_are_within_bounds(count, size, k):
    queries = [{"id": n, "query": "x" * size} for n in range(count)]
    sent = list(batches(queries, k))
    assert [query for batch in sent for query in batch] == queries
    for batch in sent:
        assert len(batch) == 1 or (len(batch) <= QUERIES_MAX and len(batch) * k <= HITS_MAX and len(json.dumps(batch)) < 1 << 19)
