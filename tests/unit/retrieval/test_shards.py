from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.exact import exact_scan, exact_scores
from dgpunet_dask.retrieval.scans import FP16, SCAN, Scan, write_scan
from dgpunet_dask.retrieval.segments import VECTORS, Segment
from dgpunet_dask.retrieval.shards import (
    Holder,
    Shard,
    Sizes,
    lacking,
    merged,
    placed,
    ranking,
    shards_of,
    shared_out,
    surplus,
    worth,
)
from dgpunet_dask.retrieval.spread import Source, Spreading, scanned
from tests.unit.retrieval.test_scans import segment, unit

DIMENSION = 4
EASY = Sizes(least_rows=0, shard_rows=10, core_rows=10**9)

scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=60)  # so few that many are equal
cuts = st.lists(st.integers(0, 60), max_size=6)


@st.composite
def holders(draw, least=1):
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=least, max_size=6, unique=True))
    return [Holder(name, draw(st.sampled_from(["h", "i", "j", "k"])), draw(st.integers(1, 16)), draw(st.integers(0, 4000))) for name in names]


shards = st.builds(lambda rows, size: shards_of("s", rows, DIMENSION, size), st.integers(0, 300), st.integers(1, 40))


@given(scores, cuts, st.integers(0, 70))
def test_what_is_merged_is_the_best_of_all(values, at, count):
    values = np.array(values, np.float32)
    bounds = [0, *sorted(min(cut, len(values)) for cut in at), len(values)]
    parts = []
    for first, last in pairwise(bounds):
        rows = np.arange(first, last)
        parts.append(merged([(values[first:last], rows)], count))  # each its own best, and some are empty
    wanted = sorted(range(len(values)), key=lambda row: (-values[row], row))[:count]
    found = merged(parts, count)
    assert found[1].tolist() == wanted
    assert found[0].tolist() == [values[row] for row in wanted]


@given(st.integers(0, 200), st.integers(1, 70))
def test_a_segment_is_cut_into_all_its_rows(rows, size):
    found = shards_of("s", rows, DIMENSION, size)
    assert [row for shard in found for row in range(shard.first, shard.first + shard.rows)] == list(range(rows))
    assert all(shard.rows == size for shard in found[:-1])
    assert len({shard.key for shard in found}) == len(found)


@given(st.lists(shards, max_size=3), holders())
def test_nobody_is_to_hold_more_than_it_may_and_none_twice(segments, workers):
    segments = [[replace(shard, segment=f"s{n}") for shard in one] for n, one in enumerate(segments)]
    found = placed(segments, workers, EASY)
    for worker in workers:
        assert sum(shard.size_bytes for shard, names in found.items() if worker.name in names) <= worker.room_bytes
    assert all(len(set(names)) == len(names) <= 2 for names in found.values())


@given(shards, holders())
def test_a_shard_is_left_out_only_where_there_is_no_room(all_of_it, workers):
    found = placed([all_of_it], workers, EASY)
    left = {w.name: w.room_bytes - sum(s.size_bytes for s, names in found.items() if w.name in names) for w in workers}
    assert not [shard for shard in all_of_it if not found.get(shard) and any(room >= shard.size_bytes for room in left.values())]


@given(shards, holders(least=2))
def test_copies_are_on_two_hosts_where_there_are_two(all_of_it, workers):
    found = placed([all_of_it], [replace(worker, room_bytes=10**9) for worker in workers], EASY)
    host = {worker.name: worker.host for worker in workers}
    hosts = min(2, len(set(host.values())))
    assert all(len(names) == 2 and len({host[name] for name in names}) == hosts for names in found.values())


@given(shards, holders(least=3), st.data())
def test_a_worker_that_goes_moves_its_own_shards_and_no_others(all_of_it, workers, data):
    workers = [replace(worker, room_bytes=10**9, host=worker.name) for worker in workers]
    gone = data.draw(st.sampled_from(workers))
    before, after = (placed([all_of_it], some, EASY) for some in (workers, [w for w in workers if w != gone]))
    for shard, names in before.items():
        assert set(names) - {gone.name} <= set(after[shard])
        if gone.name not in names:
            assert after[shard] == names


def test_those_with_more_cores_hold_more():
    workers = [Holder("a", "a", 1, 10**9), Holder("b", "b", 3, 10**9)]
    lead = [ranking(shard, workers)[0] for shard in shards_of("s", 4000, DIMENSION, 1)]
    assert 0.70 < lead.count("b") / len(lead) < 0.80


def test_what_is_not_worth_it_is_not_held():
    whole = shards_of("s", 1000, DIMENSION, 100)
    one, two = [Holder(name, name, 4, 10**9) for name in "ab"], [Holder("a", "a", 4, 10**9)]
    for sizes, wanted in ((Sizes(least_rows=1001), False), (Sizes(least_rows=1000), True), (Sizes(least_rows=1, core_rows=124), False)):
        assert bool(placed([whole], one, sizes)) is wanted
    assert not placed([whole], two, Sizes(least_rows=1, core_rows=249))
    assert placed([whole], two, Sizes(least_rows=1, core_rows=250))
    assert not placed([whole], [Holder("a", "a", 4, 0)], EASY)
    assert not placed([whole], [], EASY)


def test_the_head_scans_no_more_than_a_core_of_a_worker():
    whole = shards_of("s", 1000, DIMENSION, 100)
    held = dict.fromkeys(whole[:7], ("a",))
    assert worth(whole, held, {"a": 4}, Sizes(least_rows=1, core_rows=300))
    assert not worth(whole, held, {"a": 4}, Sizes(least_rows=1, core_rows=299))
    assert not worth(whole, {}, {"a": 4}, EASY)


def test_one_segment_takes_no_room_from_those_before_it():
    first, second = shards_of("s", 100, DIMENSION, 100), shards_of("t", 100, DIMENSION, 100)
    workers = [Holder(name, name, 4, 100 * DIMENSION * 2) for name in "ab"]
    assert placed([first, second], workers, EASY).keys() == set(first)
    too_large = Sizes(least_rows=1, core_rows=20)
    assert placed([shards_of("large", 1000, DIMENSION, 100), shards_of("s", 10, DIMENSION, 10)], workers, too_large).keys() == {Shard("s", 0, 10, DIMENSION)}


@given(shards, holders(), st.sets(st.sampled_from("abcdefgh")))
def test_each_shard_is_asked_of_one_who_holds_it_and_of_a_slow_one_only_where_there_is_no_other(all_of_it, workers, slow):
    held, cores = placed([all_of_it], workers, EASY), {worker.name: worker.cores for worker in workers}
    asked = [(shard, name) for name, part in shared_out(all_of_it, held, cores, slow).items() for shard in part]
    assert sorted(shard for shard, _ in asked) == sorted(shard for shard in all_of_it if held.get(shard))
    for shard, name in asked:
        assert name in held[shard]
        assert name not in slow or set(held[shard]) <= slow


def test_work_is_shared_out_by_cores():
    whole = shards_of("s", 120, DIMENSION, 10)
    asked = shared_out(whole, dict.fromkeys(whole, ("a", "b")), {"a": 2, "b": 1})
    assert {name: len(part) for name, part in asked.items()} == {"a": 8, "b": 4}


@given(shards, holders(), holders())
def test_loading_and_letting_go_end_at_what_is_wanted(all_of_it, before, after):
    held, wanted = placed([all_of_it], before, EASY), placed([all_of_it], after, EASY)
    there = {shard: names for shard in all_of_it if (names := tuple(n for n in held.get(shard, ()) if n in {w.name for w in after}))}
    room = {worker.name: worker.room_bytes for worker in after}
    full: set[str] = set()
    for _ in range(2 * len(all_of_it) * len(after) + 3):
        for name, shard in list(surplus(there, wanted, full)):
            there[shard] = tuple(n for n in there[shard] if n != name)
        full = set()
        for name, shard in lacking(there, wanted).items():
            taken = sum(s.size_bytes for s, names in there.items() if name in names)
            if taken + shard.size_bytes > room[name]:
                full.add(name)
            else:
                there[shard] = (*there.get(shard, ()), name)
    assert {shard: set(names) for shard, names in there.items() if names} == {shard: set(names) for shard, names in wanted.items()}


def test_a_copy_is_let_go_of_once_others_have_arrived():
    shard = Shard("s", 0, 1, DIMENSION)
    assert not list(surplus({shard: ("a",)}, {shard: ("b",)}, ()))
    assert list(surplus({shard: ("a", "b")}, {shard: ("b",)}, ())) == [("a", shard)]
    assert list(surplus({shard: ("a",)}, {shard: ("b",)}, {"a"})) == [("a", shard)]
    assert lacking({shard: ("a",)}, {shard: ("b",)}) == {"b": shard}


def test_what_nobody_holds_is_loaded_first():
    first, second = shards_of("s", 2, DIMENSION, 1)
    assert lacking({first: ("a",)}, {first: ("a", "b"), second: ("a", "b")}) == {"a": second, "b": second}


class Fixed:
    """A form of a segment that always finds the same, and counts."""

    fell_back = 3

    def nearest(self, vector, count):
        return np.array([7])


def spreading(folder, answer, own=None):
    mapped = Segment(folder).vectors
    source = Source("x", folder.name, "d", folder / VECTORS, mapped.offset, mapped.view(np.ndarray), exact_scan(folder / VECTORS))
    return Spreading(source, own, lambda vector, count: answer(source.vectors, vector, count))


def test_what_is_not_answered_is_scanned_here_and_all_is_found(tmp_path):
    folder = segment(tmp_path / "s", unit((3000, DIMENSION * 6)))
    cut = shards_of("d", 3000, DIMENSION * 6, 700)
    for answered in (cut, cut[1:3], ()):
        found = spreading(folder, lambda vectors, vector, k, who=answered: (cut, {s: scanned(vectors, s, vector, k) for s in who}))
        with (folder / SCAN).open("wb") as file:
            write_scan(file, found.source.vectors, FP16)
        whole = Scan(folder / SCAN, found.source.vectors, found.source.exact)
        for seed in range(10):
            vector = unit(DIMENSION * 6, seed)
            for count in (1, 50, 400, 900):
                a, b = (np.sort(exact_scores(found.source.vectors, rows, vector)) for rows in (found.nearest(vector, count), whole.nearest(vector, count)))
                np.testing.assert_allclose(a, b, atol=1e-6)
        assert found.fell_back == whole.fell_back > 0  # 900 are too many to be looked through first


def test_where_too_little_is_held_a_segment_is_asked_by_itself(tmp_path):
    folder = segment(tmp_path / "s", unit((3000, DIMENSION)))
    vector = unit(DIMENSION, 3)
    own = spreading(folder, lambda *_: None, Fixed())
    assert (own.nearest(vector, 1).tolist(), own.fell_back) == ([7], 3)
    alone = spreading(folder, lambda *_: None)
    assert alone.nearest(vector, 5).tolist() == alone.source.exact(vector, 5).tolist()


def test_a_range_is_scanned_up_to_its_end():
    vectors = unit((100, DIMENSION))
    found, rows = scanned(vectors, Shard("s", 90, 10, DIMENSION), vectors[95], 30)
    assert sorted(rows.tolist()) == list(range(90, 100))
    assert rows[0] == 95
    assert (np.diff(found) <= 0).all()
    assert [len(part) for part in scanned(vectors, Shard("s", 90, 0, DIMENSION), vectors[95], 30)] == [0, 0]
