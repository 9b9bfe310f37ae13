from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from dgpunet_dask.retrieval.documents.children import Children
from dgpunet_dask.retrieval.documents.texts import SkippedError
from tests.unit.retrieval.documents.made import SILENT, pdf

CHILD = "dgpunet_dask.retrieval.documents.child"
#: One that dies of its document.
DYING = (sys.executable, "-c", "import os, sys; sys.stdin.readline(); os.abort()")


@pytest.fixture
def file(tmp_path):
    def write(name: str, data: bytes) -> bytes:
        (tmp_path / name).write_bytes(data)
        return os.fsencode(tmp_path / name)

    return write


def reason(children: Children, file: bytes, kind: str) -> str:
    with pytest.raises(SkippedError) as caught:
        children.read(file, kind)
    return caught.value.reason


def no_children_left() -> bool:
    return not [p for p in psutil.Process().children(recursive=True) if CHILD in told_of(p)]


def told_of(process: psutil.Process) -> str:
    """Return the command of a process; that of one which has ended says nothing."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_documents_are_read_in_a_process_of_their_own_which_ends_with_the_job(file):
    with Children(60) as children:
        found = children.read(file("ü.html", "<title>T</title><p>Größe".encode()), "html")
        assert found == {"text": "# T\n\nGröße", "language": "markdown", "title": "T"}
        assert children.read(file("b.pdf", pdf(["words"])), "pdf")["text"].endswith("words")
        assert reason(children, file("c.docx", b"no"), "docx").startswith("malformed")
        assert not no_children_left()
    assert no_children_left()


def test_a_document_that_takes_too_long_is_given_up_and_the_next_is_read(file):
    with Children(0.2, SILENT) as children:
        assert reason(children, file("a.pdf", b"x"), "pdf") == "timeout: it took longer than 0.2 s to read"
        assert reason(children, file("a.pdf", b"x"), "pdf").startswith("timeout")


def test_a_document_that_ends_its_process_is_malformed(file):
    with Children(60, DYING) as children:
        assert reason(children, file("a.pdf", b"x"), "pdf").startswith("malformed: it ended the process")
        assert reason(children, file("a.pdf", b"x"), "pdf").startswith("malformed"), "a new process was asked"


def test_a_document_that_takes_all_memory_is_too_large_and_the_next_is_read(file):
    with Children(60, (sys.executable, "-m", CHILD, str(400 << 20))) as children:
        large = file("large.ipynb", b'{"cells": [' + b'{"source": "x"},' * 2_000_000 + b"{}]}")
        assert reason(children, large, "notebook").startswith("too_large: it takes more than 400 MiB")
        assert children.read(file("a.html", b"<p>words"), "html")["text"] == "words"


def test_what_is_no_file_any_more_is_unreadable(file, tmp_path):
    (tmp_path / "link.pdf").symlink_to("a.pdf")
    os.mkfifo(tmp_path / "pipe.pdf")
    with Children(60) as children:
        for name in ("gone.pdf", "link.pdf", "pipe.pdf"):
            assert reason(children, os.fsencode(tmp_path / name), "pdf") == "unreadable"


def test_a_name_that_is_not_utf8_is_opened(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.html"
    with open(name, "wb") as opened:
        opened.write(b"<p>words")
    with Children(60) as children:
        assert children.read(name, "html")["text"] == "words"


def test_each_thread_has_a_process_of_its_own(file):
    page = file("a.html", b"<p>words")
    with Children(60) as children, ThreadPoolExecutor(3) as pool:
        assert [f["text"] for f in pool.map(lambda _: children.read(page, "html"), range(12))] == ["words"] * 12
    assert no_children_left()
