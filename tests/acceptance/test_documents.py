"""A folder of documents on a live cluster: from `submit embed-documents` to hits that name heading, page and lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dgpunet_dask.client import Client
from dgpunet_dask.errors import BadValue
from tests.unit.retrieval.documents.made import docx, pdf

pytestmark = pytest.mark.timeout(600)


def letter(document: Any) -> None:
    document.add_heading("Travel policy", 1)
    document.add_paragraph("Flights above 500 euro need approval by a manager.")


NOTEBOOK = {
    "nbformat": 4, "nbformat_minor": 5, "metadata": {"language_info": {"name": "python"}},
    "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": "# Rainfall\n\nMonthly rainfall in Bergen is averaged here."},
        {"cell_type": "code", "metadata": {}, "execution_count": 1, "outputs": [], "source": "def average_rainfall(months):\n    return sum(months) / len(months)\n"},
    ],
}  # fmt: skip
PAGE = "<title>Imprint</title><nav>Home</nav><main><h1>Imprint</h1><p>The company sits in Cologne, near the cathedral.</p></main>"
GUIDE = "# Guide\n\nWelcome.\n\n## Tokens\n\nAccess tokens are refreshed once an hour by a timer.\n"
#: Asked, the file that answers, and the symbol of the hit, which is the heading it stands under.
QUESTIONS = [
    ("in which city is the company", "imprint.html", "Imprint"),
    ("by how much does the cache lower latency", "caches.pdf", None),
    ("who approves expensive flights", "policy.docx", "Travel policy"),
    ("average rainfall in Bergen", "weather.ipynb", "Rainfall"),
    ("how often are access tokens refreshed", "guide.md", "Guide"),
]


def test_text_of_every_kind_of_document_is_found_under_its_heading(shared_cluster, tmp_path):
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "policy.docx").write_bytes(docx(letter))
    (papers / "caches.pdf").write_bytes(pdf(["Introduction", "Results\nThe cache halves the latency of lookups."], title="On caches"))
    (papers / "weather.ipynb").write_text(json.dumps(NOTEBOOK))
    (papers / "imprint.html").write_text(PAGE)
    (papers / "guide.md").write_text(GUIDE)
    (papers / "tool.py").write_text("x = 1\n")
    done = shared_cluster("submit", "embed-documents", "--set", f"path={papers}", "--json", timeout_s=400)
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    assert (metrics["files"], metrics["skipped"], metrics["index"]) == (5, {"not_a_document": 1}, "papers")
    with Client(home=shared_cluster.home) as client:
        for question, path, symbol in QUESTIONS:
            best = client.search("papers", question, k=1)["hits"][0]
            assert (best["path"], best["end_line"] - best["start_line"] + 1) == (path, len(best["text"].split("\n")))
            if symbol is not None:
                assert (best["symbol"], best["kind"]) == (symbol, "heading")
            if path == "caches.pdf":
                assert "[page 2]" in best["text"]
        headed = client.search("papers", "cache", k=50, kind="heading")["hits"]
        assert {hit["kind"] for hit in headed} == {"heading"}
        with pytest.raises(BadValue, match="kinds are"):
            client.search("papers", "cache", kind="chapter")
    found = shared_cluster("search", "papers", QUESTIONS[-1][0], "-k", "1", "--kind", "heading", "--json")
    assert (found.code, found.json["hits"][0]["text"]) == (0, GUIDE.strip())
    assert shared_cluster("ask", "papers", QUESTIONS[0][0], "--context-only", "-k", "3").out.count("Cologne") == 1
    assert shared_cluster("index", "verify", "papers").code == 0
