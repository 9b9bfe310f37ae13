"""Texts to vectors: tokenised, sorted by tokens, forwarded in batches of a padded token budget, pooled and normalised as float32.

Two encoders with one interface: `MinilmEncoder` runs the shipped model with torch alone, `ModulesEncoder` drives the modules of any
sentence-transformers model. Both give what `SentenceTransformer.encode_query` and `encode_document` give, normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from dgpunet_dask.errors import BadValue, DgpunetError, ModelUnavailable
from dgpunet_dask.retrieval.modelfiles import MINILM, ModelFiles, find_model
from dgpunet_dask.retrieval.tokens import TextTokens, load_tokens

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    Vectors = NDArray[np.float32]

Precision = Literal["auto", "fp32", "bf16", "fp16"]

#: Padded tokens of one forward pass. On a CPU small ones keep activations in its cache; a GPU needs large ones to be busy.
CPU_BATCH_TOKENS: Final = 4096
GPU_BATCH_TOKENS: Final = 16384
#: `auto` lowers the precision only where these vectors stay this close (cosine) to float32.
_CLOSE_ENOUGH: Final = 0.9995
_PROBES: Final = (
    "def parse(text: str) -> list[int]:\n    return [int(part) for part in text.split(',')]",
    "how are errors reported?",
    "x",
)


class Encoder(Protocol):
    """What the stages and the search use of a model."""

    files: ModelFiles
    dimension: int

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The same with the model's query prompt."""


def load_encoder(
    model: str = MINILM,
    torch_device: str = "cpu",
    threads: int | None = None,
    *,
    truncate_dim: int | None = None,
    precision: Precision = "auto",
    cache: Path | None = None,
) -> Encoder:
    """Load a model for embedding.

    Parameters
    ----------
    model
        ``minilm``, a hub name, or a local sentence-transformers folder.
    torch_device
        ``cpu`` or ``cuda:0``.
    threads
        Compute threads on a CPU; ``None`` leaves torch's number.
    truncate_dim
        Keep the first so many numbers of a vector (Matryoshka models), before normalising.
    precision
        ``auto``: bfloat16 (float16 before compute capability 8.0) where the hardware has it and vectors stay within cosine
        0.9995 of float32.
    cache
        A folder for digests of large model files.

    Raises
    ------
    ModelUnavailable
        If it cannot be loaded for whatever reason.
    BadValue
        If `truncate_dim` is below 1 or above the model's dimension.
    """
    files = find_model(model, cache)
    if threads is not None and torch_device == "cpu":
        import torch

        torch.set_num_threads(max(1, threads))
    try:
        return _load(files, torch_device, truncate_dim, precision)
    except DgpunetError:
        raise
    except Exception as error:  # whatever a broken model folder makes the libraries raise
        raise ModelUnavailable(model=model, why=f"{type(error).__name__}: {str(error)[:300]}") from error


def _load(files: ModelFiles, torch_device: str, truncate_dim: int | None, precision: Precision) -> Encoder:
    kind: type[MinilmEncoder | ModulesEncoder] = MinilmEncoder if files.name == MINILM else ModulesEncoder
    lower = _lower_precision(torch_device)
    wanted = precision if precision != "auto" else (lower or "fp32")
    encoder = kind(files, torch_device, wanted, truncate_dim)
    if precision == "auto" and wanted != "fp32" and kind is ModulesEncoder and not _stays_close(encoder, files, torch_device):
        return kind(files, torch_device, "fp32", truncate_dim)
    return encoder


def _stays_close(encoder: Encoder, files: ModelFiles, torch_device: str) -> bool:
    """Whether lower precision does this model no harm. The shipped model is known not to mind; any other is tried."""
    exact = ModulesEncoder(files, torch_device, "fp32", getattr(encoder, "truncate_dim", None))
    return bool((exact.encode_documents(_PROBES) * encoder.encode_documents(_PROBES)).sum(1).min() >= _CLOSE_ENOUGH)


def _lower_precision(torch_device: str) -> Precision | None:
    """Return the 16-bit format that this device multiplies faster than float32, if any."""
    import torch

    if torch_device.startswith("cuda"):
        return "bf16" if torch.cuda.get_device_capability(torch_device)[0] >= 8 else "fp16"
    # without these instructions a CPU emulates bfloat16, a hundred times slower than float32
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return "bf16" if any(check is not None and check() for check in checks) else None


def _dtype(precision: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


class _Batched:
    """The loop both encoders share: sort by tokens, cut by budget, put back in order."""

    files: ModelFiles
    tokens: TextTokens
    torch_device: str
    truncate_dim: int | None
    dimension: int

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1."""
        return self._encode(texts, self.files.document_prompt, "document")

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1, with the model's query prompt."""
        return self._encode(texts, self.files.query_prompt, "query")

    def _encode(self, texts: Sequence[str], prompt: str, task: str) -> Vectors:
        import numpy as np
        import torch

        ids = self.tokens.ids(texts, prompt)
        result = np.empty((len(texts), self.dimension), np.float32)
        budget = CPU_BATCH_TOKENS if self.torch_device == "cpu" else GPU_BATCH_TOKENS
        with torch.inference_mode():
            pending = [
                (batch, self._finish(self._pooled([texts[n] for n in batch], [ids[n] for n in batch], prompt, task)))
                for batch in batches([len(i) for i in ids], budget)
            ]
            for batch, vectors in pending:  # copied back only now, so that a GPU is never waited for in between
                result[batch] = vectors.cpu().numpy()
        return result

    def _finish(self, pooled: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        return normalize(pooled.float()[:, : self.truncate_dim], dim=1)

    def _pooled(self, texts: list[str], ids: list[list[int]], prompt: str, task: str) -> Tensor:
        raise NotImplementedError


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest first, each within `budget` padded tokens; one longer input is a batch of its own."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class MinilmEncoder(_Batched):
    """The shipped model: mean pooling over real tokens, on torch alone."""

    def __init__(self, files: ModelFiles, torch_device: str, precision: Precision, truncate_dim: int | None) -> None:
        from dgpunet_dask.retrieval.bert import load_bert

        self.files = files
        self.tokens = load_tokens(files.name, files)
        self.torch_device = torch_device
        self._bert = load_bert(files.folder, torch_device, _dtype(precision))
        self.truncate_dim = truncate_dim
        self.dimension = _checked_dimension(int(self._bert.words.shape[1]), truncate_dim)

    def _pooled(self, texts: list[str], ids: list[list[int]], prompt: str, task: str) -> Tensor:  # the ids say it all
        import numpy as np
        import torch

        longest, shortest = len(ids[0]), len(ids[-1])
        padded = np.zeros((len(ids), longest), np.int64)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        lengths = torch.tensor([len(i) for i in ids], device=self.torch_device)
        inputs = torch.from_numpy(padded).to(self.torch_device)
        mask = torch.arange(longest, device=self.torch_device)[None, :] < lengths[:, None]
        hidden = self._bert(inputs, None if longest == shortest else mask).float()
        return (hidden * mask[:, :, None]).sum(1) / lengths[:, None]


class ModulesEncoder(_Batched):
    """Any sentence-transformers model: its own preprocessing and modules, in our batches."""

    def __init__(self, files: ModelFiles, torch_device: str, precision: Precision, truncate_dim: int | None) -> None:
        from sentence_transformers import SentenceTransformer

        self.files = files
        self.tokens = load_tokens(files.name, files)
        self.torch_device = torch_device
        with _quiet():
            model = SentenceTransformer(str(files.folder), device=torch_device, trust_remote_code=False, local_files_only=True)
        self._model: Any = model.eval().to(_dtype(precision))
        self.truncate_dim = truncate_dim or model.truncate_dim
        found = model.encode_document(["x"], truncate_dim=None)
        self.dimension = _checked_dimension(int(found.shape[-1]), self.truncate_dim)

    def _pooled(self, texts: list[str], ids: list[list[int]], prompt: str, task: str) -> Tensor:  # the model tokenises itself
        from sentence_transformers.util import batch_to_device

        features = batch_to_device(self._model.preprocess(texts, prompt=prompt or None, task=task), self.torch_device)
        pooled: Tensor = self._model(features, task=task)["sentence_embedding"]
        return pooled


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading draws a progress bar of its own, which would garble ours."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _checked_dimension(full: int, truncate_dim: int | None) -> int:
    if truncate_dim is not None and not 1 <= truncate_dim <= full:
        raise BadValue(what="truncate_dim", value=truncate_dim, why=f"it must lie between 1 and the model's {full}")
    return truncate_dim or full
