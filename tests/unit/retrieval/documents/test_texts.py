from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpunet_dask.retrieval.chunk import chunks_of
from dgpunet_dask.retrieval.documents.kinds import judge_document, kind_of_name, kind_of_type
from dgpunet_dask.retrieval.documents.texts import cleaned, finished, plain_title
from dgpunet_dask.retrieval.tokens import load_tokens


@pytest.fixture(scope="module")
def tokens():
    return load_tokens("minilm")


words = st.sampled_from(["alpha", "beta", "gamma", "#", "##", "x", "Größe", "a" * 40, ""])
texts = st.lists(st.lists(words, max_size=60).map(" ".join), max_size=120).map(lambda lines: cleaned("\n".join(lines)))


def put_together(chunks) -> list[str]:
    """The lines that chunks hold, by their numbers, without the blanks within a line: a long one is cut at them."""
    found: dict[int, str] = {}
    for chunk in chunks:
        for number, line in enumerate(chunk.text.split("\n"), chunk.start_line):
            found[number] = found.get(number, "") + line.replace(" ", "")
    return [found.get(number, "") for number in range(1, max(found, default=0) + 1)]


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_a_made_text_can_be_put_together_of_its_chunks(tokens, text):
    chunks = list(chunks_of([("key", text, "markdown")], tokens))
    assert put_together(chunks) == ([line.replace(" ", "") for line in text.split("\n")] if text else [])


@given(st.text())
def test_clean_text_has_plain_lines_and_is_clean_for_good(text):
    found = cleaned(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in found)
    assert cleaned(found) == found
    found.encode()


@pytest.mark.parametrize(
    ("text", "language", "title"),
    [
        ("intro\n\n# One #\n", "markdown", "One"), ("```sh\n# no\n```\n## Two", "markdown", "Two"), ("~~~\n```\n# no\n~~~\n# Yes", "markdown", "Yes"),
        ("Title\n=====\n\ntext", "restructuredtext", "Title"), ("=====\nOver\n=====\n", "restructuredtext", "Over"),
        (".. x\n\nSub\n~~~\n", "restructuredtext", "Sub"), ("words\n--\n", "restructuredtext", None), ("# no", "text", None), ("", "markdown", None),
    ],
)  # fmt: skip
def test_a_title_is_the_first_heading(text, language, title):
    assert plain_title(text, language) == title


def test_a_made_text_begins_with_its_title():
    assert finished("words", " A\n title ", "page").text == "# A title\n\nwords"
    assert finished("## A title\n\nwords", "A title", "page").text == "## A title\n\nwords"
    assert finished("words", None, "page").title is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.md", "markdown"), ("A.MD", "markdown"), ("a.rst", "restructuredtext"), ("README", "text"), ("x.ipynb", "notebook"), ("x.PDF", "pdf"),
        ("x.docx", "docx"), ("i.html", "html"), ("a.py", None), ("a.png", None), ("noname", None), (".md", None), ("", None), ("a.doc", None),
    ],
)  # fmt: skip
def test_a_name_promises_a_kind(name, kind):
    found = kind_of_name(name)
    assert (found.name if found else None) == kind


@pytest.mark.parametrize(
    ("content_type", "path", "kind"),
    [
        ("text/html", "/a.pdf", "html"), ("application/pdf", "/", "pdf"), ("text/plain", "/x/README.md", "markdown"), ("text/plain", "/x", "text"),
        ("text/plain", "/a.py", "text"), ("application/octet-stream", "/a.pdf", "pdf"), ("application/octet-stream", "/a", None), ("", "/a.html", "html"),
        ("", "/", None), ("image/png", "/a.md", None), ("application/json", "/x.ipynb", "notebook"), ("application/json", "/x.json", None),
        ("Text/HTML ", "/", "html"),
    ],
)  # fmt: skip
def test_a_type_promises_a_kind_and_a_vague_one_leaves_it_to_the_name(content_type, path, kind):
    found = kind_of_type(content_type, path)
    assert (found.name if found else None) == kind


def test_files_are_judged_by_kind_and_size():
    assert judge_document("a.py", 1) == "not_a_document"
    assert judge_document("a.md", 17 << 20) == "too_large"
    assert judge_document("a.pdf", 17 << 20) is None
