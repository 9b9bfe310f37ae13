"""The lexical side of an index: BM25 by tantivy over the words of chunks, and apart from them over the words of paths.

Each version of an index has a folder of its own. The next one begins as hard links to the files of the version before, which
tantivy never changes: it writes new ones, and removes links. What it does replace, ``meta.json`` and ``.managed.json``, is
copied. So a version that is being made harms no other, and one that is never finished is only a folder to be removed.

Paths are an index beside the chunks', so that a renamed file touches no chunk, and that neither one's statistics count the
other.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from dgpunet_dask.retrieval.words import asked, words
from dgpunet_dask.security.files import sync_folder

if TYPE_CHECKING:
    import tantivy

CHUNKS: Final = "chunks"
PATHS: Final = "paths"
#: Files that tantivy replaces by renaming; all others of a folder are written once.
_REPLACED: Final = ("meta.json", ".managed.json")
#: A version must not be born with another writer's locks.
_LOCKS: Final = (".tantivy-writer.lock", ".tantivy-meta.lock")
#: tantivy refuses less than 15 MB. One thread: ingestion leaves the other cores to the model.
_HEAP_BYTES: Final = 32_000_000
#: What a word counts in a field. A word of the name says what the chunk is, one of the text only what it mentions.
BOOSTS: Final = {"text": 1.0, "symbol": 1.0, "scope": 0.5}
#: So many keys are looked up in the index; more are compared hit by hit.
_FEW_KEYS: Final = 1024
#: Asked beyond `k`, so that equal scores at the end are mostly seen at once.
_BEYOND: Final = 16
#: How tantivy ends a file: the footer's JSON, its length, and this number (both little-endian, 4 bytes).
_MAGIC: Final = 1337

#: Whether a chunk counts, by its file's key and its ordinal there.
Accepts = Callable[[str, Any], bool]


@dataclass(frozen=True)
class LexicalChunk:
    """A chunk to be indexed.

    Parameters
    ----------
    key
        The content digest of its file.
    ordinal
        It is the n-th chunk of that file.
    symbol, scope
        The definition's name, and what encloses it. A qualified name (``Class.method``) may be given as symbol.
    """

    key: str
    ordinal: int
    text: str
    symbol: str | None
    scope: str | None
    language: str


@dataclass(frozen=True)
class LexicalHit:
    """A chunk that was found; a higher score is better, and comparable within one answer only."""

    score: float
    key: str
    ordinal: int


class LexicalWriter:
    """Makes one version in `folder`, which must not exist or be empty, from nothing or from the version in `base`.

    A context manager: leaving without `finish` gives the version up; the folder is then of no use. `base` is never changed.
    """

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        self._folder = folder
        self._base = base
        self._parts = {name: _Part(folder / name) for name in (CHUNKS, PATHS)}

    def __enter__(self) -> Self:
        for name, part in self._parts.items():
            part.begin(None if self._base is None else self._base / name)
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts.values():
            part.abandon()

    def remove_keys(self, keys: Iterable[str]) -> None:
        """Remove all chunks of the files with these contents. Chunks that are added later stay."""
        self._parts[CHUNKS].remove("key", keys)

    def add(self, chunks: Iterable[LexicalChunk]) -> None:
        """Add chunks. One that is there already is there twice then: remove its key first."""
        self._parts[CHUNKS].add(map(_chunk_fields, chunks))

    def remove_paths(self, paths: Iterable[str]) -> None:
        """Remove paths; their chunks stay until their key is removed."""
        self._parts[PATHS].remove("path", paths)

    def add_paths(self, paths: Iterable[tuple[str, str]]) -> None:
        """Make ``(path, key)`` findable by the words of the path."""
        self._parts[PATHS].add({"text": _joined(path), "path": path, "key": key} for path, key in paths)

    def finish(self) -> None:
        """Commit, wait for merges, and make everything durable.

        Raises
        ------
        OSError
            If it cannot be written, also where the disk is full.
        """
        for part in self._parts.values():
            part.finish()
        sync_folder(self._folder)


def _chunk_fields(chunk: LexicalChunk) -> dict[str, Any]:
    outer, name = split_symbol(chunk.symbol, chunk.scope)
    fields: dict[str, Any] = {"text": _joined(chunk.text), "key": chunk.key, "ordinal": chunk.ordinal, "language": chunk.language}
    return fields | {"symbol": _joined(name), "scope": _joined(outer)}


def split_symbol(symbol: str | None, scope: str | None) -> tuple[str, str]:
    """Return what encloses a definition and its own name, whether or not its name is qualified."""
    outer, _, name = (symbol or "").rpartition(".")
    return " ".join(dict.fromkeys(part for part in (scope, outer) if part)), name


def _joined(text: str) -> str:
    return " ".join(words(text))


class _Part:
    """One tantivy index of a version that is being made. What is not changed is not opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: Any = None
        self._writer: Any = None
        self._durable: set[str] = set()

    def begin(self, base: Path | None) -> None:
        self._folder.mkdir(parents=True)
        if base is None:
            self._open()
            return
        for name in sorted(set(os.listdir(base)) - set(_LOCKS)):
            if name in _REPLACED or not _linked(base / name, self._folder / name):
                shutil.copyfile(base / name, self._folder / name)
            else:
                self._durable.add(name)

    def _open(self) -> Any:
        import tantivy

        if self._writer is None:
            self._index = tantivy.Index(_schema(self._folder.name), str(self._folder))
            self._writer = self._index.writer(_HEAP_BYTES, 1)
        return self._writer

    def remove(self, field: str, values: Iterable[str]) -> None:
        for value in values:
            self._open().delete_documents_by_term(field, value)

    def add(self, documents: Iterable[dict[str, Any]]) -> None:
        import tantivy

        for fields in documents:
            self._open().add_document(tantivy.Document.from_dict(fields, self._index.schema))

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.commit()
            self._writer.wait_merging_threads()
            self.abandon()
        for name in set(os.listdir(self._folder)) - self._durable:
            _sync(self._folder / name)
        sync_folder(self._folder)

    def abandon(self) -> None:
        """End the threads and remove the locks. What was not committed is dropped."""
        self._writer = self._index = None
        for name in _LOCKS:
            (self._folder / name).unlink(missing_ok=True)


def _schema(part: str) -> tantivy.Schema:
    import tantivy

    builder = tantivy.SchemaBuilder()
    for name in BOOSTS if part == CHUNKS else ("text",):
        builder.add_text_field(name, tokenizer_name="whitespace", index_option="freq")
    builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
    if part == PATHS:
        builder.add_text_field("path", stored=True, tokenizer_name="raw", index_option="basic")
        return builder.build()
    builder.add_text_field("language", tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("ordinal", stored=True)
    return builder.build()


def _linked(file: Path, into: Path) -> bool:
    """Link a file; false on a file system without hard links."""
    try:
        os.link(file, into)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _damage_told() -> Iterator[None]:
    """Name damage on which tantivy panics; PyO3's exception for that is no `Exception`, and would pass by whoever catches those."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the lexical index is damaged: {error}") from error


class LexicalIndex:
    """A version opened for reading, from any number of threads. Files are mapped, not read.

    Raises
    ------
    ValueError, OSError
        If it cannot be opened; searches raise them too where what they read is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _damage_told():
            self._chunks = _Reader(folder / CHUNKS)
            self._paths = _Reader(folder / PATHS)

    def search(
        self, query: str, k: int, *, language: str | None = None, keys: Collection[str] | None = None, accepts: Accepts | None = None,
    ) -> list[LexicalHit]:  # fmt: skip
        """Return the best `k` chunks, best first, equal ones by key and ordinal.

        With `keys`, only of files with these contents; with `accepts`, only those that it takes, asked of key and ordinal.
        """
        required = [] if language is None else [("language", [language])]
        chosen = None if keys is None else frozenset(keys)
        if chosen is not None and len(chosen) <= _FEW_KEYS:
            required.append(("key", sorted(chosen)))
            chosen = None
        found = self._chunks.best(query, k, BOOSTS, required, "key", _both(chosen, accepts))
        return [LexicalHit(-score, key, ordinal) for score, key, ordinal in found]

    def search_paths(self, query: str, k: int) -> list[tuple[float, str, str]]:
        """Return ``(score, path, key)`` of the best `k` paths, best first, equal ones by path."""
        return [(-score, path, key) for score, path, key in self._paths.best(query, k, {"text": 1.0}, [], "path", None)]

    def count(self) -> tuple[int, int]:
        """Return the number of chunks and of paths."""
        return self._chunks.count(), self._paths.count()

    def check(self) -> list[str]:
        """Read everything, and return what is not as it was written; each item names its file."""
        return [fault for name in (CHUNKS, PATHS) for fault in faults(self._folder / name)]


def _both(keys: Collection[str] | None, accepts: Accepts | None) -> Accepts | None:
    if keys is None:
        return accepts
    return lambda key, ordinal: key in keys and (accepts is None or accepts(key, ordinal))


class _Reader:
    def __init__(self, folder: Path) -> None:
        import tantivy

        self._index = tantivy.Index.open(str(folder))
        self._index.config_reader("manual")  # a version never changes
        self._searcher = self._index.searcher()
        (folder / _LOCKS[1]).unlink(missing_ok=True)  # opening takes it against writers, of which a version has none any more

    def count(self) -> int:
        return int(self._searcher.num_docs)

    def best(
        self,
        query: str,
        k: int,
        boosts: dict[str, float],
        required: list[tuple[str, list[str]]],
        field: str,
        accepts: Accepts | None,
    ) -> list[tuple[float, str, Any]]:
        """Return ``(-score, first field, second field)``, sorted. Asks for more until no hit left out can belong to the best `k`."""
        terms = asked(query)
        if k < 1 or not terms or not self.count():
            return []
        wanted = self._query(terms, boosts, required)
        limit = k + _BEYOND
        with _damage_told():
            return self._best(wanted, k, limit, field, accepts)

    def _best(
        self, wanted: tantivy.Query, k: int, limit: int, field: str, accepts: Accepts | None
    ) -> list[tuple[float, str, Any]]:
        while True:
            hits = self._searcher.search(wanted, min(limit, self.count()), count=False).hits
            found = sorted(row for row in self._rows(hits, field) if accepts is None or accepts(row[1], row[2]))
            if len(hits) < limit or (len(found) >= k and -found[k - 1][0] > hits[-1][0]):
                return found[:k]
            limit *= 4

    def _rows(self, hits: Iterable[tuple[float, Any]], field: str) -> Iterator[tuple[float, str, Any]]:
        second = "key" if field == "path" else "ordinal"
        for score, address in hits:
            document = self._searcher.doc(address)
            yield -score, str(document.get_first(field)), document.get_first(second)

    def _query(self, terms: Iterable[str], boosts: dict[str, float], required: list[tuple[str, list[str]]]) -> tantivy.Query:
        from tantivy import Occur, Query

        schema = self._index.schema
        anywhere = [
            (Occur.Should, Query.boost_query(Query.term_query(schema, field, term, "freq"), boost))
            for term in dict.fromkeys(terms)
            for field, boost in boosts.items()
        ]
        filters = [(Occur.Must, Query.const_score_query(Query.term_set_query(schema, field, values), 0.0)) for field, values in required]
        return Query.boolean_query([(Occur.Must, Query.boolean_query(anywhere)), *filters])


def faults(folder: Path) -> list[str]:
    """Compare the files of a tantivy index with their checksums, and with the list of its segments."""
    try:
        segments = [s["segment_id"].replace("-", "") for s in json.loads((folder / "meta.json").read_text())["segments"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{folder / 'meta.json'} cannot be read: {error}"]
    names = os.listdir(folder)
    lost = [f"{folder} has no files of segment {s}" for s in segments if not any(name.startswith(s) for name in names)]
    files = [folder / name for name in sorted(names) if name not in {*_REPLACED, *_LOCKS}]
    return lost + [fault for path in files if (fault := _damage(path)) is not None]


def _damage(path: Path) -> str | None:
    data = path.read_bytes()
    length, magic = (int.from_bytes(data[at : at + 4], "little") for at in (len(data) - 8, len(data) - 4))
    body = len(data) - 8 - length
    if magic != _MAGIC or body < 0:
        return f"{path} is cut off, or no file of tantivy"
    try:
        crc = json.loads(data[body:-8])["crc"]
    except (ValueError, KeyError, TypeError):
        return f"{path} has a damaged footer"
    return None if zlib.crc32(data[:body]) == crc else f"{path} does not have the checksum that it was written with"
