"""Chunks on their way into an index: each with the digest of its text, and with its vector as soon as that is known."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dgpunet_dask.retrieval.chunk import Chunk
from dgpunet_dask.retrieval.segments import chunk_schema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


@dataclass
class Row:
    """A chunk to be embedded.

    Parameters
    ----------
    space
        What makes its vector, as a digest (`space_of`): equal texts have one vector within a space.
    vector
        ``(dimension,)``, length 1; ``None`` until it is known.
    embedded
        Whether the model has made the vector for this chunk; false where it was known before, or made for another chunk with the same text.
    """

    chunk: Chunk
    space: str
    vector: Vector | None = None
    embedded: bool = False

    @cached_property
    def digest(self) -> bytes:
        """The digest of its text, 16 bytes."""
        return text_digest(self.chunk.text)

    @property
    def tokens(self) -> int:
        """What it costs to embed it."""
        return self.chunk.tokens if self.vector is None else 0


def text_digest(text: str) -> bytes:
    """Return the digest by which the vector of a text is known: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def space_of(model_digest: str, truncate_dim: int | None) -> str:
    """Return the digest (32 hex digits) of what makes vectors: a model, and how much of its vectors is kept."""
    return hashlib.blake2b(f"{model_digest} {truncate_dim}".encode(), digest_size=16).hexdigest()


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rows of a unit as one compact item.

    Returns
    -------
    dict
        ``space``; ``chunks``, an Arrow stream of `chunk_schema`, compressed; ``vectors``, float32 ``(rows, dimension)``; ``digests``, uint8
        ``(rows, 16)``; ``embedded``, bool ``(rows,)``.

    Raises
    ------
    ValueError
        If there are none, or one has no vector.
    """
    import numpy as np
    import pyarrow as pa

    vectors = [row.vector for row in rows if row.vector is not None]
    if not rows or len(vectors) < len(rows):
        raise ValueError(f"{len(rows)} chunks have {len(vectors)} vectors")
    columns = [[getattr(row.chunk, n) for row in rows] for n in chunk_schema().names]
    table = pa.table([pa.array(c, t.type) for c, t in zip(columns, chunk_schema(), strict=True)], schema=chunk_schema())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return {
        "space": rows[0].space,
        "chunks": bytes(sink.getvalue()),
        "vectors": np.stack(vectors).astype(np.float32, copy=False),
        "digests": np.frombuffer(b"".join(row.digest for row in rows), np.uint8).reshape(-1, 16),
        "embedded": np.fromiter((row.embedded for row in rows), bool, len(rows)),
    }
