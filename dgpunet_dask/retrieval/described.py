"""What is told of indexes: how large and how fresh they are, whether a watch follows their trees, and how their vectors are searched."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.following import followed
from dgpunet_dask.retrieval.index import Index, Manifest, index_names, open_index
from dgpunet_dask.retrieval.segments import DamagedSegmentError, facts_of


def described(home: Home, name: str, by: User = OPERATOR, clock: Clock | None = None) -> dict[str, Any]:
    """Return what `index show --json` tells of an index that `by` may read.

    ``age_s`` says how many seconds ago it was published, its trees were read where something was said to have changed, and as a whole;
    ``watch`` for how long it has been behind its trees, and by how many paths: ``None`` where nothing follows them.

    Raises
    ------
    NoSuchIndex, NewerFormat, MalformedFile
    """
    index, manifest = open_index(home, name, by)
    fields = asdict(manifest)
    fields.pop("version")
    fields["segments"] = len(manifest.segments)
    published = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(manifest.published_s))
    now = (clock or SystemClock()).wall()
    return {
        "index": name, **fields, "published": published, "age_s": _ages(manifest, now), "watch": _watch(home, name, now),
        "bytes": size_bytes(index, manifest), "scans": _scans(index, manifest),
    }  # fmt: skip


def _ages(manifest: Manifest, now: float) -> dict[str, float | None]:
    times = {"published": manifest.published_s, "scanned": manifest.scanned_s, "reconciled": manifest.read_s}
    return {name: round(max(0.0, now - at), 1) if at else None for name, at in times.items()}


def _watch(home: Home, name: str, now: float) -> dict[str, float] | None:
    found = followed(home, name)
    return None if found is None else {"behind_s": round(found.behind_s(now), 1), "paths": found.paths}


def _scans(index: Index, manifest: Manifest) -> list[dict[str, Any]]:
    """How each segment's vectors are searched: ``exact``, or first by a smaller form that found a share of the exact best when it was written."""
    found = []
    for folder in index.segments(manifest):
        try:
            facts = facts_of(folder)
        except DamagedSegmentError:
            continue  # `index verify` tells
        scan = facts.scan
        kind = "exact" if scan is None or scan.kind is None else scan.kind
        recall, probes = (None, None) if scan is None else (scan.recall, scan.probes)
        found.append({"segment": folder.name, "chunks": facts.rows, "kind": kind, "recall": recall, "probes": probes})
    return found


def all_described(home: Home, by: User = OPERATOR) -> list[dict[str, Any]]:
    """Return what `index list --json` tells: one that cannot be read must not hide the others."""
    return [_described_or_error(home, name, by) for name in index_names(home, by)]


def _described_or_error(home: Home, name: str, by: User) -> dict[str, Any]:
    try:
        return {**described(home, name, by), "error": None}
    except DgpunetError as error:
        return {"index": name, "error": error.to_json()}


def size_bytes(index: Index, manifest: Manifest) -> int:
    """Return the bytes on disk of the version in force."""
    folders = (index.version(manifest), *index.segments(manifest))
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())
