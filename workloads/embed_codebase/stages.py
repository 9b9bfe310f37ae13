"""Index a codebase: discover its files, cut them into chunks, embed these, publish a searchable index.

`Discover`, `Reuse` and `Publish` run on the head's host, where the files, the known vectors and the index are; the text travels in the units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dgpunet_dask import Stage
from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval.stages import Chunk, Embed, Publish, Reuse, Write, places

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.ingest import SourceFile

__all__ = ["Chunk", "Discover", "Embed", "Publish", "Reuse", "Write"]


class Discover(Stage):
    """The source: the files whose text the index does not have yet."""

    def load(
        self, *, path: list[str], index: str | None = None, model: str = "minilm", truncate_dim: int | None = None,
        changed: Sequence[str] = (), since: str | None = None,
    ) -> None:  # fmt: skip
        """Find the trees and the model's files; a missing one fails the job at once."""
        from dgpunet_dask.retrieval.changes import changes_of
        from dgpunet_dask.retrieval.discover import roots_of
        from dgpunet_dask.retrieval.index import Index
        from dgpunet_dask.retrieval.ingest import Plan, index_name
        from dgpunet_dask.retrieval.modelfiles import find_model

        _, home = places(self)
        if truncate_dim is not None and truncate_dim < 1:
            raise BadValue(what="truncate_dim", value=truncate_dim, why="a vector has one number at least")
        self._changes = changes_of(changed, since)
        roots = roots_of(path)
        name = index_name(index, roots)
        Index(home, name).check_publisher(self.context.user)  # before the model's files are read
        self._plan = Plan(name, roots, find_model(model, home.root / "cache"), truncate_dim, self.context.user)

    def __call__(self) -> Iterator[SourceFile]:  # type: ignore[override]  # a source takes no batch
        """Yield the files to embed."""
        from dgpunet_dask.retrieval.ingest import Scan

        self.count("files", 0)  # told even of a tree without any
        self.count("skipped.", 0)
        folder, home = places(self)
        scan = Scan(self._plan, home, folder, self.count, changes=self._changes)
        entries = scan.entries()
        self.note("expected_items", scan.unknown(entries))
        yielded = 0
        for file in scan.files(entries):
            yielded += 1
            yield file
        self.note("expected_items", yielded)
