"""The forward pass of a BERT encoder in plain torch (Devlin et al. 2018, as in transformers' `BertModel`).

`minilm` needs no more of a model library than this, and starting without one saves seconds in each process. Weights are those
of the model's safetensors file; query, key and value projections are joined into one product.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class _Layer:
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    out_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    down_norm: tuple[Tensor, Tensor]


class Bert:
    """A loaded encoder. Called with token ids and mask ``(batch, length)``, it returns ``(batch, length, hidden)``."""

    def __init__(self, weights: dict[str, Tensor], heads: int, layers: int, epsilon: float) -> None:
        self.heads = heads
        self.epsilon = epsilon
        self.words = weights["embeddings.word_embeddings.weight"]
        # token type 0 throughout: its row is added to the positions once
        self.positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        self.norm = _pair(weights, "embeddings.LayerNorm")
        self.layers = [_layer(weights, f"encoder.layer.{n}.") for n in range(layers)]

    def __call__(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Return the last hidden states; `mask` is true at real tokens, ``None`` where all are."""
        from torch.nn.functional import layer_norm

        hidden = self.words[ids] + self.positions[: ids.shape[1]]
        hidden = layer_norm(hidden, hidden.shape[-1:], *self.norm, self.epsilon)
        attend = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            hidden = self._block(layer, hidden, attend)
        return hidden

    def _block(self, layer: _Layer, hidden: Tensor, attend: Tensor | None) -> Tensor:
        from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

        batch, length, width = hidden.shape
        query, key, value = (
            linear(hidden, *layer.qkv).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        seen = scaled_dot_product_attention(query, key, value, attn_mask=attend).transpose(1, 2).reshape(batch, length, width)
        hidden = layer_norm(hidden + linear(seen, *layer.out), (width,), *layer.out_norm, self.epsilon)
        return layer_norm(hidden + linear(gelu(linear(hidden, *layer.up)), *layer.down), (width,), *layer.down_norm, self.epsilon)


def _pair(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer(weights: dict[str, Tensor], prefix: str) -> _Layer:
    import torch

    parts = [_pair(weights, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
    return _Layer(
        qkv=(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])),
        out=_pair(weights, f"{prefix}attention.output.dense"),
        out_norm=_pair(weights, f"{prefix}attention.output.LayerNorm"),
        up=_pair(weights, f"{prefix}intermediate.dense"),
        down=_pair(weights, f"{prefix}output.dense"),
        down_norm=_pair(weights, f"{prefix}output.LayerNorm"),
    )


def load_bert(folder: Path, torch_device: str, dtype: torch.dtype) -> Bert:
    """Load ``config.json`` and ``model.safetensors`` of `folder`."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights = {k: w.to(torch_device, dtype) for k, w in load_file(folder / "model.safetensors").items() if w.is_floating_point()}
    return Bert(weights, config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"])
