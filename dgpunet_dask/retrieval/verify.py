"""Whether an index is what it says: its files by their digests, its counts, its vectors, and its spans against the files on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import NotAllowed
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval import scans
from dgpunet_dask.retrieval.discover import Entry, Root, Text, read_text, roots_of
from dgpunet_dask.retrieval.exact import exact_scan
from dgpunet_dask.retrieval.filetable import FILES, FileRow, read_files
from dgpunet_dask.retrieval.index import Index, Manifest, open_index
from dgpunet_dask.retrieval.ingest import content_key
from dgpunet_dask.retrieval.lexical import LexicalIndex
from dgpunet_dask.retrieval.lexicon import LEXICAL
from dgpunet_dask.retrieval.segments import VECTORS, DamagedSegmentError, Segment, digests_of
from dgpunet_dask.retrieval.skips import CODE_READING, reading_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Faults of one kind that are told one by one; the rest is counted.
_TOLD: Final = 20
#: How far from 1 the length of a vector may be.
_LENGTH: Final = 1e-2


@dataclass
class Verdict:
    """What was found.

    Parameters
    ----------
    faults
        What is wrong, each in one line. Empty: nothing.
    segments, files, chunks, checked_spans
        How much was looked at; spans are those of files that are on the disk as they were indexed.
    changed, gone
        Files of the index that are others by now, or not there: no faults, the index is older than the tree.
    """

    index: str
    faults: list[str] = field(default_factory=list)
    segments: int = 0
    files: int = 0
    chunks: int = 0
    checked_spans: int = 0
    changed: int = 0
    gone: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what `index verify --json` prints."""
        return asdict(self)


def verify(home: Home, name: str, by: User = OPERATOR, *, against_files: bool = True) -> Verdict:
    """Check an index of `by`'s.

    Raises
    ------
    NoSuchIndex, NewerFormat, MalformedFile
        If there is none that `by` may read, or not even its manifest can be read.
    NotAllowed
        If it is another user's.
    """
    index, manifest = open_index(home, name, by)
    if not by.owns(manifest):
        raise NotAllowed(what=f"verifying the index {name}", why="it is another user's")
    verdict = Verdict(name)
    segments = list(_segments(index, manifest, verdict))
    try:
        files = list(read_files(index.version(manifest) / FILES))
    except (OSError, ValueError) as error:
        verdict.faults.append(f"its table of files cannot be read: {error}")
        return verdict
    _check_counts(manifest, segments, files, verdict)
    _check_lexicon(index, manifest, len(files), verdict)
    if against_files and reading_of(index.version(manifest)) == CODE_READING:  # of a document the text is not its bytes
        _check_spans(manifest, segments, files, verdict)
    verdict.faults = [*verdict.faults[:_TOLD], *([f"{len(verdict.faults) - _TOLD} more faults"] if len(verdict.faults) > _TOLD else [])]
    return verdict


def _segments(index: Index, manifest: Manifest, verdict: Verdict) -> Iterator[Segment]:
    for folder in index.segments(manifest):
        verdict.segments += 1
        try:
            segment = Segment(folder)
            found = digests_of(folder)
            changed = [name for name in sorted(found.keys() | segment.facts.digests) if segment.facts.digests.get(name) != found.get(name)]
        except (DamagedSegmentError, OSError) as error:
            verdict.faults.append(f"segment {folder.name} cannot be read: {error}")
            continue
        if changed:
            verdict.faults.append(f"segment {folder.name}: {', '.join(changed)} changed since written")
            continue
        wrong = int((abs(_lengths(segment) - 1) > _LENGTH).sum())
        if wrong:
            verdict.faults.append(f"segment {folder.name}: {wrong} vectors are not of length 1")
        verdict.faults += _scan_faults(segment)
        yield segment


def _scan_faults(segment: Segment) -> Iterator[str]:
    """The scan of a large segment finds as much of what the exact one finds as it did when it was written."""
    told = segment.facts.scan
    if told is None or told.kind is None:
        return
    try:
        found = scans.measured(segment.folder, segment.vectors, exact_scan(segment.folder / VECTORS), told)
    except (OSError, RuntimeError, ValueError) as error:
        yield f"segment {segment.folder.name}: its scan cannot be read: {error}"
        return
    if not scans.kept(found):
        what = f"finds {found.recall:.4f} of the nearest, and leaves {found.exact_share:.0%} of the queries to the exact vectors"
        yield f"segment {segment.folder.name}: its scan {what}; `index compact` makes it anew"


def _lengths(segment: Segment) -> NDArray[np.float64]:
    import numpy as np

    step = 4096
    parts = [np.linalg.norm(np.asarray(segment.vectors[n : n + step], np.float64), axis=1) for n in range(0, segment.rows, step)]
    return np.concatenate(parts)


def _check_counts(manifest: Manifest, segments: list[Segment], files: list[FileRow], verdict: Verdict) -> None:
    """Each file's chunks are in exactly one segment, as many as its row says; together as many as the manifest says."""
    counts: dict[str, int] = {}
    for segment in segments:
        for key, count in zip(segment.keys, segment.count, strict=True):
            if key in counts:
                verdict.faults.append(f"the chunks of {key} are in two segments")
            counts[key] = int(count)
    wrong = [row.path for row in files if counts.get(row.key, 0) != row.chunks]
    verdict.faults += [f"{path} does not have the chunks that its row says" for path in wrong]
    verdict.files, verdict.chunks = len(files), sum(counts.get(key, 0) for key in {row.key for row in files})
    if (verdict.files, verdict.chunks) != (manifest.files, manifest.chunks):
        told = f"{manifest.files} files and {manifest.chunks} chunks"
        verdict.faults.append(f"its manifest says {told}, and it has {verdict.files} and {verdict.chunks}")


def _check_lexicon(index: Index, manifest: Manifest, files: int, verdict: Verdict) -> None:
    """The words are there, unharmed, of every chunk and path."""
    folder = index.version(manifest) / LEXICAL
    try:
        lexical = LexicalIndex(folder)
        verdict.faults += lexical.check()
        found = lexical.count()
    except (OSError, ValueError) as error:
        verdict.faults.append(f"its words cannot be read: {error}")
        return
    if found != (manifest.chunks, files):
        verdict.faults.append(f"the words of {found[0]} chunks and {found[1]} paths are there, and not of {manifest.chunks} and {files}")


def _check_spans(manifest: Manifest, segments: list[Segment], files: list[FileRow], verdict: Verdict) -> None:
    """The text of each chunk is what its file has in these lines, where the file is still the one that was indexed."""
    at = {key: segment for segment in segments for key in segment.keys}
    for row in files:
        text = _text(manifest, row)
        if text is None:
            verdict.gone += 1
        elif content_key(text.text, row.language) != row.key:
            verdict.changed += 1
        elif row.key in at:
            _check_file(row, text.text.split("\n"), at[row.key], verdict)


def _check_file(row: FileRow, lines: list[str], segment: Segment, verdict: Verdict) -> None:
    rows = segment.rows_of(row.key)
    for chunk in segment.chunks.slice(rows.start, len(rows)).to_pylist():
        verdict.checked_spans += 1
        span = "\n".join(lines[chunk["start_line"] - 1 : chunk["end_line"]])
        # one line that is longer than a chunk may be has several
        if span != chunk["text"] and not (chunk["start_line"] == chunk["end_line"] and chunk["text"] in span):
            verdict.faults.append(f"{row.path}:{chunk['start_line']}-{chunk['end_line']} is not what the index says")


def _text(manifest: Manifest, row: FileRow) -> Text | None:
    """Return the text that a file has now; ``None`` where it is gone or no text any more."""
    for root in _roots(manifest):
        prefix = f"{root.prefix}/" if root.prefix else ""
        if row.path.startswith(prefix):
            file = root.path if root.path.is_file() else root.path / row.path.removeprefix(prefix)
            try:
                entry = Entry(row.path, bytes(file), file.stat(follow_symlinks=False))
            except (OSError, ValueError):
                continue
            text = read_text(entry)
            return text if isinstance(text, Text) else None
    return None


def _roots(manifest: Manifest) -> tuple[Root, ...]:
    present = [Path(root) for root in manifest.roots]
    try:
        return roots_of(present)
    except Exception:  # a root that is gone: its files are
        return tuple(Root(path) for path in present if path.exists()) if len(present) == 1 else ()


__all__ = ["Verdict", "verify"]
