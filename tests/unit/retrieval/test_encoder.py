"""The loop around an engine: rows in their places, tokenised ahead, and smaller batches where memory does not suffice."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.batching import Budget, TokenBatch
from dgpunet_dask.retrieval.encoder import EngineEncoder, normalised
from dgpunet_dask.retrieval.modelfiles import ModelFiles

FILES = ModelFiles("fake", Path(), "digest", 64, query_prompt="q", document_prompt="")


class Letters:
    """A tokenizer whose tokens are letters."""

    def __init__(self) -> None:
        self.calls = 0

    def ids(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        self.calls += 1
        return [[ord(c) for c in prompt + text] for text in texts]


class Engine:
    """Vectors that tell what they were made of; batches above `room` padded tokens fail, each time. It takes `ahead` more before it yields one."""

    name, precision, dimension, batch_tokens, parallel = "fake", "fp32", 3, 64, 1

    def __init__(self, room: int = 1 << 30, error: Exception | None = None, ahead: int = 0) -> None:
        self.room = room
        self.ahead = ahead
        self.error = error or MemoryError("out of memory")
        self.sizes: list[int] = []
        self.rows: list[int] = []

    def pooled(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[list[int], np.ndarray]]:
        taken: deque[TokenBatch] = deque()
        for batch in batches:
            size = max(map(len, batch.ids)) * len(batch.ids)
            if size > self.room:
                raise self.error
            self.sizes.append(size)
            taken.append(batch)
            if len(taken) > self.ahead:
                yield self._done(taken.popleft())
        while taken:
            yield self._done(taken.popleft())

    def _done(self, batch: TokenBatch) -> tuple[list[int], np.ndarray]:
        self.rows += batch.rows
        return batch.rows, np.array([[len(i), sum(i), 1.0] for i in batch.ids], np.float32)


TEXTS = [chr(97 + n % 26) * (1 + n * 7 % 20) for n in range(50)]


def wanted(prompt: str = "") -> np.ndarray:
    return normalised(np.array([[len(prompt + t), sum(map(ord, prompt + t)), 1.0] for t in TEXTS], np.float32))


def encoder(engine: Engine, tokens: int = 64, remember=lambda _: None, truncate_dim: int | None = None, window: int = 1) -> EngineEncoder:
    return EngineEncoder(FILES, Letters(), engine, truncate_dim, Budget(tokens), remember, window)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 64, 10_000])
def test_each_text_has_its_vector_however_it_is_cut(tokens):
    made = encoder(Engine(), tokens)
    assert np.array_equal(made.encode_documents(TEXTS), wanted())
    assert np.array_equal(made.encode_queries(TEXTS), wanted("q"))
    assert made.tokens.calls >= 2  # type: ignore[attr-defined]


@given(room=st.integers(20, 400), tokens=st.integers(1, 4000), ahead=st.integers(0, 5), window=st.sampled_from([1, 200, 1 << 16]))
def test_what_an_engine_had_taken_when_memory_failed_is_done_once(room, tokens, ahead, window):
    engine = Engine(room=room, ahead=ahead)
    assert np.array_equal(encoder(engine, tokens, window=window).encode_documents(TEXTS), wanted())
    assert sorted(engine.rows) == list(range(len(TEXTS)))
    assert max(engine.sizes) <= room


def test_texts_are_sorted_among_many_so_that_batches_hold_little_padding():
    texts = ["x" * (1 + n * 37 % 256) for n in range(4000)]
    engine = Engine()
    made = EngineEncoder(FILES, Letters(), engine, budget=Budget(1024))  # type: ignore[arg-type]
    made.encode_documents(texts)
    assert sum(map(len, texts)) <= sum(engine.sizes) <= 1.03 * sum(map(len, texts))
    assert made.tokens.calls > 1, "and yet cut into windows"  # type: ignore[attr-defined]


def test_no_text_gives_no_vector():
    assert encoder(Engine()).encode_documents([]).shape == (0, 3)


def test_a_truncated_vector_is_normalised_after_it_was_cut():
    found = encoder(Engine(), truncate_dim=2).encode_documents(TEXTS)
    assert found.shape == (len(TEXTS), 2)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0)


def test_where_memory_does_not_suffice_batches_are_halved_once_and_for_all(caplog):
    kept: list[int] = []
    engine = Engine(room=100)
    made = encoder(engine, tokens=1000, remember=kept.append)
    assert np.array_equal(made.encode_documents(TEXTS), wanted())
    assert kept[-1] == made.budget.tokens <= 100
    assert kept == sorted(kept, reverse=True)
    assert sorted(engine.rows) == list(range(len(TEXTS)))  # what was done before a failure is not done again
    assert "memory did not suffice on fake" in caplog.text
    told = len(kept)
    assert np.array_equal(made.encode_documents(TEXTS), wanted())
    assert len(kept) == told


def test_a_single_text_that_does_not_fit_fails_as_the_engine_said():
    with pytest.raises(MemoryError, match="out of memory"):
        encoder(Engine(room=10)).encode_documents(TEXTS)


def test_another_fault_is_no_lack_of_memory(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(RuntimeError, match="shapes"):
        encoder(Engine(room=50, error=RuntimeError("shapes do not match"))).encode_documents(TEXTS)
    assert not caplog.records


def test_a_vector_of_zeros_stays_one():
    assert np.array_equal(normalised(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))
