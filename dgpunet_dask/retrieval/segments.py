"""A segment: an immutable folder with the chunks of one version of an index, their vectors, and the files they come from.

* ``chunks.parquet``: one row a chunk: key (content digest of its file), start_line, end_line, symbol, kind, scope, language,
  tokens, text;
* ``vectors.faiss``: a FAISS flat inner-product index, row for row;
* ``files.parquet``: one row a file: path, key, chunks, and the stat by which the next version knows it unchanged.

Writing streams: neither chunks nor vectors are ever held whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from dgpunet_dask.errors import DiskFull
from dgpunet_dask.errors.fullness import NO_ROOM
from dgpunet_dask.security.files import sync_folder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

CHUNKS: Final = "chunks.parquet"
VECTORS: Final = "vectors.faiss"
FILES: Final = "files.parquet"
#: Rows written and read at once; 4096 vectors of 384 numbers are 6 MB.
ROWS: Final = 4096

#: How FAISS 1.x writes an IndexFlatIP (faiss/impl/index_write.cpp, write_index_header): fourcc, dimension, count, two unused,
#: trained, metric (0 = inner product), number of floats; then the floats.
_FLAT: Final = struct.Struct("<4siqqq?iQ")

#: Opens a file for writing; tests give one that fails.
Opener = Callable[[Path], BinaryIO]


@dataclass(frozen=True)
class FileRow:
    """One file of an index; `chunks` is filled in when it is published."""

    path: str
    key: str
    language: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    chunks: int = 0


def chunk_schema() -> pa.Schema:
    """Return the columns of ``chunks.parquet``, which are also those of a unit's rows."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int32()
    columns: list[tuple[str, Any]] = [
        ("key", text),
        ("start_line", whole),
        ("end_line", whole),
        ("symbol", text),
        ("kind", text),
        ("scope", text),
        ("language", text),
    ]
    return pa.schema([*columns, ("tokens", whole), ("text", text)])


def file_schema() -> pa.Schema:
    """Return the columns of ``files.parquet``."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    names = ("size", "mtime_ns", "ctime_ns", "inode", "chunks")
    return pa.schema([("path", text), ("key", text), ("language", text), *((n, whole) for n in names)])


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn "no space" and "quota exceeded" into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull(path=path) from error
        raise


def open_new(path: Path) -> BinaryIO:
    """Open a new file for writing."""
    return path.open("xb")


class SegmentWriter:
    """Writes a segment into an existing empty folder. `finish` makes it durable; without it the folder is of no use.

    Use it as a context manager: leaving closes its files.
    """

    def __init__(self, folder: Path, opener: Opener = open_new) -> None:
        self.folder = folder
        self.dimension: int | None = None
        self.rows = 0
        self.tokens = 0
        self.chunks_of_files = 0
        self.by_key: dict[str, int] = {}
        self._opener = opener
        self._open = ExitStack()
        self._files: list[BinaryIO] = []
        self._parquet: Any = None
        self._vectors: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def append(self, chunks: pa.Table, vectors: Vectors) -> None:
        """Add rows: a table of `chunk_schema` and float32 vectors ``(rows, dimension)`` of length 1.

        Raises
        ------
        ValueError
            If the numbers of rows, or the dimensions, do not agree.
        """
        if len(chunks) != len(vectors):
            raise ValueError(f"{len(chunks)} chunks came with {len(vectors)} vectors")
        if not len(chunks):
            return
        parquet, file = self._opened(int(vectors.shape[1]))
        parquet.write_table(chunks.cast(chunk_schema()), row_group_size=ROWS)
        file.write(vectors.astype("<f4", order="C", copy=False).tobytes())
        self.rows += len(chunks)
        self.tokens += sum(chunks.column("tokens").to_pylist())
        for key in chunks.column("key").to_pylist():
            self.by_key[key] = self.by_key.get(key, 0) + 1

    def _opened(self, dimension: int) -> tuple[Any, BinaryIO]:
        import pyarrow.parquet as pq

        if self._vectors is None:
            self.dimension = dimension
            self._parquet = self._open.enter_context(pq.ParquetWriter(self._new(CHUNKS), chunk_schema(), compression="zstd"))
            self._vectors = self._new(VECTORS)
            self._vectors.write(_header(dimension, 0))
        if dimension != self.dimension:
            raise ValueError(f"a vector has {dimension} numbers where the others have {self.dimension}")
        return self._parquet, self._vectors

    def _new(self, name: str) -> BinaryIO:
        file = self._opener(self.folder / name)
        self._files.append(self._open.enter_context(file))
        return file

    def finish(self, files: Iterator[FileRow], dimension: int) -> int:
        """Write the files' rows, complete and sync everything, and return the number of files.

        `dimension` is that of a segment without any chunk.
        """
        self._opened(self.dimension or dimension)
        count = self._write_files(files)
        self._parquet.close()
        assert self._vectors is not None  # opened above
        self._vectors.seek(0)
        self._vectors.write(_header(self.dimension or dimension, self.rows))
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)
        return count

    def _write_files(self, files: Iterator[FileRow]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = 0
        with pq.ParquetWriter(self._new(FILES), file_schema(), compression="zstd") as writer:
            for batch in _batched(files, ROWS):
                chunks = [self.by_key.get(f.key, 0) for f in batch]
                columns = [[getattr(f, name) for f in batch] for name in file_schema().names[:-1]]
                writer.write_table(pa.table([*columns, chunks], schema=file_schema()))
                self.chunks_of_files += sum(chunks)
                count += len(batch)
        return count


def _header(dimension: int, rows: int) -> bytes:
    return _FLAT.pack(b"IxFI", dimension, rows, 1 << 20, 1 << 20, True, 0, rows * dimension)


def _batched(items: Iterator[FileRow], size: int) -> Iterator[Sequence[FileRow]]:
    batch: list[FileRow] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_files(folder: Path) -> Iterator[FileRow]:
    """Yield the files of a segment."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / FILES) as opened:
        for batch in opened.iter_batches(ROWS):
            columns = [batch.column(n).to_pylist() for n in batch.schema.names]
            yield from map(FileRow, *columns)


def whole(folder: Path) -> bool:
    """Whether a segment's three files are there, and agree on its rows. Their contents are not read."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(folder / CHUNKS) as chunks, pq.ParquetFile(folder / FILES) as files:
            rows = chunks.metadata.num_rows
            _mapped(folder / VECTORS, rows)
            return chunks.schema_arrow.equals(chunk_schema()) and files.schema_arrow.equals(file_schema())
    except (OSError, ValueError, struct.error):
        return False


class DamagedSegmentError(Exception):
    """What a segment holds cannot be read."""


def read_rows(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[pa.Table, Vectors]]:
    """Yield a segment's chunks whose key is `wanted`, with their vectors, a few thousand at a time.

    Raises
    ------
    DamagedSegmentError
        If they cannot be read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    with pq.ParquetFile(folder / CHUNKS) as opened:
        vectors = _mapped(folder / VECTORS, opened.metadata.num_rows)
        for batch in _readable(opened.iter_batches(ROWS)):
            mask = np.fromiter((wanted(k) for k in batch.column("key").to_pylist()), bool, batch.num_rows)
            if mask.any():
                kept = pa.Table.from_batches([batch]).filter(pa.array(mask))
                yield kept, np.ascontiguousarray(vectors[start : start + batch.num_rows][mask])
            start += batch.num_rows


def _readable(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield `batches`; only reading them is told as damage, not what is done with them."""
    try:
        yield from batches
    except (OSError, ValueError) as error:
        raise DamagedSegmentError(str(error)) from error


def _mapped(file: Path, rows: int) -> Vectors:
    """Map the floats of a flat index file; they start at an odd address, so what is taken from the map is copied before use."""
    import numpy as np

    with file.open("rb") as opened:
        found = _FLAT.unpack(opened.read(_FLAT.size))
    if found[0] != b"IxFI" or found[2] != rows:
        raise ValueError(f"{file} does not hold the {rows} vectors of its chunks")
    if rows == 0:
        return np.empty((0, found[1]), np.float32)
    return np.memmap(file, np.dtype("<f4"), "r", offset=_FLAT.size, shape=(rows, found[1]))
