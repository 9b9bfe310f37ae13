"""What travels between hosts, and which names and lists from another host are believed."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.stagehost.folders import FileEntry, checked, checked_entries, entries_of, is_inner, tree_digest, uncounted

SHA = "0" * 64


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.txt", "\0", "\n", "ü", "/", "a" * 300]), max_size=6).map("/".join) | st.text())
def test_an_inner_name_never_leads_out(name):
    if is_inner(name):
        joined = os.path.normpath(os.path.join("/store/digest", name))
        assert joined == f"/store/digest/{name}"
        assert "\0" not in name
        assert "\n" not in name


@pytest.mark.parametrize("name", ["a", "a/b.py", "ünï code", "a:b", "..a", "a..", ".hidden", "\udc80"])
def test_plain_names_are_inner(name):
    assert is_inner(name)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda c: st.lists(c, max_size=4) | st.dictionaries(st.text(max_size=3), c, max_size=3)))
def test_a_list_of_files_is_checked_or_refused_never_broken(listed):
    try:
        entries = checked_entries("model", listed)
    except ValueError:
        return
    assert all(isinstance(entry, FileEntry) for entry in entries)


def test_a_list_is_taken_whole():
    assert checked_entries("model", [["a/b", 1, SHA], ["a/c", 2, SHA]]) == [FileEntry("a/b", 1, SHA), FileEntry("a/c", 2, SHA)]
    with pytest.raises(ValueError, match="larger"):
        checked_entries("workload", [["a", 65 << 20, SHA]])
    with pytest.raises(ValueError, match="twice"):
        checked_entries("model", [["a", 1, SHA], ["a/b", 1, SHA]])


@pytest.mark.parametrize(("kind", "digest"), [("env", SHA), ("../model", SHA), ("model", "0" * 63), ("model", SHA + "\n"), ("model", "../" * 21 + "x"), (None, None), (["model"], SHA)])
def test_only_known_kinds_and_digests_name_a_folder(kind, digest):
    with pytest.raises(ValueError, match=r"no kind|no digest"):
        checked(kind, digest)


def test_a_models_digest_hangs_on_names_and_contents_and_not_on_order(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    entries = entries_of("model", tmp_path)
    assert [e.name for e in entries] == ["a", "b"]
    before = tree_digest(entries)
    assert tree_digest(reversed(entries)) == before
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").touch()
    assert tree_digest(entries_of("model", tmp_path)) == before
    (tmp_path / "b").rename(tmp_path / "c")
    assert tree_digest(entries_of("model", tmp_path)) != before


def test_what_a_digest_does_not_count_is_named(tmp_path):
    (tmp_path / "a.py").touch()
    assert uncounted("workload", tmp_path) is None
    (tmp_path / "__pycache__").mkdir()
    assert uncounted("workload", tmp_path) is None
    (tmp_path / "__pycache__" / "a.pyc").touch()
    assert uncounted("workload", tmp_path) == "__pycache__/a.pyc"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "out").symlink_to("/etc/passwd")
    assert uncounted("workload", tmp_path) in {"__pycache__/a.pyc", "sub/out"}
