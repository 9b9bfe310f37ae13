"""The stages from a file's text to a published index, which every workload that makes one has in common.

What differs is the source, which yields `ingest.SourceFile`: a workload's ``stages.py`` has that of its own and imports these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.stage import Stage

if TYPE_CHECKING:
    from dgpunet_dask.retrieval.ingest import SourceFile
    from dgpunet_dask.retrieval.rows import Row

#: Padded tokens of one batch, as the workloads' job.yaml state it.
BATCH_TOKENS: Final = 16384


def places(stage: Stage) -> tuple[Path, Home]:
    """Return the job's folder and the home, which a stage on the head's host is given."""
    folder, home = stage.context.folder, stage.context.home
    if folder is None or home is None:
        raise TypeError(f"{type(stage).__name__} runs on the head's host only")
    return folder, Home(home)


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
        return [Row(chunk, space) for chunk in chunks_of([(f.key, f.text, f.language) for f in batch], self._tokens, self.count)]


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
        """Load the model; what its self-check finds out about this device is kept in the host's own home."""
        from dgpunet_dask.retrieval.encoder import load_encoder

        root = os.environ.get("DGPUNET_HOME")
        cache = Path(root) / "cache" if root else None
        self._encoder = load_encoder(model, self.context.torch_device, self.context.threads, truncate_dim=truncate_dim, cache=cache)

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

    def __call__(self, batch: Iterable[dict[str, Any]]) -> list[Any]:  # a gather stage takes an iterable
        """Publish, and report the numbers; then merge what is mostly passed over, while the new version is searched already."""
        from dgpunet_dask.retrieval.compacting import compact_if_due
        from dgpunet_dask.retrieval.ingest import publish

        folder, home = places(self)
        done = publish(folder, home, batch, by=self.context.user, shared=self.context.shared)
        for name, value in (("chunks", done.chunks), ("tokens", done.tokens), ("embedded", done.embedded), ("reused", done.reused)):
            self.note(name, value)
        self.note("index", done.index)
        self.note("version", None if done.manifest is None else done.manifest.version)
        if done.index is not None and done.wasteful:
            compact_if_due(home, done.index, self.context.user)
        return []
