"""Opened indexes that stay open between searches, few at a time: each holds its rows in memory, and a model, the shipped one in common."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.warming import keep_names
from dgpunet_dask.errors import ModelUnavailable
from dgpunet_dask.model.owner import User

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.encoder import Encoder
    from dgpunet_dask.retrieval.search import Searcher
    from dgpunet_dask.retrieval.spread import Spread

#: Indexes that stay open.
KEPT: Final = 4
#: Weights that the head's own process loads, beside the jobs that it keeps; a few searches must not cost it its memory.
WEIGHTS_BYTES_MAX: Final = 2 << 30

#: Opens an index by name, with one of the models that are loaded already where that is its own.
Open = Callable[[Home, str, "Sequence[Encoder]"], "Searcher"]


def open_as_search(home: Home, name: str, loaded: Sequence[Encoder], spread: Spread | None = None) -> Searcher:
    """Open an index as `search` does, unless its model is too large for the head. `spread` is that of `OpenIndex`."""
    from dgpunet_dask.retrieval.index import open_index
    from dgpunet_dask.retrieval.search import open_searcher

    check_weights(open_index(home, name)[1].model, home.root / "cache")
    one_thread_a_product()
    return open_searcher(home, name, loaded=loaded, spread=spread)


def one_thread_a_product() -> None:
    """Keep numpy's matrix products to the thread that asks, in this process from now on.

    Those of one query are too small to share: with a thread for each core they took five times as long, and ten times beside a job, since the
    threads wait for each other by spinning. The command `search` has the same from its environment, which a head's children would inherit.
    """
    import numpy as np  # noqa: F401  # its library must be there to be told
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")


def check_weights(model: str, cache: Path, most: int = WEIGHTS_BYTES_MAX) -> None:
    """Look how large a model's weights are.

    Raises
    ------
    ModelUnavailable
        If they have more than `most` bytes.
    """
    from dgpunet_dask.retrieval.modelfiles import MINILM, find_model

    if model == MINILM:
        return
    files = find_model(model, cache).folder.rglob("*")
    size = sum(file.stat().st_size for file in files if file.suffix in {".safetensors", ".bin"})
    if size > most:
        why = f"its weights of {size >> 20} MiB are too large for the head; run `dgpunet-dask search` on the head's host instead"
        raise ModelUnavailable(model=model, why=why)


@dataclass
class _Place:
    """Where one index is open; the lock lets one search in at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    searcher: Searcher | None = None


class Searchers:
    """The open indexes of a home, for several threads.

    Parameters
    ----------
    opened
        Opens an index; another one is for tests only.
    most
        How many stay open; those that were asked last do.
    noted
        Where their names are kept for the next process; ``None``: nowhere.
    """

    def __init__(self, home: Home, opened: Open = open_as_search, most: int = KEPT, noted: Path | None = None) -> None:
        self._home = home
        self._noted = noted
        self._open = opened
        self._most = most
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._guard = threading.Lock()

    @contextmanager
    def of(self, name: str, by: User) -> Iterator[Searcher]:
        """Give the searcher of the version in force, once nobody else uses it. Blocks, and reads the index where it is not open yet.

        Who may read is looked up each time, for exactly the version that is given.

        Raises
        ------
        NoSuchIndex
            If there is none that `by` may read.
        ModelUnavailable, MalformedFile, NewerFormat
            If it cannot be opened.
        """
        from dgpunet_dask.retrieval.index import open_index

        while True:
            _, manifest = open_index(self._home, name, by)
            place = self._place(name)
            with place.lock:
                if place.searcher is None or place.searcher.index.manifest.content != manifest.content:
                    place.searcher = self._open(self._home, name, self._lent(place))
                    self._note()
                if place.searcher.index.manifest.content == manifest.content:
                    yield place.searcher
                    return

    def forget(self, name: str) -> None:
        """Let go of an index that was removed; a search that is under way ends in peace."""
        with self._guard:
            self._places.pop(name, None)

    def _note(self) -> None:
        if self._noted is not None:
            with self._guard:
                keep_names(self._noted, list(self._places))

    def _lent(self, place: _Place) -> list[Encoder]:
        """Return the models that an index may use which is opened in `place`: that of its last version, and what serves many threads at once.

        Of the latter kind is the shipped model's alone. A tokenizer of any other may be set up anew by each call.
        """
        from dgpunet_dask.retrieval.modelfiles import MINILM

        with self._guard:
            kept = [p.searcher for p in (place, *self._places.values()) if p.searcher is not None]
        return [s.encoder for s in kept if s is place.searcher or s.encoder.files.name == MINILM]

    def _place(self, name: str) -> _Place:
        with self._guard:
            place = self._places.setdefault(name, _Place())
            self._places.move_to_end(name)
            while len(self._places) > self._most:
                self._places.popitem(last=False)
            return place
