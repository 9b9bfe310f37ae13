"""One index made twice from one tree: once undisturbed, once while processes are killed; and what the two have in common."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from dgpunet_dask.config.home import Home
from dgpunet_dask.model.job import FINAL_STATES, JobStatus
from dgpunet_dask.retrieval.filetable import FILES, read_files
from dgpunet_dask.retrieval.index import open_index
from dgpunet_dask.retrieval.opened import OpenIndex
from dgpunet_dask.testing.livecluster import LiveCluster, wait_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = dict[tuple[str, int, int, str], NDArray[np.float32]]

#: Who is killed when that part of the units is done.
KILLS: Final = ((1 / 3, "head"), (1 / 2, "worker"), (2 / 3, "client"), (5 / 6, "child"))
#: Python source has about so many bytes for each token of the small model's vocabulary.
BYTES_PER_TOKEN: Final = 4.3
#: For telling a hang from work.
END_S: Final = 1800.0
SERVING_S: Final = 60.0


@dataclass(frozen=True)
class Kill:
    """One kill: whom, at how many units done, and how many seconds later a head answered."""

    role: str
    done: int
    serving_s: float


@dataclass(frozen=True)
class Run:
    """One job: its seconds from submission to its end, its units, starts of units, and tokens."""

    seconds: float
    state: str
    units: int
    attempts: int
    tokens: int


def tree(source: Path, into: Path, tokens: int) -> int:
    """Copy Python files of `source`, in the order of their names' digests, until they hold about `tokens` tokens; return their number."""
    files = [path for path in source.rglob("*.py") if path.is_file() and "site-packages" not in path.relative_to(source).parts]
    files.sort(key=lambda path: hashlib.sha256(str(path.relative_to(source)).encode()).digest())
    size = count = 0
    for path in files:
        if size >= tokens * BYTES_PER_TOKEN:
            break
        target = into / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        size, count = size + path.stat().st_size, count + 1
    return count


def calm(cluster: LiveCluster, folder: Path, index: str) -> tuple[str, Run]:
    """Index `folder` undisturbed; return the job's id and what it took."""
    began = time.monotonic()
    job = cluster.submit_named("embed-codebase", {"path": [str(folder)], "index": index}, key=f"embed-{index}")
    status = cluster.ended(job.job_id, END_S)
    return job.job_id, _run(status, time.monotonic() - began)


def storm(cluster: LiveCluster, folder: Path, index: str, units: int, say: Callable[[str], None]) -> tuple[str, Run, list[Kill]]:
    """Index `folder` from a command that waits, and kill on the way; `units`: how many there are. Return what `calm` does, and the kills.

    The vectors that are known from before are removed: all of them have to be made again.
    """
    shutil.rmtree(cluster.home.vectors, ignore_errors=True)
    began = time.monotonic()
    client = cluster.command("submit", "embed-codebase", "--set", f"path={folder}", "--set", f"index={index}", "--key", f"embed-{index}", "--json")
    try:
        job_id = wait_for("the job is known", lambda: _of_index(cluster, index), 60.0)
        kills = []
        for part, role in KILLS:
            done = _done_to(cluster, job_id, round(part * units))
            if done is None:
                break
            os.kill(victim := client.pid if role == "client" else _victim(cluster, role, index), signal.SIGKILL)
            kills.append(Kill(role, done, _serving_again(cluster)))
            say(f"{role} {victim} killed after {done} of {units} units; a head answered {kills[-1].serving_s:.1f} s later")
        status = cluster.ended(job_id, END_S)
    finally:
        client.kill()
        client.communicate()
    return job_id, _run(status, time.monotonic() - began), kills


def _of_index(cluster: LiveCluster, index: str) -> str | None:
    found = [job.job_id for job in cluster.asked(lambda api: api.jobs()) if job.params.get("index") == index]
    return found[0] if found else None


def _done_to(cluster: LiveCluster, job_id: str, wanted: int) -> int | None:
    """Wait until `wanted` units are done and return how many are; ``None`` if the job has ended before."""
    status = wait_for(f"{wanted} units", lambda: _reached(cluster, job_id, wanted), END_S)
    return None if status.state in FINAL_STATES else status.units.done


def _reached(cluster: LiveCluster, job_id: str, wanted: int) -> JobStatus | None:
    status = cluster.asked(lambda api: api.show(job_id))
    return status if status.units.done >= wanted or status.state in FINAL_STATES else None


def _victim(cluster: LiveCluster, role: str, index: str) -> int:
    """Return a process of `role`; of the stage hosts one that embeds, since only that has much to lose."""

    def found() -> list[psutil.Process]:
        processes = cluster.roles()[role]
        return [p for p in processes if role != "child" or _writes_log(p, "embed-")]

    return int(wait_for(f"a {role} while {index} is made", found, SERVING_S)[0].pid)


def _writes_log(process: psutil.Process, prefix: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(Path(file.path).name.startswith(prefix) for file in process.open_files())
    return False


def _serving_again(cluster: LiveCluster) -> float:
    began = time.monotonic()
    cluster.asked(lambda api: api.status(), SERVING_S)
    return time.monotonic() - began


def _run(status: JobStatus, seconds: float) -> Run:
    tokens = int((status.metrics or {}).get("tokens", 0))
    return Run(seconds, status.state, status.units.done, status.units.attempts, tokens)


# What the two indexes have in common


@dataclass(frozen=True)
class Likeness:
    """How much alike two indexes are: rows in each, those of only one of them, whether their files agree, and the lowest cosine of a row's vectors."""

    rows: tuple[int, int]
    only_one: int
    files_equal: bool
    cosine: float

    @property
    def same(self) -> bool:
        """Whether they are one index for all that a reader can tell."""
        return self.only_one == 0 and self.files_equal and self.cosine >= 0.9999


def likeness(home: Home, one: str, other: str) -> Likeness:
    """Compare two indexes row by row: by path, span and text, then by vector."""
    first, second = vectors_of(home, one), vectors_of(home, other)
    cosine = min((float(first[row] @ second[row]) for row in first.keys() & second.keys()), default=1.0)
    return Likeness((len(first), len(second)), len(first.keys() ^ second.keys()), files_of(home, one) == files_of(home, other), cosine)


def vectors_of(home: Home, name: str) -> Vectors:
    """Return an index's vectors by path, first and last line and digest of the text."""
    index, manifest = open_index(home, name)
    opened = OpenIndex(index, manifest)
    found: Vectors = {}
    for segment in opened.segments:
        for table, vectors in segment.part(opened.paths.__contains__):
            for row, vector in zip(table.to_pylist(), vectors, strict=True):
                digest = hashlib.sha256(row["text"].encode()).hexdigest()
                found |= {(path, row["start_line"], row["end_line"], digest): vector for path in opened.paths[row["key"]]}
    return found


def files_of(home: Home, name: str) -> list[tuple[str, str, int]]:
    """Return path, content digest and number of chunks of each file of an index."""
    index, manifest = open_index(home, name)
    return sorted((file.path, file.key, file.chunks) for file in read_files(index.version(manifest) / FILES))
