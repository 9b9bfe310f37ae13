"""Small indexes that are made with the real shipped model, so that real commands search them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dgpunet_dask.retrieval.bert_numpy import NumpyMinilm
from dgpunet_dask.retrieval.modelfiles import MINILM, ModelFiles, find_model
from dgpunet_dask.retrieval.rows import Row
from tests.unit.retrieval.conftest import Ingest


@cache
def minilm() -> NumpyMinilm:
    return NumpyMinilm(find_model(MINILM))


@cache
def vector(text: str) -> Any:
    """Return a text's vector; the same small files are indexed by many tests."""
    return minilm().encode_documents([text])[0]


@dataclass
class RealIngest(Ingest):
    """As `Ingest`, with vectors of the shipped model."""

    model: ModelFiles = field(default_factory=lambda: minilm().files)

    def embed(self, rows: Sequence[Row]) -> None:
        for row in rows:
            row.vector, row.embedded = vector(row.chunk.text), True
