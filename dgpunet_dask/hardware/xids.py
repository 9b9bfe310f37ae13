"""What NVIDIA's driver calls Xid: errors by number, whose fault each is and how bad, and where the kernel's log tells of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

#: ``critical``: the card is not to be trusted; ``warning``: watch it; ``job``: a program did it; ``silent``: the card has mended it.
Severity = Literal["critical", "warning", "job", "silent"]
Cause = Literal["hardware", "workload"]


class Xid(NamedTuple):
    """What an error's number stands for."""

    severity: Severity
    cause: Cause
    meaning: str


class XidEvent(NamedTuple):
    """One error.

    Parameters
    ----------
    uuid
        Of the whole card, also where an instance of it is meant; ``None`` where no card is known at that place.
    xid
        Its number.
    at
        Seconds since 1970.
    """

    uuid: str | None
    xid: int
    at: float


class LoggedXid(NamedTuple):
    """An error as the kernel's log has it: place on the bus such as ``0000:01:00``, number, process where one is named."""

    pci: str
    xid: int
    pid: int | None


_KNOWN: Final[Mapping[int, Xid]] = {
    13: Xid("job", "workload", "a kernel did what the card cannot do, such as an access outside its arrays"),
    31: Xid("job", "workload", "a kernel used an address that is not its own"),
    43: Xid("job", "workload", "a kernel hung or faulted, and was stopped"),
    45: Xid("job", "workload", "what a program had on the card was cleared away, as when it is killed"),
    48: Xid("critical", "hardware", "memory error that could not be corrected"),
    62: Xid("critical", "hardware", "the card's own controller halted"),
    63: Xid("silent", "hardware", "a bad place in memory was taken out of use"),
    64: Xid("critical", "hardware", "a bad place in memory could not be taken out of use"),
    74: Xid("critical", "hardware", "NVLink error"),
    79: Xid("critical", "hardware", "the card fell off the bus"),
    92: Xid("silent", "hardware", "many memory errors, all of them corrected"),
    94: Xid("warning", "hardware", "memory error that was contained in one program"),
    95: Xid("critical", "hardware", "memory error that was not contained"),
    119: Xid("critical", "hardware", "the card's system processor does not answer"),
    120: Xid("critical", "hardware", "the card's system processor failed"),
}
_UNKNOWN: Final = Xid("warning", "hardware", "not in our list; NVIDIA's `Xid errors` page may have it")
_LINE: Final = re.compile(r"NVRM: Xid \(PCI:(?P<pci>[0-9a-fA-F]+:[0-9a-fA-F]+:[0-9a-fA-F]+)(?:\.\d)?\): (?P<xid>\d+)(?:,.*?pid='?(?P<pid>\d+))?")


def meaning_of(xid: int) -> Xid:
    """Return what a number stands for. One that is not known is a warning: new drivers have new numbers."""
    return _KNOWN.get(xid, _UNKNOWN)


def xids_of(lines: Iterable[str]) -> Iterator[LoggedXid]:
    """Yield the errors in lines of the kernel's log, such as ``NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.``."""
    for line in lines:
        if found := _LINE.search(line):
            pid = found["pid"]
            yield LoggedXid(_place(found["pci"]), int(found["xid"]), None if pid is None else int(pid))


def _place(pci: str) -> str:
    """Return a place on the bus as `card_facts` has it; drivers write the domain with four or eight digits."""
    domain, bus, device = (int(part, 16) for part in pci.split(":"))
    return f"{domain:04x}:{bus:02x}:{device:02x}"
