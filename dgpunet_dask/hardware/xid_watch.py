"""Waits for the errors (Xid) that the driver tells while they happen; in its absence, for those that the kernel writes into its log."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.hardware.nvml import TIMEOUT, Nvml
from dgpunet_dask.hardware.xids import XidEvent, xids_of

log = logging.getLogger(__name__)

#: NVML's nvmlEventTypeXidCriticalError. It means every Xid, not the critical ones alone.
_XID_EVENTS: Final = 8
KERNEL_LOG: Final = Path("/dev/kmsg")
_RECORD: Final = 8192


class XidWatch:
    """The errors of all cards since it was made. What was before is told to nobody.

    Parameters
    ----------
    nvml
        An open session, which must stay open.
    wall
        Seconds since 1970: the driver does not tell when an error was.
    """

    def __init__(self, nvml: Nvml, wall: Callable[[], float]) -> None:
        self.nvml, self.wall = nvml, wall
        self._set = nvml.ask("nvmlEventSetCreate")
        self._uuids: dict[int, str] = {}
        self._asked: set[str] = set()
        self.extend()

    @property
    def supported(self) -> bool:
        """Whether at least one card tells its errors."""
        return self._set is not None and bool(self._uuids)

    def extend(self) -> None:
        """Listen to cards, too, that did not answer before."""
        for _, handle, error in self.nvml.handles() if self._set is not None else ():
            if error is None:
                self._register(handle)

    def wait(self, timeout_s: float) -> XidEvent | None:
        """Return the next error, ``None`` if there was none in time."""
        if not self.supported:
            return None
        found, error = self.nvml.answer("nvmlEventSetWait_v2", self._set, int(timeout_s * 1000))
        if error not in (None, TIMEOUT):
            log.debug("waiting for Xid: %s", self.nvml.words(error))  # a card that is lost is told as such by its state
        return None if found is None else XidEvent(self._uuid(found.device), int(found.eventData), self.wall())

    def ready(self) -> list[XidEvent]:
        """Return the errors that have happened since the last call."""
        found = []
        while (event := self.wait(0)) is not None:
            found.append(event)
        return found

    def close(self) -> None:
        """Wait no more."""
        if self._set is not None:
            self.nvml.ask("nvmlEventSetFree", self._set)
            self._set = None

    def _register(self, handle: Any) -> None:
        uuid = self.nvml.text("nvmlDeviceGetUUID", handle)
        if uuid is None or uuid in self._asked:
            return
        self._asked.add(uuid)  # a card that refuses once does so always
        if self.nvml.answer("nvmlDeviceRegisterEvents", handle, _XID_EVENTS, self._set)[1] is None:
            self._uuids[_address(handle)] = uuid

    def _uuid(self, handle: Any) -> str | None:
        """Return whose handle it is. A card that fell off the bus does not say so any more: it was asked before."""
        return self._uuids.get(_address(handle)) or self.nvml.text("nvmlDeviceGetUUID", handle)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


class KernelLog:
    """The errors that the kernel's log tells since this was made, where it may be read.

    Parameters
    ----------
    file
        One record at each read, as ``/dev/kmsg``.
    """

    def __init__(self, wall: Callable[[], float], file: Path = KERNEL_LOG) -> None:
        self.wall = wall
        self._fd: int | None = None
        try:
            self._fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            log.debug("the kernel's log cannot be read: %s", error)
            self.close()

    @property
    def readable(self) -> bool:
        """Whether it may be read."""
        return self._fd is not None

    def ready(self, places: Mapping[str, str]) -> list[XidEvent]:
        """Return the errors since the last call. `places`: UUIDs by place on the bus."""
        return [XidEvent(places.get(found.pci), found.xid, self.wall()) for found in xids_of(self._lines())]

    def close(self) -> None:
        """Read no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _lines(self) -> Iterable[str]:
        while self._fd is not None:
            try:
                record = os.read(self._fd, _RECORD)
            except OSError as error:
                if error.errno == errno.EPIPE:  # the log has overtaken us: what was lost is lost, the rest follows
                    continue
                return
            if not record:
                return
            yield from record.decode(errors="replace").splitlines()
