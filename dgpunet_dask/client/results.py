"""The files that a job left on its head's host, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DamagedFile, NewerFormat, ResultsElsewhere
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.stagehost import loader
from dgpunet_dask.stagehost.frames import read_frames, unpack

MANIFEST: Final = "manifest.json"
VERSION: Final = 1


def result_files(folder: Path) -> list[Path]:
    """Return the result files of the job in `folder`: that of its gather stage, else those of its units in order.

    Files of units are named by the unit, and the manifest beside them gives their order; without one they are in the order of their names,
    as older releases wrote them.

    Raises
    ------
    NewerFormat, DamagedFile
        From the manifest.
    """
    gathered, manifest = folder / "result.frames", folder / "results" / MANIFEST
    if gathered.is_file():
        return [gathered]
    try:
        text = manifest.read_text(encoding="utf-8")
    except FileNotFoundError:
        return sorted((folder / "results").glob("*.frames"))
    return [manifest.parent / name for name in _named(text, manifest)]


def _named(text: str, manifest: Path) -> list[str]:
    try:
        found = json.loads(text)
        version, names = int(found["version"]), [str(name) for name in found["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(path=manifest, why=f"it is no list of result files ({error})") from error
    if version > VERSION:
        raise NewerFormat(path=manifest, found=version, known=VERSION)
    if strays := [name for name in names if Path(name).name != name]:
        raise DamagedFile(path=manifest, why=f"{strays[0]!r} is no name of a file beside it")
    return names


def results_of(home: Home, status: JobStatus) -> Iterator[Any]:
    """Return the items of a job, as `items` does.

    Raises
    ------
    ResultsElsewhere
        If its files are not under `home`: what is not there must not look like a job that gave nothing.
    """
    folder = home.jobs / status.job_id
    kept = (folder / "result.frames").is_file() or (folder / "results").is_dir()
    if not folder.is_dir() or (status.units.done and not kept):
        raise ResultsElsewhere(job_id=status.job_id, folder=folder)
    return items(home, status.job_id)


def items(home: Home, job_id: str) -> Iterator[Any]:
    """Yield the items of a job's result files. Their classes come from the workload's own code, so read only what you trust."""
    loader.install(home.workloads)
    for file in result_files(home.jobs / job_id):
        yield from unpack(read_frames(file))
