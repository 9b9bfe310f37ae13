"""All facts of this machine, each question asked by itself: one that fails or hangs is told as such, and harms no other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.hardware.canary import RUN_S
from dgpunet_dask.hardware.cpu import host_name
from dgpunet_dask.observe import probes
from dgpunet_dask.observe.facts import VERSION

log = logging.getLogger(__name__)

#: A broken card or a network file system that is gone can keep a call for ever. Importing torch from a cold disk takes most of a minute.
ASK_S: Final = 90.0

#: The canaries of a machine end by themselves, each in its time.
LONGER_S: Final = {"canary": 16 * RUN_S}

Probe = Callable[[], Any]
Canary = Literal["cards", "any"] | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to ask beyond the machine itself.

    Parameters
    ----------
    home
        ``$DGPUNET_HOME``; it need not exist.
    arches
        The file in which torch's answer about its arches is kept.
    head
        Name or address of the head's host, for the route to it.
    ports
        Number and use of each port that we need here.
    ours
        Ids of our own processes: what they hold is no stranger's.
    canary
        Where to run the canary: on the cards, on these or else on the CPU, nowhere.
    pki
        Where this host's certificate lies, if it has one.
    offset_s
        How far this clock is ahead of the head's.
    """

    home: Path
    arches: Path | None = None
    head: str | None = None
    ports: Sequence[tuple[int, str]] = ()
    ours: Collection[int] = ()
    canary: Canary = None
    pki: Path | None = None
    offset_s: float | None = None


def collect_local(wanted: Wanted, *, asked: Mapping[str, Probe] | None = None, clock: Clock | None = None, limit_s: float = ASK_S) -> dict[str, Any]:
    """Return the facts of this machine as JSON; `facts` tells their layout.

    Parameters
    ----------
    asked
        The questions by the name of their facts; ``None`` asks all.
    limit_s
        How long a question may take. One that takes longer is left alone, on a thread that ends with the process.
    """
    clock = SystemClock() if clock is None else clock
    found: dict[str, Any] = {"version": VERSION, "host": host_name(probes.node_name()), "at": clock.wall()}
    told: dict[str, Any] = {}
    for name, probe in (questions(wanted) if asked is None else asked).items():
        began = clock.monotonic()
        answer, error = answered(probe, LONGER_S.get(name, limit_s))
        told[name] = {"seconds": round(clock.monotonic() - began, 4), "error": error}
        if error is None and answer is not None:
            found[name] = answer
    return {**found, "probes": told}


def questions(wanted: Wanted) -> dict[str, Probe]:
    """Return every question by the name of its facts, in the order in which they are asked."""
    asked: dict[str, Probe] = {
        "cards": lambda: probes.cards(wanted.ours),
        "nvml": probes.nvml,
        "pci": probes.pci,
        "xid": probes.xids,
        "software": lambda: probes.software(wanted.arches),
        "network": lambda: probes.network(wanted.head),
        "clock": lambda: probes.clock(wanted.offset_s),
        "disk": lambda: probes.disk(wanted.home, probes.temp_folder()),
        "memory": probes.memory,
        "limits": probes.limits,
        "power": probes.power,
        "home": lambda: probes.home(wanted.home),
        "settings": lambda: probes.settings(wanted.home),
        "temp": probes.temp,
        "ports": lambda: probes.ports(wanted.ports, wanted.ours),
    }
    if wanted.canary:
        asked["canary"] = lambda: probes.canaries(otherwise_cpu=wanted.canary == "any")
    if (pki := wanted.pki) is not None:
        asked["certificate"] = lambda: probes.certificate(pki)
    return asked


def answered(probe: Probe, limit_s: float) -> tuple[Any, str | None]:
    """Return what a question gave, and why it gave nothing."""
    box: list[tuple[Any, str | None]] = []

    def ask() -> None:
        try:
            box.append((probe(), None))
        except Exception as error:
            log.debug("a probe failed", exc_info=True)
            box.append((None, f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=ask, daemon=True, name="probe")
    thread.start()
    thread.join(limit_s)
    return box[0] if box else (None, f"no answer within {limit_s:g} s")
