"""An optional second look at the best hits: a cross-encoder reads query and text together, which is slower and sees more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from dgpunet_dask.errors import ModelUnavailable
from dgpunet_dask.retrieval.modelfiles import first_line
from dgpunet_dask.retrieval.rank import Ranked

#: So many of the best are read again: MiniLM-sized models take about 10 ms for each on a CPU core.
DEPTH: Final = 30


class Reranker(Protocol):
    """How well texts answer a query, each judged on its own."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one number a text; a higher one is better."""


class CrossEncoderReranker:
    """Any sentence-transformers `CrossEncoder` with one output."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return the model's raw output for each text."""
        from torch.nn import Identity

        if not texts:
            return []
        found = self._model.predict([(query, text) for text in texts], activation_fn=Identity(), show_progress_bar=False)
        return [float(score) for score in found]


def load_reranker(folder: Path, torch_device: str = "cpu") -> Reranker:
    """Load a cross-encoder from a folder; nothing is fetched, and code that it brings is not run.

    Raises
    ------
    ModelUnavailable
        If there is none, or it gives more than one number for a pair.
    """
    if not folder.is_dir():
        raise ModelUnavailable(model=str(folder), why="there is no such folder")
    try:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(folder), device=torch_device, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a broken model folder makes the libraries raise
        raise ModelUnavailable(model=str(folder), why=f"{type(error).__name__}: {first_line(error)}") from error
    if model.num_labels != 1:
        raise ModelUnavailable(model=str(folder), why=f"it gives {model.num_labels} numbers for a pair where one is needed")
    return CrossEncoderReranker(model)


def reranked(ranked: Sequence[Ranked], query: str, reranker: Reranker, depth: int = DEPTH) -> list[Ranked]:
    """Put the best `depth` in the order of `reranker`, equal ones as they were; the others follow as they were.

    Scores still fall: a hit that was read again has the best score of the others plus a number from 0 to 1. Where the rules would not
    have put it there, `why` has the difference as ``rerank``.
    """
    head, tail = list(ranked[:depth]), list(ranked[depth:])
    floor = max((one.score for one in tail), default=0.0)
    judged = zip(reranker.scores(query, [one.candidate.text for one in head]), head, strict=True)
    best_first = sorted(judged, key=lambda pair: -pair[0])
    return [_moved(one, floor + _share(score)) for score, one in best_first] + tail


def _share(score: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))


def _moved(one: Ranked, score: float) -> Ranked:
    return Ranked(one.candidate, score, one.why | {"rerank": score - one.score})
