"""Index documents: find or fetch them, make text of them, cut it into chunks, embed these, publish a searchable index.

`Discover` and `Publish` run on the head's host, where the files and the index are; the text travels in the units.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgpunet_dask import Stage
from dgpunet_dask.errors import BadValue, NotAllowed
from dgpunet_dask.retrieval.stages import Chunk, Embed, Publish, Reuse, Write, places
from dgpunet_dask.units import parse_bytes

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.discover import Root
    from dgpunet_dask.retrieval.ingest import SourceFile

__all__ = ["Chunk", "Discover", "Embed", "Publish", "Reuse", "Write"]


class Discover(Stage):
    """The source: the documents whose text the index does not have yet."""

    def load(
        self,
        *,
        path: Sequence[str] = (),
        urls: str | None = None,
        index: str | None = None,
        model: str = "minilm",
        truncate_dim: int | None = None,
        url_size: str = "16MiB",
        url_seconds: float = 30.0,
        allow_private: bool = False,
    ) -> None:
        """Find the folders, the list and the model's files; what is wrong with them fails the job at once."""
        from dgpunet_dask.retrieval.discover import roots_of
        from dgpunet_dask.retrieval.documents.fetch import Fetcher, Limits, anywhere
        from dgpunet_dask.retrieval.documents.urls import is_public
        from dgpunet_dask.retrieval.index import Index
        from dgpunet_dask.retrieval.ingest import Plan
        from dgpunet_dask.retrieval.modelfiles import find_model

        _, home = places(self)
        user = self.context.user
        if truncate_dim is not None and truncate_dim < 1:
            raise BadValue(what="truncate_dim", value=truncate_dim, why="a vector has one number at least")
        if not path and urls is None:
            raise BadValue(what="path", value=None, why="name a folder with it, or a list of addresses with `urls`")
        if not 0 < url_seconds <= 600:  # within the deadline of the stage
            raise BadValue(what="url_seconds", value=url_seconds, why="write seconds above 0, at most 600")
        if allow_private and not user.operates:
            raise NotAllowed(what="allow_private", why="what lies in the head's own networks is fetched for operators alone")
        roots = roots_of(path)
        name = _index_name(index, roots, urls)
        Index(home, name).check_publisher(user)  # before anything is read
        self._urls = _listed(urls)
        self._fetcher = Fetcher(Limits(parse_bytes(url_size), url_seconds), permits=anywhere if allow_private else is_public)
        self._plan = Plan(name, roots, find_model(model, home.root / "cache"), truncate_dim, user)

    def __call__(self) -> Iterator[SourceFile]:  # type: ignore[override]  # a source takes no batch
        """Yield the documents to embed."""
        from dgpunet_dask.retrieval.documents.reading import READING, Documents
        from dgpunet_dask.retrieval.ingest import Scan

        self.count("files", 0)  # told even where there is none
        self.count("skipped.", 0)
        folder, home = places(self)
        with Documents(self._urls, folder, self._fetcher) as documents:
            scan = Scan(self._plan, home, folder, self.count, walk=documents.walk, read=documents.read, reading=READING)
            entries = scan.entries()
            unread = scan.unread(entries)
            self.note("expected_items", len(unread))
            documents.expect(unread)
            yielded = 0
            for file in scan.files(entries):
                yielded += 1
                yield file
        self.note("expected_items", yielded)


def _index_name(index: str | None, roots: Sequence[Root], urls: str | None) -> str:
    from dgpunet_dask.retrieval.index import check_index_name
    from dgpunet_dask.retrieval.ingest import index_name

    if index is None and not roots and urls is not None:
        return check_index_name(Path(urls).stem)
    return index_name(index, roots)


def _listed(urls: str | None) -> list[str]:
    from dgpunet_dask.retrieval.discover import read_bytes
    from dgpunet_dask.retrieval.documents.urls import LIST_BYTES_MAX, urls_in

    if urls is None:
        return []
    data = read_bytes(os.fsencode(os.path.realpath(urls)), LIST_BYTES_MAX)
    if isinstance(data, str):
        raise BadValue(what="urls", value=urls, why=f"it names a file of text with one address a line (this one is {data})")
    return urls_in(data.decode("utf-8", "replace"), urls)
