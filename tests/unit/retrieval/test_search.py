from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue, ModelUnavailable, NoSuchIndex
from dgpunet_dask.retrieval import search as module
from dgpunet_dask.retrieval.chunk import Chunk
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_table, write_files
from dgpunet_dask.retrieval.index import Index, Manifest
from dgpunet_dask.retrieval.lexicon import LEXICAL, write_lexicon
from dgpunet_dask.retrieval.opened import Filter, OpenIndex, path_filter
from dgpunet_dask.retrieval.rows import Row, packed
from dgpunet_dask.retrieval.search import Query, Searcher, open_searcher
from dgpunet_dask.retrieval.segments import Segment, SegmentWriter
from tests.unit.retrieval.conftest import FakeEncoder


def opened(home, name="x") -> OpenIndex:
    index = Index(home, name)
    manifest = index.manifest()
    return OpenIndex(index, manifest)


def make(home, vectors, paths=None, language="python", parts=1) -> OpenIndex:
    """An index whose file n has the single chunk ``text n`` with vector n."""
    import pyarrow as pa

    rows = [Row(Chunk(f"k{n}", f"text {n}", 1, 1, None, language, 1), "space", np.asarray(v, np.float32)) for n, v in enumerate(vectors)]
    paths = paths or {f"f{n}.py": n for n in range(len(vectors))}

    def write(draft):
        folders = [draft.new_segment() for _ in range(parts)]
        for part, folder in enumerate(folders):
            with SegmentWriter(folder) as writer, pa.ipc.open_stream(packed(rows[part::parts])["chunks"]) as stream:
                writer.append(stream.read_all(), np.asarray(vectors[part::parts], np.float32))
                writer.finish()
        write_files(draft.version / FILES, (FileRow(p, f"k{n}", language, 0, 0, 0, 0) for p, n in paths.items()))
        write_lexicon(draft.version / LEXICAL, None, None, read_table(draft.version / FILES), [Segment(folder) for folder in folders])
        return Manifest(uuid.uuid4().hex, (), "fake", "digest-1", len(vectors[0]), None, 1, chunks=len(rows))

    Index(home, "x").publish(write)
    return opened(home)


def test_a_text_finds_itself_with_its_lines(ingest, tree, home):
    ingest(tree({"a.py": "first\nline\n\nsecond one", "b/c.md": "third"}))
    [answer] = Searcher(opened(home), FakeEncoder()).search([Query("second one")], 2)
    assert list(answer) == ["index", "took_ms", "hits"]
    best, other = answer["hits"]
    score = best.pop("score")
    assert best == {"path": "a.py", "start_line": 4, "end_line": 4, "text": "second one", "symbol": None, "language": "python", "kind": None, "scope": None}
    assert score > other["score"]


def test_queries_keep_their_ids_and_order(ingest, tree, home):
    ingest(tree({"a.py": "one", "b.py": "two"}))
    answers = list(Searcher(opened(home), FakeEncoder()).search([Query("two", 7), Query("one", "q")], 1))
    assert [(a["id"], a["hits"][0]["path"]) for a in answers] == [(7, "b.py"), ("q", "a.py")]


def test_filters_by_path_and_language(ingest, tree, home):
    ingest(tree({"src/a.py": "one", "src/deep/b.py": "two", "docs/c.md": "three", "src/d.go": "four"}))
    searcher = Searcher(opened(home), FakeEncoder())

    def paths(**chosen):
        [answer] = searcher.search([Query("x")], 10, Filter(**chosen))
        return sorted(h["path"] for h in answer["hits"])

    assert paths() == ["docs/c.md", "src/a.py", "src/d.go", "src/deep/b.py"]
    assert paths(path="*.py") == ["src/a.py", "src/deep/b.py"]
    assert paths(path="/src/*.py") == ["src/a.py"]
    assert paths(path="src/") == ["src/a.py", "src/d.go", "src/deep/b.py"]
    assert paths(language="Python") == ["src/a.py", "src/deep/b.py"]
    assert paths(path="src/**", language="go") == ["src/d.go"]
    assert paths(path="none") == paths(language="cobol") == []


def test_copies_are_each_found_and_filtered(ingest, tree, home):
    ingest(tree({"b.py": "same", "a.py": "same", "sub/c.py": "same", "d.py": "other"}))
    searcher = Searcher(opened(home), FakeEncoder())
    [answer] = searcher.search([Query("same")], 2)
    assert [h["path"] for h in answer["hits"]] == ["a.py", "b.py"]
    [answer] = searcher.search([Query("same")], 2, Filter(path="sub/"))
    assert [h["path"] for h in answer["hits"]] == ["sub/c.py"]


def test_equal_scores_come_by_path(home):
    index = make(home, [[1.0, 0.0]] * 300, {f"f{299 - n:03d}.py": n for n in range(300)})
    assert [h.path for h in index.nearest(np.array([1.0, 0.0], np.float32), 3)] == ["f000.py", "f001.py", "f002.py"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(any), min_size=1, max_size=60),
    k=st.integers(1, 70),
    seed=st.integers(0, 9),
    parts=st.integers(1, 4),
)
def test_search_is_exact_over_all_segments(home, rows, k, seed, parts):
    vectors = np.array(rows, np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = np.random.default_rng(seed).normal(size=2).astype(np.float32)
    index = make(home, vectors, parts=min(parts, len(vectors)))
    hits = [(p.path, p.score, index.chunk(p)["text"]) for p in index.nearest(query, k)]
    scores = np.round(np.einsum("ij,j->i", vectors.astype(np.float64), query.astype(np.float64)), 6)
    wanted = sorted(range(len(rows)), key=lambda n: (-scores[n], f"f{n}.py"))[:k]
    assert hits == [(f"f{n}.py", scores[n], f"text {n}") for n in wanted]


def test_more_hits_than_chunks_are_asked_for(home):
    assert len(make(home, [[1.0, 0.0], [0.0, 1.0]]).nearest(np.array([1.0, 0.0], np.float32), 50)) == 2


def test_an_open_index_outlives_its_removal(ingest, tree, home):
    ingest(tree({"a.py": "one"}))
    searcher = Searcher(opened(home), FakeEncoder())
    Index(home, "x").remove()
    [answer] = searcher.search([Query("one")], 1)
    assert answer["hits"][0]["text"] == "one"


def test_a_bad_glob_is_told():
    with pytest.raises(BadValue, match="--path"):
        path_filter("!")


def test_an_unknown_index_is_not_found(home):
    with pytest.raises(NoSuchIndex):
        open_searcher(home, "none")


def test_a_model_that_changed_since_is_refused(ingest, tree, home, monkeypatch):
    ingest(tree({"a.py": "one"}))
    other = FakeEncoder()
    monkeypatch.setattr(module, "_encoder", lambda *_: other)
    assert open_searcher(home, "x").encoder is other
    object.__setattr__(other.files, "digest", "digest-9")
    with pytest.raises(ModelUnavailable, match="submit the tree again"):
        open_searcher(home, "x")


def test_a_model_that_is_loaded_already_is_used_where_it_made_the_index(ingest, tree, home, monkeypatch):
    ingest(tree({"a.py": "one"}))
    fresh, right = FakeEncoder(), FakeEncoder()
    others = [FakeEncoder(files=replace(fresh.files, digest="digest-2")), FakeEncoder(files=replace(fresh.files, name="other")), FakeEncoder(dimension=8)]
    monkeypatch.setattr(module, "_encoder", lambda *_: fresh)
    assert open_searcher(home, "x", loaded=[*others, right]).encoder is right
    assert open_searcher(home, "x", loaded=others).encoder is fresh


def test_one_filter_after_another(ingest, tree, home):
    ingest(tree({"a.py": "one", "b.md": "one"}))
    index, query = opened(home), FakeEncoder().encode_queries(["one"])[0]
    for chosen, paths in ((Filter(), 2), (Filter("*.py"), 1), (Filter("*.py"), 1), (Filter("*.none"), 0), (Filter(None, "markdown"), 1), (Filter(), 2)):
        assert len(index.nearest(query, 5, chosen)) == paths


KINDS_OF = st.sampled_from(["function", "class", None])
CHOSEN = st.tuples(st.sampled_from([None, "*.py", "sub/"]), st.sampled_from([None, "python", "go"]), st.sets(st.sampled_from(["function", "class", "enum"]), max_size=2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(KINDS_OF, min_size=1, max_size=6), min_size=1, max_size=8), CHOSEN, st.integers(1, 6), st.integers(1, 3))
def test_a_filter_never_gives_fewer_hits_than_there_are(home, files, chosen, k, parts):
    made = of_kinds(home, files, parts)
    path, language, kinds = chosen
    matching = {
        (p, n)
        for number, file in enumerate(files)
        for p in [path_of(number)]
        for n, kind in enumerate(file)
        if (path is None or path_filter(path)(p)) and (language is None or language == language_of_file(number)) and (not kinds or kind in kinds)
    }
    chosen = Filter(path, language, tuple(sorted(kinds)))
    everywhere = [made.nearest(np.ones(4, np.float32) / 2, count, chosen) for count in (k, 100)]
    everywhere += [made.worded("word", count, chosen) for count in (k, 100)]
    for found, count in zip(everywhere, (k, 100, k, 100), strict=True):
        places = {(place.path, made.candidate(place, dense=None, lexical=None).ordinal) for place in found}
        assert len(places) == len(found) == min(count, len(matching))
        assert places <= matching


def path_of(number):
    return f"{'sub/' if number % 3 == 0 else ''}f{number}.{'py' if number % 2 else 'go'}"


def language_of_file(number):
    return "python" if number % 2 else "go"


def of_kinds(home, files, parts):
    """An index whose file n has a chunk of each of the kinds ``files[n]``, all with the same words and vector."""

    def write(draft):
        rows = [
            [Row(Chunk(f"k{n}", f"word {n} {m}", 1 + m, 1 + m, kind and "s", language_of_file(n), 1, kind), "space", np.full(4, 0.5, np.float32)) for m, kind in enumerate(file)]
            for n, file in enumerate(files)
        ]
        folders = []
        for part in range(min(parts, len(files))):
            import pyarrow as pa

            folders.append(draft.new_segment())
            mine = [row for file in rows[part :: min(parts, len(files))] for row in file]
            with SegmentWriter(folders[-1]) as writer, pa.ipc.open_stream(packed(mine)["chunks"]) as stream:
                writer.append(stream.read_all(), np.stack([row.vector for row in mine]))
                writer.finish()
        write_files(draft.version / FILES, (FileRow(path_of(n), f"k{n}", language_of_file(n), 0, 0, 0, 0) for n in range(len(files))))
        write_lexicon(draft.version / LEXICAL, None, None, read_table(draft.version / FILES), [Segment(f) for f in folders])
        return Manifest(uuid.uuid4().hex, (), "fake", "digest-1", 4, None, 1, chunks=sum(map(len, files)))

    Index(home, "x").publish(write)
    return opened(home)


def test_a_kind_that_most_chunks_are_not_is_found_beyond_all_of_them(home):
    made = of_kinds(home, [["function"] * 300, ["function"] * 300 + ["enum"]], 1)
    for found in (made.nearest(np.ones(4, np.float32) / 2, 5, Filter(kinds=("enum",))), made.worded("word", 5, Filter(kinds=("enum",)))):
        assert [made.chunk(place)["kind"] for place in found] == ["enum"]
