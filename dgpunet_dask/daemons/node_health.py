"""What an agent watches on its host beside its processes: the cards' health. What happens is a report, what lasts is in every heartbeat.

The driver is asked in a thread of its own, for a broken card can keep a question for ever: the agent goes on, and its heartbeats say how
old the last answer is.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from dgpunet_dask.clock import Clock
from dgpunet_dask.daemons.card_canary import CardCanary
from dgpunet_dask.daemons.card_log import CardLog, Report, evidence
from dgpunet_dask.daemons.spool import Spool
from dgpunet_dask.hardware.card_facts import CardFacts
from dgpunet_dask.hardware.card_monitor import CardMonitor
from dgpunet_dask.hardware.nvml import CardState
from dgpunet_dask.hardware.xids import XidEvent
from dgpunet_dask.model.fleet import Fleet

log = logging.getLogger(__name__)

#: How often the cards are asked how they are, and how often for errors: a card that is not to be trusted gets no more work soon.
PERIOD_S: Final = 10.0
XIDS_S: Final = 1.0
#: How often a host without a card looks whether it has one now.
NONE_S: Final = 60.0
#: A failed call waits for so many quarters of `XIDS_S` at most to learn what befell its card.
LISTENS: Final = 8

Rows = Sequence[Mapping[str, Any]]


class Monitor(Protocol):
    """What is asked of the cards, as `CardMonitor` answers."""

    def facts(self) -> list[CardFacts]:
        """Return all cards that are listed."""

    def state(self, uuid: str) -> CardState:
        """Return whether a card is there."""

    def xids(self) -> list[XidEvent]:
        """Return the errors since the last call."""

    def reopen(self) -> None:
        """Look anew which cards there are."""


class NodeHealth:
    """Looks at the cards of one host.

    Parameters
    ----------
    spool
        Takes what happens.
    clock
        Time.
    monitor
        Opens what is asked; ``None``: the driver of this machine.
    period_s, xids_s
        How often to look at the cards, and for errors.
    canary
        Runs known computations on idle cards; ``None``: in processes of this interpreter.
    """

    def __init__(
        self, spool: Spool, clock: Clock, *, monitor: Callable[[], AbstractContextManager[Monitor]] | None = None, period_s: float = PERIOD_S,
        xids_s: float = XIDS_S, canary: CardCanary | None = None,
    ) -> None:  # fmt: skip
        self.spool, self.clock = spool, clock
        self.monitor = monitor or functools.partial(CardMonitor, clock.wall)
        self.period_s, self.xids_s = period_s, min(xids_s, period_s)
        self.canary = canary or CardCanary(clock)
        self.log = CardLog()
        self.cards: dict[str, dict[str, Any]] = {}
        self.looked_s: float | None = None
        self._listened_s: float | None = None
        self._names: dict[str, str] = {}

    def row(self) -> dict[str, Any]:
        """Return what the next heartbeat says of the cards, by UUID."""
        age_s = None if self.looked_s is None else round(self.clock.monotonic() - self.looked_s, 1)
        return {"cards": self.cards, "canary": self.canary.rows(), "looked_s_ago": age_s}

    async def befell(self, uuid: str, since_s: float) -> dict[str, Any]:
        """Return what has befallen a card, as evidence of a call that failed there: see `card_log.evidence`.

        The driver tells of an error a moment after the process that met it ends: it is waited for the next look, if there is one soon.

        Parameters
        ----------
        since_s
            When the call began, seconds since 1970.
        """
        asked_s = self.clock.monotonic()
        for _ in range(LISTENS):
            if self._listened_s is not None and self._listened_s >= asked_s:
                break
            await asyncio.sleep(self.xids_s / 4)
        return evidence(self.cards.get(uuid, {}), since_s)

    async def run(
        self, fleet: Callable[[], Fleet | None], stagehosts: Callable[[], Rows], names: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        """Look until cancelled.

        Parameters
        ----------
        fleet
            This host as it names itself; ``None`` until it is known.
        stagehosts
            What runs on its cards.
        names
            UUIDs by the name that a card has in the cluster.
        """
        stop, loop = threading.Event(), asyncio.get_running_loop()
        thread = threading.Thread(target=self._watch, args=(stop, loop), name="cards", daemon=True)
        thread.start()
        try:
            while True:
                self._names = _names(fleet(), {} if names is None else names())
                self._tell(self.canary.look(self.cards, self._names, stagehosts()))
                await asyncio.sleep(self.xids_s)
        finally:
            stop.set()
            await self.canary.stop()

    # In the thread

    def _watch(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Ask until `stop`; each answer is handed to the loop."""
        while not stop.is_set():
            try:
                with self.monitor() as cards:
                    self._ask(cards, stop, loop)
            except Exception:  # what cannot be seen this time is no reason to stop looking
                log.exception("the cards of this host could not be looked at")
                stop.wait(self.period_s)

    def _ask(self, cards: Monitor, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        due_s = last_s = self.clock.monotonic()
        while not stop.is_set():
            now_s, events = self.clock.monotonic(), cards.xids()
            reports = self.log.heard(events)
            if events:  # also where none is worth a report
                self.cards = self.log.row()
            self._listened_s = now_s
            if now_s >= due_s:
                reports += self._look(cards, now_s - last_s)
                last_s, due_s = now_s, now_s + (self.period_s if self.cards else max(self.period_s, NONE_S))
            self._hand_over(loop, reports)
            stop.wait(self.xids_s)

    def _look(self, cards: Monitor, since_s: float) -> list[Report]:
        facts, reports = cards.facts(), []
        if self.log.missing(facts) or not facts:
            reports = self.log.heard(cards.xids())  # a new session tells nothing of what was before
            cards.reopen()
            facts = cards.facts()
        gone = {uuid: cards.state(uuid) for uuid in self.log.missing(facts)}
        reports += self.log.looked(facts, gone, self._names, at=self.clock.wall(), since_s=since_s)
        self.cards, self.looked_s = self.log.row(), self.clock.monotonic()
        return reports

    def _hand_over(self, loop: asyncio.AbstractEventLoop, reports: list[Report]) -> None:
        if reports:
            self.cards = self.log.row()
            with contextlib.suppress(RuntimeError):  # the agent ends
                loop.call_soon_threadsafe(self._tell, reports)

    # In the loop

    def _tell(self, reports: list[Report]) -> None:
        for report in reports:
            (log.warning if report["kind"] == "card_fault" else log.info)("%s", report["what"])
            self.spool.add(**report)


def _names(fleet: Fleet | None, names: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the cards by UUID: the cluster's, else this host's own."""
    own = {} if fleet is None else {str(card.uuid): card.name for card in fleet.gpus()}
    return own | {uuid: name for name, uuid in names.items()}
