"""What several suites share: waiting with a deadline, and the processes that a run leaves behind."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
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


def processes_with_home(*folders: Path) -> list[psutil.Process]:
    """Return the live processes whose `$DGPUNET_HOME` lies in one of the folders, this one left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            home = Path(process.environ().get("DGPUNET_HOME") or "/")
            inside = any(folder in (home, *home.parents) for folder in folders)
            if inside and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda p: p.pid)


@contextlib.contextmanager
def no_file_more() -> Iterator[None]:
    """This process may open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
