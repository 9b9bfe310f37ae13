"""The indexes of a head's home, as the API answers for them. What blocks runs in threads, so that the head's loop goes on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.rerankers import Rerankers
from dgpunet_dask.daemons.searchers import KEPT, Searchers, open_as_search
from dgpunet_dask.daemons.warming import names_file, warm
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.jobs.threads import in_thread
from dgpunet_dask.model.owner import User

if TYPE_CHECKING:
    from dgpunet_dask.daemons.sharding import Sharding
    from dgpunet_dask.retrieval.spans import Reader

#: Searches that run at the same moment; others wait for their turn.
SEARCHES_MAX: Final = 4


class Indexes:
    """What the routes of indexes ask; errors are DgpunetErrors, and another user's private index is not there.

    Parameters
    ----------
    searchers, rerankers
        What is open and loaded; others are for tests only.
    sharding
        Has workers hold what is very large; ``None``: all is searched here.
    """

    def __init__(
        self, home: Home, searchers: Searchers | None = None, rerankers: Rerankers | None = None, sharding: Sharding | None = None
    ) -> None:
        self._home, self._sharding = home, sharding
        opened = partial(open_as_search, spread=None if sharding is None else sharding.spread)
        self._searchers = searchers or Searchers(home, opened, noted=names_file(home))
        self._closed = threading.Event()
        self._rerankers = rerankers or Rerankers(home)
        self._reader: Reader | None = None
        self._reading = threading.Lock()
        self._pool = ThreadPoolExecutor(min(SEARCHES_MAX, usable_cpus()), thread_name_prefix="search")

    async def list(self, by: User) -> Sequence[dict[str, Any]]:
        """Return the objects of ``index list --json``."""
        from dgpunet_dask.retrieval.described import all_described

        return await in_thread(all_described, self._home, by)

    async def show(self, name: str, by: User) -> dict[str, Any]:
        """Return the object of ``index show --json``; ``resident`` tells of each segment that is large enough what workers hold of it."""
        from dgpunet_dask.retrieval.described import described

        found = await in_thread(described, self._home, name, by)
        resident = [] if self._sharding is None else [one for one in self._sharding.status() if one["index"] == name]
        return {**found, "resident": resident}

    async def search(self, name: str, by: User, asked: dict[str, Any]) -> str:
        """Return ``{"answers": [...]}`` as JSON, with the objects of ``search --json``, for a request of `request.asked_for`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._search, name, by, asked)

    def _search(self, name: str, by: User, asked: dict[str, Any]) -> str:
        from dgpunet_dask.retrieval.index import open_index
        from dgpunet_dask.retrieval.request import check_reranked
        from dgpunet_dask.retrieval.search import Query, answered, filter_of

        queries = [Query(query["query"], query.get("id")) for query in asked["queries"]]
        open_index(self._home, name, by)  # who may not read it has no model loaded
        second = self._rerankers.named(asked["rerank"])
        if second is not None:
            check_reranked(len(queries))
        with self._searchers.of(name, by) as searcher:
            found = list(searcher.found(queries, asked["k"], filter_of(asked), second))
        return json.dumps({"answers": [answered(one, asked["k"], second) for one in found]})  # others search it meanwhile

    async def lines(self, name: str, by: User, path: str, first: int, last: int) -> dict[str, Any]:
        """Return lines of an indexed file, the fields of `retrieval.spans.Lines`. The file itself may be one that `by` must not read."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._lines, name, by, path, (first, last))

    def _lines(self, name: str, by: User, path: str, wanted: tuple[int, int]) -> dict[str, Any]:
        from dgpunet_dask.retrieval.spans import Reader

        with self._reading:
            self._reader = self._reader or Reader(self._home)
            return self._reader.read(name, path, *wanted, by, disk=False).to_json()

    async def share(self, name: str, by: User, *, shared: bool) -> dict[str, Any]:
        """Let every user read an index, or its owner alone; return it as `show` does."""
        from dgpunet_dask.retrieval.index import Index

        await in_thread(lambda: Index(self._home, name).share(by, shared=shared))
        return await self.show(name, by)

    async def verify(self, name: str, by: User) -> dict[str, Any]:
        """Return the object of ``index verify --json``."""
        from dgpunet_dask.retrieval.verify import verify

        return (await in_thread(verify, self._home, name, by)).to_json()

    async def compact(self, name: str, by: User) -> dict[str, Any]:
        """Return the object of ``index compact --json``."""
        from dgpunet_dask.retrieval.compacting import compact

        return {"index": name, **asdict(await in_thread(compact, self._home, name, by))}

    async def remove(self, name: str, by: User) -> None:
        """Remove an index for good."""
        from dgpunet_dask.retrieval.index import Index

        await in_thread(Index(self._home, name).remove, by)
        self._searchers.forget(name)

    def warm(self) -> None:
        """Begin to open, in a thread, what will be searched; nothing waits for it."""
        asked = (self._home, self._searchers, KEPT, self._closed)
        threading.Thread(target=warm, args=asked, name="warm", daemon=True).start()

    def close(self) -> None:
        """Begin no further search."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
