"""What feeds this machine, and since when nobody has touched it. Reading is one thing here, understanding what was read another."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

POWER_SUPPLIES: Final = Path("/sys/class/power_supply")
#: Terminals and input devices. Those that nothing ever touched keep the time of the machine's start.
TOUCHED: Final = ("tty[0-9]*", "pts/[0-9]*", "input/event*", "input/mice")
LOGINCTL: Final = ("loginctl", "show-seat", "seat0", "-p", "IdleHint", "-p", "IdleSinceHintMonotonic")
ASK_S: Final = 2.0
_FEEDING: Final = frozenset({"Mains", "USB", "USB_C", "USB_PD", "Wireless"})
_PROPERTY: Final = re.compile(r"(?:POWER_SUPPLY_)?(\w+)=(.*)")


class Power(NamedTuple):
    """What feeds the machine now, and whether it has a battery; ``None`` = not known."""

    source: Literal["mains", "battery"] | None
    battery: bool | None


def power_now(folder: Path = POWER_SUPPLIES) -> Power:
    """Return what feeds this machine. One without a battery is fed from the mains."""
    if not folder.is_dir():
        return _power_by_psutil()
    texts = []
    for path in sorted(folder.glob("*/uevent")):
        with contextlib.suppress(OSError):  # unplugged meanwhile
            texts.append(path.read_text(errors="replace"))
    return power_of(texts)


def power_of(uevents: Iterable[str]) -> Power:
    """Return what Linux's power supplies say, each as the text of its ``uevent``.

    A mouse's battery (scope Device) feeds no machine.
    """
    supplies = [s for s in map(properties, uevents) if s.get("SCOPE") != "Device"]
    batteries = [s for s in supplies if s.get("TYPE") == "Battery" and s.get("PRESENT") != "0"]
    if not batteries:
        return Power("mains", battery=False)
    if any(s.get("ONLINE") not in (None, "0") for s in supplies if s.get("TYPE") in _FEEDING):
        return Power("mains", battery=True)
    states = {s.get("STATUS") for s in batteries}
    if "Discharging" in states:
        return Power("battery", battery=True)
    return Power("mains" if states & {"Charging", "Full", "Not charging"} else None, battery=True)


def _power_by_psutil() -> Power:
    import psutil

    if not hasattr(psutil, "sensors_battery"):
        return Power(None, None)
    found = psutil.sensors_battery()
    if found is None:
        return Power("mains", battery=False)
    return Power(None if found.power_plugged is None else "mains" if found.power_plugged else "battery", battery=True)


def idle_now() -> float | None:
    """Return the seconds since somebody used this machine's keyboard or mouse, ``None`` where nothing tells."""
    seat = _seat()
    idle = None if seat is None else idle_of_seat(seat, time.monotonic())
    return idle_of_times(_times(Path("/dev")), time.time()) if idle is None else idle


def idle_of_seat(shown: str, monotonic_s: float) -> float | None:
    """Return the idle seconds of a seat as logind shows it at `monotonic_s` of the machine's clock, ``None`` where it does not say.

    A desktop sets the hint some minutes after the last touch; the time counts from then, so it is never too long. A seat that nobody
    has logged in to is idle since the machine's start.
    """
    found = properties([*shown.splitlines()])
    if found.get("IdleHint") == "no":
        return 0.0
    since = found.get("IdleSinceHintMonotonic", "")
    if found.get("IdleHint") != "yes" or not since.isdigit():
        return None
    return max(0.0, monotonic_s - int(since) / 1e6)


def idle_of_times(touched: Iterable[float], now: float) -> float | None:
    """Return the seconds since the last of some times of the day's clock, ``None`` without any."""
    last = max(touched, default=None)
    return None if last is None else max(0.0, now - last)


def properties(lines: str | Iterable[str]) -> Mapping[str, str]:
    """Return the ``KEY=value`` lines as a mapping; a prefix ``POWER_SUPPLY_`` is left out."""
    found = (_PROPERTY.fullmatch(line.strip()) for line in (lines.splitlines() if isinstance(lines, str) else lines))
    return {m[1]: m[2] for m in found if m is not None}


def _seat() -> str | None:
    """Return what logind shows of the seat, ``None`` without logind or seat."""
    program = shutil.which(LOGINCTL[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *LOGINCTL[1:]], capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _times(devices: Path) -> list[float]:
    found = []
    for path in (path for glob in TOUCHED for path in devices.glob(glob)):
        with contextlib.suppress(OSError):
            found.append(path.stat().st_atime)
    return found
