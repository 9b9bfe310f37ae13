"""The files of one version of an index: a Parquet file with one row a file, in the order in which they were found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

FILES: Final = "files.parquet"
#: Rows written and read at once.
ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of an index; `chunks` is filled in when it is published.

    `key` is the digest of its text and language, by which its chunks are found; `size` to `inode` are the stat by which the next version
    knows it unchanged.
    """

    path: str
    key: str
    language: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    chunks: int = 0


def file_schema() -> pa.Schema:
    """Return the columns of the table: those of `FileRow`."""
    import pyarrow as pa

    text, whole = pa.string(), pa.int64()
    names = ("size", "mtime_ns", "ctime_ns", "inode", "chunks")
    return pa.schema([("path", text), ("key", text), ("language", text), *((n, whole) for n in names)])


def write_files(file: Path, rows: Iterable[FileRow]) -> int:
    """Write `rows` into a new file, durably, and return how many there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    with file.open("xb") as opened:
        with pq.ParquetWriter(opened, file_schema(), compression="zstd") as writer:
            for batch in batched(rows, ROWS):
                columns = [[getattr(f, name) for f in batch] for name in file_schema().names]
                writer.write_table(pa.table(columns, schema=file_schema()))
                count += len(batch)
        opened.flush()
        os.fsync(opened.fileno())
    return count


def batched(items: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield `items` in lists of at most `size`."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_files(file: Path) -> Iterator[FileRow]:
    """Yield the rows of a table."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(ROWS):
            columns = [batch.column(n).to_pylist() for n in batch.schema.names]
            yield from map(FileRow, *columns)


def read_keys(file: Path) -> dict[str, str]:
    """Return the key of each file by its path."""
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["path", "key"])
    return dict(zip(table.column("path").to_pylist(), table.column("key").to_pylist(), strict=True))


def read_paths(file: Path) -> dict[str, list[str]]:
    """Return the paths of each file key: equal files have one key."""
    found: dict[str, list[str]] = {}
    for path, key in read_keys(file).items():
        found.setdefault(key, []).append(path)
    return found
