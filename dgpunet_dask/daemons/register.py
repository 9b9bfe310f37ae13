"""Which processes belong to this ``$DGPUNET_HOME``: one small file each under ``run/processes``.

Children end with their owner (see `lifeline`); the register is for what that misses, and for `down` after a crash. A process is known
by its id *and* its creation time, so that an id that the system gave to somebody else is never killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import StartFailed

log = logging.getLogger(__name__)

#: What the process above a host's daemons is registered as.
SUPERVISOR: Final = "supervisor"
#: /proc gives creation times in clock ticks (10 ms); float noise stays far below.
_SAME_TIME_S: Final = 0.02


@dataclass(frozen=True)
class Registered:
    """One process: its id, when it was created (seconds since 1970) and what it is."""

    pid: int
    created: float
    what: str

    def process(self) -> psutil.Process | None:
        """Return the process if it still is the one that was registered, and runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < _SAME_TIME_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def identify(pid: int, what: str) -> Registered | None:
    """Return who `pid` is now, ``None`` if it has ended."""
    try:
        return Registered(pid, psutil.Process(pid).create_time(), what)
    except psutil.NoSuchProcess:
        return None


def supervisor_of(home: Home) -> Registered | None:
    """Return the supervisor that runs a cluster's daemons under `home`, ``None`` without one. This process itself does not count."""
    found = Register(home.run / "processes").running()
    return next((entry for entry in found if entry.what == SUPERVISOR and entry.pid != os.getpid()), None)


@contextlib.contextmanager
def registered(home: Home, what: str) -> Iterator[None]:
    """Note this process as what it is for the length of the block."""
    register = Register(home.run / "processes")
    register.add(os.getpid(), what)
    try:
        yield
    finally:
        register.remove(os.getpid())


@contextlib.contextmanager
def only_head(home: Home) -> Iterator[None]:
    """Be the one head of a home for the length of the block, and noted as that; the system frees the place when its process ends, however it does.

    Raises
    ------
    StartFailed
        If another process is its head. Nothing of that one is touched.
    """
    with (home.run / "head.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there = [str(entry.pid) for entry in Register(home.run / "processes").running() if entry.what == "head"]
            why = f"another head runs under {home.root}" + (f" (process {', '.join(there)})" if there else "")
            raise StartFailed(why=why, logs=home.run / "logs") from None
        with registered(home, "head"):
            yield


class Register:
    """The processes of one home.

    Parameters
    ----------
    folder
        ``run/processes``; made when the first process is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, pid: int, what: str) -> None:
        """Note `pid`; a process that has ended already is not noted."""
        entry = identify(pid, what)
        if entry is None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"version": 1, "pid": pid, "created": entry.created, "what": what})
        draft = self.folder / f".{pid}.{os.getpid()}"
        try:
            draft.write_text(text)
            draft.replace(self._file(pid))
        except BaseException:
            draft.unlink(missing_ok=True)  # of a full disk, say
            raise

    def remove(self, pid: int) -> None:
        """Forget `pid`."""
        self._file(pid).unlink(missing_ok=True)

    @contextlib.contextmanager
    def noted(self, pid: int, what: str) -> Iterator[None]:
        """Note `pid` for the length of the block. A full disk is told and is no reason to lose hold of the process: its lifeline stays."""
        try:
            self.add(pid, what)
        except OSError as error:
            log.warning("the register of processes cannot be written: %s", error)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.remove(pid)

    def entries(self) -> Iterator[Registered]:
        """Yield what is noted, in the order of the ids; unreadable files are removed, since nothing can be done with them."""
        for file in sorted(self.folder.glob("*.json"), key=lambda f: (len(f.name), f.name)):
            try:
                found = json.loads(file.read_text())
                yield Registered(int(found["pid"]), float(found["created"]), str(found["what"]))
            except (ValueError, KeyError, TypeError):
                file.unlink(missing_ok=True)
            except FileNotFoundError:
                continue

    def running(self) -> list[Registered]:
        """Return the noted processes that still run."""
        return [entry for entry in self.entries() if entry.process() is not None]

    def end_all(self, grace_s: float = 3.0, only: str | None = None) -> list[Registered]:
        """End every noted process and its descendants: SIGTERM, then SIGKILL after `grace_s`; return those that ran.

        `only`: none but those that are noted as that, or as that and a name. This process itself is left alone.
        """
        found = [entry for entry in self.running() if entry.pid != os.getpid() and only in (None, entry.what, entry.what.partition(" ")[0])]
        _end((p for entry in found if (p := entry.process()) is not None), grace_s)
        for entry in self.entries():
            if entry.process() is None:
                self.remove(entry.pid)
        self._remove_drafts()
        return found

    def _remove_drafts(self) -> None:
        """Remove what processes that are gone were writing."""
        for draft in self.folder.glob(".*.*"):
            writer = draft.name.rpartition(".")[2]
            if not (writer.isdigit() and psutil.pid_exists(int(writer))):
                draft.unlink(missing_ok=True)

    def _file(self, pid: int) -> Path:
        return self.folder / f"{pid}.json"


def _end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    family = _with_descendants(processes)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)


def _with_descendants(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update({p.pid: p for p in [process, *process.children(recursive=True)]})
    found.pop(os.getpid(), None)
    return list(found.values())


def kill_descendants() -> None:
    """Kill every descendant of this process at once."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
