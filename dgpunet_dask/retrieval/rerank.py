"""An optional second look at the best hits: a cross-encoder reads query and text together, which is slower and sees more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dgpunet_dask.config.settings import PinnedModel
from dgpunet_dask.errors import RerankerUnavailable, did_you_mean
from dgpunet_dask.retrieval.modelfiles import find_model, first_line
from dgpunet_dask.retrieval.rank import Ranked

#: So many of the best are read again: MiniLM-sized models take about 10 ms for each on a CPU core.
DEPTH: Final = 50
#: Seconds after which no further ones of a query are begun.
WITHIN_S: Final = 3.0
#: Texts that are read at once; the time is looked at in between, so a query takes at most so many texts longer.
_AT_ONCE: Final = 8


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
    RerankerUnavailable
        If there is none, or it gives more than one number for a pair.
    """
    if not folder.is_dir():
        raise RerankerUnavailable(model=str(folder), why="there is no such folder")
    try:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(folder), device=torch_device, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a broken model folder makes the libraries raise
        raise RerankerUnavailable(model=str(folder), why=f"{type(error).__name__}: {first_line(error)}") from error
    if model.num_labels != 1:
        raise RerankerUnavailable(model=str(folder), why=f"it gives {model.num_labels} numbers for a pair where one is needed")
    return CrossEncoderReranker(model)


def find_reranker(name: str, known: Mapping[str, PinnedModel], cache: Path | None, *, folders: bool) -> Path:
    """Return the folder of a reranker that the settings name, whose files are those that they pin; with `folders` also of any that is on disk.

    `cache` is a folder for digests, as `find_model` takes it.

    Raises
    ------
    RerankerUnavailable
        If there is none, or its files are others.
    """
    pinned = known.get(name)
    if pinned is None:
        folder = Path(name).expanduser() if folders and name else None
        if folder is not None and folder.is_dir():
            return folder.absolute()
        there_are = f"there are {', '.join(sorted(known))}" if known else "the settings name none"
        raise RerankerUnavailable(model=name, why=f"there is none of this name{did_you_mean(name, known)}; {there_are}")
    if not pinned.folder.is_dir():
        raise RerankerUnavailable(model=name, why="its folder is not there")
    digest = find_model(str(pinned.folder), cache).digest
    if digest != pinned.digest:
        raise RerankerUnavailable(model=name, why=f"its files have the digest {digest[:12]}…, not {pinned.digest[:12]}… as pinned")
    return pinned.folder


@dataclass(frozen=True)
class SecondLook:
    """A reranker, and the bounds within which a query is given to it.

    Parameters
    ----------
    name
        As it was asked for; the answer tells it.
    now
        Gives seconds that never go back.
    depth, within_s
        How many of the best are read again, and after how many seconds no further ones are; `_AT_ONCE` of them always are.
    """

    name: str
    reranker: Reranker
    now: Callable[[], float]
    depth: int = DEPTH
    within_s: float = WITHIN_S

    def over(self, ranked: Sequence[Ranked], query: str) -> tuple[list[Ranked], dict[str, Any]]:
        """Return `ranked` in its new order, and what an answer tells of that: the model, how many it has read, and of how many."""
        end_s = self.now() + self.within_s
        found = reranked(ranked, query, self.reranker, self.depth, lambda: self.now() < end_s)
        read = sum("rerank" in one.why for one in found)
        return found, {"model": self.name, "read": read, "of": min(self.depth, len(ranked))}


def reranked(
    ranked: Sequence[Ranked], query: str, reranker: Reranker, depth: int = DEPTH, goes_on: Callable[[], bool] = lambda: True
) -> list[Ranked]:
    """Put the best `depth` in the order of `reranker`, equal ones as they were; the others follow as they were.

    Best first, a few are read at a time, as long as `goes_on` says so; those that were not are among the others. Scores still fall: a hit that was read again has the best score of the others plus a number from 0 to 1. Where the rules would not
    have put it there, `why` has the difference as ``rerank``.
    """
    scores: list[float] = []
    while len(scores) < min(depth, len(ranked)) and (not scores or goes_on()):
        texts = [one.candidate.text for one in ranked[len(scores) : min(depth, len(scores) + _AT_ONCE)]]
        scores += reranker.scores(query, texts)
    head, tail = ranked[: len(scores)], ranked[len(scores) :]
    floor = max((one.score for one in tail), default=0.0)
    best_first = sorted(zip(scores, head, strict=True), key=lambda pair: -pair[0])
    return [_moved(one, floor + _share(score)) for score, one in best_first] + list(tail)


def _share(score: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))


def _moved(one: Ranked, score: float) -> Ranked:
    return Ranked(one.candidate, score, one.why | {"rerank": score - one.score})
