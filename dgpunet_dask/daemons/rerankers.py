"""The rerankers that the owner of a home has named, loaded when they are first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home

if TYPE_CHECKING:
    from dgpunet_dask.config.settings import PinnedModel
    from dgpunet_dask.retrieval.rerank import Reranker, SecondLook


class Rerankers:
    """Gives second looks to several threads. The model that was asked for last stays loaded; none is ever fetched.

    Parameters
    ----------
    load
        Loads a model from its folder, `retrieval.rerank.load_reranker` unless a test has another one.
    """

    def __init__(self, home: Home, clock: Clock | None = None, load: Callable[[Path], Reranker] | None = None) -> None:
        self._home = home
        self._clock = clock or SystemClock()
        self._load = load
        self._lock = threading.Lock()
        self._loaded: tuple[PinnedModel, Reranker] | None = None

    def named(self, name: str | None) -> SecondLook | None:
        """Return the second look that a search asks for, ``None`` for none. Blocks while a model is loaded.

        Only names of the settings count: whoever may search must not have any folder of this host loaded.

        Raises
        ------
        RerankerUnavailable
            If the settings do not name it, its files are others, or it cannot be loaded.
        MalformedFile, NewerFormat, UnreadablePath
            If the settings cannot be read.
        """
        if name is None:
            return None
        from dgpunet_dask.retrieval.rerank import SecondLook

        with self._lock:
            return SecondLook(name, self._reranker(name), self._clock.monotonic)

    def _reranker(self, name: str) -> Reranker:
        from dgpunet_dask.config.settings_file import read_settings
        from dgpunet_dask.daemons.searchers import check_weights
        from dgpunet_dask.retrieval.rerank import find_reranker, load_reranker

        known = read_settings(self._home.config).rerankers
        if self._loaded is None or self._loaded[0] != known.get(name):
            folder = find_reranker(name, known, self._home.root / "cache", folders=False)
            check_weights(str(folder), self._home.root / "cache")
            self._loaded = None  # first let go of it: two are not to be in memory
            self._loaded = known[name], _OneAtATime((self._load or load_reranker)(folder))
        return self._loaded[1]


class _OneAtATime:
    """A reranker for several threads: a tokenizer may be set up anew by each call."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        self._lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        with self._lock:
            return self._reranker.scores(query, texts)
