"""Index a codebase: discover its files, cut them into chunks, embed these, publish a searchable index.

`Discover`, `Reuse` and `Publish` run on the head's host, where the files, the known vectors and the index are; the text travels in the units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpunet_dask import Demand, Stage
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadValue

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.ingest import SourceFile
    from dgpunet_dask.retrieval.rows import Row


#: Padded tokens of one batch, as job.yaml states it.
BATCH_TOKENS = 16384


def _places(stage: Stage) -> tuple[Path, Home]:
    """The job's folder and the home, which a stage on the head's host is given."""
    folder, home = stage.context.folder, stage.context.home
    if folder is None or home is None:
        raise TypeError(f"{type(stage).__name__} runs on the head's host only")
    return folder, Home(home)


class Discover(Stage):
    """The source: the files whose text the index does not have yet."""

    def load(self, *, path: list[str], index: str | None = None, model: str = "minilm", truncate_dim: int | None = None) -> None:
        """Find the trees and the model's files; a missing one fails the job at once."""
        from dgpunet_dask.retrieval.discover import roots_of
        from dgpunet_dask.retrieval.index import Index
        from dgpunet_dask.retrieval.ingest import Plan, index_name
        from dgpunet_dask.retrieval.modelfiles import find_model

        _, home = _places(self)
        if truncate_dim is not None and truncate_dim < 1:
            raise BadValue(what="truncate_dim", value=truncate_dim, why="a vector has one number at least")
        roots = roots_of(path)
        name = index_name(index, roots)
        Index(home, name).check_publisher(self.context.user)  # before the model's files are read
        self._plan = Plan(name, roots, find_model(model, home.root / "cache"), truncate_dim, self.context.user)

    def __call__(self) -> Iterator[SourceFile]:  # type: ignore[override]  # a source takes no batch
        """Yield the files to embed."""
        from dgpunet_dask.retrieval.ingest import Scan

        self.count("files", 0)  # told even of a tree without any
        self.count("skipped.", 0)
        folder, home = _places(self)
        scan = Scan(self._plan, home, folder, self.count)
        entries = scan.entries()
        self.note("expected_items", scan.unknown(entries))
        yielded = 0
        for file in scan.files(entries):
            yielded += 1
            yield file
        self.note("expected_items", yielded)


class Chunk(Stage):
    """Files to chunks that fit the model. Needs its tokenizer only, and no card."""

    demand = Demand(gpus=0, cpus=1)

    def load(self, *, model: str = "minilm") -> None:
        """Load the tokenizer."""
        from dgpunet_dask.retrieval.tokens import load_tokens

        self._tokens = load_tokens(model)

    def __call__(self, batch: list[SourceFile]) -> list[Row]:
        """Cut the files of a unit."""
        from dgpunet_dask.retrieval.chunk import chunks_of
        from dgpunet_dask.retrieval.rows import Row

        space = batch[0].space if batch else ""
        return [Row(chunk, space) for chunk in chunks_of([(f.key, f.text, f.language) for f in batch], self._tokens)]


class Reuse(Stage):
    """Looks up the vectors that are known."""

    def __call__(self, batch: list[Row]) -> list[Row]:
        """Fill in what is known, on the head's host; anywhere else nothing is."""
        from dgpunet_dask.retrieval.vectorcache import VectorCache

        if self.context.home is None or not batch:
            return batch
        cache = VectorCache(Home(self.context.home), batch[0].space)
        for row, vector in zip(batch, cache.look_up([row.digest for row in batch]), strict=True):
            row.vector = vector
        return batch


class Embed(Stage):
    """Chunks to vectors.

    MiniLM with 16,384 tokens a batch needs about 0.3 GiB for weights and activations, and CUDA itself 0.5 GiB.
    """

    demand = Demand(vram="1GiB", resident="700MiB", ram="1GiB", cpu_ok=True)

    @classmethod
    def demand_for(cls, *, model: str = "minilm", **_: Any) -> Demand:
        """Return the demand of `model`; one whose size is not known before it is fetched takes a whole card."""
        from dgpunet_dask.retrieval.footprint import footprint

        if model == "minilm":
            return cls.demand
        need = footprint(model, BATCH_TOKENS)
        if need is None:
            return Demand(ram="1GiB", cpu_ok=True)
        resident, peak = f"{need.resident_mib}MiB", f"{need.peak_mib}MiB"
        return Demand(vram=peak, resident=resident, ram=peak, cpu_ok=True)

    def load(self, *, model: str = "minilm", truncate_dim: int | None = None) -> None:
        """Load the model."""
        from dgpunet_dask.retrieval.encoder import load_encoder

        self._encoder = load_encoder(model, self.context.torch_device, self.context.threads, truncate_dim=truncate_dim)

    def __call__(self, batch: list[Row]) -> list[Row]:
        """Give each chunk its vector; equal texts (licence headers, copies) are embedded once."""
        first: dict[bytes, Row] = {}
        for row in batch:
            if row.vector is None:
                first.setdefault(row.digest, row)
        texts = [row.chunk.text for row in first.values()]
        for row, vector in zip(first.values(), self._encoder.encode_documents(texts) if texts else (), strict=True):
            row.vector, row.embedded = vector, True
        for row in batch:
            if row.vector is None:
                row.vector = first[row.digest].vector
        return batch


class Write(Stage):
    """A unit's chunks and vectors as one compact item."""

    def __call__(self, batch: list[Row]) -> list[dict[str, Any]]:
        """Pack them."""
        from dgpunet_dask.retrieval.rows import packed

        return [packed(batch)] if batch else []


class Publish(Stage):
    """All units and what is reused as the index's new version, visible at once."""

    def __call__(self, batch: Iterable[dict[str, Any]]) -> list[Any]:  # type: ignore[override]  # a gather stage takes an iterable
        """Publish, and report the numbers; then merge what is mostly passed over, while the new version is searched already."""
        from dgpunet_dask.retrieval.compacting import compact_if_due
        from dgpunet_dask.retrieval.ingest import publish

        folder, home = _places(self)
        done = publish(folder, home, batch, by=self.context.user, shared=self.context.shared)
        for name, value in (("chunks", done.chunks), ("tokens", done.tokens), ("embedded", done.embedded), ("reused", done.reused)):
            self.note(name, value)
        self.note("index", done.index)
        if done.index is not None:
            compact_if_due(home, done.index, self.context.user)
        return []
