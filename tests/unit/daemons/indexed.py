"""A home with indexes of several users, whose model is a fake."""

from __future__ import annotations

import json

from dgpunet_dask.daemons.indexes import Indexes
from dgpunet_dask.daemons.rerankers import Rerankers
from dgpunet_dask.daemons.searchers import Searchers
from dgpunet_dask.model.owner import User
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.ingest import publish
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.search import Searcher, _opened
from tests.unit.retrieval.conftest import FakeEncoder, Hour, Ingest

ANN, BOB, ROOT = User("ann"), User("bob"), User("root", operates=True)


class Alphabetical:
    """Prefers what comes last in the alphabet."""

    def scores(self, query, texts):
        return [float(ord(text[0])) for text in texts]


class Shelf:
    """Publishes, and counts how often an index was opened."""

    def __init__(self, home, folder, most=4):
        self.home, self.folder = home, folder
        self.ingest = Ingest(home, Hour())
        self.opened = []
        self.before_opening = lambda: None
        self.searchers = Searchers(home, self._open, most)
        self.loaded = []
        self.rerankers = Rerankers(home, load=self._load)
        self.indexes = Indexes(home, self.searchers, self.rerankers)

    def _open(self, home, name, loaded):
        self.opened.append(name)
        self.before_opening()
        return Searcher(_opened(home, name), loaded[0] if loaded else FakeEncoder(self.ingest.model))

    def _load(self, folder):
        self.loaded.append(folder)
        return Alphabetical()

    def name_reranker(self, name, text="{}"):
        """Pin a reranker in the home's settings; return its folder."""
        folder = self.folder / f"model-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(text)
        digest = find_model(str(folder)).digest
        self.home.config.write_text(json.dumps({"version": 1, "rerankers": {name: {"folder": str(folder), "digest": digest}}}))
        return folder

    def put(self, name, by, *, shared=False, text="one\n\ntwo"):
        tree = self.folder / f"tree-{name}"
        tree.mkdir(exist_ok=True)
        (tree / "a.py").write_text(text)
        folder, files = self.ingest.scan(tree, index=name, by=by)
        publish(folder, self.home, self.ingest.units(files), self.ingest.clock, by=by, shared=shared)
        return Index(self.home, name).manifest()
