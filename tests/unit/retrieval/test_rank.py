from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.rank import RULES, fuse
from dgpunet_dask.retrieval.signals import Candidate


def candidate(n, dense=None, lexical=None, *, path=None, text=None, symbol=None, ordinal=0):
    path = f"src/{n}.py" if path is None else path
    text = f"some = {n}  # a chunk that is long enough to say more than its name, as most of them are" if text is None else text
    return Candidate(f"key {n}", ordinal, path, 1 + 10 * ordinal, 9 + 10 * ordinal, symbol, None, None, "python", text, dense, lexical)


def order(ranked):
    return [r.candidate.key for r in ranked]


scores = st.one_of(st.none(), st.floats(-1, 1))
candidates = st.lists(
    st.builds(
        candidate,
        st.integers(0, 9),
        scores,
        st.one_of(st.none(), st.floats(0, 30)),
        path=st.sampled_from(["a.py", "tests/test_a.py", "b/c.go"]),
        text=st.sampled_from(["x", "def run(self):\n    return 1", "class Runner:" + " pass" * 40]),
        symbol=st.sampled_from([None, "run", "Runner.run"]),
        ordinal=st.integers(0, 2),
    ),
    max_size=20,
    unique_by=lambda c: (c.path, c.key, c.ordinal),
)
queries = st.sampled_from(["run", "Runner.run", "where does it run", "", "tests of run()"])
paths = st.lists(st.tuples(st.floats(0.1, 9), st.sampled_from(["a.py", "b/c.go"]), st.sampled_from(["key 1", "key 2"])), max_size=3)


@given(candidates, candidates, paths, queries)
def test_every_candidate_is_ranked_once_with_reasons_that_sum_to_its_score(dense, lexical, hits, query):
    ranked = fuse(dense, lexical, hits, query)
    places = [(r.candidate.path, r.candidate.key, r.candidate.ordinal) for r in ranked]
    assert len(places) == len(set(places))
    assert set(places) == {(c.path, c.key, c.ordinal) for c in [*dense, *lexical]}
    for one in ranked:
        assert sum(one.why.values()) == pytest.approx(one.score)
        assert all(one.why.values())
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)


@given(candidates, queries, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(found, query, chance: random.Random):
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert fuse(shuffled, (), (), query) == fuse(found, (), (), query) == fuse((), found, (), query)


def test_equal_candidates_are_in_the_order_of_path_and_line():
    found = [candidate(n, 0.5, 1.0, path=path, ordinal=o) for n, (path, o) in enumerate([("b.py", 0), ("a.py", 2), ("a.py", 0), ("a.py", 1)])]
    found = [c for c in found if c.path == "a.py"] + found[:1]
    ranked = fuse(found, (), (), "x")
    assert [(r.candidate.path, r.candidate.start_line) for r in ranked] == [("a.py", 1), ("a.py", 11), ("a.py", 21), ("b.py", 1)]


def test_a_candidate_of_both_lists_has_both_scores():
    [both, *_] = fuse([candidate(1, 0.9), candidate(2, 0.1)], [candidate(1, None, 5.0), candidate(3, None, 4.0)], (), "what is said")
    assert {"dense", "lexical"} <= set(both.why)
    assert (both.candidate.dense, both.candidate.lexical) == (0.9, 5.0)


def test_dense_alone_and_lexical_alone_keep_their_order():
    dense = [candidate(n, 0.9 - n / 10) for n in range(5)]
    lexical = [candidate(n, None, 9.0 - n) for n in range(5)]
    assert order(fuse(dense, (), (), "what is said")) == order(fuse((), lexical, (), "what is said")) == [f"key {n}" for n in range(5)]


def best_two(query, first, second, **scores_):
    ranked = fuse([candidate(1, 0.5, 5.0, **first), candidate(2, 0.5, 5.0, **second), candidate(3, 0.1, 0.1)], (), (), query)
    return order(ranked)[:2], ranked


@pytest.mark.parametrize(
    ("rule", "query", "better", "worse"),
    [
        ("defines", "run", {"symbol": "run", "text": "def run():\n" + "    x\n" * 40}, {"symbol": "walk", "text": "def walk():\n" + "    run()\n" * 40}),
        ("query in name", "read the header", {"symbol": "read_header"}, {"symbol": "skip_body"}),
        ("scope", "close the connection", {"symbol": "Connection.x"}, {"symbol": "Cursor.x"}),
        ("file stem", "close the connection", {"path": "src/connection.py"}, {"path": "src/cursor.py"}),
        ("definition", "what is done", {"symbol": "f", "text": "def f():" + " x" * 80}, {"symbol": "f", "text": "    y = 1" + " x" * 80}),
        ("stub", "what is done", {}, {"text": "def f(): ..."}),
        ("side path", "what is done", {"path": "src/y.py"}, {"path": "tests/a.py"}),
    ],
)
def test_each_rule_tells_two_otherwise_equal_candidates_apart(rule, query, better, worse):
    for first, second, wanted in ((better, worse, ["key 1", "key 2"]), (worse, better, ["key 2", "key 1"])):
        found, ranked = best_two(query, first, second)
        assert found == wanted
        assert any(rule in r.why for r in ranked)


def test_words_of_the_path_count():
    found = [candidate(1, 0.5, path="a/x.py"), candidate(2, 0.5, path="b/x.py"), candidate(3, 0.1)]
    assert order(fuse(found, (), [(3.0, "b/x.py", "key 2")], "what is done"))[0] == "key 2"


def test_a_file_with_two_good_chunks_comes_before_one_with_one():
    found = [candidate(1, 0.9, path="a.py"), candidate(2, 0.9, path="b.py"), candidate(3, 0.8, path="b.py", ordinal=1), candidate(4, 0.1)]
    assert order(fuse(found, (), (), "what is done"))[0] == "key 2"


def test_the_third_part_of_a_definition_is_lowered():
    parts = [Candidate("k", n, "a.py", 1 + n, 1 + n, "long", None, None, "python", "x" * 99, 0.9 - n / 100, None) for n in range(4)]
    ranked = fuse([*parts, candidate(9, 0.1)], (), (), "what is done")
    assert [("repeated" in r.why, r.candidate.ordinal) for r in ranked if r.candidate.path == "a.py"] == [(False, 0), (False, 1), (True, 2), (True, 3)]


def test_nothing_found_is_nothing_ranked():
    assert fuse((), (), (), "x") == []


def test_the_rules_have_names_and_reasons_of_their_own():
    assert len({r.name for r in RULES}) == len({r.reason for r in RULES}) == len(RULES)


@given(candidates, queries)
def test_what_neighbours_add_is_a_share_of_the_best_other_chunk_of_the_file(found, query):
    ranked = fuse(found, (), (), query)
    alone = [sum(part for name, part in one.why.items() if name not in ("sibling", "repeated")) for one in ranked]
    for n, one in enumerate(ranked):
        others = [score for m, score in enumerate(alone) if m != n and ranked[m].candidate.path == one.candidate.path]
        assert one.why.get("sibling", 0.0) == pytest.approx(0.15 * max([0.0, *others]))
