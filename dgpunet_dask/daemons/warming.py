"""Indexes that were open when the last head ended are opened again beside the start of the next one, so that no search waits for that."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.owner import OPERATOR

if TYPE_CHECKING:
    from dgpunet_dask.daemons.searchers import Searchers
    from dgpunet_dask.retrieval.index import Manifest

log = logging.getLogger(__name__)

#: Chunks of all indexes that are opened in advance: a million of them take a few hundred MB. Larger ones wait until they are asked.
CHUNKS_MAX: Final = 1 << 20


def names_file(home: Home) -> Path:
    """Return where the names of the open indexes are kept; losing it costs time alone."""
    return home.root / "cache" / "searched.json"


def keep_names(file: Path, names: Sequence[str]) -> None:
    """Write which indexes are open, the last asked last."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(list(names)))
        temporary.replace(file)
    except OSError as error:  # a full disk: searching goes on
        log.warning("which indexes are open is not kept for the next head: %s", error)


def wanted(home: Home, most: int, chunks_max: int = CHUNKS_MAX) -> list[str]:
    """Return up to `most` indexes to be opened in advance, the most important first: what was open before, then what was published last.

    Of the latter only what the shipped model has made: another model's weights may be large, and nobody has asked for them yet.
    """
    from dgpunet_dask.retrieval.index import index_names
    from dgpunet_dask.retrieval.modelfiles import MINILM

    known = {name: found for name in index_names(home) if (found := _manifest(home, name)) is not None}
    before = [name for name in reversed(_kept(names_file(home))) if name in known]
    others = [name for name, found in known.items() if name not in before and found.model == MINILM]
    chosen, left = list[str](), chunks_max
    for name in [*before, *sorted(others, key=lambda name: (-known[name].published_s, name))][:most]:
        if known[name].chunks <= left:
            chosen.append(name)
            left -= known[name].chunks
    return chosen


def _kept(file: Path) -> list[str]:
    try:
        raw = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in raw if isinstance(name, str)] if isinstance(raw, list) else []


def _manifest(home: Home, name: str) -> Manifest | None:
    from dgpunet_dask.retrieval.index import Index

    try:
        return Index(home, name).manifest()
    except DgpunetError:
        return None  # a damaged one: whoever asks for it is told


def warm(home: Home, searchers: Searchers, most: int, stopped: threading.Event) -> None:
    """Open indexes and their models, each by a search that nobody asked for, until done or `stopped`. What fails is told in the log."""
    from dgpunet_dask.retrieval.search import Query

    for name in reversed(wanted(home, most)):  # the most important last, as if they had been asked in this order
        if stopped.is_set():
            return
        try:
            with searchers.of(name, OPERATOR) as searcher:
                list(searcher.search([Query("warm")], 1))
        except Exception as error:  # whatever a damaged index or a missing model raises: it must not end the head
            log.warning("the index %s could not be opened in advance: %s", name, error)
        else:
            log.info("the index %s is open", name)
