"""The forward pass of a BERT encoder in plain torch (Devlin et al. 2018, as in transformers' `BertModel`).

`minilm` needs no more of a model library than this, and starting without one saves seconds in each process. Weights are those
of the model's safetensors file; query, key and value projections are joined into one product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgpunet_dask.retrieval.bertfiles import BertFiles, bare_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    #: Query, key and value ``(tokens, heads, size)`` of packed inputs, their bounds ``(inputs + 1,)`` and the longest's length, to what is seen.
    PackedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


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
        from torch.nn.functional import scaled_dot_product_attention

        batch, length = ids.shape
        attend = None if mask is None else mask[:, None, None, :]

        def seen(qkv: Tensor) -> Tensor:
            query, key, value = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            return scaled_dot_product_attention(query, key, value, attn_mask=attend).transpose(1, 2).reshape(batch, length, -1)

        return self._blocks(self.words[ids] + self.positions[:length], seen)

    def packed(self, ids: Tensor, positions: Tensor, bounds: Tensor, longest: int, attention: PackedAttention) -> Tensor:
        """Return the last hidden states ``(tokens, hidden)`` of inputs that stand one after another, without padding.

        Parameters
        ----------
        ids, positions
            ``(tokens,)``: each token, and its place within its own input.
        bounds, longest
            Where each input begins, with the end, and how many tokens the longest has.
        attention
            Each token sees its own input's tokens.
        """

        def seen(qkv: Tensor) -> Tensor:
            query, key, value = qkv.view(len(ids), 3, self.heads, -1).unbind(1)
            return attention(query, key, value, bounds, longest).reshape(len(ids), -1)

        return self._blocks(self.words[ids] + self.positions[positions], seen)

    def _blocks(self, hidden: Tensor, seen: Callable[[Tensor], Tensor]) -> Tensor:
        from torch.nn.functional import layer_norm

        hidden = layer_norm(hidden, hidden.shape[-1:], *self.norm, self.epsilon)
        for layer in self.layers:
            hidden = self._block(layer, hidden, seen)
        return hidden

    def _block(self, layer: _Layer, hidden: Tensor, seen: Callable[[Tensor], Tensor]) -> Tensor:
        from torch.nn.functional import gelu, layer_norm, linear

        width = hidden.shape[-1:]
        hidden = layer_norm(hidden + linear(seen(linear(hidden, *layer.qkv)), *layer.out), width, *layer.out_norm, self.epsilon)
        return layer_norm(hidden + linear(gelu(linear(hidden, *layer.up)), *layer.down), width, *layer.down_norm, self.epsilon)


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


def load_bert(files: BertFiles, torch_device: str, dtype: torch.dtype) -> Bert:
    """Load the weights of `files` onto a device."""
    from safetensors.torch import load_file

    weights = {k: w.to(torch_device, dtype) for k, w in bare_names(load_file(files.weights)).items() if w.is_floating_point()}
    return Bert(weights, files.heads, files.layers, files.epsilon)
