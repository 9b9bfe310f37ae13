"""The engine that a model runs on here: what could run it, which of these the self-check prefers, and what earlier ones have found."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgpunet_dask.errors import BadValue, ModelUnavailable
from dgpunet_dask.retrieval import selfcheck
from dgpunet_dask.retrieval.bertfiles import BertFiles, bert_files
from dgpunet_dask.retrieval.selfcheck import Candidate, Memory

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.encoder import Engine, Vectors
    from dgpunet_dask.retrieval.modelfiles import ModelFiles
    from dgpunet_dask.retrieval.tokens import TextTokens

log = logging.getLogger(__name__)

OPENVINO: Final = "openvino"
TORCH: Final = "torch"
#: Torch with attention that needs no padding.
PACKED: Final = "torch-packed"
#: The special tokens of a BERT input. With others it is cut differently, and its own modules know how.
_SPECIAL: Final = 2


@dataclass(frozen=True)
class Loaded:
    """An engine, the padded tokens of a batch that are known to fit it, and what remembers fewer."""

    engine: Engine
    batch_tokens: int
    remember: Callable[[int], None]


@dataclass(frozen=True)
class _Place:
    """A model on a device."""

    files: ModelFiles
    tokens: TextTokens
    bert: BertFiles | None
    torch_device: str
    threads: int | None
    truncate_dim: int | None

    @property
    def on_card(self) -> bool:
        return self.torch_device.startswith("cuda")


def load_engine(
    files: ModelFiles, tokens: TextTokens, torch_device: str, threads: int | None, truncate_dim: int | None, precision: str, cache: Path | None
) -> Loaded:
    """Load what runs `files` best on a device at `precision` (``auto``: whichever the self-check finds).

    Raises
    ------
    BadValue
        If nothing there can do `precision`.
    """
    bert = bert_files(files.folder)
    place = _Place(files, tokens, bert if tokens.special == _SPECIAL else None, torch_device, threads, truncate_dim)
    memory = Memory(cache / "engines" if cache is not None else None)
    key = selfcheck.key_of(files.digest, selfcheck.identity(torch_device, threads), truncate_dim)
    engine = _first(place, _candidates(place, memory, key) if precision == "auto" else _able(place, precision))
    batch = f"batch_tokens {engine.name} {engine.precision} {_room(torch_device)}"
    known = memory.recall(key).get(batch)
    most = engine.batch_tokens
    return Loaded(engine, min(known, most) if isinstance(known, int) and known > 0 else most, lambda n: memory.remember(key, **{batch: n}))


def _candidates(place: _Place, memory: Memory, key: str) -> list[Candidate]:
    found = selfcheck.recalled(memory.recall(key))
    return _best(place, memory, key) if found is None else [found, Candidate(TORCH, "fp32")]


def _first(place: _Place, candidates: Sequence[Candidate]) -> Engine:
    """Load the first candidate that can be loaded; what the last says is why none can."""
    for candidate in candidates[:-1]:
        try:
            return _load(place, candidate)
        except Exception as error:  # an engine may fail a model or a machine in any way; the next one takes over
            log.warning("%s cannot run %s here (%s: %s); trying another engine", candidate.engine, place.files.name, type(error).__name__, error)
    return _load(place, candidates[-1])


def _able(place: _Place, precision: str) -> list[Candidate]:
    """Return the engines that can do `precision` there, the preferred one first."""
    if precision == "int8" or (precision == "fp16" and not place.on_card):
        if precision == "int8" and place.bert is not None and not place.on_card:
            return [Candidate(OPENVINO, precision)]
        raise BadValue(what="precision", value=precision, why="int8 needs a plain BERT encoder on a CPU, fp16 a GPU; leave it out for the best that works")
    engines = [OPENVINO] if place.bert is not None and not place.on_card else []
    return [Candidate(engine, precision) for engine in (*engines, TORCH)]


def _best(place: _Place, memory: Memory, key: str) -> list[Candidate]:
    """Try what could run the model, remember the finding, and return the best, with float32 on torch in case it fails after all."""
    last = Candidate(TORCH, "fp32")
    for candidates in _rounds(place):
        if candidates == [last]:
            return candidates
        measured = selfcheck.measure(candidates, lambda c: _runs(place, c), time.perf_counter, selfcheck.trial(on_card=place.on_card))
        chosen = selfcheck.choose(measured)
        if chosen is not None:
            if not any(m.passing for m in measured):  # with more memory the finding may be another
                memory.remember(key, chosen=asdict(chosen), measured=selfcheck.told(measured))
            return list(dict.fromkeys((chosen, last)))
    return [last]


def _rounds(place: _Place) -> Iterator[list[Candidate]]:
    """Yield what to try, a list after the other until something serves.

    Torch is left out where OpenVINO has a 16-bit format: it needed 1.25 times the processor time in bfloat16, and importing it takes seconds.
    """
    exact = Candidate(TORCH, "fp32")
    if place.bert is not None and not place.on_card:
        lower = _openvino_lower()
        if lower is not None:
            yield [*(Candidate(OPENVINO, p) for p in (*lower, "fp32")), *([] if lower else [exact])]
    yield [*_torch_lower(place), exact]


def _openvino_lower() -> list[str] | None:
    """Return the 16-bit formats that OpenVINO multiplies fast here; ``None`` where there is no OpenVINO."""
    from dgpunet_dask.retrieval.openvino_engine import import_openvino

    try:
        able = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except Exception as error:  # not installed, not for this machine, or without its CPU plug-in
        log.warning("OpenVINO cannot be used here (%s: %s); torch takes over", type(error).__name__, error)
        return None
    return ["bf16"] if "BF16" in able else []


def _torch_lower(place: _Place) -> list[Candidate]:
    from dgpunet_dask.retrieval.torch_engine import lower_precision, packed_attention

    lower = lower_precision(place.torch_device)
    if lower is None:
        return []
    packed = place.bert is not None and packed_attention(place.torch_device) is not None
    return [Candidate(engine, lower) for engine in ((PACKED, TORCH) if packed else (TORCH,))]


def _runs(place: _Place, candidate: Candidate) -> Callable[[Sequence[str]], Vectors]:
    """Load a candidate; what is returned embeds texts with it."""
    from dgpunet_dask.retrieval.encoder import EngineEncoder

    return EngineEncoder(place.files, place.tokens, _load(place, candidate), place.truncate_dim).encode_documents


def _load(place: _Place, candidate: Candidate) -> Engine:
    if candidate.engine != OPENVINO:
        return _load_torch(place, candidate)
    from dgpunet_dask.retrieval.openvino_engine import OpenVinoEngine

    if place.bert is None or place.on_card:
        raise ModelUnavailable(model=place.files.name, why="OpenVINO runs plain BERT encoders on a CPU only")
    return OpenVinoEngine(place.bert, candidate.precision, place.threads)


def _load_torch(place: _Place, candidate: Candidate) -> Engine:
    from dgpunet_dask.retrieval.torch_engine import BertEngine, ModulesEngine, packed_attention

    if place.threads is not None and not place.on_card:
        import torch

        torch.set_num_threads(max(1, place.threads))
    if place.bert is None:
        return ModulesEngine(place.files, place.torch_device, candidate.precision)
    attention = packed_attention(place.torch_device) if candidate.engine == PACKED else None
    return BertEngine(place.bert, place.torch_device, candidate.precision, attention)


def _room(torch_device: str) -> str:
    """Return how much of its card torch may take here: a batch that was too large for a small share may fit a larger one."""
    if not torch_device.startswith("cuda"):
        return "cpu"
    import torch

    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(torch_device)
    return f"{int(share * torch.cuda.get_device_properties(torch_device).total_memory) >> 20} MiB"
