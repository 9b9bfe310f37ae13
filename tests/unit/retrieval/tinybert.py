"""A random BERT encoder of two small layers, made without a model library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dgpunet_dask.retrieval.batching import TokenBatch

HIDDEN, HEADS, LAYERS, FORWARD, WORDS, POSITIONS = 32, 4, 2, 64, 90, 48


@dataclass
class Tokens:
    """A tokenizer whose tokens are letters, between two special ones."""

    special: int = 2

    def ids(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        return [[1, *(3 + ord(c) % (WORDS - 3) for c in (prompt + text)[: POSITIONS - 2]), 2] for text in texts]


def tiny_bert(folder: Path, pooling: str = "mean", prefix: str = "", **config: object) -> Path:
    """Save one as a sentence-transformers folder."""
    random = np.random.default_rng(7)

    def numbers(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": numbers(WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": numbers(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": numbers(2, HIDDEN),
        "embeddings.position_ids": np.arange(POSITIONS),
    }
    linear = {"attention.self.query": (HIDDEN, HIDDEN), "attention.self.key": (HIDDEN, HIDDEN), "attention.self.value": (HIDDEN, HIDDEN)}
    linear |= {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (FORWARD, HIDDEN), "output.dense": (HIDDEN, FORWARD)}
    names = [(f"encoder.layer.{n}.{name}", shape) for n in range(LAYERS) for name, shape in linear.items()]
    norms = [f"encoder.layer.{n}.{name}.LayerNorm" for n in range(LAYERS) for name in ("attention.output", "output")]
    for name, shape in names:
        weights |= {f"{name}.weight": numbers(*shape), f"{name}.bias": numbers(shape[0])}
    for name in ("embeddings.LayerNorm", *norms):
        weights |= {f"{name}.weight": 1 + numbers(HIDDEN) / 4, f"{name}.bias": numbers(HIDDEN)}
    (folder / "1_Pooling").mkdir(parents=True)
    save_file({prefix + name: value for name, value in weights.items()}, folder / "model.safetensors")
    stated = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    stated |= {"intermediate_size": FORWARD, "layer_norm_eps": 1e-12, "max_position_embeddings": POSITIONS}
    (folder / "config.json").write_text(json.dumps(stated | config))
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return folder


def token_batches(size: int = 4) -> Iterator[TokenBatch]:
    """Yield batches of inputs of different lengths."""
    random = np.random.default_rng(3)
    ids = sorted(([int(t) for t in random.integers(0, WORDS, length)] for length in (1, 2, 5, 9, 9, 17, 30, POSITIONS)), key=len, reverse=True)
    for start in range(0, len(ids), size):
        rows = list(range(start, min(start + size, len(ids))))
        yield TokenBatch(rows, [ids[n] for n in rows], ["" for _ in rows])


def vectors_of(engine: object, size: int = 4) -> np.ndarray:
    """Return the normalised vectors of all of them, in order."""
    found = {row: vector for rows, pooled in engine.pooled(token_batches(size)) for row, vector in zip(rows, pooled, strict=True)}  # type: ignore[attr-defined]
    stacked = np.stack([found[row] for row in sorted(found)])
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
