"""The forward pass of `bert` in numpy, for a handful of queries.

Importing torch takes seconds; a single query's forward pass takes milliseconds, so that a search from the shell does without.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from dgpunet_dask.retrieval.tokens import TextTokens, load_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dgpunet_dask.retrieval.modelfiles import ModelFiles

    Array = NDArray[np.float32]

#: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erf within 1.5e-7, the precision of float32.
_ERF: Final = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_P: Final = 0.3275911


class NumpyMinilm:
    """An encoder of the shipped model, one text at a time, in float32."""

    def __init__(self, files: ModelFiles, truncate_dim: int | None = None) -> None:
        self.files = files
        self.tokens: TextTokens = load_tokens(files.name, files)
        self.truncate_dim = truncate_dim
        self._bert = _Bert(files.folder)
        self.dimension = truncate_dim or int(self._bert.weights["embeddings.word_embeddings.weight"].shape[1])

    def encode_documents(self, texts: Sequence[str]) -> Array:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1."""
        return self._encode(texts, self.files.document_prompt)

    def encode_queries(self, texts: Sequence[str]) -> Array:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1, with the model's query prompt."""
        return self._encode(texts, self.files.query_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Array:
        vectors = [self._bert(ids).mean(0)[: self.truncate_dim] for ids in self.tokens.ids(texts, prompt)]
        found = np.stack(vectors) if vectors else np.empty((0, self.dimension), np.float32)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


class _Bert:
    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        config = json.loads((folder / "config.json").read_text("utf-8"))
        self.heads, self.layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self.epsilon = np.float32(config["layer_norm_eps"])
        self.weights = load_file(folder / "model.safetensors")

    def __call__(self, ids: Sequence[int]) -> Array:
        """Return the last hidden states ``(tokens, hidden)`` of one text."""
        table = self.weights
        hidden = table["embeddings.word_embeddings.weight"][list(ids)] + table["embeddings.position_embeddings.weight"][: len(ids)]
        hidden = self._norm("embeddings.LayerNorm", hidden + table["embeddings.token_type_embeddings.weight"][0])
        for layer in range(self.layers):
            hidden = self._block(f"encoder.layer.{layer}.", hidden)
        return hidden

    def _block(self, prefix: str, hidden: Array) -> Array:
        query, key, value = (self._split(f"{prefix}attention.self.{name}", hidden) for name in ("query", "key", "value"))
        weights = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        seen = (weights / weights.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(hidden.shape)
        hidden = self._norm(f"{prefix}attention.output.LayerNorm", hidden + self._linear(f"{prefix}attention.output.dense", seen))
        inner = _gelu(self._linear(f"{prefix}intermediate.dense", hidden))
        return self._norm(f"{prefix}output.LayerNorm", hidden + self._linear(f"{prefix}output.dense", inner))

    def _split(self, name: str, hidden: Array) -> Array:
        return self._linear(name, hidden).reshape(len(hidden), self.heads, -1).transpose(1, 0, 2)

    def _linear(self, name: str, values: Array) -> Array:
        # the weights first: the other way round BLAS copies all of them into another order for a few rows, which takes half the time
        product = (self.weights[f"{name}.weight"] @ values.T).T
        return np.asarray(np.ascontiguousarray(product) + self.weights[f"{name}.bias"], np.float32)

    def _norm(self, name: str, values: Array) -> Array:
        centred = values - values.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.epsilon)
        return np.asarray(scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"], np.float32)


def _gelu(values: Array) -> Array:
    scaled = np.abs(values) * np.float32(np.sqrt(0.5))
    step = 1 / (1 + np.float32(_ERF_P) * scaled)
    series = np.zeros_like(step)
    for factor in reversed(_ERF):
        series = (series + np.float32(factor)) * step
    erf = np.sign(values) * (1 - series * np.exp(-(scaled**2)))
    return np.asarray(values * 0.5 * (1 + erf), np.float32)
