from __future__ import annotations

import io
import json

import pytest

from dgpunet_dask.retrieval.documents import office, texts
from dgpunet_dask.retrieval.documents.child import read_document
from dgpunet_dask.retrieval.documents.texts import SkippedError
from tests.unit.retrieval.documents.made import cell, docx, encrypted_pdf, notebook, pdf, repacked

#: The host part of the names of Word's elements, which nobody asks for anything.
OOXML = "schemas.openxmlformats.org"


def read(kind: str, data: bytes, charset: str | None = None):
    return read_document(kind, io.BytesIO(data), charset)


def refused(kind: str, data: bytes) -> str:
    with pytest.raises(SkippedError) as caught:
        read(kind, data)
    return caught.value.code


PAGE = """<!doctype html><html><head><title> The
 Guide </title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a></nav><script>alert("no")</script><!-- a comment -->
<main><h1>The Guide</h1><p>First <b>bold</b>
   words&nbsp;and <code>code</code>.</p><div>plain<br>line</div>
<h2>Lists</h2><ul><li>one<li><p>two</p></ul><pre>
def f():
    return 1
</pre><table><tr><th>Name</th><th>Size</th></tr><tr><td>a</td><td>1</td></tr></table><p hidden>unseen</p></main>
<footer>imprint</footer></body></html>"""


def test_a_page_becomes_its_main_part_with_headings():
    found = read("html", PAGE.encode())
    assert found.title == "The Guide"
    assert found.language == "markdown"
    assert found.text == (
        "# The Guide\n\nFirst bold words and code.\n\nplain\nline\n\n## Lists\n\n- one\n\n- two\n\n```\ndef f():\n    return 1\n```\n\n"
        "Name | Size\na | 1"
    )


def test_a_page_without_a_main_part_is_its_body_under_its_title():
    found = read("html", b"<title>T &amp; U</title><nav>menu</nav><p>words</p><aside>ad</aside>")
    assert (found.text, found.title) == ("# T & U\n\nwords", "T & U")
    assert read("html", b"<main> </main><p>words</p>").text == "words", "an empty main part is none"
    assert read("html", b"<div role=main><p>in</p></div><p>out</p>").text == "in"


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        ("<p>Größe</p>".encode(), None), ("<p>Größe</p>".encode("latin-1"), "iso-8859-1"), ("<p>Größe</p>".encode("utf-16"), None),
        ("<p>Größe</p>".encode("utf-16"), "utf-8"), ("<meta charset=windows-1252><p>Größe</p>".encode("cp1252"), None),
        ("<p>Größe</p>".encode(), "no-such-charset"),
    ],
)  # fmt: skip
def test_a_page_is_decoded_by_its_mark_its_server_or_itself(data, charset):
    assert read("html", data, charset).text == "Größe"


def test_a_deeply_nested_page_is_read_to_the_bottom():
    deep = 5000
    found = read("html", b"<div>" * deep + b"bottom" + b"</div>" * deep + b"<p>after</p>")
    assert found.text == "bottom\n\nafter"


def test_what_no_text_holds_is_left_out():
    text = read("html", "<p>a\x00b\x0bc\x85d</p><p>&#xD800;e&#8;</p>".encode()).text
    assert "a" in text
    assert "e" in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    text.encode()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("html", b""), ("html", b"<html><body><script>x</script> </body></html>"), ("notebook", notebook()), ("notebook", notebook(cell("code", " "))),
        ("docx", docx(lambda d: None)), ("pdf", pdf(["", ""])),
    ],
)  # fmt: skip
def test_a_document_without_text_says_so(kind, data):
    assert refused(kind, data) == "no_text"


def test_pdf_pages_have_headings_and_their_lines():
    found = read("pdf", pdf(["first line\nsecond (line)", "", "last page"], title="A Report"))
    assert found.title == "A Report"
    assert found.text == "# A Report\n\n# [page 1]\n\nfirst line\nsecond (line)\n\n# [page 2]\n\n# [page 3]\n\nlast page"


def test_a_pdf_that_takes_a_password_is_encrypted_and_one_that_only_forbids_is_read():
    assert refused("pdf", encrypted_pdf("user")) == "encrypted"
    assert "secret words" in read("pdf", encrypted_pdf("")).text


@pytest.mark.parametrize("data", [b"", b"%PDF-1.4\nnothing", b"\0" * 100, pdf(["x"])[:150]])
def test_a_damaged_pdf_is_malformed(data):
    assert refused("pdf", data) == "malformed"


def test_a_tree_of_pages_that_holds_itself_is_malformed():
    assert refused("pdf", pdf(["one"], kids="5 0 R 2 0 R 2 0 R")) == "malformed"


def test_more_pages_than_any_document_has_are_too_large():
    from dgpunet_dask.retrieval.documents.pdf import read_pdf

    with pytest.raises(SkippedError) as caught:
        read_pdf(io.BytesIO(pdf(["a", "b", "c"])), pages_max=2)
    assert caught.value.code == "too_large"


def test_docx_keeps_headings_lists_and_tables_in_order():
    def build(document):
        document.core_properties.title = "Plan"
        document.add_heading("Plan", 0)
        document.add_paragraph("Intro with Größe.")
        document.add_heading("Steps", 2)
        document.add_paragraph("one", style="List Bullet")
        table = document.add_table(2, 3)
        for n, text in enumerate(("a", "b", "c", "d", "e", "f")):
            table.cell(n // 3, n % 3).text = text
        table.cell(0, 1).merge(table.cell(0, 2))
        inner = table.cell(1, 0).add_table(1, 1)
        inner.cell(0, 0).text = "nested"
        document.add_paragraph("after")

    found = read("docx", docx(build))
    assert found.title == "Plan"
    assert found.text == "# Plan\n\nIntro with Größe.\n\n## Steps\n\n- one\n\na | b c\nd nested | e | f\n\nafter"


def test_a_bomb_is_told_by_the_sizes_that_it_states():
    assert office.XML_MAX <= office.UNPACKED_MAX < 1 << 30
    xml = repacked(docx(lambda d: d.add_paragraph("x")), {"word/document.xml": b" " * (4 << 20)})
    media = repacked(docx(lambda d: d.add_paragraph("x")), {f"word/media/{n}.bin": b"\0" * (2 << 20) for n in range(4)})
    for bomb in (xml, media):
        assert len(bomb) < 100_000
        with pytest.raises(SkippedError) as caught:
            office.read_docx(io.BytesIO(bomb), unpacked_max=8 << 20, xml_max=4 << 20)
        assert caught.value.code == "too_large"
    assert office.read_docx(io.BytesIO(media), unpacked_max=9 << 20, xml_max=4 << 20).text == "x"


def test_entities_of_a_docx_are_neither_expanded_nor_fetched(tmp_path):
    (tmp_path / "secret").write_text("unseen")
    body = (
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY x SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
        f'<w:document xmlns:w="http://{OOXML}/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>seen &b; &x;</w:t></w:r></w:p>'
        "</w:body></w:document>"
    )
    assert read("docx", repacked(docx(lambda d: None), {"word/document.xml": body.encode()})).text == "seen"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"), (b"PK\x03\x04 nothing", "malformed"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "encrypted"),
        (repacked(docx(lambda d: None), {"[Content_Types].xml": b"<not xml"}), "malformed"),
    ],
)  # fmt: skip
def test_what_is_no_docx_has_its_code(data, code):
    assert refused("docx", data) == code


def test_a_notebook_is_prose_and_fenced_code():
    data = notebook(
        cell("markdown", "# Load\n", "\n", "Some words."),
        cell("code", "x = 1\n", "x", outputs=[{"output_type": "stream", "text": ["left out"]}]),
        cell("raw", "raw"),
        cell("code", ""),
        cell("code", "y", outputs=[]),
    )
    found = read("notebook", data)
    assert (found.title, found.language) == ("Load", "markdown")
    assert found.text == "# Load\n\nSome words.\n\n```python [cell 2]\nx = 1\nx\n```\n\nraw\n\n```python [cell 5]\ny\n```"


def test_an_old_notebook_is_read():
    old = {"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "heading", "level": 2, "source": "Top"}, {"cell_type": "code", "input": ["a = 1"]}]}]}
    assert read("notebook", json.dumps(old).encode()).text == "## Top\n\n```python [cell 2]\na = 1\n```"


def test_a_notebook_names_its_language():
    data = notebook(cell("code", "f <- 1"), metadata={"kernelspec": {"language": "R"}})
    assert "```R [cell 1]" in read("notebook", data).text


@pytest.mark.parametrize("data", [b"", b"[]", b'"text"', b"{}", b'{"cells": 3}', b"\xff\xfe", b"[" * 200_000, b'{"worksheets": [3]}'])
def test_what_is_no_notebook_is_malformed_or_empty(data):
    assert refused("notebook", data) in {"malformed", "no_text"}


def test_a_text_is_bounded_as_it_grows():
    out = texts.Bounded(chars_max=20)
    out.add("x" * 10)
    with pytest.raises(SkippedError, match="too_large"):
        out.block("y" * 10)
