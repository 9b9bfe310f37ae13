"""How the cards of this machine are, again and again: one session with the driver, opened anew only where a card is missing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from dgpunet_dask.hardware.card_facts import CardFacts, facts_in
from dgpunet_dask.hardware.nvml import CardState, Nvml, Watching, session
from dgpunet_dask.hardware.xid_watch import KernelLog, XidWatch
from dgpunet_dask.hardware.xids import XidEvent

log = logging.getLogger(__name__)


class CardMonitor:
    """Asks about cards, and hears of their errors. For one thread: a card that is broken can keep a question for ever.

    Parameters
    ----------
    wall
        Seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.wall = wall
        self._nvml: Nvml | None = None
        self._open = contextlib.ExitStack()
        self._events: XidWatch | None = None
        self._kernel: KernelLog | None = None
        self._places: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.reopen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        self._stop_reading()

    def reopen(self) -> None:
        """Open the session anew: a card that has come back is seen by a new one alone, and so is a driver that was exchanged."""
        self._close()
        self._nvml = self._open.enter_context(session())
        if self._nvml is not None:
            self._events = XidWatch(self._nvml, self.wall)
            self._open.callback(self._events.close)
            if self._events.supported:
                self._stop_reading()  # or each error would be told twice
            elif self._kernel is None:
                self._fall_back()

    def facts(self) -> list[CardFacts]:
        """Return all cards that the driver lists, those that fell off the bus with ``present=False``."""
        found = [] if self._nvml is None else facts_in(self._nvml)
        if self._events is not None:
            self._events.extend()
        self._places |= {card.pci: card.mig_of or card.uuid or "" for card in found if card.pci is not None}
        return found

    def state(self, uuid: str) -> CardState:
        """Return whether a card is there."""
        return Watching(self._nvml).state(uuid)

    def xids(self) -> list[XidEvent]:
        """Return the errors since the last call; empty where neither driver nor kernel tells of them."""
        told = [] if self._events is None else self._events.ready()
        return told if self._kernel is None else [*told, *self._kernel.ready(self._places)]

    def _fall_back(self) -> None:
        assert self._nvml is not None
        if not any(error is None for _, _, error in self._nvml.handles()):
            return  # no card, or none that answers
        self._kernel = KernelLog(self.wall)
        where = "they are read from the kernel's log" if self._kernel.readable else "and the kernel's log may not be read: `dmesg | grep Xid`"
        log.info("the driver tells no errors (Xid) of these cards: %s", where)

    def _stop_reading(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _close(self) -> None:
        self._open.close()
        self._open = contextlib.ExitStack()
        self._nvml = self._events = None
