"""Puts a process of bulk work behind everything that people wait for. Standard library only.

Three things, since each alone fails somewhere:

* the *niceness* 19 counts among the processes of one control group, or of one session where the kernel groups by session;
* where it does (``/proc/sys/kernel/sched_autogroup_enabled``, on by default), a session is one party against the others whatever the niceness
  of its processes is, and what counts is the niceness of the group (``/proc/PID/autogroup``, sched(7)). Each stage host has a session of its own;
* *batch* scheduling, under which a thread that wakes up never takes the core of one that runs.

None of it slows a process that has the cores for itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: The last one: against one process of niceness 0 it has 1.5% of a core.
NICENESS: Final = 19
AUTOGROUP: Final = Path("/proc/self/autogroup")
#: The kernel takes one such change each 0.1 s from all unprivileged processes together, and answers EAGAIN to the others.
_TRIES: Final = 20
_TRY_EVERY_S: Final = 0.05


def lower_priority() -> None:
    """Give this process, and all it will start, the lowest share of the cores; what the system refuses is told on standard error."""
    steps: list[tuple[str, Callable[[], None]]] = [("its niceness", _nice), ("its session's niceness", _nice_session), ("batch scheduling", _batch)]
    for what, step in steps:
        try:
            step()
        except OSError as error:  # a sandbox may forbid it: the work is done all the same
            sys.stderr.write(f"the system does not let this process set {what} ({error}): searches may be slow while it runs\n")


def _nice() -> None:
    os.nice(NICENESS)


def _nice_session() -> None:
    """Set the niceness of this process's session where it is its own: no other process must be slowed."""
    if os.getsid(0) != os.getpid() or not AUTOGROUP.exists():
        return
    for left in reversed(range(_TRIES)):
        try:
            AUTOGROUP.write_text(str(NICENESS))
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(_TRY_EVERY_S)


def _batch() -> None:
    if hasattr(os, "sched_setscheduler"):  # not on macOS
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
