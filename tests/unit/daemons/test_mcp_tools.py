"""What the tools for coding agents say, of a source that is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask import __version__
from dgpunet_dask.daemons.mcp.tools import TOOLS, called
from dgpunet_dask.errors import BadValue, DgpunetError, NoHead, UsageError
from dgpunet_dask.retrieval.request import asked_for
from tests.helpers import ROOT

NOW = 1_000_000.0
ROW = {
    "index": "x", "files": 3, "chunks": 5, "published": "1970-01-12T13:46:40Z", "scanned_s": NOW - 7200, "published_s": NOW - 90.5,
    "skipped": {"binary": 2, "ignored": 1}, "roots": ["/srv/\x1bcode"], "error": None,
}  # fmt: skip
BROKEN = {"index": "y", "error": {"code": "malformed_file", "message": "it is damaged; remove it", "reasons": []}}
HIT = {"path": "a.py", "start_line": 1, "end_line": 2, "score": 0.5, "text": "one\n```\ntwo", "symbol": "f\nx", "language": "python"}


class Clock:
    def wall(self):
        return NOW

    def monotonic(self):
        return NOW


@dataclass
class Made:
    """Answers with what it was given, and remembers what it was asked."""

    rows: list[dict[str, Any]] = field(default_factory=lambda: [ROW])
    hits: list[dict[str, Any]] = field(default_factory=lambda: [HIT])
    head: dict[str, Any] | None = None
    asked: list[Any] = field(default_factory=list)

    def search(self, index, asked):
        self.asked.append(asked)
        return {"index": index, "took_ms": 1.0, "hits": self.hits}

    def lines(self, index, path, first, last):
        self.asked.append((path, first, last))
        return {"path": path, "start_line": first, "end_line": last, "total_lines": 9, "source": "disk", "why": None, "next_line": 4, "text": "a\n```"}

    def indexes(self):
        return self.rows

    def index(self, name):
        return self.rows[0]

    def cluster(self):
        return self.head


def call(source, name, **given):
    return called(source, name, given, Clock())


def test_a_search_hands_on_what_it_was_asked_and_quotes_the_hits():
    source = Made()
    text, told = call(source, "search", index="x", query="why", k=3, path="*.py", language="Python", kind=["class", "method"], rerank="tiny")
    assert source.asked == [asked_for({"queries": [{"query": "why"}], "k": 3, "path": "*.py", "lang": "Python", "kind": ["class", "method"], "rerank": "tiny"})]
    assert text == "1 hits in x, best first.\n\n[1] a.py:1-2  score 0.5000  python  f\\nx\n````\none\n```\ntwo\n````"
    assert told["hits"] == [HIT]


def test_a_search_takes_one_kind_without_brackets_and_tells_the_kinds_there_are():
    source = Made(hits=[{**HIT, "symbol": "Shop.f", "kind": "method", "scope": "Shop"}])
    text, _ = call(source, "search", index="x", query="why", kind="method")
    assert source.asked[0]["kind"] == ["method"]
    assert "  python  method Shop.f\n" in text
    with pytest.raises(BadValue, match="kinds are class, constant"):
        call(source, "search", index="x", query="why", kind="routine")


def test_lines_say_whence_they_are_and_where_to_read_on():
    text, told = call(Made(), "read_span", index="x", path="a.py", start_line=1, end_line=3)
    assert text == "a.py:1-3 of 9 lines, from the disk, as indexed. More lines from 4 on.\n````\na\n```\n````"
    assert told["index"] == "x"


def test_indexes_are_told_also_those_that_cannot_be_read():
    text, told = call(Made([ROW, BROKEN]), "list_indexes")
    assert text.split("\n") == [
        "x: 3 files, 5 chunks, published 1970-01-12T13:46:40Z, of /srv/\\x1bcode", "y: cannot be read: it is damaged; remove it",
    ]  # fmt: skip
    assert told == {"indexes": [ROW, BROKEN]}
    assert "submit embed-codebase" in call(Made([]), "list_indexes")[0]


def test_how_fresh_an_index_is():
    text, told = call(Made([ROW, BROKEN]), "status")
    assert text.split("\n") == [
        "x: scanned 2 hours ago, published 90 seconds ago, 3 files, 5 chunks; left out: 2 binary, 1 ignored",
        "y: cannot be read: it is damaged; remove it",
        "No cluster runs; the indexes are read from their files.",
    ]
    fresh = told["indexes"][0]
    assert (fresh["scanned_age_s"], fresh["published_age_s"], told["version"], told["cluster"]) == (7200.0, 90.5, __version__, None)
    assert (told["indexes"][1]["scanned_age_s"], told["indexes"][1]["files"]) == (None, None)


@pytest.mark.parametrize(("age_s", "wanted"), [(0, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7199, "119 minutes"), (86_400, "24 hours"), (10**6 - 1, "11 days"), (-5, "0 seconds")])
def test_ages_are_told_in_a_unit_that_fits(age_s, wanted):
    text, _ = call(Made([{**ROW, "scanned_s": NOW - age_s}]), "status", index="x")
    assert f"scanned {wanted} ago" in text


def test_a_time_that_is_not_reported_is_no_time():
    text, told = call(Made([{**ROW, "scanned_s": None, "published_s": 0.0}]), "status")
    assert "scanned at a time that is not known, published at a time that is not known" in text
    assert told["indexes"][0]["scanned_age_s"] is None


def test_a_cluster_is_told_of_whether_it_answers_or_not():
    assert call(Made(head={"api": "http://127.0.0.1:1", "workers": [1, 2]}), "status")[0].endswith("A cluster runs at http://127.0.0.1:1 with 2 workers.")
    lost = {"error": NoHead(where="there").to_json()}
    assert "does not answer: No head answers at there" in call(Made(head=lost), "status")[0]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4)
NAMES = st.sampled_from([*TOOLS, "serach", ""]) | st.text(max_size=9)
GIVEN = st.dictionaries(st.sampled_from(["index", "query", "k", "path", "language", "start_line", "end_line", "x"]), JSON | st.just("x") | st.integers(1, 9))


@given(NAMES, GIVEN)
def test_whatever_is_asked_is_answered_or_refused_with_a_short_reason(name, given_arguments):
    try:
        text, told = called(Made(), name, given_arguments, Clock())
    except DgpunetError as error:
        text, told = str(error), error.exit_code
        assert told == 2  # either is right
    assert 0 < len(text) < 3000
    assert json.dumps(told)


def test_every_mistake_is_named_at_once():
    with pytest.raises(UsageError) as raised:
        call(Made(), "read_span", path=1, start_line="a", more=True)
    for wanted in ("index: Field required", "path: ", "start_line: ", "end_line: ", "more: Extra", "It takes index (needed), path (needed)"):
        assert wanted in str(raised.value)


HEAVY = ("numpy", "faiss", "pyarrow", "torch", "tokenizers", "transformers", "distributed", "dask", "pandas")


def test_the_server_imports_nothing_heavy_before_the_first_call():
    code = (
        "import sys, mcp.server.lowlevel, mcp.server.stdio, dgpunet_dask.cli.mcp, dgpunet_dask.daemons.mcp.server, dgpunet_dask.daemons.mcp.tools;"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
