"""Texts to vectors: tokenised ahead in a thread, sorted by tokens, forwarded in batches of a padded token budget, normalised as float32.

A plain BERT encoder (the shipped model, most others) runs on OpenVINO on a CPU and on torch on a card; any other sentence-transformers model by its
own modules. All give what `SentenceTransformer.encode_query` and `encode_document` give, normalised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from dgpunet_dask.errors import BadValue, DgpunetError, ModelUnavailable
from dgpunet_dask.retrieval.batching import Budget, TokenBatch, batches, lacks_memory, shared_budget, windows
from dgpunet_dask.retrieval.modelfiles import MINILM, ModelFiles, find_model
from dgpunet_dask.retrieval.tokens import TextTokens, load_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

#: A window of texts holds about so many batches, and so many tokens: enough to sort among, and little to wait for before the first is computed. Sorted
#: among 8,192 tokens batches of 1,024 are padded by a tenth, among 65,536 by a fiftieth.
_WINDOW_BATCHES: Final = 8
_WINDOW_TOKENS: Final = 1 << 16
_CHARACTERS_PER_TOKEN: Final = 4


class Encoder(Protocol):
    """What the stages and the search use of a model."""

    files: ModelFiles
    dimension: int

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """The same with the model's query prompt."""


class Engine(Protocol):
    """What runs a model: batches of token ids to pooled vectors."""

    @property
    def name(self) -> str:
        """``openvino`` or ``torch``."""

    @property
    def precision(self) -> str:
        """What it multiplies in."""

    @property
    def dimension(self) -> int:
        """Numbers of a vector, before any truncation."""

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one forward pass to begin with."""

    @property
    def parallel(self) -> int:
        """How many batches it computes at once."""

    def pooled(self, batches: Iterable[TokenBatch]) -> Iterator[tuple[list[int], Vectors]]:
        """Yield rows and vectors of each batch, in any order; what was not yielded before an error is not done."""


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
        Compute threads on a CPU; ``None`` leaves the libraries' number.
    truncate_dim
        Keep the first so many numbers of a vector (Matryoshka models), before normalising.
    precision
        ``auto``: the fastest on this device whose vectors stay within cosine 0.999 of float32, found by a short self-check. ``int8``
        (on a CPU, plain BERT encoders only) is never taken unless it is asked for: it costs quality.
    cache
        A folder for digests of large model files, and for what self-checks have found.

    Raises
    ------
    ModelUnavailable
        If it cannot be loaded for whatever reason.
    BadValue
        If `truncate_dim` is below 1 or above the model's dimension, or the device cannot do `precision`.
    """
    from dgpunet_dask.retrieval.engines import load_engine

    files = find_model(model, cache)
    try:
        tokens = load_tokens(files.name, files)
        loaded = load_engine(files, tokens, torch_device, threads, truncate_dim, precision, cache)
    except DgpunetError:
        raise
    except Exception as error:  # whatever a broken model folder makes the libraries raise
        raise ModelUnavailable(model=model, why=f"{type(error).__name__}: {str(error)[:300]}") from error
    return EngineEncoder(files, tokens, loaded.engine, truncate_dim, Budget(loaded.batch_tokens), loaded.remember)


class EngineEncoder:
    """An encoder on one engine.

    Parameters
    ----------
    files, tokens, engine
        The model, its tokenizer, and what runs it.
    truncate_dim
        Keep the first so many numbers.
    budget
        Padded tokens of a forward pass.
    remember
        Called with the budget after a lack of memory has made it smaller.
    window_tokens
        Texts are sorted by length among so many tokens, or some batches' where that is more.
    """

    def __init__(
        self, files: ModelFiles, tokens: TextTokens, engine: Engine, truncate_dim: int | None = None, budget: Budget | None = None,
        remember: Callable[[int], None] = lambda _: None, window_tokens: int = _WINDOW_TOKENS,
    ) -> None:  # fmt: skip
        self.files = files
        self.tokens = tokens
        self.engine = engine
        self.truncate_dim = truncate_dim or files.settings.get("truncate_dim")
        self.dimension = _checked_dimension(engine.dimension, self.truncate_dim)
        self.budget = budget or Budget(engine.batch_tokens)
        self._remember = remember
        self._window_tokens = window_tokens

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1."""
        return self._encode(texts, self.files.document_prompt, "document")

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return ``(len(texts), dimension)`` float32 vectors of length 1, with the model's query prompt."""
        return self._encode(texts, self.files.query_prompt, "query")

    def _encode(self, texts: Sequence[str], prompt: str, task: str) -> Vectors:
        """Embed window after window without a pause between them; where memory does not suffice, what was begun is done in smaller batches."""
        import numpy as np

        result = np.empty((len(texts), self.dimension), np.float32)
        with closing(self._cut_all(texts, prompt, task)) as cut:
            coming: Iterator[TokenBatch] = cut
            while True:
                begun: dict[int, TokenBatch] = {}
                shortage: BaseException | None = None
                try:
                    for rows, pooled in self.engine.pooled(_noted(coming, begun)):
                        result[rows] = normalised(pooled[:, : self.truncate_dim])
                        del begun[rows[0]]
                except Exception as error:
                    shortage = error.with_traceback(None)  # its frames hold what fills the memory
                if shortage is None:
                    return result
                again = _joined([*begun.values()], prompt, task)
                self._made_smaller(again, shortage)
                coming = chain(self._cut(again), coming)

    def _cut_all(self, texts: Sequence[str], prompt: str, task: str) -> Generator[TokenBatch]:
        with closing(self._tokenised(texts, prompt)) as windows_:
            for span, ids in windows_:
                yield from self._cut(TokenBatch(list(span), ids, [texts[n] for n in span], prompt, task))

    def _tokenised(self, texts: Sequence[str], prompt: str) -> Generator[tuple[range, list[list[int]]]]:
        """Yield windows with their token ids; the next one is tokenised meanwhile, in a thread (the tokenizer leaves the interpreter free)."""
        tokens = max(self.budget.tokens * _WINDOW_BATCHES, self._window_tokens)
        spans = list(windows(texts, tokens * _CHARACTERS_PER_TOKEN))
        if len(spans) <= 1:
            yield from ((span, self.tokens.ids(texts, prompt)) for span in spans)
            return
        with ThreadPoolExecutor(1, "tokenize") as pool:
            coming = pool.submit(self._ids, texts, spans[0], prompt)
            for number, span in enumerate(spans):
                ids = coming.result()
                if number + 1 < len(spans):
                    coming = pool.submit(self._ids, texts, spans[number + 1], prompt)
                yield span, ids

    def _ids(self, texts: Sequence[str], span: range, prompt: str) -> list[list[int]]:
        return self.tokens.ids([texts[n] for n in span], prompt)

    def _cut(self, window: TokenBatch) -> Iterator[TokenBatch]:
        """Yield a window's batches; what is left of it is cut anew once the budget has become smaller."""
        left = list(range(len(window.ids)))
        while left:
            budget, lengths = self.budget.tokens, [len(window.ids[n]) for n in left]
            taken: set[int] = set()
            for batch in batches(lengths, shared_budget(lengths, budget, self.engine.parallel)):
                if self.budget.tokens != budget:
                    break
                taken.update(batch)
                yield _part(window, [left[n] for n in batch])
            left = [n for place, n in enumerate(left) if place not in taken]

    def _made_smaller(self, left: TokenBatch, shortage: BaseException) -> None:
        if not lacks_memory(shortage) or not self.budget.halve([len(i) for i in left.ids]):
            raise shortage
        log.warning("memory did not suffice on %s; batches have %d padded tokens from here on", self.engine.name, self.budget.tokens)
        self._remember(self.budget.tokens)


def _part(window: TokenBatch, chosen: Sequence[int]) -> TokenBatch:
    return TokenBatch(
        [window.rows[n] for n in chosen], [window.ids[n] for n in chosen], [window.texts[n] for n in chosen], window.prompt, window.task
    )


def _noted(coming: Iterable[TokenBatch], begun: dict[int, TokenBatch]) -> Iterator[TokenBatch]:
    """Yield what comes, noted in `begun` by its first row: what an engine has taken is not done before it has been yielded."""
    for batch in coming:
        begun[batch.rows[0]] = batch
        yield batch


def _joined(begun: Sequence[TokenBatch], prompt: str, task: str) -> TokenBatch:
    rows, ids = [row for batch in begun for row in batch.rows], [i for batch in begun for i in batch.ids]
    return TokenBatch(rows, ids, [text for batch in begun for text in batch.texts], prompt, task)


def normalised(vectors: Vectors) -> Vectors:
    """Return `vectors` as float32 of length 1; one of zeros stays one."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _checked_dimension(full: int, truncate_dim: int | None) -> int:
    if truncate_dim is not None and not 1 <= truncate_dim <= full:
        raise BadValue(what="truncate_dim", value=truncate_dim, why=f"it must lie between 1 and the model's {full}")
    return truncate_dim or full
