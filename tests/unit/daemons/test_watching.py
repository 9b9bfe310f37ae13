"""What workers tell of their cards and hosts."""

from __future__ import annotations

import os
import threading

import pytest

from dgpunet_dask.daemons import watching
from dgpunet_dask.daemons.watching import TELL_S, CardWatch, HostWatch, Presence, family, is_news, watch
from dgpunet_dask.hardware.nvml import CardUse
from dgpunet_dask.hardware.presence import Power
from dgpunet_dask.model.fleet import Device

CARD = Device(name="c", host="h", uuid="GPU-1")


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now


@pytest.mark.parametrize(
    ("now", "news"),
    [
        (Presence("mains", 110.0, 10.0), False),
        (Presence("battery", 110.0, 10.0), True),
        (Presence("mains", 0.0, 10.0), True),
        (Presence("mains", None, 10.0), True),
        (Presence("mains", 160.0, TELL_S), True),
    ],
)
def test_a_host_is_told_when_something_happened_or_a_minute_has_passed(now, news):
    assert is_news(Presence("mains", 100.0, 0.0), now) is news
    assert is_news(None, now)


def test_a_host_that_is_watched(monkeypatch):
    told, clock, seen = [], Clock(), {"idle": 100.9, "power": "mains"}
    monkeypatch.setattr(watching, "idle_now", lambda: seen["idle"])
    monkeypatch.setattr(watching, "power_now", lambda: Power(seen["power"], battery=True))
    host = HostWatch(lambda *now: told.append(now), clock)
    host.look()
    clock.now, seen["idle"] = 15, 115.9
    host.look()
    clock.now, seen["power"] = 30, "battery"
    host.look()
    clock.now, seen["idle"] = 45, 1.0
    host.look()
    clock.now, seen["idle"] = 45 + TELL_S, 61.0
    host.look()
    assert told == [("mains", 100.0), ("battery", 115.0), ("battery", 1.0), ("battery", 61.0)]


def test_a_card_that_is_watched():
    told, use = [], {"now": CardUse(900, ((os.getpid(), 300), (1, 600)))}
    card = CardWatch(CARD, os.getpid(), lambda uuid: use["now"], lambda *now: told.append(now))
    card.look()
    card.look()
    assert told == [("c", {"used_mib": 900, "ours_mib": 300, "others_mib": 600, "context_mib": 300})]
    use["now"] = None
    card.look()
    assert told[-1] == ("c", {"used_mib": None, "ours_mib": None, "others_mib": 0, "context_mib": 0})


def test_the_family_of_a_process():
    assert os.getpid() in family(os.getpid())
    assert family(2**22 + 1) == {2**22 + 1, os.getpid(), os.getppid()}


def test_watching_goes_on_after_a_look_that_failed(monkeypatch):
    stop, looks = threading.Event(), []

    def look(self):
        looks.append(self)
        if len(looks) > 1:
            stop.set()
        raise OSError("gone for a moment")

    class Plugin:
        agent, devices = os.getpid(), (CARD,)
        report_use = report_host = None

    monkeypatch.setattr(CardWatch, "look", look)
    monkeypatch.setattr(watching, "CARD_S", 0.0)
    watch(Plugin(), stop, watching_clock())
    assert len(looks) == 2


def watching_clock():
    from dgpunet_dask.clock import SystemClock

    return SystemClock()
