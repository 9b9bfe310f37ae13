"""Workload folders by the digest of their files: found, packed, shipped and kept under ``$DGPUNET_HOME/workloads``."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from dgpunet_dask.config.home import expanded
from dgpunet_dask.config.shipped import shipped
from dgpunet_dask.config.yamlfile import read
from dgpunet_dask.errors import BadWorkload, DgpunetError, MissingPath, NoSuchWorkload, did_you_mean
from dgpunet_dask.jobs.workload_file import parse_workload
from dgpunet_dask.model.pipeline import Workload
from dgpunet_dask.stagehost.folders import uncounted, workload_files
from dgpunet_dask.stagehost.folders import workload_digest as digest_of

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def find_workload(name: str, *, cwd: Path) -> Path:
    """Return the folder of a shipped workload's name (hyphens and underscores alike) or of a path.

    Raises
    ------
    NoSuchWorkload, MissingPath, BadValue, BadWorkload
        The last where the folder has no job.yaml.
    """
    if os.sep not in name and not name.startswith("."):
        known = {p.name.replace("_", "-"): p for p in sorted(shipped("workloads").iterdir()) if (p / "job.yaml").is_file()}
        wanted = name.replace("_", "-")
        if wanted in known:
            return known[wanted]
        if not (cwd / name).is_dir():
            raise NoSuchWorkload(name=name, hint=did_you_mean(wanted, known) or ".", known=", ".join(known))
    folder = (cwd / expanded(name, "workload")).resolve()
    if not folder.exists():
        raise MissingPath(path=folder)
    if not (folder / "job.yaml").is_file():
        raise BadWorkload(workload=str(folder), why="there is no job.yaml in it")
    return folder


def read_workload(folder: Path) -> Workload:
    """Return the workload of `folder` with its digest.

    Raises
    ------
    MalformedFile, NewerFormat, UnreadablePath
        From its job.yaml.
    BadWorkload
        If a stage's module or lock file is missing, or the folder is too large.
    """
    workload = parse_workload(read(folder / "job.yaml"), digest=digest_of(folder), folder=str(folder))
    for stage in workload.stages:
        _check_files(folder, workload.name, stage.run.split(":")[0], stage.env)
    return workload


def stage_names(folder: Path) -> list[str] | None:
    """Return the names of the stages of the workload in `folder`, in the order of the file; ``None`` where that is gone or cannot be read."""
    try:
        return [stage.name for stage in parse_workload(read(folder / "job.yaml")).stages]
    except (DgpunetError, OSError):
        return None


def _check_files(folder: Path, workload: str, module: str, env: str | None) -> None:
    path = folder.joinpath(*module.split("."))
    if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
        raise BadWorkload(workload=workload, why=f"there is no {module}.py in {folder}")
    if env is not None and not (folder / env).is_file():
        raise BadWorkload(workload=workload, why=f"there is no lock file {env} in {folder}")


def pack_workload(folder: Path) -> bytes:
    """Return the folder's files as an uncompressed tar without owners or times, so that equal files give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, path in workload_files(folder):
            content = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def checked_digest(digest: str) -> str:
    """Return `digest` if it is 64 hex digits, so that it can never name another path.

    Raises
    ------
    BadWorkload
        Otherwise.
    """
    if not _DIGEST.fullmatch(digest):
        raise BadWorkload(workload=repr(digest[:80]), why="a digest has 64 hexadecimal digits")
    return digest


def add_workload(store: Path, digest: str, packed: bytes) -> Path:
    """Unpack `packed` as ``store/digest`` unless it is there, after checking that its files have that digest.

    Raises
    ------
    BadWorkload
        If the archive is damaged, holds anything but plain files, or has another digest.
    """
    final = store / checked_digest(digest)
    if final.is_dir():
        return final
    temporary = Path(tempfile.mkdtemp(prefix=".incoming-", dir=store))
    try:
        _unpack(packed, temporary, digest)
        if digest_of(temporary) != digest:
            raise BadWorkload(workload=digest[:16], why="the files that arrived have another digest; send them again")
        if (stray := uncounted("workload", temporary)) is not None:
            raise BadWorkload(workload=digest[:16], why=f"the archive holds {stray!r}, which its digest does not count")
        try:
            temporary.rename(final)
        except OSError:  # another submission of the same folder was first
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _unpack(packed: bytes, into: Path, digest: str) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            if any(not member.isfile() for member in tar.getmembers()):
                raise BadWorkload(workload=digest[:16], why="the archive holds something that is no plain file")
            tar.extractall(into, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise BadWorkload(workload=digest[:16], why=f"the archive is damaged ({error})") from error
