"""The lexical index of a version: what the one before has, less and more what changed between their files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from dgpunet_dask.retrieval.lexical import LexicalChunk, LexicalIndex, LexicalWriter
from dgpunet_dask.retrieval.segments import Segment
from dgpunet_dask.retrieval.words import WORDS_VERSION

log = logging.getLogger(__name__)

#: Its folder within a version's.
LEXICAL: Final = f"lexical-{WORDS_VERSION}"
#: Where more than this share of the files changed, all of it is made anew: removals would stay in it until tantivy merges.
_MUCH: Final = 0.5


def write_lexicon(folder: Path, base: Path | None, before: Mapping[str, str], now: Mapping[str, str], segments: Sequence[Segment]) -> None:
    """Make the lexical index of a new version in `folder`.

    Parameters
    ----------
    base
        That of the version before, ``None`` without one.
    before, now
        The key of each file by its path, in the version before and in the new one.
    segments
        Where the chunks of all files of the new version are.
    """
    keys, known = set(now.values()), set(before.values())
    if base is None or len(known ^ keys) > _MUCH * len(keys) or not _usable(base, before):
        base, before, known = None, {}, set()
    with LexicalWriter(folder, base) as writer:
        writer.remove_keys(sorted(known - keys))
        writer.remove_paths(path for path, key in before.items() if now.get(path) != key)
        for segment in segments:
            writer.add(_chunks(segment, (key for key in segment.keys if key in keys and key not in known)))
        writer.add_paths((path, key) for path, key in now.items() if before.get(path) != key)
        writer.finish()


def _usable(base: Path, before: Mapping[str, str]) -> bool:
    """Whether the version before has a lexical index that can be built upon; contents are not read."""
    try:
        return LexicalIndex(base).count()[1] == len(before)
    except (OSError, ValueError) as error:
        log.warning("%s is made anew: %s", base, error)
        return False


def _chunks(segment: Segment, keys: Iterable[str]) -> Iterator[LexicalChunk]:
    for key in keys:
        rows = segment.rows_of(key)
        for ordinal, row in enumerate(segment.chunks.slice(rows.start, len(rows)).to_pylist()):
            yield LexicalChunk(key, ordinal, row["text"], row["symbol"], row.get("scope"), row["language"])
