"""Interpreters of their own for stages with ``env: x.lock``: built once per lock file and Python version under ``H/envs/<digest>``.

A virtual environment cannot be moved, so it is built in place, under an advisory lock, and counts only once its completion marker is there;
what a killed builder left is removed first. pip holds the same lock while it runs, so that one that outlives its agent is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import EnvironmentFailed

MARKER: Final = ".dgpunet-complete"
FORMAT_VERSION: Final = 1
#: Lines of pip's output that the error carries.
_LAST_LINES: Final = 8
_LOCK_POLL_S: Final = 0.05
#: Variables that would send pip's packages elsewhere, or ours into its way.
_MISLEADING: Final = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER")
_HASHED: Final = re.compile(rb"--hash[=\s]")
#: A lock that points at files beside it: its text alone does not tell what it installs.
_POINTS_AT_FILES: Final = re.compile(
    rb"(?m)^\s*(-[frce]|--(find-links|requirement|constraint|editable))\b|\bfile:|^\s*\.{0,2}/|@\s*\.{0,2}/"
)


def environment_digest(lock: Path) -> str:
    """Return the digest (32 hex digits) of the environment that `lock` describes for this interpreter.

    Raises
    ------
    EnvironmentFailed
        If the lock file cannot be read.
    """
    try:
        text = lock.read_bytes()
    except OSError as error:
        raise EnvironmentFailed(lock=lock.name, stage="?", why=f"{lock}: {error.strerror}") from error
    parts = [text, sys.version.encode(), platform.machine().encode(), str(FORMAT_VERSION).encode()]
    if _POINTS_AT_FILES.search(text):
        parts.append(str(lock.parent).encode())  # the workload's folder is named by its content
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()[:32]


def python_of(folder: Path) -> Path:
    """Return the interpreter of the environment in `folder`."""
    return folder / "bin" / "python"


def is_complete(folder: Path) -> bool:
    """Whether the environment was built to its end, and its interpreter still runs (Python may have been removed since)."""
    return (folder / MARKER).is_file() and os.access(python_of(folder), os.X_OK)


async def ensure_environment(lock: Path, envs: Path, stage: str) -> Path:
    """Return the interpreter of the environment that `lock` describes, building it where it is missing.

    Parameters
    ----------
    lock
        Requirements in pip's format; with hashes, pip is told to require them of all.
    envs
        ``H/envs``.

    Raises
    ------
    EnvironmentFailed
        With pip's last lines.
    """
    try:
        folder = envs / environment_digest(lock)
    except EnvironmentFailed as error:
        raise EnvironmentFailed(**error.fields | {"stage": stage}) from error.__cause__
    if is_complete(folder):
        return python_of(folder)
    async with locked(folder.with_suffix(".lock")) as held:
        if not is_complete(folder):
            await _build(folder, lock, stage, held)
    return python_of(folder)


async def _build(folder: Path, lock: Path, stage: str, held: int) -> None:
    """Build the environment in place; `held` is the locked descriptor that pip inherits."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    built = False
    try:
        for step in _steps(folder, lock):
            status, output = await _run(step, held, lock.parent)
            if status:
                raise EnvironmentFailed(lock=lock.name, stage=stage, why=_last_lines(status, output))
        _mark_complete(folder, lock)
        built = True
    finally:
        if not built:
            shutil.rmtree(folder, ignore_errors=True)


def _mark_complete(folder: Path, lock: Path) -> None:
    marker = {"format": FORMAT_VERSION, "python": sys.version, "lock": hashlib.sha256(lock.read_bytes()).hexdigest()}
    (folder / MARKER).write_text(json.dumps(marker))


def _steps(folder: Path, lock: Path) -> list[list[str]]:
    """Return the commands: the environment, then its packages, with our own pip where we have one (seconds faster)."""
    python = str(python_of(folder))
    make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    options = ["--disable-pip-version-check", "--no-input", "--no-color"]
    install = ["install", *(["--require-hashes"] if _HASHED.search(lock.read_bytes()) else []), "-r", str(lock)]
    if importlib.util.find_spec("pip") is not None:
        return [make, [sys.executable, "-m", "pip", "--python", python, *options, *install]]
    return [make, [python, "-m", "ensurepip"], [python, "-m", "pip", *options, *install]]


async def _run(command: Sequence[str], held: int, folder: Path) -> tuple[int, str]:
    """Run `command` and return its status and output; it is killed with its children if this task is cancelled."""
    variables = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        cwd=folder, env=variables, pass_fds=(held,), start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace")


def _last_lines(status: int, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(lines[-_LAST_LINES:]) or f"exit status {status}"


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[int]:
    """Hold an advisory lock on `path`, waiting for it without blocking the loop; the file stays, as removing it would race."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield fd
    finally:
        os.close(fd)
