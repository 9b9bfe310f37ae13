"""Processes that belong to one home, found by their environment: the only sure way to see what a crash left."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

#: TCP states of sockets that wait for others (Linux's include/net/tcp_states.h).
_LISTEN = "0A"


def processes_of(home: Path) -> list[psutil.Process]:
    """Return every running process whose ``$DGPUNET_HOME`` is `home`, except this one and its ancestors."""
    found = []
    spared = {psutil.Process().pid, *(p.pid for p in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            own = process.environ().get("DGPUNET_HOME") == str(home)
            if own and process.pid not in spared and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def commands_of(home: Path) -> dict[int, str]:
    """Return the command lines of `processes_of` by pid."""
    found = {}
    for process in processes_of(home):
        with contextlib.suppress(psutil.Error):
            found[process.pid] = " ".join(process.cmdline())
    return found


def kill_all(home: Path) -> list[str]:
    """Kill every process of `home`; return what they were, for a test to complain about."""
    found = processes_of(home)
    told = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            told.append(" ".join(process.cmdline()[:6]))
            process.kill()
    psutil.wait_procs(found, timeout=5)
    return told


def listening_addresses(pid: int) -> list[str]:
    """Return the local addresses on which `pid` listens over TCP, as ``hex address:hex port`` of ``/proc/net/tcp*``."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == _LISTEN and row[9] in inodes]
