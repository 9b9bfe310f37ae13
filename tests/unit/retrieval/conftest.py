from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.changes import Changes
from dgpunet_dask.retrieval.chunk import Chunk
from dgpunet_dask.retrieval.discover import roots_of
from dgpunet_dask.retrieval.ingest import Plan, Published, Scan, SourceFile, publish
from dgpunet_dask.retrieval.modelfiles import ModelFiles
from dgpunet_dask.retrieval.rows import Row, packed
from dgpunet_dask.retrieval.vectorcache import VectorCache

DIMENSION = 16


@dataclass
class Hour:
    """A clock that is moved by hand; it starts well after any file of a test was written."""

    now: float = 4e9

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@dataclass
class FakeEncoder:
    """Vectors that depend on the text alone."""

    files: ModelFiles = field(default_factory=lambda: ModelFiles("fake", Path(), "digest-1", 64))
    dimension: int = DIMENSION

    def encode_documents(self, texts: Sequence[str]) -> Any:
        vectors = [
            np.random.default_rng(int.from_bytes(hashlib.sha256(t.encode()).digest()[:8])).normal(size=self.dimension)
            for t in texts
        ]
        found = np.array(vectors, np.float32).reshape(len(texts), self.dimension)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def encode_queries(self, texts: Sequence[str]) -> Any:
        return self.encode_documents(texts)


@dataclass
class Ingest:
    """Scans and publishes in this process; a file's paragraphs are its chunks."""

    home: Home
    clock: Hour
    runs: int = 0
    model: ModelFiles = field(default_factory=lambda: FakeEncoder().files)
    counts: dict[str, int] = field(default_factory=dict)

    def scan(
        self, *roots: Path, index: str = "x", by: User = OPERATOR, changes: Changes | None = None
    ) -> tuple[Path, list[SourceFile]]:
        self.runs += 1
        self.counts = {}
        folder = self.home.jobs / str(self.runs)
        folder.mkdir(parents=True)
        scan = Scan(Plan(index, roots_of(roots), self.model, by=by), self.home, folder, self.count, self.clock, changes=changes)
        return folder, list(scan.files(scan.entries()))

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def units(self, files: Sequence[SourceFile]) -> Iterator[dict[str, Any]]:
        for file in files:
            rows = [Row(chunk, file.space) for chunk in paragraphs(file)]
            if rows:
                self.embed(rows)
                yield packed(rows)

    def embed(self, rows: Sequence[Row]) -> None:
        for row, known in zip(rows, VectorCache(self.home, rows[0].space).look_up([row.digest for row in rows]), strict=True):
            row.vector, row.embedded = known, known is None
            if known is None:
                row.vector = FakeEncoder().encode_documents([row.chunk.text])[0]

    def __call__(self, *roots: Path, index: str = "x", changes: Changes | None = None) -> Published:
        folder, files = self.scan(*roots, index=index, changes=changes)
        return publish(folder, self.home, self.units(files), self.clock)


def paragraphs(file: SourceFile) -> Iterator[Chunk]:
    line = 1
    for part in file.text.split("\n\n"):
        lines = part.count("\n") + 1
        if part.strip():
            yield Chunk(file.key, part, line, line + lines - 1, None, file.language, len(part.split()))
        line += lines + 1


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def ingest(home: Home) -> Ingest:
    return Ingest(home, Hour())


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Write files into a folder, by default ``tree``."""

    def write(files: dict[str, str | None], name: str = "tree") -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for path, text in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True) if text is None else file.write_text(text)
        return root

    return write
