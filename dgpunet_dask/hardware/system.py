"""What the operating system tells of clock, disk and limits. ``None`` = not reported."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from dgpunet_dask.hardware.presence import properties

ASK_S: Final = 2.0
TIMEDATECTL: Final = ("timedatectl", "show", "-p", "NTPSynchronized")
#: Of linux/timex.h: nobody steers the clock.
_STA_UNSYNC: Final = 0x40
_TIME_ERROR: Final = 5


class ClockFacts(NamedTuple):
    """Whether something keeps this machine's clock right, such as NTP, and by how many seconds it may be wrong then."""

    synchronised: bool | None
    error_s: float | None


class DiskFacts(NamedTuple):
    """Bytes of the disk that a path is on: all of them, and those free to this user."""

    total: int
    free: int


class FileLimits(NamedTuple):
    """How many files a process may have open now, and at most if it asks; ``None`` = without limit."""

    soft: int | None
    hard: int | None


class _Timex(ctypes.Structure):
    """The beginning of linux/timex.h's structure, and room for its rest."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long),
        ("status", ctypes.c_int), ("rest", ctypes.c_long * 32),
    )  # fmt: skip


def clock_facts() -> ClockFacts:
    """Return whether this machine's clock is kept right: as the kernel says, else as systemd does."""
    kernel = _kernel_clock()
    if kernel.synchronised:
        return kernel
    told = _by_systemd()
    return ClockFacts(kernel.synchronised if told is None else told, kernel.error_s)


def clock_of(state: int, status: int, error_us: int) -> ClockFacts:
    """Return what the kernel's ``adjtimex`` says: its result, its status bits, and the largest error in microseconds."""
    right = state != _TIME_ERROR and not status & _STA_UNSYNC
    return ClockFacts(right, error_us / 1e6 if right else None)


def disk_facts(path: Path) -> DiskFacts:
    """Return the disk that `path` is on, or would be made on."""
    return DiskFacts(*total_and_free(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())))


def total_and_free(path: os.PathLike[str]) -> tuple[int, int]:
    """Return the bytes of a path's disk: all that this user may have, without the blocks that are root's, and those that are free to it."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize, found.f_bavail * found.f_frsize


def file_limits() -> FileLimits:
    """Return how many files a process may have open."""
    import resource

    soft, hard = (None if n in {resource.RLIM_INFINITY, sys.maxsize} else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    return FileLimits(soft, hard)


def _kernel_clock() -> ClockFacts:
    ask: Callable[..., int] | None = getattr(ctypes.CDLL(None), "adjtimex", None) if sys.platform == "linux" else None
    if ask is None:
        return ClockFacts(None, None)
    told = _Timex()
    state = ask(ctypes.byref(told))  # no modes: a question
    return ClockFacts(None, None) if state < 0 else clock_of(state, told.status, told.maxerror)


def _by_systemd() -> bool | None:
    program = shutil.which(TIMEDATECTL[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *TIMEDATECTL[1:]], capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(properties(done.stdout).get("NTPSynchronized", ""))
