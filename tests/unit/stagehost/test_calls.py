"""Batches keep to their budgets, and results come back in the order of their items."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.model.stage import Stage
from dgpunet_dask.stagehost.calls import listed, run_call, run_gather, source_units, token_batches, tokens_of
from dgpunet_dask.stagehost.frames import pack, packed_size, write_frames
from dgpunet_dask.stagehost.spec import StageCallSpec

lengths_of = st.lists(st.integers(1, 600), max_size=80)


def quiet():
    """Progress that nobody watches."""


class Recording(Stage):
    def __init__(self, give=lambda batch: [(item, "seen") for item in batch]):
        self.batches = []
        self.give = give

    def __call__(self, batch):
        self.batches.append(list(batch))
        return self.give(batch)


def spec(**limits):
    return StageCallSpec(stage="s", run="stages:S", digest="d", **limits)


@given(lengths_of, st.integers(1, 2000), st.none() | st.integers(1, 9))
def test_token_batches_cover_all_items_once_within_the_budget(lengths, budget, most):
    batches = list(token_batches(lengths, budget, most))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
        assert most is None or len(batch) <= most
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


@given(lengths_of, st.integers(1, 2000))
def test_no_two_neighbouring_batches_could_be_one(lengths, budget):
    batches = list(token_batches(lengths, budget))
    for one, next_one in pairwise(batches):
        assert lengths[one[0]] * (len(one) + 1) > budget
        assert lengths[next_one[0]] <= lengths[one[-1]]


@given(st.lists(st.text(max_size=30), max_size=40), st.integers(1, 100))
def test_results_of_token_batches_are_in_the_order_of_the_items(items, budget):
    assert run_call(Recording(), spec(batch_tokens=budget), items, quiet) == [(item, "seen") for item in items]


@given(st.lists(st.integers(), max_size=40), st.none() | st.integers(1, 7))
def test_item_batches_keep_the_order_and_may_give_any_number_of_results(items, most):
    stage = Recording(lambda batch: [x for x in batch for _ in range(2)])
    assert run_call(stage, spec(batch_items=most), items, quiet) == [x for x in items for _ in range(2)]
    assert [x for batch in stage.batches for x in batch] == items
    assert all(0 < len(batch) <= (most or len(items)) for batch in stage.batches)


def test_a_token_stage_that_loses_a_result_is_refused():
    with pytest.raises(ValueError, match="3 items gave 2 results"):
        run_call(Recording(lambda batch: batch[1:]), spec(batch_tokens=100), ["a", "b", "c"], quiet)


@pytest.mark.parametrize(
    ("item", "tokens"),
    [
        (SimpleNamespace(tokens=7), 7),
        (SimpleNamespace(tokens=[1, 2, 3]), 3),
        (SimpleNamespace(tokens=np.arange(4)), 4),
        ({"tokens": 9, "text": "x"}, 9),
        ({"text": "x"}, 1),
        ("four", 4),
        ([], 1),
        (17, 1),
        (SimpleNamespace(tokens=0), 1),
    ],
)
def test_tokens_of(item, tokens):
    assert tokens_of(item) == tokens


@pytest.mark.parametrize("returned", [None, "text", b"bytes", {"a": 1}, 5])
def test_what_is_no_collection_of_results_is_refused(returned):
    with pytest.raises(TypeError, match="return"):
        listed(returned, quiet)


def test_each_batch_and_each_yielded_result_is_progress():
    steps = []
    run_call(Recording(), spec(batch_items=2), [1, 2, 3], lambda: steps.append("batch"))
    assert steps == ["batch", "batch"]
    listed(iter("abc"), lambda: steps.append("item"))
    assert steps[2:] == ["item"] * 3


@given(st.lists(st.binary(max_size=200), max_size=40), st.integers(1, 6), st.integers(1, 1000))
def test_units_of_a_source_keep_to_both_limits_and_lose_nothing(items, most, nbytes):
    class Source(Stage):
        def __call__(self):
            yield from items

    units = list(source_units(Source(), most, nbytes, quiet))
    assert [item for unit in units for item in unit] == items
    for unit in units:
        assert 0 < len(unit) <= most
        assert len(unit) == 1 or sum(map(packed_size, unit)) <= nbytes


def test_a_full_unit_is_given_before_the_next_item_is_made():
    made = []

    class Source(Stage):
        def __call__(self):
            for i in range(10):
                made.append(i)
                yield i

    units = source_units(Source(), 3, 1000, quiet)
    assert next(units) == [0, 1, 2]
    assert made == [0, 1, 2]


def test_gather_reads_one_file_at_a_time_and_may_return_nothing(tmp_path):
    files = [str(tmp_path / name) for name in "ab"]
    write_frames(files[0], pack([1, 2]))
    seen = []

    class Gather(Stage):
        def __call__(self, items):
            for item in items:
                seen.append(item)
                if item == 2:
                    write_frames(files[1], pack([3]))

    assert run_gather(Gather(), files, quiet) == []
    assert seen == [1, 2, 3]
