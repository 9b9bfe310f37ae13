"""Lines of indexed files: from the disk while they are those that were indexed, else from the index, and never from anywhere else."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import MalformedFile, NoSuchFile, NoSuchIndex, NoSuchLines
from dgpunet_dask.retrieval import spans
from dgpunet_dask.retrieval.decode import MAX_BYTES
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.spans import CHARS_MOST, LINES_MOST, Held, Reader, _put

TEXT = "one\ntwo\n\nfour\nfive\n"


@pytest.fixture
def reader(home):
    return Reader(home)


def told(lines):
    return lines.text, lines.start_line, lines.end_line, lines.total_lines, lines.source


def test_lines_of_an_unchanged_file_come_from_the_disk(ingest, tree, reader):
    ingest(tree({"src/a.py": TEXT}))
    assert told(reader.read("x", "src/a.py", 2, 4)) == ("two\n\nfour", 2, 4, 5, "disk")
    assert told(reader.read("x", "src/a.py", 4, 99)) == ("four\nfive", 4, 5, 5, "disk")
    assert reader.read("x", "src/a.py", 1, 1).why is None


@pytest.mark.parametrize("raw", [b"one\r\ntwo\r\n\r\nfour\r\nfive\r\n", TEXT.encode("utf-16"), b"\xef\xbb\xbf" + TEXT.encode()])
def test_lines_are_counted_as_the_index_counts_them(ingest, tree, reader, raw):
    root = tree({})
    (root / "a.py").write_bytes(raw)
    ingest(root)
    assert told(reader.read("x", "a.py", 1, 9)) == ("one\ntwo\n\nfour\nfive", 1, 5, 5, "disk")


CHANGES = {
    "changed": (lambda file: file.write_text("uno\ndue\n\nquattro\n"), "has changed"),
    "grown": (lambda file: file.write_text(TEXT + "six\n"), "has changed"),
    "too large": (lambda file: file.write_text("x" * (MAX_BYTES + 1)), "too large"),
    "binary": (lambda file: file.write_bytes(b"\0" * 99), "no text"),
    "gone": (lambda file: file.unlink(), "cannot be read"),
    "unreadable": (lambda file: (file.unlink(), file.mkdir()), "no file"),
    "a pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "no file"),
    "its folder is gone": (lambda file: (file.unlink(), file.parent.rmdir()), "cannot be read"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_the_disk_has_no_more_the_index_still_holds(ingest, tree, reader, how):
    root = tree({"src/a.py": TEXT})
    ingest(root)
    change, why = CHANGES[how]
    change(root / "src/a.py")
    lines = reader.read("x", "src/a.py", 1, 9)
    assert told(lines) == ("one\ntwo\n\nfour\nfive", 1, 5, 5, "index")
    assert why in lines.why


def test_a_tree_that_is_gone_is_told(ingest, tree, reader):
    root = tree({"a.py": TEXT})
    ingest(root)
    root.rename(root.with_name("moved"))
    assert (reader.read("x", "a.py", 1, 1).source, reader.read("x", "a.py", 1, 1).why) == ("index", "a tree of the index is not there")


def test_no_link_is_followed_even_to_the_same_text(ingest, tree, reader, tmp_path):
    root = tree({"src/a.py": TEXT, "b.py": TEXT})
    ingest(root)
    outside = tmp_path / "outside"
    (root / "src").rename(outside)
    (root / "src").symlink_to(outside)
    (root / "b.py").unlink()
    (root / "b.py").symlink_to(outside / "a.py")
    for path in ("src/a.py", "b.py"):
        assert told(reader.read("x", path, 1, 1))[4] == "index"


def test_a_root_may_be_reached_by_a_link_or_be_a_file(ingest, tree, reader, tmp_path):
    root = tree({"a.py": TEXT})
    (tmp_path / "link").symlink_to(root)
    ingest(tmp_path / "link")
    assert reader.read("x", "a.py", 1, 1).source == "disk"
    ingest(root / "a.py", index="single")
    assert told(reader.read("single", "a.py", 1, 1)) == ("one", 1, 1, 5, "disk")


def test_several_roots_have_their_own_files(ingest, tree, reader):
    tree({}, "q")
    first, second, third = (tree({"a.py": f"{name}\n"}, name) for name in ("p", "p-2", "q/p-2"))
    ingest(first, second, third)
    found = {path: reader.read("x", path, 1, 1) for path in ("p/a.py", "p-2/a.py", "p-2-2/a.py")}
    assert {path: (lines.text, lines.source) for path, lines in found.items()} == {
        "p/a.py": ("p", "disk"), "p-2/a.py": ("p-2", "disk"), "p-2-2/a.py": ("q/p-2", "disk"),
    }  # fmt: skip


HOSTILE = [
    "../secret.txt", "/etc/passwd", "src/../../secret.txt", "src//a.py", "./src/a.py", "src/a.py/", "src", "", ".", "..", "src/a.py\0", "secret.txt",
    "src\\a.py", "~/a.py", "$HOME/a.py", "src/*.py", "SRC/A.PY", ".git/config", "\ud800", "a" * 10_000, "src/a.py\n", "%2e%2e/secret.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_only_files_of_the_index_are_read(ingest, tree, reader, path, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    ingest(tree({"src/a.py": TEXT, ".git/config": "secret", "secret.txt.gz": ""}))
    with pytest.raises(NoSuchFile) as raised:
        reader.read("x", path, 1, 9)
    assert "secret\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@given(path=st.text(st.sampled_from("./\\aesrct.py~\0"), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_anywhere_else(ingest, tree, path, home):
    if ingest.runs == 0:
        ingest(tree({"src/a.py": TEXT}))
    if path == "src/a.py":
        return
    with pytest.raises(NoSuchFile):
        Reader(home).read("x", path, 1, 9)


def test_an_index_that_lies_about_its_paths_reads_nothing_outside(ingest, tree, reader, monkeypatch, tmp_path):
    (tmp_path / "secret.py").write_text(TEXT)
    ingest(tree({"a.py": TEXT}))
    true_rows = spans.read_files
    for lie in ("../secret.py", str(tmp_path / "secret.py"), "x/../../secret.py"):
        monkeypatch.setattr(spans, "read_files", lambda file, lie=lie: (row._replace(path=lie) for row in true_rows(file)))
        assert Reader(reader._home).read("x", lie, 1, 9).source == "index"


def test_another_file_of_that_name_is_named(ingest, tree, reader):
    ingest(tree({"src/deep/a.py": TEXT, "b.py": TEXT}))
    with pytest.raises(NoSuchFile, match=r"it has src/deep/a\.py"):
        reader.read("x", "a.py", 1, 1)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (-1, 1), (3, 2), (6, 9), (10**9, 10**9)])
def test_lines_that_there_cannot_be_are_refused(ingest, tree, reader, first, last):
    ingest(tree({"a.py": TEXT}))
    with pytest.raises(NoSuchLines, match=rf"has 5 lines, none of them from {first} to {last}"):
        reader.read("x", "a.py", first, last)


def test_a_missing_index_is_told(reader):
    with pytest.raises(NoSuchIndex):
        reader.read("nothing", "a.py", 1, 1)


def test_much_is_given_in_parts(ingest, tree, reader):
    wide = "\n".join("y" * 1000 for _ in range(300))
    ingest(tree({"long.md": "\n".join(map(str, range(1, 5001))), "wide.md": wide, "line.md": f"short\n{'z' * (CHARS_MOST + 500)}\nend"}))
    first = reader.read("x", "long.md", 1, 5000)
    assert (first.end_line, first.next_line) == (LINES_MOST, LINES_MOST + 1)
    last = reader.read("x", "long.md", 4001, 5000)
    assert (last.end_line, last.next_line, last.text.split("\n")[-1]) == (5000, None, "5000")
    part, texts = reader.read("x", "wide.md", 1, 300), []
    while part.next_line is not None:
        texts.append(part.text)
        assert len(part.text) <= CHARS_MOST
        part = reader.read("x", "wide.md", part.next_line, 300)
    assert "\n".join([*texts, part.text]) == wide
    line = reader.read("x", "line.md", 2, 3)
    assert (line.end_line, line.next_line, line.text[-45:]) == (2, 3, "z" * 9 + "… (500 more characters in this line)"[-36:])


def test_a_new_version_is_read_from_then_on(ingest, tree, reader):
    root = tree({"a.py": "old\n"})
    ingest(root)
    assert reader.read("x", "a.py", 1, 1).text == "old"
    ingest(tree({"a.py": "new\n", "b.py": "more\n"}))
    assert reader.read("x", "a.py", 1, 1).text == "new"
    assert reader.read("x", "b.py", 1, 1).text == "more"


def test_a_segment_that_goes_while_it_is_opened_is_looked_for_anew(ingest, tree, reader, monkeypatch):
    root = tree({"a.py": "old\n"})
    ingest(root)
    true_held, left = Held, [1, 1]

    def held(index, manifest):
        if left:
            left.pop()
            ingest(tree({"a.py": f"new {len(left)}\n"}))
        return true_held(index, manifest)

    monkeypatch.setattr(spans, "Held", held)
    assert reader.read("x", "a.py", 1, 1).text == "new 0"


def test_a_segment_that_is_gone_for_good_is_an_error(ingest, tree, home, reader):
    ingest(tree({"a.py": "old\n"}))
    index = Index(home, "x")
    for segment in index.segments(index.manifest()):
        shutil.rmtree(segment)
    with pytest.raises(MalformedFile, match="submit the tree again"):
        reader.read("x", "a.py", 1, 1)


def test_the_parts_of_a_long_line_are_one_line_again():
    lines = {}
    for part in ((1, 2, "a\nb"), (3, 3, "cc"), (3, 3, "dd"), (3, 3, "ee"), (5, 5, "f")):
        _put(lines, *part)
    assert lines == {1: "a", 2: "b", 3: "ccddee", 5: "f"}
