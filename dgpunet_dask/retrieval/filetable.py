"""The files of one version of an index: a Parquet file with one row a file, in the order in which they were found.

A tree may have hundreds of thousands of files of which one has changed, so rows are tuples here, and tables columns wherever that will do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

FILES: Final = "files.parquet"
#: Rows written and read at once.
ROWS: Final = 16_384


class FileRow(NamedTuple):
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
    return write_table(file, table_of(rows))


def table_of(rows: Iterable[FileRow]) -> pa.Table:
    """Return `rows` as a table of `file_schema`."""
    import pyarrow as pa

    tables = [pa.table([list(column) for column in zip(*batch, strict=True)], schema=file_schema()) for batch in _batched(rows, ROWS)]
    return pa.concat_tables([file_schema().empty_table(), *tables])


def write_table(file: Path, table: pa.Table, *, passing: bool = False) -> int:
    """Write a table of `file_schema` into a new file and return its number of rows; durably, unless it is a `passing` one, which is read once."""
    import pyarrow.parquet as pq

    with file.open("xb") as opened:
        pq.write_table(table, opened, compression="none" if passing else "zstd", use_dictionary=["language"], row_group_size=ROWS)
        if not passing:
            opened.flush()
            os.fsync(opened.fileno())
    return len(table)


def _batched(items: Iterable[FileRow], size: int) -> Iterator[Sequence[FileRow]]:
    batch: list[FileRow] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def with_chunks(table: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """Return a table of files with the numbers of their chunks, by key."""
    import pyarrow as pa
    import pyarrow.compute as pc

    at = pc.index_in(table.column("key"), value_set=pa.array(list(counts), pa.string()))
    chunks = pc.fill_null(pa.array(counts.values(), pa.int64()).take(at.combine_chunks()), 0)
    return table.set_column(table.schema.get_field_index("chunks"), "chunks", chunks)


def read_table(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or some columns of it."""
    import pyarrow.parquet as pq

    return pq.read_table(file, columns=None if columns is None else list(columns))


def read_files(file: Path) -> Iterator[FileRow]:
    """Yield the rows of a table."""
    yield from rows_of(read_table(file))


def rows_of(table: pa.Table) -> Iterator[FileRow]:
    """Yield the rows of a table of `file_schema`."""
    for batch in table.to_batches(ROWS):
        columns: list[list[Any]] = [batch.column(n).to_pylist() for n in table.schema.names]
        yield from map(FileRow._make, zip(*columns, strict=True))


def keys_of(table: pa.Table) -> dict[str, str]:
    """Return the key of each file of a table by its path."""
    return dict(zip(table.column("path").to_pylist(), table.column("key").to_pylist(), strict=True))


def read_paths(file: Path) -> dict[str, list[str]]:
    """Return the paths of each file key: equal files have one key."""
    table = read_table(file, ("path", "key"))
    paths, keys = (table.column(name).to_pylist() for name in ("path", "key"))
    found: dict[str, list[str]] = {key: [path] for path, key in zip(paths, keys, strict=True)}
    if len(found) < len(keys):
        found = {key: [] for key in found}
        for path, key in zip(paths, keys, strict=True):
            found[key].append(path)
    return found
