from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.compaction import SEGMENTS_MAX, Held, along, due

SEGMENTS = st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)).map(lambda f: Held(f[0], round(f[0] * f[1]))), max_size=SEGMENTS_MAX)


@given(SEGMENTS, st.integers(0, 10**6))
def test_what_is_merged_along_is_there_and_in_order(segments, new):
    taken = along(segments, new)
    assert taken == sorted(set(taken))
    assert set(taken) <= set(range(len(segments)))
    assert all(n in taken for n, held in enumerate(segments) if held.live == 0)
    rows = new + sum(segments[n].live for n in taken)
    assert len(segments) - len(taken) + (1 if rows else 0) <= SEGMENTS_MAX


@given(SEGMENTS)
def test_a_publication_without_rows_copies_only_what_is_mostly_passed_over(segments):
    whole = [Held(held.rows, held.rows) for held in segments]
    assert along(whole, 0) == []


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=400))
def test_each_row_is_copied_about_as_often_as_its_number_has_digits(sizes):
    segments, copied = [], 0
    for new in sizes:
        taken = along(segments, new)
        merged = sum(segments[n].live for n in taken)
        copied += merged
        segments = [held for n, held in enumerate(segments) if n not in taken] + [Held(new + merged, new + merged)]
    total = sum(sizes)
    assert sum(held.rows for held in segments) == total
    assert len(segments) <= SEGMENTS_MAX
    # a small segment is rewritten by each publication until it has 1,024 rows; above that the sizes grow by half at least
    assert copied <= 1024 * len(sizes) + total * (2 + math.log(total, 1.5))


@given(SEGMENTS)
def test_what_is_due_is_what_wastes_room(segments):
    assert due(segments) == [n for n, held in enumerate(segments) if held.live < held.rows * 0.7]
    everything = due(segments, all_of_them=True)
    assert everything in ([], list(range(len(segments))))
    assert bool(everything) == (len(segments) > 1 or any(held.live < held.rows for held in segments))
