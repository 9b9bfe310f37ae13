"""Where the tools find what they tell: the files of this home, or the head of a cluster. Blocking; for threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.rerankers import Rerankers
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.owner import OPERATOR

if TYPE_CHECKING:
    from dgpunet_dask.cluster.api_client import ApiClient
    from dgpunet_dask.daemons.searchers import Searchers
    from dgpunet_dask.retrieval.encoder import Encoder
    from dgpunet_dask.retrieval.search import Searcher
    from dgpunet_dask.retrieval.spans import Reader

#: Opens an index with one of the models that are loaded already where that is its own.
Open = Callable[[Home, str, "Sequence[Encoder]"], "Searcher"]


class Source(Protocol):
    """What the tools ask; errors are DgpunetErrors."""

    def search(self, index: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the object of ``search --json`` for a request of `retrieval.request.asked_for`."""

    def lines(self, index: str, path: str, first: int, last: int) -> dict[str, Any]:
        """Return lines of a file, the fields of `retrieval.spans.Lines`."""

    def indexes(self) -> list[dict[str, Any]]:
        """Return the objects of ``index list --json``."""

    def index(self, name: str) -> dict[str, Any]:
        """Return the object of ``index show --json``."""

    def cluster(self) -> dict[str, Any] | None:
        """Return the object of ``status --json``; ``None`` where no cluster runs."""


def open_as_search(home: Home, name: str, loaded: Sequence[Encoder]) -> Searcher:
    """Open an index as the command `search` does."""
    from dgpunet_dask.retrieval.search import open_searcher

    return open_searcher(home, name, loaded=loaded)


class Files:
    """The files of a home. Indexes that were asked last stay open, and are opened anew when they have a new version.

    Parameters
    ----------
    opened
        Opens an index; another one is for tests only.
    """

    def __init__(self, home: Home, opened: Open = open_as_search) -> None:
        self._home, self._open = home, opened
        self._rerankers = Rerankers(home)
        self._guard = threading.Lock()
        self._searchers: Searchers | None = None
        self._reader: Reader | None = None

    def search(self, index: str, asked: dict[str, Any]) -> dict[str, Any]:
        from dgpunet_dask.retrieval.search import Query, answered, filter_of

        second = self._rerankers.named(asked["rerank"])
        with self._shared().of(index, OPERATOR) as searcher:
            found = next(searcher.found([Query(asked["queries"][0]["query"])], asked["k"], filter_of(asked), second))
        return answered(found, asked["k"], second)

    def _shared(self) -> Searchers:
        from dgpunet_dask.daemons.searchers import Searchers

        with self._guard:
            self._searchers = self._searchers or Searchers(self._home, self._open)
            return self._searchers

    def lines(self, index: str, path: str, first: int, last: int) -> dict[str, Any]:
        from dgpunet_dask.retrieval.spans import Reader

        with self._guard:  # a reader is for one thread at a time, and is quick
            self._reader = self._reader or Reader(self._home)
            return self._reader.read(index, path, first, last).to_json()

    def indexes(self) -> list[dict[str, Any]]:
        from dgpunet_dask.retrieval.described import all_described

        return all_described(self._home)

    def index(self, name: str) -> dict[str, Any]:
        from dgpunet_dask.retrieval.described import described

        return {**described(self._home, name), "error": None}

    def cluster(self) -> dict[str, Any] | None:
        from dgpunet_dask.daemons.embedded import client_of, current_head

        head = current_head(self._home)
        try:
            return None if head is None else client_of(head).status()
        except DgpunetError as error:  # the indexes are told of all the same
            return {"error": error.to_json()}


class Beside:
    """The files of a home, whose searches the head beside them answers while one runs: it has the indexes open.

    Parameters
    ----------
    head
        Returns a connection to that head, ``None`` where none runs now.
    """

    def __init__(self, files: Files, head: Callable[[], ApiClient | None]) -> None:
        self._files, self._head = files, head

    def search(self, index: str, asked: dict[str, Any]) -> dict[str, Any]:
        api = self._head()
        if api is not None:
            with contextlib.suppress(DgpunetError):  # it has bounds of its own, and may be ending: the files have the same answers
                return Head(api).search(index, asked)
        return self._files.search(index, asked)

    def lines(self, index: str, path: str, first: int, last: int) -> dict[str, Any]:
        return self._files.lines(index, path, first, last)

    def indexes(self) -> list[dict[str, Any]]:
        return self._files.indexes()

    def index(self, name: str) -> dict[str, Any]:
        return self._files.index(name)

    def cluster(self) -> dict[str, Any] | None:
        return self._files.cluster()


class Head:
    """The head of a cluster that was named, asked with the caller's key."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def search(self, index: str, asked: dict[str, Any]) -> dict[str, Any]:
        return self._api.search(_checked(index), asked)[0]

    def lines(self, index: str, path: str, first: int, last: int) -> dict[str, Any]:
        return self._api.index_lines(_checked(index), {"path": path, "start_line": first, "end_line": last})

    def indexes(self) -> list[dict[str, Any]]:
        return self._api.indexes()

    def index(self, name: str) -> dict[str, Any]:
        return {**self._api.index(_checked(name)), "error": None}

    def cluster(self) -> dict[str, Any] | None:
        return self._api.status()


def _checked(name: str) -> str:
    from dgpunet_dask.retrieval.index import check_index_name

    return check_index_name(name)
