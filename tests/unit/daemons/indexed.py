"""A home with indexes of several users, whose model is a fake."""

from __future__ import annotations

from dgpunet_dask.daemons.indexes import Indexes
from dgpunet_dask.daemons.searchers import Searchers
from dgpunet_dask.model.owner import User
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.ingest import publish
from dgpunet_dask.retrieval.search import Searcher, _opened
from tests.unit.retrieval.conftest import FakeEncoder, Hour, Ingest

ANN, BOB, ROOT = User("ann"), User("bob"), User("root", operates=True)


class Shelf:
    """Publishes, and counts how often an index was opened."""

    def __init__(self, home, folder, most=4):
        self.home, self.folder = home, folder
        self.ingest = Ingest(home, Hour())
        self.opened = []
        self.before_opening = lambda: None
        self.searchers = Searchers(home, self._open, most)
        self.indexes = Indexes(home, self.searchers)

    def _open(self, home, name, loaded):
        self.opened.append(name)
        self.before_opening()
        return Searcher(_opened(home, name), loaded[0] if loaded else FakeEncoder(self.ingest.model))

    def put(self, name, by, *, shared=False, text="one\n\ntwo"):
        tree = self.folder / f"tree-{name}"
        tree.mkdir(exist_ok=True)
        (tree / "a.py").write_text(text)
        folder, files = self.ingest.scan(tree, index=name, by=by)
        publish(folder, self.home, self.ingest.units(files), self.ingest.clock, by=by, shared=shared)
        return Index(self.home, name).manifest()
