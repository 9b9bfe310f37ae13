"""Private files: mode 0600, replaced in one step, durable when the call returns, changed by one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.errors import NewerFormat, UnreadablePath

VERSION: Final = 1
#: The locks of every process.
LOCKS: Final = Path("/proc/locks")
#: What tells one state of a file from the next: a file that is replaced has another inode.
Signature = tuple[int, int, int]


def private_folder(folder: Path) -> None:
    """Create `folder` and see to it that only its owner can look inside."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, mode 0600, in one step; it is on the disk when this returns."""
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(draft).unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable: a rename is in the folder and not in the file (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def signature(path: Path) -> Signature | None:
    """Return what changes whenever the file does; ``None`` where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep out every other thread and process that asks for the lock of `path`.

    The lock is on a file beside it that stays: a file that is replaced cannot carry one.
    """
    fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # each open file has its own lock, so threads exclude one another too
        yield
    finally:
        os.close(fd)


def lock_holder(path: Path, locks: Path = LOCKS) -> str:
    """Say which process has a lock on a file, as far as the system tells (proc_locks(5))."""
    try:
        found = path.stat()
        lines = [line.split() for line in locks.read_text().splitlines()]
    except OSError:
        return "another process"
    wanted = (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)
    pids = {int(line[4]) for line in lines if len(line) == 8 and line[1] == "POSIX" and _inode(line[5]) == wanted}
    if not pids:
        return "another process"
    return "this process itself" if pids == {os.getpid()} else f"process {', '.join(str(pid) for pid in sorted(pids - {os.getpid()}))}"


def _inode(text: str) -> tuple[int, int, int] | None:
    """Return the device and the number of a locked file; a lock whose file the kernel does not name (``<none>:0``) is nobody's."""
    try:
        major, minor, inode = text.split(":")
        return int(major, 16), int(minor, 16), int(inode)
    except ValueError:
        return None


class PrivateJson:
    """A mapping in a private file, with a format version.

    Parameters
    ----------
    path
        The file; it need not exist, and is then an empty mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._read: tuple[Signature | None, dict[str, Any]] = (None, {})

    def read(self) -> dict[str, Any]:
        """Return what the file says, not to be changed. It is read again only when it was replaced.

        Raises
        ------
        NewerFormat, UnreadablePath
            If a newer release wrote it; if it is damaged: nobody is let in on a guess.
        """
        with self._guard:
            found = signature(self.path)
            if found is None:
                return {}
            if found != self._read[0]:
                self._read = (found, self._parse())
            return self._read[1]

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Give the mapping to be changed in place, while nobody else changes it; an exception leaves the file as it was."""
        with locked(self.path):
            before = self._parse() if self.path.exists() else {}
            after = json.loads(json.dumps(before))
            yield after
            if after != before:
                write_private(self.path, json.dumps({"version": VERSION, **after}, indent=1, sort_keys=True))

    def _parse(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UnreadablePath(path=self.path, why=getattr(error, "strerror", None) or "it is damaged") from error
        if not isinstance(found, dict) or not isinstance(found.get("version"), int):
            raise UnreadablePath(path=self.path, why="it is damaged")
        if (version := found.pop("version")) > VERSION:
            raise NewerFormat(path=self.path, found=version, known=VERSION)
        return found
