from __future__ import annotations

from collections import Counter

import pytest

from dgpunet_dask.retrieval.discover import Entry, Text, roots_of
from dgpunet_dask.retrieval.documents.children import Children
from dgpunet_dask.retrieval.documents.fetch import Fetcher, Limits, anywhere
from dgpunet_dask.retrieval.documents.reading import READING, Documents
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.ingest import Plan, Scan, publish
from dgpunet_dask.retrieval.skips import Skip, read_skips
from tests.unit.retrieval.documents.conftest import gives
from tests.unit.retrieval.documents.made import SILENT, cell, docx, notebook, pdf
from tests.unit.retrieval.trees import make


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    return folder


def documents(job, urls=(), children=None, readers=2) -> Documents:
    return Documents(urls, job, Fetcher(Limits(1 << 20, 60), permits=anywhere), children, readers)


def everything(found: Documents, *roots) -> tuple[dict[str, str | Text], Counter]:
    skipped: Counter = Counter()
    with found:
        entries = list(found.walk(roots_of(roots), lambda code, path: skipped.update([(code, path)])))
        found.expect(entries)
        return {e.path: found.read(e) for e in entries}, skipped


def test_documents_of_a_folder_are_read_and_all_else_is_told(tmp_path, job):
    tree = make(
        tmp_path / "tree",
        {
            "a.md": "# Top\nwords", "b.rst": "Top\n===\n", "c.html": "<p>page", "d.pdf": pdf(["paper"]), "e.docx": docx(lambda d: d.add_paragraph("letter")),
            "f.ipynb": notebook(cell("code", "x = 1")), "README": "read me", "latin.txt": "Größe über alles, schöne Grüße".encode("latin-1"),
            "code.py": "x", "image.png": b"\x89PNG\0", "empty.md": "\n", "binary.txt": b"a\0b", "broken.pdf": b"x", "pages.min.html": "<p>taken",
            "old.doc": "x", ".gitignore": "out/\n", "out/x.md": "", "node_modules/x.md": "",
        },
    )  # fmt: skip
    found, skipped = everything(documents(job), tree)
    assert {p: (t.text, t.language, t.title) for p, t in found.items() if isinstance(t, Text)} == {
        "README": ("read me", "text", None), "a.md": ("# Top\nwords", "markdown", "Top"), "b.rst": ("Top\n===\n", "restructuredtext", "Top"),
        "c.html": ("page", "markdown", None), "d.pdf": ("# [page 1]\n\npaper", "markdown", None), "e.docx": ("letter", "markdown", None),
        "f.ipynb": ("```python [cell 1]\nx = 1\n```", "markdown", None), "latin.txt": ("Größe über alles, schöne Grüße", "text", None),
        "pages.min.html": ("taken", "markdown", None),
    }  # fmt: skip
    refused = {p: t.partition(":")[0] for p, t in found.items() if isinstance(t, str)}
    assert refused == {"empty.md": "no_text", "binary.txt": "binary", "broken.pdf": "malformed"}
    assert sorted(skipped) == [
        ("ignored", "out"), ("not_a_document", ".gitignore"), ("not_a_document", "code.py"), ("not_a_document", "image.png"),
        ("not_a_document", "old.doc"), ("vendored", "node_modules"),
    ]  # fmt: skip


def test_addresses_are_fetched_and_are_their_own_paths(web, job):
    web.routes = {
        "/a": gives(b"<h1>A</h1><p>words", "text/html"), "/b.md": gives(b"# B"), "/l": gives("Größe".encode("latin-1"), "text/plain; charset=latin-1"),
        "/p": gives(pdf(["paper"]), "application/pdf"),
    }  # fmt: skip
    urls = [web.url(path) for path in ("/a", "/b.md", "/gone", "/l", "/p")]
    found, skipped = everything(documents(job, urls))
    assert list(found) == urls
    assert [t.text if isinstance(t, Text) else t for t in found.values()] == [
        "# A\n\nwords", "# B", "fetch_failed: 404 Not Found", "Größe", "# [page 1]\n\npaper",
    ]  # fmt: skip
    assert not skipped
    assert [p.name for p in job.iterdir()] == ["outcomes"], "what was fetched is not left behind"


def test_a_source_that_is_begun_anew_gives_what_it_gave(web, job):
    web.routes = {"/a": gives(b"first")}
    urls = [web.url("/a"), web.url("/b")]
    before, _ = everything(documents(job, urls))
    web.routes = {"/a": gives(b"second"), "/b": gives(b"there now")}
    assert everything(documents(job, urls))[0] == before
    assert len(web.asked) == 2


def test_a_document_that_took_too_long_is_not_read_when_the_source_is_begun_anew(tmp_path, job):
    tree = make(tmp_path / "tree", {"a.pdf": pdf(["x"])})
    first, _ = everything(documents(job, children=Children(0.2, SILENT)), tree)
    assert first["a.pdf"].startswith("timeout")
    assert everything(documents(job), tree)[0] == first


def test_no_more_is_read_ahead_than_is_taken_soon(tmp_path, job):
    tree = make(tmp_path / "tree", {f"{n:02}.md": "x" for n in range(40)})
    with documents(job, readers=2) as found:
        entries = list(found.walk(roots_of([tree]), lambda *_: None))
        found.expect(entries)
        for entry in entries:
            assert len(found._begun) <= 4
            assert isinstance(found.read(entry), Text)
        assert not found._begun


def test_whoever_leaves_early_waits_for_nothing_and_leaves_no_process(tmp_path, job):
    tree = make(tmp_path / "tree", {f"{n}.pdf": pdf(["x"]) for n in range(8)})
    children = Children(3600, SILENT)  # an hour a document
    with documents(job, children=children) as found:
        entries = list(found.walk(roots_of([tree]), lambda *_: None))
        found.expect(entries)
    assert not found._begun["0.pdf"].cancelled()
    assert not children._all


def test_what_was_not_announced_is_read_as_well(tmp_path, job):
    tree = make(tmp_path / "tree", {"a.md": "x"})
    with documents(job) as found:
        [entry] = found.walk(roots_of([tree]), lambda *_: None)
        assert found.read(entry) == Text("x", "markdown", None)


def test_a_file_that_is_named_itself_is_text_whatever_its_name(tmp_path, job):
    tree = make(tmp_path / "tree", {"notes": "words"})
    found, _ = everything(documents(job), tree / "notes")
    assert found["notes"] == Text("words", "text", None)


def test_an_index_of_documents_and_addresses_follows_them(tmp_path, web, home, ingest, tree):
    root = tree({"a.md": "# A\n\nwords", "x.py": "no"})
    web.routes = {"/p": gives(b"<p>page", "text/html"), "/q": gives(b"\x89PNG", "image/png")}
    urls = [web.url("/p"), web.url("/q")]

    def run(number: int):
        folder = home.jobs / f"job-{number}"
        folder.mkdir(parents=True)
        counts: Counter = Counter()
        with documents(folder, urls) as found:
            plan = Plan("x", roots_of([root]), ingest.model)
            ways = {"walk": found.walk, "read": found.read, "reading": READING}
            scan = Scan(plan, home, folder, lambda n, by=1: counts.update({n: by}), ingest.clock, **ways)
            entries = scan.entries()
            unread = scan.unread(entries)
            found.expect(unread)
            files = list(scan.files(entries))
        return publish(folder, home, ingest.units(files), ingest.clock), [e.path for e in unread], counts

    done, unread, counts = run(1)
    assert (done.embedded, unread) == (3, ["a.md", *urls])
    assert counts == {"files": 2, "skipped.not_a_document": 2}
    index = Index(home, "x")
    assert list(read_skips(index.version(index.manifest()))) == [Skip("not_a_document", "x.py"), Skip("not_a_document", urls[1], "image/png")]
    done, unread, _ = run(2)
    assert (done.embedded, done.reused, unread) == (0, 3, urls), "an address is asked each time, and what it gives is known"
    web.routes["/p"] = gives(b"<p>other", "text/html")
    assert run(3)[0].embedded == 1


def test_an_address_is_never_taken_for_unchanged():
    from dgpunet_dask.retrieval.documents.reading import _NEVER_READ

    entry = Entry("http://example.com/", b"", _NEVER_READ)
    assert entry.stat.st_mtime_ns > 4e18 > 2**61
