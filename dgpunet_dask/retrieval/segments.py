"""A segment: an immutable folder with chunks, their vectors, and which file each belongs to.

* ``chunks.arrow``: one row a chunk, in an Arrow file that is mapped, not read: a hit's text costs no decompression. Rows of a file stand together;
* ``vectors.faiss``: a FAISS flat inner-product index, row for row;
* ``keys.arrow``: for each file, by its key (the digest of its content), its first row and how many there are;
* ``scan.faiss``, of a large segment: the vectors once more with fewer bits, which are looked through first (`scans`);
* ``segment.json``: what it holds, and the digests of the others, written last.

A segment does not know which of its files are still part of an index: a version's own table of files does (`filetable`). So nothing is
ever written into a segment again; what is not listed any more is passed over by readers, and left out when segments are merged.

Writing streams: neither chunks nor vectors are ever held whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from dgpunet_dask.errors import DiskFull
from dgpunet_dask.errors.fullness import NO_ROOM
from dgpunet_dask.retrieval import scans
from dgpunet_dask.retrieval.exact import exact_scan
from dgpunet_dask.retrieval.scans import SCAN, ScanFacts
from dgpunet_dask.security.files import sync_folder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    Rows = NDArray[np.int64]

CHUNKS: Final = "chunks.arrow"
VECTORS: Final = "vectors.faiss"
KEYS: Final = "keys.arrow"
FACTS: Final = "segment.json"
#: Rows written and read at once; 4096 vectors of 384 numbers are 6 MB.
ROWS: Final = 4096

#: How FAISS 1.x writes an IndexFlatIP (faiss/impl/index_write.cpp, write_index_header): fourcc, dimension, count, two unused,
#: trained, metric (0 = inner product), number of floats; then the floats.
_FLAT: Final = struct.Struct("<4siqqq?iQ")

#: Opens a file for writing; tests give one that fails.
Opener = Callable[[Path], BinaryIO]


class DamagedSegmentError(Exception):
    """What a segment holds cannot be read."""


@dataclass(frozen=True)
class SegmentFacts:
    """What a segment holds: chunks, files, tokens, numbers a vector has, the digest of each of its files, and what its scan is worth if it is large."""

    rows: int
    files: int
    tokens: int
    dimension: int
    digests: Mapping[str, str] = field(default_factory=dict)
    scan: ScanFacts | None = None


def chunk_schema() -> pa.Schema:
    """Return the columns of ``chunks.arrow``, which are also those of a unit's rows."""
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


def key_schema() -> pa.Schema:
    """Return the columns of ``keys.arrow``."""
    import pyarrow as pa

    return pa.schema([("key", pa.string()), ("first", pa.int64()), ("count", pa.int64())])


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
        self.by_key: dict[str, int] = {}
        self._opener = opener
        self._open = ExitStack()
        self._files: list[BinaryIO] = []
        self._chunks: Any = None
        self._pending: list[pa.Table] = []
        self._waiting = 0
        self._vectors: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def append(self, chunks: pa.Table, vectors: Vectors) -> None:
        """Add rows: a table of `chunk_schema` and float32 vectors ``(rows, dimension)`` of length 1. All rows of a file at once.

        Raises
        ------
        ValueError
            If the numbers of rows, or the dimensions, do not agree, or a file comes in two parts.
        """
        if len(chunks) != len(vectors):
            raise ValueError(f"{len(chunks)} chunks came with {len(vectors)} vectors")
        if not len(chunks):
            return
        counts = _counts(chunks.column("key").to_pylist())
        if again := counts.keys() & self.by_key.keys():
            raise ValueError(f"the chunks of {min(again)} came in two parts")
        file = self._opened(int(vectors.shape[1]))
        self._pending.append(chunks.cast(chunk_schema()))
        self._waiting += len(chunks)
        if self._waiting >= ROWS:
            self._write_pending()
        file.write(vectors.astype("<f4", order="C", copy=False).tobytes())
        self.rows += len(chunks)
        self.tokens += sum(chunks.column("tokens").to_pylist())
        self.by_key |= counts

    def _write_pending(self) -> None:
        """Write what was appended as one batch: many small ones would make the file slow to open."""
        import pyarrow as pa

        if self._pending:
            self._chunks.write_table(pa.concat_tables(self._pending).combine_chunks())
        self._pending, self._waiting = [], 0

    def _opened(self, dimension: int) -> BinaryIO:
        import pyarrow as pa

        if self._vectors is None:
            self.dimension = dimension
            self._chunks = pa.ipc.new_file(self._new(CHUNKS), chunk_schema())  # closed by `finish` alone: each closing adds an end
            self._vectors = self._new(VECTORS)
            self._vectors.write(_header(dimension, 0))
        if dimension != self.dimension:
            raise ValueError(f"a vector has {dimension} numbers where the others have {self.dimension}")
        return self._vectors

    def _new(self, name: str) -> BinaryIO:
        file = self._opener(self.folder / name)
        self._files.append(self._open.enter_context(file))
        return file

    def finish(self) -> SegmentFacts:
        """Complete and sync everything, and return what the segment holds.

        Raises
        ------
        ValueError
            If nothing was appended: there is no segment without rows.
        """
        if self._vectors is None or self.dimension is None:
            raise ValueError("a segment has one row at least")
        self._write_pending()
        self._chunks.close()
        self._vectors.seek(0)
        self._vectors.write(_header(self.dimension, self.rows))
        self._write_keys()
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        facts = SegmentFacts(self.rows, len(self.by_key), self.tokens, self.dimension)
        facts = replace(facts, scan=self._write_scan(facts))
        facts = replace(facts, digests=digests_of(self.folder))
        with self._opener(self.folder / FACTS) as opened:
            opened.write(json.dumps(asdict(facts)).encode())
            opened.flush()
            os.fsync(opened.fileno())
        sync_folder(self.folder)
        return facts

    def _write_scan(self, facts: SegmentFacts) -> ScanFacts | None:
        """Write a large segment's scan, in the quickest form that turns out to be of use."""
        found: ScanFacts | None = None
        for kind in scans.kinds_for(facts.rows):
            vectors = _mapped_vectors(self.folder / VECTORS, facts)
            with self._opener(self.folder / SCAN) as file:
                scans.write_scan(file, vectors, kind)
                file.flush()
                os.fsync(file.fileno())
            found = scans.worth(self.folder, vectors, exact_scan(self.folder / VECTORS), kind)
            if scans.kept(found):
                return found
            (self.folder / SCAN).unlink()
        return None if found is None else replace(found, kind=None)

    def _write_keys(self) -> None:
        import pyarrow as pa

        first, firsts = 0, []
        for count in self.by_key.values():
            firsts.append(first)
            first += count
        table = pa.table([list(self.by_key), firsts, list(self.by_key.values())], schema=key_schema())
        with pa.ipc.new_file(self._new(KEYS), key_schema()) as writer:
            writer.write_table(table)


def _counts(keys: list[str]) -> dict[str, int]:
    """Return how many rows each key has, in their order.

    Raises
    ------
    ValueError
        If the rows of one do not stand together.
    """
    found: dict[str, int] = {}
    last = None
    for key in keys:
        if key != last and key in found:
            raise ValueError(f"the chunks of {key} came in two parts")
        found[key] = found.get(key, 0) + 1
        last = key
    return found


def _header(dimension: int, rows: int) -> bytes:
    return _FLAT.pack(b"IxFI", dimension, rows, 1 << 20, 1 << 20, True, 0, rows * dimension)


def digests_of(folder: Path) -> dict[str, str]:
    """Return the BLAKE2b digests of a segment's data."""
    found = {}
    for name in (CHUNKS, VECTORS, KEYS, *([SCAN] if (folder / SCAN).exists() else [])):
        with (folder / name).open("rb") as opened:
            found[name] = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return found


class Segment:
    """A segment that is read. Its files are mapped: they may be unlinked meanwhile.

    Raises
    ------
    DamagedSegmentError
        If what it says of itself and what it is do not agree. Contents are not compared with their digests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.facts = _facts(folder)
            self.chunks = _mapped_table(folder / CHUNKS, chunk_schema())
            self.vectors = _mapped_vectors(folder / VECTORS, self.facts)
            keys = _mapped_table(folder / KEYS, key_schema())
            self.key_column = keys.column("key")
            self.keys: list[str] = self.key_column.to_pylist()
            self.first: Rows = keys.column("first").to_numpy()
            self.count: Rows = keys.column("count").to_numpy()
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:  # Arrow raises ValueError and KeyError
            raise DamagedSegmentError(f"{folder.name}: {error}") from error
        if len(self.chunks) != self.facts.rows or int(self.count.sum()) != self.facts.rows or len(self.keys) != self.facts.files:
            raise DamagedSegmentError(f"{folder.name}: its chunks, vectors and files do not belong together")

    @property
    def rows(self) -> int:
        """How many chunks it holds."""
        return self.facts.rows

    @cached_property
    def at(self) -> dict[str, int]:
        """The position of each file among its files, by key."""
        return {key: position for position, key in enumerate(self.keys)}

    def listed(self, keys: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return for each of its files whether its key is one of `keys`."""
        import pyarrow.compute as pc

        return np_bools(pc.is_in(self.key_column, value_set=keys))

    def rows_of(self, key: str) -> range:
        """Return the rows of one of its files."""
        position = self.at[key]
        return range(int(self.first[position]), int(self.first[position] + self.count[position]))

    def part(self, wanted: Callable[[str], bool]) -> Iterator[tuple[pa.Table, Vectors]]:
        """Yield the chunks of its files whose key is `wanted`, whole files at a time, with copies of their vectors."""
        import numpy as np
        import pyarrow as pa

        for run in _runs([n for n, key in enumerate(self.keys) if wanted(key)], self.count):
            rows = np.concatenate([np.arange(self.first[n], self.first[n] + self.count[n]) for n in run])
            spans = [self.chunks.slice(int(self.first[n]), int(self.count[n])) for n in run]
            yield pa.concat_tables(spans), np.ascontiguousarray(self.vectors[rows], np.float32)


def np_bools(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return a column of truth values as an array."""
    import numpy as np

    return np.asarray(column.to_numpy(), bool)


def _runs(positions: list[int], count: Rows) -> Iterator[list[int]]:
    """Yield lists of `positions` that have about `ROWS` rows together."""
    run: list[int] = []
    rows = 0
    for position in positions:
        run.append(position)
        rows += int(count[position])
        if rows >= ROWS:
            yield run
            run, rows = [], 0
    if run:
        yield run


def whole(folder: Path) -> bool:
    """Whether a segment can be opened, and its parts agree. Contents are not read."""
    try:
        Segment(folder)
    except DamagedSegmentError:
        return False
    return True


def facts_of(folder: Path) -> SegmentFacts:
    """Return what a segment says of itself.

    Raises
    ------
    DamagedSegmentError
        If that cannot be read.
    """
    try:
        return _facts(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedSegmentError(f"{folder.name}: {error}") from error


def _facts(folder: Path) -> SegmentFacts:
    raw = json.loads((folder / FACTS).read_text("utf-8"))
    told = {name: raw[name] for name in SegmentFacts.__dataclass_fields__ if name != "scan"}
    return SegmentFacts(**told, scan=scans.facts_of(raw.get("scan")))


def _mapped_table(file: Path, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    if not table.schema.equals(schema):
        raise ValueError(f"{file.name} has other columns than this release writes")
    table.validate()
    for column in table.columns:  # offsets that lead anywhere would end the process, not raise
        for part in column.chunks if pa.types.is_string(column.type) else ():
            _check_offsets(part)
    return table


def _check_offsets(part: pa.Array) -> None:
    import numpy as np

    offsets = np.frombuffer(part.buffers()[1], "<i4")[part.offset : part.offset + len(part) + 1]
    if len(part) and (offsets[0] < 0 or (np.diff(offsets) < 0).any()):
        raise ValueError("its offsets are not in order")


def _mapped_vectors(file: Path, facts: SegmentFacts) -> Vectors:
    """Map the floats of a flat index file; they start at an odd address, so what is taken from the map is copied before use."""
    import numpy as np

    with file.open("rb") as opened:
        found = _FLAT.unpack(opened.read(_FLAT.size))
    if found[:3] != (b"IxFI", facts.dimension, facts.rows):
        raise ValueError(f"{file.name} does not hold the vectors of its {facts.rows} chunks")
    return np.memmap(file, np.dtype("<f4"), "r", offset=_FLAT.size, shape=(facts.rows, facts.dimension))
