"""Workload folders and models on this host, by digest: where they lie, and the port through which the agent gets missing ones.

A workload is ``H/workloads/<digest>``. A model is ``H/models/<digest>``, copied from another host, or a folder elsewhere on this one that
``H/models/<digest>.json`` points at; that counts as long as its files have the sizes and times that were noted, so that nothing large is
copied on the machine that has it, and a folder that was changed since is not taken for what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import FolderMissing
from dgpunet_dask.security.files import write_private
from dgpunet_dask.stagehost.folders import FileEntry, Kind, checked, entries_of, files_of, tree_digest
from dgpunet_dask.stagehost.spec import StageCallSpec

VERSION: Final = 1

#: Returns the folder of that kind and digest on this host, brought here if need be; raises `FolderMissing`.
Fetch = Callable[[str, str], Coroutine[Any, Any, Path]]


def store_of(home: Home, kind: Kind) -> Path:
    """Return the folder in which folders of that kind lie by digest."""
    return home.workloads if kind == "workload" else home.models


def find_folder(home: Home, kind: str, digest: str) -> Path | None:
    """Return the folder of that kind and digest if it is on this host.

    Raises
    ------
    ValueError
        If there is no such kind, or `digest` is none.
    """
    known, digest = checked(kind, digest)
    stored = store_of(home, known) / digest
    if stored.is_dir():
        return stored
    noted = _noted(home, digest) if known == "model" else None
    return None if noted is None else noted[0]


def listed_files(home: Home, kind: Kind, digest: str) -> list[FileEntry] | None:
    """Return the files of that folder with their digests, ``None`` where it is not on this host. What was noted is not read again."""
    folder = find_folder(home, kind, digest)
    if folder is None:
        return None
    noted = _noted(home, digest) if kind == "model" else None
    return entries_of(kind, folder) if noted is None else noted[1]


def local_only(home: Home) -> Fetch:
    """Return the port of an agent that knows no other host."""

    async def fetch(kind: str, digest: str) -> Path:
        found = find_folder(home, kind, digest)
        if found is None:
            raise FolderMissing(kind=kind, digest=digest[:16], why="this host knows no other")
        return found

    return fetch


async def with_models(spec: StageCallSpec, fetch: Fetch) -> StageCallSpec:
    """Return `spec` with the folders on this host in place of the names of its models.

    Only `Stage.load` sees the folder: policies, estimates and reports go by the name. Stages on the head's host, where the name was looked
    up, are given the name itself.

    Raises
    ------
    FolderMissing
        If a model is on no host.
    """
    if not spec.models or spec.home is not None:
        return spec
    folders = {name: str(await fetch("model", digest)) for name, digest in sorted(spec.models.items())}
    return replace(spec, load={**spec.load, **folders})


def note_model(home: Home, folder: Path) -> str:
    """Return the digest of the model in `folder`, and note where it lies, so that this host has it and can give it to others.

    All of it is read, unless it was noted before and has not changed since.

    Raises
    ------
    OSError
        If a file cannot be read, or the note not be written.
    """
    folder = folder.absolute()
    for file in sorted(home.models.glob("*.json")):
        noted = _noted(home, file.stem)
        if noted is not None and noted[0] == folder and _stats(folder).keys() == {e.name for e in noted[1]}:
            return file.stem
    entries = entries_of("model", folder)
    digest = tree_digest(entries)
    write_note(home, digest, folder, entries)
    return digest


def write_note(home: Home, digest: str, folder: Path, entries: Sequence[FileEntry]) -> None:
    """Note which files the model `digest` has, and that it lies in `folder`."""
    times = _stats(folder)
    files = [[*entry, times[entry.name][1]] for entry in entries]
    home.models.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, "folder": str(folder), "files": files})
    write_private(home.models / f"{digest}.json", text)


def _stats(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change (ns) of each file of a model by its name."""
    found = {}
    for name, path in files_of("model", folder):
        stat = path.stat()
        found[name] = (stat.st_size, stat.st_mtime_ns)
    return found


def _noted(home: Home, digest: str) -> tuple[Path, list[FileEntry]] | None:
    """Return the folder and files that the note of `digest` tells, ``None`` without one, or where they are not as they were."""
    try:
        found = json.loads((home.models / f"{digest}.json").read_text())
        if found["version"] > VERSION:
            return None
        folder = Path(found["folder"])
        entries = [FileEntry(name, size, sha256) for name, size, sha256, _ in found["files"]]
        noted = {name: (size, time) for name, size, _, time in found["files"]}
        return (folder, entries) if all(_stat(folder / name) == was for name, was in noted.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
