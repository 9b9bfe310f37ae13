"""The stages of `embed-documents` in this process, and the commands that read what they made."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from dgpunet_dask.cli import main
from dgpunet_dask.config.home import Home
from dgpunet_dask.config.yamlfile import read
from dgpunet_dask.errors import BadName, BadValue, MalformedFile, NotAllowed
from dgpunet_dask.jobs.workload_file import parse_workload
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.stage import StageContext, merge_counts
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.skips import read_skips
from tests.helpers import ROOT
from tests.unit.retrieval.documents.made import docx, pdf

FOLDER = ROOT / "workloads/embed_documents"
PAGE = b"<title>Imprint</title><nav>Home</nav><main><h1>Imprint</h1><p>The company sits in Cologne, near the cathedral.</p></main>"


@pytest.fixture(scope="module")
def stages() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("embed_documents_stages", FOLDER / "stages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def run(stages, home):
    """Run the workload's stages one after another, all documents in one unit."""
    numbers = iter(range(100))

    def go(user: User | None = None, **params: Any) -> dict[str, Any]:
        folder = home.jobs / f"job-{next(numbers)}"
        folder.mkdir(parents=True)
        whose = {} if user is None else {"user": user}
        context = StageContext(threads=2, folder=folder, home=home.root, **whose)

        def made(name: str, **given: Any) -> Any:
            stage = getattr(stages, name)()
            stage.context = context
            stage.load(**given)
            return stage

        discover = made("Discover", **params)
        chunks = made("Chunk")(list(discover()))
        units = made("Write")(made("Embed")(chunks)) if chunks else []
        publish = made("Publish")
        assert list(publish(iter(units))) == []
        metrics: dict[str, Any] = {}
        for stage in (discover, publish):
            merge_counts(metrics, stage.take_counts())
        return metrics

    return go


@pytest.fixture
def search(home, monkeypatch):
    monkeypatch.setenv("DGPUNET_HOME", str(home.root))

    def ask(index: str, query: str, *rest: str) -> list[dict[str, Any]]:
        with CliRunner().isolation() as (out, _, _):
            assert main.run(["search", index, query, "--json", *rest]) == 0
            sys.stdout.flush()
            return json.loads(out.getvalue())["hits"]

    return ask


@pytest.fixture
def site():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/imprint" else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def papers(tmp_path) -> Path:
    def letter(document: Any) -> None:
        document.add_heading("Travel policy", 1)
        document.add_paragraph("Flights above 500 euro need approval by a manager.")

    root = tmp_path / "papers"
    root.mkdir()
    (root / "policy.docx").write_bytes(docx(letter))
    (root / "caches.pdf").write_bytes(pdf(["Introduction", "Results\nThe cache halves the latency of lookups."], title="On caches"))
    (root / "scan.pdf").write_bytes(pdf([""]))
    (root / "tool.py").write_text("x = 1\n")
    return root


def test_from_documents_and_addresses_to_hits_with_lines(run, search, papers, site, tmp_path, home):
    urls = tmp_path / "pages.txt"
    urls.write_text(f"# ours\n{site}/imprint\n{site}/gone\n")
    metrics = run(path=[str(papers)], urls=str(urls), allow_private=True)
    told = {k: metrics[k] for k in ("files", "skipped", "embedded", "index")}
    assert told == {
        "files": 3, "skipped": {"not_a_document": 1, "no_text": 1, "fetch_failed": 1}, "embedded": metrics["chunks"], "index": "papers",
    }  # fmt: skip
    [hit] = search("papers", "where is the company", "-k", "1")
    assert (hit["path"], hit["symbol"], hit["language"]) == (f"{site}/imprint", "Imprint", "markdown")
    [hit] = search("papers", "latency of the cache", "-k", "1")
    assert hit["path"] == "caches.pdf"
    lines = hit["text"].split("\n")
    assert "# [page 2]" in lines
    assert len(lines) == hit["end_line"] - hit["start_line"] + 1
    index = Index(home, "papers")
    version = index.version(index.manifest())
    assert {(s.code, s.path, s.why) for s in read_skips(version)} == {
        ("not_a_document", "tool.py", ""), ("no_text", "scan.pdf", "its pages hold pictures alone, or nothing"),
        ("fetch_failed", f"{site}/gone", "404 Not Found"),
    }  # fmt: skip
    again = run(path=[str(papers)], urls=str(urls), allow_private=True)
    assert (again["embedded"], again["reused"]) == (0, metrics["chunks"])


def test_private_hosts_are_not_asked_unless_an_operator_says_so(run, site, tmp_path):
    urls = tmp_path / "pages.txt"
    urls.write_text(f"{site}/imprint\n")
    metrics = run(urls=str(urls))
    assert (metrics["files"], metrics["skipped"], metrics["index"]) == (0, {"private_address": 1}, None)
    with pytest.raises(NotAllowed, match="operators"):
        run(user=User("ann"), urls=str(urls), allow_private=True)
    assert run(urls=str(urls), allow_private=True)["index"] == "pages", "the list names the index"


def test_bad_parameters_fail_before_anything_is_read(run, papers, tmp_path):
    bad = tmp_path / "bad list.txt"
    bad.write_text("file:///etc/passwd\n")
    with pytest.raises(BadValue, match="path"):
        run()
    with pytest.raises(MalformedFile, match=r"bad list.txt:1:1"):
        run(urls=str(bad), index="x")
    with pytest.raises(BadName, match="bad list"):
        run(urls=str(bad))
    for wrong in ({"url_size": "large"}, {"url_seconds": 0}, {"url_seconds": 1e9}, {"truncate_dim": 0}, {"urls": str(papers)}):
        with pytest.raises(BadValue):
            run(path=[str(papers)], **wrong)


def test_the_workload_says_what_its_source_takes(stages):
    workload = parse_workload(read(FOLDER / "job.yaml"))
    taken = inspect.signature(stages.Discover.load).parameters
    assert set(workload.params) == set(taken) - {"self"}
    assert {n: p.default for n, p in workload.params.items() if p.default is not None} == {
        n: p.default for n, p in taken.items() if n in workload.params and p.default not in {None, ()}
    }
    assert [s.name for s in workload.stages] == ["discover", "chunk", "reuse", "embed", "write", "publish"]
    readme = (FOLDER / "README.md").read_text()
    assert not [name for name in workload.params if f"`{name}`" not in readme]
