"""The decision log of a head on disk: JSON lines in numbered files, rotated by size, each of which can be read alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import MissingPath, UnreadablePath

#: A file that has grown to this many bytes is followed by a new one.
FILE_BYTES_MAX: Final = 16 << 20
#: So many files are kept, the newest: 128 MiB at most, of the order of half a million units.
FILES_MAX: Final = 8
#: Kinds of lines that count for all that follow; the last of each begins a new file.
_STANDING: Final = ("fleet", "policy", "estimates")


def log_files(folder: Path) -> list[Path]:
    """Return the files of the log, oldest first."""
    return sorted(folder.glob("decisions-*.jsonl"))


def read_log(folder: Path) -> str:
    """Return the whole log as text.

    Raises
    ------
    MissingPath
        If there is none.
    UnreadablePath
        If it cannot be read.
    """
    files = log_files(folder)
    if not files:
        raise MissingPath(path=folder / "decisions-*.jsonl")
    try:
        return "".join(file.read_text(encoding="utf-8") for file in files)
    except OSError as error:
        raise UnreadablePath(path=folder, why=error.strerror or str(error)) from error


class DecisionFiles:
    """Writes the log; one writer at a time. Nothing is touched before the first `append`.

    Parameters
    ----------
    folder
        Where the files lie.
    file_bytes, files
        When a file is full, and how many are kept.
    """

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES_MAX, files: int = FILES_MAX) -> None:
        self.folder, self.file_bytes, self.files = folder, file_bytes, files
        self._file: Path | None = None
        self._standing: dict[str, str] = {}
        self._torn = False  # lines are missing, and what stands may be among them

    def append(self, lines: Sequence[str]) -> None:
        """Add `lines`, given without their newlines; all of them or none.

        Raises
        ------
        OSError
            If they cannot be written, as on a full disk. What is there already stays whole, and what stands of the missing lines comes
            before the next ones.
        """
        if not lines:
            return
        try:
            self._write(lines)
        except OSError:
            self._torn = True
            raise
        finally:
            self._standing |= {kind: line for line in lines for kind in _kinds(line)}
        self._prune()

    def _write(self, lines: Sequence[str]) -> None:
        file = self._file or self._take_up()
        full = file.exists() and file.stat().st_size >= self.file_bytes
        if full:
            file = self._next(file)
        if full or self._torn or not file.exists():
            lines = [*self._header(lines[0]), *lines]
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have cleared it away
        _add(file, "".join(f"{line}\n" for line in lines))
        self._file, self._torn = file, False

    def _take_up(self) -> Path:
        """Return the file to go on with: the newest one, without a last line that was cut off."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = log_files(self.folder)
        if not files:
            return self.folder / "decisions-000001.jsonl"
        with files[-1].open("rb+") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
        self._standing |= {kind: line for line in text.decode("utf-8", "replace").split("\n")[:-1] for kind in _kinds(line)}
        return files[-1]

    def _next(self, file: Path) -> Path:
        return file.with_name(f"decisions-{int(file.stem.rpartition('-')[2]) + 1:06d}.jsonl")

    def _header(self, first: str) -> Iterator[str]:
        """Yield what stands, as of the time of the line `first`."""
        at = json.loads(first)["t"]
        for kind in _STANDING:
            if kind in self._standing:
                yield json.dumps({**json.loads(self._standing[kind]), "t": at}, separators=(",", ":"))

    def _prune(self) -> None:
        for file in log_files(self.folder)[: -self.files]:
            file.unlink(missing_ok=True)


def _kinds(line: str) -> Iterable[str]:
    return (kind for kind in _STANDING if f'"kind":"{kind}"' in line[:80])


def _add(file: Path, text: str) -> None:
    """Append `text` to `file` in one step as far as readers see; where that fails, the file is as it was."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            left = memoryview(text.encode())
            while left:
                left = left[os.write(fd, left) :]
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
