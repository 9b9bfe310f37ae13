"""What several suites share: waiting with a deadline, and the processes that a run leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


def until(predicate: Callable[[], T], timeout_s: float = 20.0, what: str = "", every_s: float = 0.02) -> T:
    """Return the predicate's first true value; fail with what was waited for when the deadline passes.

    The pause between two looks only spares the processor: no result depends on its length.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or getattr(predicate, '__name__', 'the condition')} (last: {value!r})")
        time.sleep(every_s)


def processes_with_home(under: Path, processes: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """Return the live processes whose `$DGPUNET_HOME` lies in a folder, this one left out."""
    found = []
    for process in psutil.process_iter() if processes is None else processes:
        try:
            home = process.environ().get("DGPUNET_HOME")
            if home and process.pid != psutil.Process().pid and process.status() != psutil.STATUS_ZOMBIE and _inside(Path(home), under):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sorted(found, key=lambda p: p.pid)


def _inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
