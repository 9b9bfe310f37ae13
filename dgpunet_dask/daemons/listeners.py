"""What the processes of a host listen on, and what protects each: the table that `doctor` shows and a test holds the product to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any, Final, Literal

import psutil

from dgpunet_dask.cluster.config import Ports
from dgpunet_dask.daemons.keeping import family

Protection = Literal["mutual-tls", "tls+key", "key", "none"]

#: Ports of a range: one for each device of a host.
RANGE: Final = 100
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})


def protection_of(address: str, port: int, ports: Ports) -> tuple[str, Protection]:
    """Return what a listener is, and what protects it. Pure.

    On loopback are the API for this machine's commands, which asks for a key, and Dask's pages, which have a secret path.
    """
    known: dict[int, tuple[str, Protection]] = {
        ports.scheduler: ("scheduler", "mutual-tls"), ports.api: ("API and dashboard", "tls+key"), ports.peer: ("agent", "mutual-tls"),
    }  # fmt: skip
    if port in known:
        return known[port]
    if ports.workers <= port < ports.workers + RANGE:
        return "worker", "mutual-tls"
    if ports.nannies <= port < ports.nannies + RANGE:
        return "nanny", "mutual-tls"
    return ("this machine's own pages", "key") if address in _LOOPBACK else ("unknown", "none")


def listening(pids: Iterable[int]) -> list[tuple[str, int]]:
    """Return address and port of each TCP listener of these processes."""
    found = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(pid).net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((str(connection.laddr.ip), int(connection.laddr.port)))
    return sorted(found)


def own_listeners(ports: Ports) -> list[dict[str, Any]]:
    """Return the listeners of all processes of this host: its supervisor's and everything below it."""
    pids = {process.pid for process in family(os.getppid())} | {os.getpid()}
    rows = []
    for address, port in listening(pids):
        what, protection = protection_of(address, port, ports)
        rows.append({"address": address, "port": port, "what": what, "protection": protection})
    return rows
