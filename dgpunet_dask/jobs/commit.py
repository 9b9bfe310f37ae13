"""What makes a unit's result durable: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from dgpunet_dask.errors.fullness import shortage_of
from dgpunet_dask.security.files import sync_folder
from dgpunet_dask.stagehost.frames import Buffer, write_frames

#: How the names of files end that are being written. They begin with a dot.
TEMPORARY: Final = ".tmp"
#: Called between the steps, by their names.
Step = Callable[[str], None]


def _on(_: str) -> None:
    """Go on."""


def commit_frames(path: Path, frames: Sequence[Buffer], hit: Step = _on) -> str:
    """Make `frames` durable as `path` and return their digest (hex). The file appears whole or not at all.

    Raises
    ------
    DiskFull, OutOfFiles
        If there is no room, or no more files can be opened; nothing is left behind.
    """
    with _replacing(path, hit) as file:
        return write_frames(file, frames)


def commit_text(path: Path, text: str) -> None:
    """Make `text` durable as `path`, as `commit_frames` does."""
    with _replacing(path, _on) as file:
        file.write(text.encode())


@contextmanager
def _replacing(path: Path, hit: Step) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path`, durably, once the body has ended well; else it goes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            hit("publish.opened")
            yield file
            file.flush()
            hit("publish.written")
            os.fsync(file.fileno())
        hit("publish.synced")
        os.replace(temporary, path)
        hit("publish.renamed")
        sync_folder(path.parent)
        hit("publish.folder_synced")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> Exception:
    return shortage_of(error, path) or error
