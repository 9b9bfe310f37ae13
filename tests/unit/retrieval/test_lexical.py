from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.retrieval.lexical import LexicalChunk, LexicalIndex, LexicalWriter, split_symbol
from tests.helpers import ROOT, until


def chunk(key, ordinal, text, symbol=None, scope=None, language="python"):
    return LexicalChunk(key, ordinal, text, symbol, scope, language)


def write(folder, chunks=(), paths=(), base=None, gone=(), gone_paths=()):
    with LexicalWriter(folder, base) as writer:
        writer.remove_keys(gone)
        writer.remove_paths(gone_paths)
        writer.add(chunks)
        writer.add_paths(paths)
        writer.finish()
    return LexicalIndex(folder)


def found(index, query, k=100, **chosen):
    return [(h.key, h.ordinal) for h in index.search(query, k, **chosen)]


def bytes_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Inode and digest of every file; readers may leave tantivy's empty lock."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    return {str(p): (p.stat().st_ino, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


CHUNKS = [
    chunk("a", 0, "def parse_header(line):\n    return line.split(':')", "parse_header"),
    chunk("a", 1, "class HTTPServer:\n    port = 80", "HTTPServer"),
    chunk("b", 0, "retries = 3  # the header is parsed again", None, None, "go"),
]


@pytest.fixture
def index(tmp_path):
    return write(tmp_path / "1", CHUNKS, [("src/net/header.py", "a"), ("docs/retry_limits.md", "b")])


class TestSearch:
    @pytest.mark.parametrize("query", ["parse_header", "parseHeader", "ParseHeader", "parse-header", "parse the header"])
    def test_any_spelling_finds_the_definition_first(self, index, query):
        assert found(index, query)[0] == ("a", 0)

    def test_scores_fall(self, index):
        scores = [h.score for h in index.search("header parse server", 10)]
        assert scores == sorted(scores, reverse=True)
        assert all(s > 0 for s in scores)

    def test_the_symbol_weighs_more_than_a_mention(self, tmp_path):
        text = "call(server)"
        index = write(tmp_path / "1", [chunk("a", 0, text), chunk("b", 0, text, "server")])
        assert found(index, "server") == [("b", 0), ("a", 0)]

    def test_the_scope_is_searched(self, tmp_path):
        index = write(tmp_path / "1", [chunk("a", 0, "def close(self): ...", "close", "Connection"), chunk("b", 0, "def close(self): ...", "close")])
        assert found(index, "connection close") == [("a", 0), ("b", 0)]

    def test_a_language_restricts(self, index):
        assert found(index, "header", language="go") == [("b", 0)]
        assert found(index, "header", language="rust") == []

    @pytest.mark.parametrize("query", ["", "  ", "?!", "nowhere"])
    def test_what_matches_nothing_finds_nothing(self, index, query):
        assert index.search(query, 10) == []
        assert index.search_paths(query, 10) == []

    def test_nothing_is_wanted(self, index):
        assert index.search("header", 0) == []

    @pytest.mark.parametrize("query", ['"', "text:x AND", "a*(", "\\", "[a TO", "-", "header^9", "\0"])
    def test_a_query_has_no_syntax(self, index, query):
        index.search(query, 5)

    def test_equal_scores_are_in_the_order_of_key_and_ordinal(self, tmp_path):
        places = [(key, n) for key in "dbca" for n in range(40)]
        index = write(tmp_path / "1", [chunk(key, n, "same words here") for key, n in places])
        for k in (1, 7, 159, 160, 500):
            assert found(index, "words", k) == sorted(places)[:k]

    def test_an_empty_version_answers(self, tmp_path):
        index = write(tmp_path / "1")
        assert (index.count(), found(index, "x"), index.search_paths("x", 3), index.check()) == ((0, 0), [], [], [])

    def test_many_threads_search_one_index(self, index):
        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(lambda _: tuple(found(index, "parse header")), range(200)))
        assert len(answers) == 1


class TestPaths:
    def test_words_of_a_path_find_it(self, index):
        assert [(path, key) for _, path, key in index.search_paths("retry limits", 5)] == [("docs/retry_limits.md", "b")]

    def test_a_rename_leaves_the_chunks_files_alone(self, tmp_path, index):
        renamed = write(tmp_path / "2", paths=[("src/net/head.py", "a")], base=tmp_path / "1", gone_paths=["src/net/header.py"])
        assert [path for _, path, _ in renamed.search_paths("head net", 5)] == ["src/net/head.py"]
        old = {Path(p).name: inode for p, (inode, _) in bytes_of(tmp_path / "1/chunks").items()}
        new = {Path(p).name: inode for p, (inode, _) in bytes_of(tmp_path / "2/chunks").items()}
        assert {n for n in old if old[n] != new[n]} <= {"meta.json", ".managed.json"}  # copied, all others linked

    def test_equal_paths_of_two_contents_are_both_found(self, tmp_path):
        index = write(tmp_path / "1", paths=[("x/same.py", "b"), ("x/same.py", "a")])
        assert [key for _, _, key in index.search_paths("same", 5)] == ["a", "b"]


words_of_texts = st.lists(st.sampled_from(["red", "green", "blue", "black"]), min_size=1, max_size=4).map(" ".join)
texts = st.lists(st.tuples(st.sampled_from("abcdef"), words_of_texts), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, st.sets(st.sampled_from("abcdef")), st.integers(1, 5))
@pytest.mark.parametrize("few", [0, 1024])
def test_a_filter_by_keys_loses_no_hit_and_keeps_the_scores(tmp_path_factory, monkeypatch, few, rows, keys, k):
    monkeypatch.setattr("dgpunet_dask.retrieval.lexical._FEW_KEYS", few)
    monkeypatch.setattr("dgpunet_dask.retrieval.lexical._BEYOND", 1)
    index = write(tmp_path_factory.mktemp("index") / "1", [chunk(key, n, text) for n, (key, text) in enumerate(rows)])
    everything = index.search("red blue", 100)
    assert index.search("red blue", k, keys=keys) == [h for h in everything if h.key in keys][:k]


class TestVersions:
    def test_removed_and_added(self, tmp_path, index):
        second = write(tmp_path / "2", [chunk("c", 0, "parse header too")], base=tmp_path / "1", gone=["a"])
        assert set(found(second, "parse header")) == {("b", 0), ("c", 0)}
        assert second.count() == (2, 2)

    def test_chunks_that_are_added_after_their_key_was_removed_stay(self, tmp_path, index):
        second = write(tmp_path / "2", [chunk("a", 0, "fresh")], base=tmp_path / "1", gone=["a", "unknown"])
        assert found(second, "fresh") == [("a", 0)]
        assert found(second, "server") == []

    def test_a_newer_version_changes_no_byte_of_an_older_one(self, tmp_path, index):
        before, answer = bytes_of(tmp_path / "1"), found(index, "parse header")
        base = tmp_path / "1"
        for n in range(2, 14):  # enough small versions for tantivy to merge their segments
            newer = tmp_path / str(n)
            write(newer, [chunk(f"k{n}", 0, "parse header again")], [(f"p{n}.py", f"k{n}")], base, gone=["a"])
            assert found(index, "parse header") == answer
            base = newer
        assert bytes_of(tmp_path / "1") == before
        assert found(LexicalIndex(tmp_path / "1"), "parse header") == answer
        assert LexicalIndex(base).count() == (13, 14)
        assert LexicalIndex(base).check() == []

    def test_small_versions_are_merged(self, tmp_path):
        base = None
        for n in range(20):
            write(tmp_path / str(n), [chunk(str(n), 0, "word")], base=base)
            base = tmp_path / str(n)
        assert len(list((base / "chunks").glob("*.idx"))) < 10

    def test_what_was_removed_counts_until_it_is_merged(self, tmp_path):
        kept = [chunk("kept", n, "common word") for n in range(3)]
        write(tmp_path / "1", [*kept, *(chunk("gone", n, "rare word") for n in range(50))])
        changed = write(tmp_path / "2", base=tmp_path / "1", gone=["gone"])
        anew = write(tmp_path / "3", kept)
        assert found(changed, "common") == found(anew, "common")
        assert changed.search("common", 1)[0].score > anew.search("common", 1)[0].score

    def test_a_version_that_is_given_up_leaves_its_base_alone(self, tmp_path, index):
        before = bytes_of(tmp_path / "1")
        with pytest.raises(KeyError), LexicalWriter(tmp_path / "2", tmp_path / "1") as writer:
            writer.remove_keys(["a"])
            writer.add(CHUNKS)
            raise KeyError
        assert bytes_of(tmp_path / "1") == before
        assert index.check() == []

    def test_a_killed_writer_leaves_its_base_alone_and_the_next_one_writes(self, tmp_path, index):
        before = bytes_of(tmp_path / "1")
        code = (
            "import os, signal, sys; from pathlib import Path; from dgpunet_dask.retrieval.lexical import *\n"
            "with LexicalWriter(Path(sys.argv[2]), Path(sys.argv[1])) as w:\n"
            "    w.remove_keys(['a']); w.add([LexicalChunk('z', n, 'killed word', None, None, 'go') for n in range(1000)])\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "1", tmp_path / "2"], cwd=ROOT, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert bytes_of(tmp_path / "1") == before
        assert found(write(tmp_path / "3", [chunk("z", 0, "killed word")], base=tmp_path / "1"), "killed") == [("z", 0)]

    def test_neither_threads_nor_locks_stay(self, tmp_path):
        before = threads()
        for n in range(3):
            index = write(tmp_path / str(n), CHUNKS, base=tmp_path / str(n - 1) if n else None)
            index.search("header", 3)
            del index
        with LexicalWriter(tmp_path / "given up") as writer:
            writer.add(CHUNKS)
        assert not list(tmp_path.rglob("*.lock"))
        until(lambda: threads() <= before, what="the end of tantivy's threads, which end on their own once nothing holds them")


class TestCheck:
    def test_a_sound_version_has_no_fault(self, index):
        assert index.check() == []

    @pytest.mark.parametrize("suffix", ["idx", "term", "store", "fieldnorm", "fast"])
    def test_a_flipped_bit_is_found(self, tmp_path, index, suffix):
        [path] = (tmp_path / "1/chunks").glob(f"*.{suffix}")
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.unlink()
        path.write_bytes(data)
        [fault] = index.check()
        assert str(path) in fault

    def test_damage_is_never_a_panic(self, tmp_path):
        write(tmp_path / "1", [chunk(f"k{n}", n, f"alpha beta w{n} word{n % 7}", f"s{n % 5}") for n in range(500)])
        files = sorted((tmp_path / "1/chunks").glob("*.[fits]*"))
        chance = random.Random(1)
        raised = 0
        for _ in range(150):  # a dozen of these panic
            shutil.rmtree(tmp_path / "2", ignore_errors=True)
            shutil.copytree(tmp_path / "1", tmp_path / "2")
            path = tmp_path / "2/chunks" / chance.choice(files).name
            data = bytearray(path.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            try:
                LexicalIndex(tmp_path / "2").search("alpha word3 s1", 20)
            except (ValueError, OSError):
                raised += 1
        assert raised

    @pytest.mark.parametrize("length", [0, 5, 40])
    def test_a_file_that_is_cut_off_is_found(self, tmp_path, index, length):
        [path] = (tmp_path / "1/chunks").glob("*.store")
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:length])
        [fault] = index.check()
        assert str(path) in fault

    def test_a_lost_segment_is_found(self, tmp_path, index):
        for path in (tmp_path / "1/paths").iterdir():
            if path.suffix in {".idx", ".term", ".store", ".fieldnorm", ".fast", ".pos"}:
                path.unlink()
        assert any("has no files of segment" in fault for fault in index.check())

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"segments": [7]}'])
    def test_damaged_metadata_is_found(self, tmp_path, index, text):
        meta = tmp_path / "1/chunks/meta.json"
        meta.unlink()
        meta.write_text(text)
        assert any(str(meta) in fault for fault in index.check())

    @pytest.mark.parametrize("what", ["empty", "no folder", "meta"])
    def test_what_cannot_be_opened_says_so(self, tmp_path, what):
        folder = tmp_path / "x"
        if what != "no folder":
            (folder / "chunks").mkdir(parents=True)
        if what == "meta":
            (folder / "chunks/meta.json").write_text("{")
        with pytest.raises((ValueError, OSError)):
            LexicalIndex(folder)


@pytest.mark.parametrize(
    ("symbol", "scope", "split"),
    [("f", None, ("", "f")), ("A.f", None, ("A", "f")), ("A.f", "A", ("A", "f")), ("f", "A.B", ("A.B", "f")), (None, "A", ("A", "")), (None, None, ("", ""))],
)
def test_a_symbol_is_parted_from_what_encloses_it(symbol, scope, split):
    assert split_symbol(symbol, scope) == split
