"""Batches: nothing lost, nothing over its budget, and smaller ones after a lack of memory."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.batching import Budget, batches, lacks_memory, packed, padded, shared_budget, windows

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
IDS = st.lists(st.lists(st.integers(1, 30_000), min_size=1, max_size=40), min_size=1, max_size=20)


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_each_input_is_in_one_batch_and_each_batch_within_its_budget(lengths, budget):
    found = list(batches(lengths, budget))
    assert sorted(n for batch in found for n in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[n] for n in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert len(batch) == 1 or sizes[0] * len(batch) <= budget


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), budget=st.integers(60, 400))
def test_no_other_cuts_cost_less(lengths, budget):
    ordered = sorted(lengths, reverse=True)
    places = range(1, len(ordered))
    every = (cuts for count in range(len(ordered)) for cuts in combinations(places, count))
    parts = ([ordered[a:b] for a, b in pairwise((0, *cuts, len(ordered)))] for cuts in every)
    least = min(cost(cut, budget) for cut in parts if all(batch[0] * len(batch) <= budget for batch in cut))
    assert cost([[lengths[n] for n in batch] for batch in batches(lengths, budget)], budget) == pytest.approx(least)


def cost(cut: list[list[int]], budget: int) -> float:
    return sum(max(batch) * len(batch) + budget / 64 for batch in cut)


def test_inputs_of_one_length_fill_their_batches():
    assert [len(batch) for batch in batches([100] * 25, 1000)] == [10, 10, 5]


@given(lengths=LENGTHS, budget=st.integers(1, 5000), parallel=st.integers(1, 64))
def test_batches_that_run_at_once_are_never_larger_and_enough_for_all(lengths, budget, parallel):
    found = shared_budget(lengths, budget, parallel)
    assert min(budget, 256) <= found <= budget
    assert found in {budget, 256} or sum(lengths) >= found * parallel * 3


@given(texts=st.lists(st.text(max_size=30), max_size=30), characters=st.integers(1, 100))
def test_windows_are_all_texts_in_order(texts, characters):
    found = list(windows(texts, characters))
    assert [n for span in found for n in span] == list(range(len(texts)))
    assert all(len(span) == 1 or sum(len(texts[n]) for n in span) <= characters for span in found)


@given(ids=IDS)
def test_padding_and_packing_keep_each_token_at_its_place(ids):
    filled, lengths = padded(ids)
    row, bounds = packed(ids)
    assert filled.dtype == row.dtype == lengths.dtype == bounds.dtype == np.int32
    assert [line[:size].tolist() for line, size in zip(filled, lengths, strict=True)] == ids
    assert not np.any(filled[np.arange(filled.shape[1])[None, :] >= lengths[:, None]])
    assert [row[a:b].tolist() for a, b in pairwise(bounds)] == ids


@given(lengths=LENGTHS, tokens=st.integers(1, 5000))
def test_halving_always_comes_to_single_inputs_and_then_says_so(lengths, tokens):
    budget = Budget(tokens)
    for _ in range(40):
        before = [len(batch) for batch in batches(lengths, budget.tokens)]
        size = budget.tokens
        if not budget.halve(lengths):
            assert budget.tokens == size
            assert max(before, default=1) == 1
            break
        assert 1 <= budget.tokens <= size / 2
    else:
        pytest.fail("it never came to an end")


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_faults(error, lacks):
    assert lacks_memory(error) is lacks
