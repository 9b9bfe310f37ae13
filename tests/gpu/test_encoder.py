"""Encoders on a real card: every engine gives what float32 gives, memory that does not suffice costs no vector, plans are not made anew."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from dgpunet_dask.retrieval.batching import TokenBatch
from dgpunet_dask.retrieval.bertfiles import bert_files
from dgpunet_dask.retrieval.encoder import EngineEncoder, load_encoder
from dgpunet_dask.retrieval.selfcheck import probes, trial
from dgpunet_dask.retrieval.torch_engine import BertEngine, packed_attention
from tests.contract.retrieval.test_encoder import tiny
from tests.unit.retrieval.tinybert import tiny_bert, vectors_of

DEVICE = "cuda:0"


def engine(folder: Path, precision: str, *, packed: bool = False) -> BertEngine:
    files = bert_files(folder)
    assert files is not None
    attention = packed_attention(DEVICE) if packed else None
    assert packed == (attention is not None), "this card, or this torch, has no attention without padding"
    return BertEngine(files, DEVICE, precision, attention)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("precision", "packed"), [("fp32", False), ("fp16", False), ("bf16", False), ("fp16", True), ("bf16", True)])
def test_every_engine_gives_what_float32_gives(tmp_path, pooling, precision, packed):
    folder = tiny_bert(tmp_path / "model", pooling)
    files = bert_files(folder)
    assert files is not None
    exact = vectors_of(BertEngine(files, "cpu", "fp32"), 1)
    for size in (1, 3, 8):
        assert (vectors_of(engine(folder, precision, packed=packed), size) * exact).sum(1).min() >= (0.999999 if precision == "fp32" else 0.99)


def test_the_self_check_serves_a_card(tmp_path):
    folder, texts = tiny(tmp_path), probes()
    found, exact = load_encoder(str(folder), DEVICE, cache=tmp_path / "cache"), load_encoder(str(folder), "cpu", precision="fp32")
    assert isinstance(found, EngineEncoder)
    assert (found.encode_documents(texts) * exact.encode_documents(texts)).sum(1).min() >= 0.998
    assert len(list((tmp_path / "cache/engines").iterdir())) == 1
    print(found.engine.name, found.engine.precision)


def test_memory_that_does_not_suffice_costs_no_vector(tmp_path):
    import torch

    encoder = load_encoder(str(tiny(tmp_path)), DEVICE, precision="fp32")
    assert isinstance(encoder, EngineEncoder)
    texts = list(trial(on_card=True).timed) * 8
    wanted = encoder.encode_documents(texts)
    encoder.budget.tokens = 1 << 24  # all of them at once
    total, free = torch.cuda.get_device_properties(DEVICE).total_memory, torch.cuda.memory_reserved(DEVICE)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (free / 4 + (64 << 20)) / total), DEVICE)
    try:
        found = encoder.encode_documents(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert encoder.budget.tokens < 1 << 20
    assert (found * wanted).sum(1).min() >= 0.9999


@pytest.mark.parametrize("packed", [False, True])
def test_a_new_shape_of_a_batch_costs_no_plan(tmp_path, packed):
    """cuDNN's attention needs 48 ms of the host for each shape that it has not seen; a hundred of them would take 5 s here."""
    made = engine(tiny_bert(tmp_path / "model"), "bf16", packed=packed)
    shapes = [TokenBatch(list(range(n)), [[1] * (8 + n % 40)] * n, [""] * n) for n in range(1, 201)]
    list(made.pooled(shapes[:1]))
    began = time.perf_counter()
    rows = [len(rows) for rows, pooled in made.pooled(shapes[1:]) if np.isfinite(pooled).all()]
    assert rows == list(range(2, 201))
    assert time.perf_counter() - began < 5
