"""Which sentence-transformers folders are a plain BERT encoder, told from their files: such a model needs no model library at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dgpunet_dask.retrieval.modelfiles import transformer_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pooling = Literal["mean", "cls"]

#: Modules that change nothing of a normalised vector, beside the two that make it.
_TRANSFORMER: Final = "Transformer"
_POOLING: Final = "Pooling"
_HARMLESS: Final = frozenset(("Normalize",))
_POOLINGS: Final[dict[str, Pooling]] = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}
#: Prefixes of weights, by what saved them.
_PREFIXES: Final = ("bert.", "")


@dataclass(frozen=True)
class BertFiles:
    """A BERT encoder on disk (Devlin et al. 2018, as in transformers' `BertModel`).

    Parameters
    ----------
    folder
        Where ``config.json`` and ``model.safetensors`` are.
    hidden, heads, layers, epsilon
        Its shape.
    pooling
        What of the last hidden states is the vector: their mean over real tokens, or the first.
    """

    folder: Path
    hidden: int
    heads: int
    layers: int
    epsilon: float
    pooling: Pooling

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / "model.safetensors"


def bert_files(folder: Path) -> BertFiles | None:
    """Return the plain BERT encoder in `folder`; ``None`` for any other model, which its own modules must run."""
    try:
        pooling = _pooling(folder)
        inner = transformer_folder(folder)
        config = json.loads((inner / "config.json").read_text("utf-8"))
        stated = json.loads(file.read_text("utf-8")) if (file := inner / "sentence_bert_config.json").is_file() else {}
        short = (stated.get("max_seq_length") or 0) <= config["max_position_embeddings"]
        if pooling is None or not _is_plain(config) or stated.get("do_lower_case") or not short:
            return None
        if not (inner / "model.safetensors").is_file():
            return None
        return BertFiles(
            inner, int(config["hidden_size"]), int(config["num_attention_heads"]), int(config["num_hidden_layers"]),
            float(config["layer_norm_eps"]), pooling,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whoever loads it as any other model says what is wrong with it


def _is_plain(config: dict[str, Any]) -> bool:
    plain = config.get("model_type") == "bert" and config.get("hidden_act") == "gelu" and not config.get("is_decoder")
    return plain and config.get("position_embedding_type", "absolute") == "absolute" and not config.get("quantization_config")


def _pooling(folder: Path) -> Pooling | None:
    """Return how `folder` pools; ``None`` where it has modules that are not known here, or pools otherwise."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    kinds = [_kind(str(m["type"])) for m in modules]
    if kinds[:2] != [_TRANSFORMER, _POOLING] or not set(kinds[2:]) <= _HARMLESS:
        return None
    found = json.loads((folder / modules[1]["path"] / "config.json").read_text("utf-8"))
    if not found.get("include_prompt", True):
        return None
    stated = found.get("pooling_mode")  # older versions wrote a switch for each
    modes = [stated] if stated else [k.removeprefix("pooling_mode_") for k, on in found.items() if k.startswith("pooling_mode_") and on is True]
    return _POOLINGS.get(modes[0]) if len(modes) == 1 else None


def _kind(module: str) -> str | None:
    return module.rpartition(".")[2] if module.startswith("sentence_transformers.") else None


def float_weights(files: BertFiles) -> dict[str, NDArray[np.float32]]:
    """Return the encoder's weights as float32, by the names that `BertModel` has for them.

    Raises
    ------
    ValueError
        If the file has a format that numpy has no name for (bfloat16), or none of a BERT encoder's weights.
    """
    import numpy as np
    from safetensors.numpy import load_file

    try:
        found = load_file(files.weights)
    except (KeyError, TypeError, AttributeError) as error:  # what the library raises for bfloat16 differs from version to version
        raise ValueError(f"{files.weights.name} cannot be read as numpy arrays: {error!r}") from error
    return {k: np.asarray(v, np.float32) for k, v in bare_names(found).items() if v.dtype.kind == "f"}


def bare_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Return `weights` without the prefix that a model with a head was saved with."""
    word = "embeddings.word_embeddings.weight"
    prefix = next((p for p in _PREFIXES if p + word in weights), None)
    if prefix is None:
        raise ValueError(f"there is no {word} among its weights")
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
