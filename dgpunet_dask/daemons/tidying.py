"""Files that are looked at, cut and removed so that a home stays within its bounds. All of it blocks; `disk` calls it from threads.

Nothing here decides: what goes is told by `rooms`. Whatever is killed in the middle, the next round ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.rooms import Cut, Entry, events_cut, log_most
from dgpunet_dask.errors.fullness import is_full
from dgpunet_dask.stagehost.environments import MARKER

log = logging.getLogger(__name__)

CHUNK: Final = 1 << 20
#: What is kept of a log where the disk has no room for more.
LAST_WORDS: Final = 64 << 10
#: Events of a job whose results have gone are cut if they have more.
EVENTS_ENDED: Final = 512 << 10
#: What a killed process left half unpacked or half removed is removed after so long.
LEFT_S: Final = 86_400.0

_DIGEST: Final = re.compile(r"[0-9a-f]{32}([0-9a-f]{32})?")
_LEFT: Final = (".incoming-", ".gone-")
CACHES: Final = ("model", "workload", "env", "vectors")

#: Kind and digest of a folder in a cache.
Key = tuple[str, str]


def size_of(folder: Path) -> int:
    """Return the bytes that a folder takes on its disk; what goes meanwhile, or cannot be read, counts nothing."""
    total, waiting = 0, [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    total += found.st_blocks * 512
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(entry.path)
    return total


# Caches


def store_of(home: Home, kind: str) -> Path:
    """Return where the folders of a kind lie."""
    return {"model": home.models, "workload": home.workloads, "env": home.envs, "vectors": home.vectors}[kind]


class Caches:
    """The models, workloads, environments and vectors of a home. What is complete never changes, so each is measured once; vectors are added to."""

    def __init__(self, home: Home, now: Callable[[], float]) -> None:
        self.home, self._now = home, now
        self._sizes: dict[Key, int] = {}

    def mark(self, used: Collection[Key]) -> None:
        """Note on disk what is `used` now, for the process that removes."""
        for kind, digest in used:
            touch(store_of(self.home, kind) / digest)

    def entries(self, used: Collection[Key]) -> list[Entry]:
        """Return what there is; what is `used` now is marked as such on disk too, for other processes and later rounds."""
        found = [entry for kind in CACHES for entry in self._of(kind, used)]
        self._sizes = {(e.kind, e.name): size for e in found if (size := self._sizes.get((e.kind, e.name))) is not None}
        return found

    def _of(self, kind: str, used: Collection[Key]) -> Iterator[Entry]:
        for folder in _folders(store_of(self.home, kind)):
            in_use = (kind, folder.name) in used
            if in_use:
                touch(folder)
            with contextlib.suppress(OSError):  # it may go at any moment
                yield Entry(kind=kind, name=folder.name, size=self._size(kind, folder), used_s=folder.stat().st_mtime, in_use=in_use)

    def _size(self, kind: str, folder: Path) -> int:
        key = (kind, folder.name)
        if key in self._sizes:
            return self._sizes[key]
        found = size_of(folder)
        if kind != "vectors" and (kind != "env" or (folder / MARKER).is_file()):
            self._sizes[key] = found
        return found

    def remove(self, entry: Entry) -> bool:
        """Remove a folder, unless somebody builds, fetches or has used it since it was looked at; tell whether it went."""
        folder = store_of(self.home, entry.kind) / entry.name
        lock = folder.with_suffix(".lock") if entry.kind == "env" else folder.with_name(f".{folder.name}.lock")
        with _held(lock) as held:
            if not held or not folder.is_dir() or folder.stat().st_mtime > entry.used_s:
                return False
            gone = folder.with_name(f".gone-{folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)  # in one step: nobody finds half of it
            if entry.kind == "model":
                folder.with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def sweep(self) -> None:
        """Remove what killed processes left half made or half removed."""
        for kind in CACHES:
            for folder in _listed(store_of(self.home, kind)):
                with contextlib.suppress(OSError):
                    if folder.name.startswith(_LEFT) and folder.lstat().st_mtime < self._now() - LEFT_S:
                        shutil.rmtree(folder, ignore_errors=True)


def touch(path: Path) -> None:
    """Note on disk that something is in use now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _folders(store: Path) -> list[Path]:
    return [path for path in _listed(store) if _DIGEST.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold the lock that builders and fetchers keep, if nobody else does; the file stays, as removing it would race."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def environments_running(commands: Callable[[], Iterator[str]], home: Home) -> set[Key]:
    """Return the environments whose interpreter a process of this machine runs; `commands` gives what each was started as."""
    return {("env", path.relative_to(home.envs).parts[0]) for path in map(Path, commands()) if home.envs in path.parents}


def commands_running() -> Iterator[str]:
    """Yield the program that each process of this machine was started as, so far as this user may know."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"]:
            yield process.info["cmdline"][0]


# Results


def result_entry(folder: Path, job_id: str, ended_s: float) -> Entry:
    """Return what would go of an ended job: its units' results, and the middle of long events."""
    events = max(0, _size(folder / "events.jsonl") - EVENTS_ENDED)
    return Entry(kind="results", name=job_id, size=size_of(folder / "results") + events, used_s=ended_s)


def remove_results(folder: Path) -> None:
    """Remove the results of a job; its record stays."""
    shutil.rmtree(folder / "results", ignore_errors=True)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0


# Logs


def cut_logs(folder: Path, most: int) -> int:
    """Cut the logs in `folder` so that all of them together, with what is kept beside each, have at most `most` bytes.

    What is cut off goes to ``NAME.1``, in the place of what was there. Return the bytes that were freed.
    """
    for path in folder.glob(".*.log.1.tmp"):  # what a killed process left
        path.unlink(missing_ok=True)
    files = [path for path in _listed(folder) if path.is_file() and not path.is_symlink()]
    logs = [path for path in files if path.suffix == ".log"]
    kept = [path for path in files if path.name.endswith(".log.1")]
    each, before = log_most(most, len(logs)), sum(map(_size, (*logs, *kept)))
    for path in kept:
        if path.with_suffix("") not in logs:
            path.unlink(missing_ok=True)
        elif _size(path) > each:
            _shorten(path, each)
    for path in logs:
        if _size(path) > each:
            cut_log(path, each)
    return before - sum(map(_size, (*logs, *(path.with_name(f"{path.name}.1") for path in logs))))


def cut_log(path: Path, keep: int) -> None:
    """Move the last `keep` bytes of a log to ``NAME.1`` and empty it; its writer, which appends, goes on with the same file.

    On a disk without room less is kept: emptying the log matters more. What is written between the last read and the emptying is lost.
    """
    old = path.with_name(f"{path.name}.1")
    for most in (keep, min(keep, LAST_WORDS), 0):
        try:
            copied = _tail_to(path, old, most) if most else None
        except OSError as error:
            if not is_full(error):
                raise
            old.unlink(missing_ok=True)
            continue
        os.truncate(path, 0)
        if copied is not None:
            copied.replace(old)
        return


def _tail_to(path: Path, old: Path, most: int) -> Path:
    """Copy whole lines from the end of a file to a temporary one; return that."""
    temporary = old.with_name(f".{old.name}.tmp")
    try:
        with open(path, "rb") as source, open(temporary, "wb", opener=_private) as target:
            _to_line(source, max(0, _size(path) - most))
            shutil.copyfileobj(source, target, CHUNK)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _to_line(file: IO[bytes], start: int) -> int:
    """Go to the first beginning of a line at `start` or after it; return where that is."""
    file.seek(max(0, start - 1))
    if start > 0:
        file.readline()
    return file.tell()


def _shorten(path: Path, most: int) -> None:
    """Keep the end of a file that nobody writes."""
    try:
        _tail_to(path, path, most).replace(path)
    except OSError as error:
        if not is_full(error):
            raise
        path.unlink(missing_ok=True)


# Events


@dataclass
class EventsCut:
    """Cuts the middle out of a job's events: `prepare` in a thread, then `finish` where no event can be written meanwhile.

    In the place of what went stands one event of the kind ``cut`` that tells how many there were.
    """

    path: Path
    cut: Cut
    _copied_to: int = field(default=0, init=False)

    @classmethod
    def of(cls, path: Path, most: int) -> EventsCut | None:
        """Return the cut of the file at `path`, ``None`` where it is not too long."""
        cut = events_cut(_size(path), most)
        return None if cut is None else cls(path, cut)

    def prepare(self) -> None:
        """Write what stays to a temporary file.

        Raises
        ------
        OSError
            As where there is no room; nothing has changed then.
        """
        with open(self.path, "rb") as source, open(self._temporary, "wb", opener=_private) as target:
            try:
                self._copy(source, target)
            except BaseException:
                self._temporary.unlink(missing_ok=True)
                raise

    def _copy(self, source: IO[bytes], target: IO[bytes]) -> None:
        head = source.read(self.cut.head)
        head = head[: head.rfind(b"\n") + 1]
        target.write(head)
        tail_start = max(len(head), _to_line(source, _size(self.path) - self.cut.tail))
        source.seek(len(head))
        target.write(_marker(source, tail_start))
        source.seek(tail_start)
        shutil.copyfileobj(source, target, CHUNK)
        self._copied_to = source.tell()

    def finish(self) -> None:
        """Add what was written since `prepare`, and take the file's place."""
        try:
            with self.path.open("rb") as source, self._temporary.open("ab") as target:
                source.seek(self._copied_to)
                shutil.copyfileobj(source, target, CHUNK)
            self._temporary.replace(self.path)
        except OSError:
            self._temporary.unlink(missing_ok=True)
            raise

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.cut")


def _marker(source: IO[bytes], until: int) -> bytes:
    """Return the line that stands for those from here `until` there; with the number and time of the last of them."""
    count, before, last = 0, 0, b""
    while source.tell() < until and (line := source.readline()):
        count, last = count + 1, line
        if b'"cut"' in line and (told := _event(line)).get("kind") == "cut":  # an earlier one
            before += int(told.get("events", 1)) - 1
    if not count:
        return b""
    told = _event(last)
    marker = {"seq": told.get("seq", 0), "time": told.get("time"), "kind": "cut", "events": count + before}
    return json.dumps(marker).encode() + b"\n"


def _event(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
