"""Opened indexes that stay open between searches, few at a time: each holds a model and its index's rows in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.model.owner import User

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.search import Searcher

#: Indexes that stay open.
KEPT: Final = 4

#: Opens an index by name; the searcher of its last version may lend its model.
Open = Callable[[Home, str, "Searcher | None"], "Searcher"]


def open_index_again(home: Home, name: str, before: Searcher | None) -> Searcher:
    """Open an index as `search` does, with the model of its last version where that is still its own."""
    from dgpunet_dask.retrieval.search import open_searcher

    return open_searcher(home, name, encoder=None if before is None else before.encoder)


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
    """

    def __init__(self, home: Home, opened: Open = open_index_again, most: int = KEPT) -> None:
        self._home = home
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
                if place.searcher is None or place.searcher.index.manifest.segment != manifest.segment:
                    place.searcher = self._open(self._home, name, place.searcher)
                if place.searcher.index.manifest.segment == manifest.segment:
                    yield place.searcher
                    return

    def forget(self, name: str) -> None:
        """Let go of an index that was removed; a search that is under way ends in peace."""
        with self._guard:
            self._places.pop(name, None)

    def _place(self, name: str) -> _Place:
        with self._guard:
            place = self._places.setdefault(name, _Place())
            self._places.move_to_end(name)
            while len(self._places) > self._most:
                self._places.popitem(last=False)
            return place
