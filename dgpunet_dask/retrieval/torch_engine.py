"""Encoders on torch: the plain BERT ones by `bert`, any other model by its own sentence-transformers modules.

On a card a batch travels from pinned memory on a stream of its own while the one before it is computed, and its vectors come back to pinned
memory while the next ones are computed. Where torch has attention without padding for the card (compute capability 8.0, 16-bit), inputs
stand one after another, so that no padding is computed. cuDNN's attention is left out: it prepares a plan for every new shape of a batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.retrieval.batching import TokenBatch, packed, padded

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from dgpunet_dask.retrieval.bert import PackedAttention
    from dgpunet_dask.retrieval.bertfiles import BertFiles
    from dgpunet_dask.retrieval.modelfiles import ModelFiles

    Vectors = NDArray[np.float32]
    #: Tensors by name, and what a model's own preprocessing puts beside them.
    Inputs = dict[str, Any]

log = logging.getLogger(__name__)

#: Padded tokens of one forward pass. On a CPU small ones keep activations in its cache; a GPU needs large ones to be busy.
CPU_BATCH_TOKENS: Final = 1024
GPU_BATCH_TOKENS: Final = 16384
#: Batches that a card has been given beyond the one whose vectors are waited for: enough that it never waits for the host.
_AHEAD: Final = 4
#: Below it a card has no flash attention, which is the one that needs no padding.
_PACKED_CAPABILITY: Final = (8, 0)


class _Torch:
    """What both engines share: batches overlapped with their transfer, results copied back at the end."""

    name = "torch"
    parallel = 1
    precision: str
    dimension: int
    torch_device: str

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one forward pass to begin with."""
        return CPU_BATCH_TOKENS if self.torch_device == "cpu" else GPU_BATCH_TOKENS

    def pooled(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[list[int], Vectors]]:
        """Yield the rows and vectors ``(batch, hidden)`` of each batch; vectors are not normalised."""
        sent = _sent(((b.rows, self._inputs(b)) for b in batches), self.torch_device)
        if not self.torch_device.startswith("cuda"):
            for rows, inputs in sent:
                yield rows, self._computed(inputs).numpy()
            return
        coming: deque[tuple[list[int], Tensor, torch.cuda.Event]] = deque()
        for rows, inputs in sent:
            coming.append((rows, *_returning(self._computed(inputs))))
            if len(coming) > _AHEAD:
                yield _returned(*coming.popleft())
        while coming:
            yield _returned(*coming.popleft())

    def _computed(self, inputs: Inputs) -> Tensor:
        """Return the pooled vectors as float32, on the device; on a card they may still have to be computed."""
        import torch

        with torch.inference_mode(), _attentions(self.torch_device):
            return self._forward(inputs).float()

    def _inputs(self, batch: TokenBatch) -> Inputs:
        raise NotImplementedError

    def _forward(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError


def _sent(batches: Iterable[tuple[list[int], Inputs]], torch_device: str) -> Iterator[tuple[list[int], Inputs]]:
    """Yield each batch's inputs on the device. On a card the next one is on its way while the caller works with this one."""
    import torch

    if not torch_device.startswith("cuda"):
        yield from batches
        return
    copying = torch.cuda.Stream(torch_device)
    ahead: tuple[list[int], Inputs, torch.cuda.Event] | None = None
    for rows, inputs in batches:
        coming = (rows, *_sending(inputs, torch_device, copying))
        if ahead is not None:
            yield _arrived(ahead, torch_device)
        ahead = coming
    if ahead is not None:
        yield _arrived(ahead, torch_device)


def _sending(inputs: Inputs, torch_device: str, copying: torch.cuda.Stream) -> tuple[Inputs, torch.cuda.Event]:
    import torch

    with torch.cuda.stream(copying):
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        sent = {name: value.pin_memory().to(torch_device, non_blocking=True) for name, value in tensors.items()}
        return inputs | sent, copying.record_event()


def _arrived(batch: tuple[list[int], Inputs, torch.cuda.Event], torch_device: str) -> tuple[list[int], Inputs]:
    import torch

    rows, inputs, event = batch
    computing = torch.cuda.current_stream(torch_device)
    computing.wait_event(event)
    for value in (v for v in inputs.values() if isinstance(v, torch.Tensor)):
        value.record_stream(computing)  # its memory must not be given away on the copying stream while this one reads it
    return rows, inputs


def _returning(vectors: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """Send vectors back as soon as they are computed; waiting for one copy does not wait for the batches that were given to the card after it."""
    import torch

    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    return host, torch.cuda.current_stream(vectors.device).record_event()


def _returned(rows: list[int], host: Tensor, event: torch.cuda.Event) -> tuple[list[int], Vectors]:
    event.synchronize()
    return rows, host.numpy()


@contextmanager
def _attentions(torch_device: str) -> Iterator[None]:
    """On a card, leave out cuDNN's attention: 48 ms of the host's time for each new shape on an H200, where a whole batch took 8."""
    if not torch_device.startswith("cuda"):
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


class BertEngine(_Torch):
    """A plain BERT encoder.

    Parameters
    ----------
    files
        The model.
    torch_device, precision
        Where it runs, and ``fp32``, ``bf16`` or ``fp16``.
    attention
        Attention over inputs without padding; ``None`` pads them.
    """

    def __init__(self, files: BertFiles, torch_device: str, precision: str, attention: PackedAttention | None = None) -> None:
        from dgpunet_dask.retrieval.bert import load_bert

        self.torch_device = torch_device
        self.precision = precision
        self.dimension = files.hidden
        self._pooling = files.pooling
        self._attention = attention
        self._bert = load_bert(files, torch_device, dtype_of(precision))

    def _inputs(self, batch: TokenBatch) -> Inputs:
        import torch

        if self._attention is None:
            ids, lengths = padded(batch.ids)
            return {"ids": torch.from_numpy(ids), "lengths": torch.from_numpy(lengths)}
        ids, bounds = packed(batch.ids)
        return {"ids": torch.from_numpy(ids), "bounds": torch.from_numpy(bounds), "longest": max(map(len, batch.ids))}

    def _forward(self, inputs: Inputs) -> Tensor:
        if self._attention is None:
            return self._padded(inputs["ids"].long(), inputs["lengths"])
        return self._packed(inputs["ids"].long(), inputs["bounds"], inputs["longest"], self._attention)

    def _padded(self, ids: Tensor, lengths: Tensor) -> Tensor:
        import torch

        mask = torch.arange(ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
        hidden = self._bert(ids, mask).float()
        return hidden[:, 0] if self._pooling == "cls" else (hidden * mask[:, :, None]).sum(1) / lengths[:, None]

    def _packed(self, ids: Tensor, bounds: Tensor, longest: int, attention: PackedAttention) -> Tensor:
        import torch

        lengths = bounds.diff()
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths, output_size=len(ids))
        positions = torch.arange(len(ids), device=ids.device) - bounds[owners]
        hidden = self._bert.packed(ids, positions, bounds, longest, attention).float()
        if self._pooling == "cls":
            return hidden[bounds[:-1].long()]
        return torch.zeros(len(lengths), self.dimension, device=ids.device).index_add_(0, owners, hidden) / lengths[:, None]


class ModulesEngine(_Torch):
    """Any sentence-transformers model: its own preprocessing and modules, in our batches."""

    def __init__(self, files: ModelFiles, torch_device: str, precision: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.torch_device = torch_device
        self.precision = precision
        with _quiet():
            model = SentenceTransformer(str(files.folder), device=torch_device, trust_remote_code=False, local_files_only=True)
        self._model: Any = model.eval().to(dtype_of(precision))
        self.truncate_dim: int | None = model.truncate_dim
        self.dimension = int(model.encode_document(["x"], truncate_dim=None).shape[-1])

    def _inputs(self, batch: TokenBatch) -> Inputs:  # the model tokenises itself
        return {"task": batch.task} | dict(self._model.preprocess(batch.texts, prompt=batch.prompt or None, task=batch.task))

    def _forward(self, inputs: Inputs) -> Tensor:
        pooled: Tensor = self._model({k: v for k, v in inputs.items() if k != "task"}, task=inputs["task"])["sentence_embedding"]
        return pooled


def dtype_of(precision: str) -> torch.dtype:
    """Return torch's type of that name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def lower_precision(torch_device: str) -> str | None:
    """Return the 16-bit format that this device multiplies faster than float32, if any."""
    import torch

    if torch_device.startswith("cuda"):
        return "bf16" if torch.cuda.get_device_capability(torch_device)[0] >= 8 else "fp16"
    # without these instructions a CPU emulates bfloat16, a hundred times slower than float32
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return "bf16" if any(check is not None and check() for check in checks) else None


def packed_attention(torch_device: str) -> PackedAttention | None:
    """Return torch's attention over inputs of different lengths, where it has one for this card."""
    import torch

    if not torch_device.startswith("cuda") or torch.cuda.get_device_capability(torch_device) < _PACKED_CAPABILITY:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        log.info("this PyTorch has no attention without padding; inputs are padded")
        return None
    return _varlen(varlen_attn)


def _varlen(attention: Callable[..., Tensor]) -> PackedAttention:
    def seen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
        return attention(query, key, value, bounds, bounds, longest, longest)

    return seen


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading draws a progress bar of its own, which would garble ours."""
    from transformers.utils import logging as bars

    drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()
