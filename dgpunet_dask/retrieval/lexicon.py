"""The lexical index of a version: what the one before has, less and more what changed between their files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgpunet_dask.retrieval.filetable import keys_of
from dgpunet_dask.retrieval.lexical import LexicalChunk, LexicalIndex, LexicalWriter
from dgpunet_dask.retrieval.segments import Segment
from dgpunet_dask.retrieval.words import WORDS_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

#: Its folder within a version's.
LEXICAL: Final = f"lexical-{WORDS_VERSION}"
#: Where more than this share of the files changed, all of it is made anew: removals would stay in it until tantivy merges.
_MUCH: Final = 0.5


def write_lexicon(folder: Path, base: Path | None, before: pa.Table | None, now: pa.Table, segments: Sequence[Segment]) -> None:
    """Make the lexical index of a new version in `folder`.

    Parameters
    ----------
    base
        That of the version before.
    before, now
        The tables of files (their columns ``path`` and ``key``) of the version before, ``None`` without one, and of the new one.
    segments
        Where the chunks of all files of the new version are.
    """
    gone, new, lost, found = _differences(before, now) if before is not None else (set[str](), set[str](), {}, {})
    if base is None or before is None or len(gone) + len(new) > _MUCH * len(now) or not usable(base, len(before)):
        base, gone, new, lost, found = None, set(), set(now.column("key").to_pylist()), {}, keys_of(now)
    with LexicalWriter(folder, base) as writer:
        writer.remove_keys(sorted(gone))
        writer.remove_paths(lost)
        for segment in segments if new else ():
            writer.add(_chunks(segment, (key for key in segment.keys if key in new)))
        writer.add_paths(found.items())
        writer.finish()


def _differences(before: pa.Table, now: pa.Table) -> tuple[set[str], set[str], dict[str, str], dict[str, str]]:
    """Return the keys that are gone and those that are new, then the keys of paths that are gone and of those that are new, as columns are compared.

    A path whose key has changed is both.
    """
    import pyarrow.compute as pc

    def only(one: pa.Table, other: pa.Table) -> tuple[set[str], dict[str, str]]:
        keys = one.column("key")
        missing = one.filter(pc.invert(pc.is_in(keys, value_set=other.column("key")))).column("key").to_pylist()
        at = pc.index_in(one.column("path"), value_set=other.column("path"))
        same = pc.fill_null(pc.equal(other.column("key").take(at), keys), False)
        return set(missing), keys_of(one.filter(pc.invert(same)))

    (gone, lost), (new, found) = only(before, now), only(now, before)
    return gone, new, lost, found


def usable(base: Path, files: int) -> bool:
    """Whether a version of so many files has a lexical index that can be built upon; contents are not read."""
    try:
        return LexicalIndex(base).count()[1] == files
    except (OSError, ValueError) as error:
        log.warning("%s is made anew: %s", base, error)
        return False


def _chunks(segment: Segment, keys: Iterable[str]) -> Iterator[LexicalChunk]:
    for key in keys:
        rows = segment.rows_of(key)
        for ordinal, row in enumerate(segment.chunks.slice(rows.start, len(rows)).to_pylist()):
            yield LexicalChunk(key, ordinal, row["text"], row["symbol"], row.get("scope"), row["language"])
