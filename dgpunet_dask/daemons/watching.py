"""What a worker watches on its machine while it runs: whose memory its card holds, what feeds the host, whether its owner is there.

Each worker watches its own card; the host's CPU worker watches the host. Only what was probed is watched: the machines of a simulated
fleet do not exist, and this one's keyboard says nothing about them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import psutil

from dgpunet_dask.clock import Clock
from dgpunet_dask.hardware import usage
from dgpunet_dask.hardware.nvml import CardUse, watching
from dgpunet_dask.hardware.presence import idle_now, power_now
from dgpunet_dask.hardware.usage import Use, use_of
from dgpunet_dask.model.fleet import Device
from dgpunet_dask.plugins.worker import DeviceWorker

log = logging.getLogger(__name__)

#: Set for workers of probed machines.
PROBED: Final = "DGPUNET_PROBED"
#: How often a card is looked at: a game that starts is known before the next unit is placed there.
CARD_S: Final = 3.0
HOST_S: Final = 15.0
#: A host is told anew this often, since its idle time grows by itself.
TELL_S: Final = 60.0


@dataclass(frozen=True)
class Presence:
    """What feeds a host, for how many seconds nobody has touched it, and when that was seen by the machine's own clock."""

    power: str | None
    idle_s: float | None
    at_s: float


def is_news(told: Presence | None, now: Presence) -> bool:
    """Whether the scheduler should hear of `now`: other power, somebody came back, or a minute has passed."""
    if told is None or told.power != now.power or (told.idle_s is None) != (now.idle_s is None):
        return True
    came_back = now.idle_s is not None and told.idle_s is not None and now.idle_s < told.idle_s
    return came_back or now.at_s - told.at_s >= TELL_S


class HostWatch:
    """Tells of this host when something has changed. `look` is called again and again."""

    def __init__(self, tell: Callable[[str | None, float | None], None], clock: Clock) -> None:
        self.tell, self.clock = tell, clock
        self._told: Presence | None = None

    def look(self) -> None:
        """Look once, and tell what is new; the idle time in whole seconds."""
        idle = idle_now()
        now = Presence(power_now().source, None if idle is None else float(int(idle)), self.clock.monotonic())
        if is_news(self._told, now):
            self.tell(now.power, now.idle_s)
            self._told = now


class CardWatch:
    """Tells whose memory a card holds when that has changed.

    Parameters
    ----------
    device
        The card.
    agent
        Process id of the agent: it and all that it has started are ours.
    ask
        Tells the use of a card by its UUID.
    tell
        Takes the device's name and its use.
    """

    def __init__(
        self, device: Device, agent: int, ask: Callable[[str], CardUse | None], tell: Callable[[str, dict[str, int | None]], None]
    ) -> None:
        self.device, self.agent, self.ask, self.tell = device, agent, ask, tell
        self._told: Use | None = None

    def look(self) -> None:
        """Look once, and tell what is new. A card that does not answer any more is told as not reported."""
        seen = self.ask(self.device.uuid or "") or CardUse(None, None)
        listed = bool(seen.process_mib)
        use = use_of(
            seen.used_mib,
            seen.process_mib,
            ours=family(self.agent) if listed else frozenset(),
            workers=frozenset((os.getpid(), os.getppid())),
            alive=frozenset(pid for pid, _ in seen.process_mib or () if psutil.pid_exists(pid)),
        )
        if usage.is_news(self._told, use):
            self.tell(self.device.name, asdict(use))
            self._told = use


def family(pid: int) -> frozenset[int]:
    """Return `pid` and the ids of all processes that it has started, and those have."""
    try:
        return frozenset((pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))))
    except psutil.Error:
        return frozenset((pid, os.getpid(), os.getppid()))


def watch(plugin: DeviceWorker, stop: threading.Event, clock: Clock) -> None:
    """Watch the cards and the host that `plugin` speaks for until `stop` is set; runs in a thread of its own."""
    with watching() as ask:
        cards = [CardWatch(d, plugin.agent or os.getppid(), ask, plugin.report_use) for d in plugin.devices if d.uuid is not None]
        host = HostWatch(plugin.report_host, clock) if any(d.kind == "cpu" for d in plugin.devices) else None
        every = [(CARD_S, card.look) for card in cards] + ([(HOST_S, host.look)] if host is not None else [])
        due = dict.fromkeys(range(len(every)), clock.monotonic())
        while every and not stop.is_set():
            for number, (period_s, look) in enumerate(every):
                if clock.monotonic() >= due[number]:
                    due[number] = clock.monotonic() + period_s
                    _looked(look)
            stop.wait(max(0.0, min(due.values()) - clock.monotonic()))


def _looked(look: Callable[[], None]) -> None:
    """Look; what cannot be seen this time is no reason to stop looking."""
    try:
        look()
    except Exception:
        log.exception("a look at this machine failed")
