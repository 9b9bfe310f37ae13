"""How much of a card a model takes, from its files alone: nothing is loaded and nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

from dgpunet_dask.stagehost.memory import CONTEXT_MIB

#: Tensors of a layer that live at once, in units of hidden size and of feed-forward size: input, residual, query, key, value, attention's
#: output and their copies in other layouts; the feed-forward block before and after its activation.
_HIDDEN_TENSORS: Final = 10
_FEED_FORWARD_TENSORS: Final = 2
_FLOAT_BYTES: Final = 4  # weights are loaded as float32 before they are halved, and a card without bf16 keeps them so
_WEIGHTS: Final = ("*.safetensors", "*.bin")


class Footprint(NamedTuple):
    """MiB of a card: what stays while the model is loaded, and the peak of a batch."""

    resident_mib: int
    peak_mib: int


def footprint(model: str, batch_tokens: int) -> Footprint | None:
    """Return what `model` takes with batches of `batch_tokens` padded tokens; ``None`` where its files are not on this machine.

    Peak = context + float32 weights + `batch_tokens` × (10 hidden + 2 feed-forward) float32 numbers: inference keeps one layer's tensors.
    """
    folder = _local_folder(model)
    if folder is None:
        return None
    try:
        return _measured(folder, batch_tokens)
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # such a configuration is refused, with its reason, by whoever loads the model


def _measured(folder: Path, batch_tokens: int) -> Footprint | None:
    found = next((list(folder.rglob(pattern)) for pattern in _WEIGHTS if any(folder.rglob(pattern))), [])
    numbers = _numbers_per_token(folder)
    if not found or numbers is None:
        return None
    resident = CONTEXT_MIB + _mib(sum(file.stat().st_size for file in found))
    return Footprint(resident, resident + _mib(batch_tokens * numbers * _FLOAT_BYTES))


def _numbers_per_token(folder: Path) -> int | None:
    configs = [json.loads(f.read_text(encoding="utf-8")) for f in (folder / "config.json", folder / "0_Transformer" / "config.json") if f.is_file()]
    for config in configs:
        hidden = config.get("hidden_size") or config.get("dim")
        if hidden:
            forward = config.get("intermediate_size") or config.get("hidden_dim") or 4 * hidden
            return int(_HIDDEN_TENSORS * hidden + _FEED_FORWARD_TENSORS * forward)
    return None


def _local_folder(model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model if "/" in model else f"sentence-transformers/{model}", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
