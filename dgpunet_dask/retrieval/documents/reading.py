"""Finds documents below roots and behind addresses, and reads them ahead of whoever takes them, several at once.

What an address gave is noted in the job's folder, and so is a document that took too long: a source that is begun anew must give what it
gave before, and neither the web nor a clock would.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

from dgpunet_dask.retrieval.decode import UndecodableError, decode
from dgpunet_dask.retrieval.discover import Entry, Root, Skipped, Text, discover, read_bytes
from dgpunet_dask.retrieval.documents.children import Children
from dgpunet_dask.retrieval.documents.fetch import Fetcher
from dgpunet_dask.retrieval.documents.kinds import Kind, judge_document, kind_of_name
from dgpunet_dask.retrieval.documents.texts import Extracted, SkippedError, plain_title

#: How documents are read. Changes whenever the same file would give another text or code.
READING: Final = "documents-1"
#: Where outcomes that cannot be had twice are noted, in the job's folder.
OUTCOMES: Final = "outcomes"
#: What one document may take to be read, apart from being fetched.
SECONDS: Final = 60.0
#: Documents read at once: each may take 2 GiB of memory, few do.
READERS: Final = 4
#: The stat of an address: its time lies so far ahead that nothing counts as read since, and each submission asks again.
_NEVER_READ: Final = os.stat_result((0,) * 10, {"st_mtime_ns": 1 << 62, "st_ctime_ns": 1 << 62})


class Documents:
    """The documents of one job. Use it as a context manager.

    Parameters
    ----------
    urls
        Addresses to fetch; each is its own path in the index.
    folder
        The job's.
    fetcher
        Fetches them.
    children
        Read what is no plain text.
    """

    def __init__(self, urls: Sequence[str], folder: Path, fetcher: Fetcher, children: Children | None = None, readers: int = READERS) -> None:
        self._urls = frozenset(urls)
        self._order = tuple(urls)
        self._folder = folder
        self._fetcher = fetcher
        self._children = children or Children(SECONDS)
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="documents")
        self._ahead = 2 * readers
        self._waiting: deque[Entry] = deque()
        self._begun: dict[str, Future[Text | str]] = {}

    def walk(self, roots: Sequence[Root], skipped: Skipped) -> Iterator[Entry]:
        """Yield the documents below `roots`, then the addresses; `skipped` hears of every other entry."""
        yield from discover(roots, skipped, judge_document)
        for url in self._order:
            yield Entry(url, b"", _NEVER_READ)

    def expect(self, entries: Iterable[Entry]) -> None:
        """Say what `read` will be asked for, in which order: so much of it is read ahead as is taken soon."""
        self._waiting = deque(entries)
        self._top_up()

    def read(self, entry: Entry) -> Text | str:
        """Return the text of a document, or the reason to skip it.

        Raises
        ------
        OSError
            If the job's folder takes no more.
        """
        begun = self._begun.pop(entry.path, None)
        self._top_up()
        return self._outcome(entry) if begun is None else begun.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._children.__exit__()  # ends what is being read: if anything is, nobody waits for it any more
        self._pool.shutdown()

    def _top_up(self) -> None:
        while self._waiting and len(self._begun) < self._ahead:
            entry = self._waiting.popleft()
            self._begun[entry.path] = self._pool.submit(self._outcome, entry)

    def _outcome(self, entry: Entry) -> Text | str:
        note = self._folder / OUTCOMES / f"{hashlib.sha256(entry.path.encode('utf-8', 'surrogatepass')).hexdigest()}.json"
        try:
            return _outcome_of(json.loads(note.read_text("ascii")))
        except FileNotFoundError:
            pass
        try:
            found: Extracted | SkippedError = self._fetched(entry.path) if entry.path in self._urls else self._of_file(entry)
        except SkippedError as skip:
            found = skip
        answer = {"skip": found.reason} if isinstance(found, SkippedError) else vars(found)
        if entry.path in self._urls or (isinstance(found, SkippedError) and found.code == "timeout"):
            _note(note, answer)
        return _outcome_of(answer)

    def _of_file(self, entry: Entry) -> Extracted:
        kind = kind_of_name(entry.path.rpartition("/")[2]) or _AS_TEXT
        return self._extracted(entry.file, kind, None)

    def _fetched(self, url: str) -> Extracted:
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix="fetched-") as file:
            fetched = self._fetcher.fetch(url, file)
            file.flush()
            return self._extracted(os.fsencode(file.name), fetched.kind, fetched.charset)

    def _extracted(self, file: bytes, kind: Kind, charset: str | None) -> Extracted:
        if not kind.plain:
            return Extracted(**self._children.read(file, kind.name, charset))
        data = read_bytes(file, kind.bytes_max)
        if isinstance(data, str):
            raise SkippedError(data)
        text = _decoded(data, charset)
        if not text.strip():
            raise SkippedError("no_text", "it is empty")
        return Extracted(text, kind.name, plain_title(text, kind.name))


def _decoded(data: bytes, charset: str | None) -> str:
    """The text of bytes; what a server said of them is believed where they are not UTF-8, carry no mark, and it fits."""
    if charset is not None and not data.startswith((b"\xff\xfe", b"\xfe\xff")) and not _is_utf8(data):
        try:
            return data.decode(charset).replace("\r\n", "\n")
        except (LookupError, UnicodeDecodeError):
            pass  # it is guessed, as that of a file
    try:
        return decode(data)
    except UndecodableError as error:
        raise SkippedError(error.code) from error


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _outcome_of(answer: dict[str, Any]) -> Text | str:
    return str(answer["skip"]) if "skip" in answer else Text(answer["text"], answer["language"], answer["title"])


def _note(note: Path, answer: dict[str, Any]) -> None:
    note.parent.mkdir(exist_ok=True)
    temporary = note.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(answer), "ascii")
    temporary.replace(note)


_AS_TEXT: Final = Kind("text", 16 << 20, plain=True)  # a file that was named itself, of whatever name
