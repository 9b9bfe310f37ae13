"""Power and presence, from what real machines have said."""

from __future__ import annotations

import subprocess

import pytest

from dgpunet_dask.hardware import presence
from dgpunet_dask.hardware.presence import Power, idle_now, idle_of_seat, idle_of_times, power_now, power_of

MAINS_ON = "DEVTYPE=power_supply\nPOWER_SUPPLY_NAME=AC\nPOWER_SUPPLY_TYPE=Mains\nPOWER_SUPPLY_ONLINE=1\n"
MAINS_OFF = MAINS_ON.replace("ONLINE=1", "ONLINE=0")
BATTERY = "POWER_SUPPLY_NAME=BAT0\nPOWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_STATUS={}\nPOWER_SUPPLY_PRESENT=1\nPOWER_SUPPLY_CAPACITY=77\n"
MOUSE = (
    "POWER_SUPPLY_NAME=hidpp_battery_0\nPOWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_ONLINE=1\nPOWER_SUPPLY_STATUS=Discharging\n"
    "POWER_SUPPLY_SCOPE=Device\nPOWER_SUPPLY_MODEL_NAME=Wireless Mouse MX Master\n"
)
USB_C = "POWER_SUPPLY_NAME=ucsi-source-psy-USBC000:001\nPOWER_SUPPLY_TYPE=USB\nPOWER_SUPPLY_ONLINE={}\n"
EMPTY_BAY = "POWER_SUPPLY_NAME=BAT1\nPOWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_PRESENT=0\n"


@pytest.mark.parametrize(
    ("supplies", "power"),
    [
        ([], Power("mains", battery=False)),
        ([MOUSE], Power("mains", battery=False)),
        ([MAINS_ON, EMPTY_BAY], Power("mains", battery=False)),
        ([MAINS_ON, BATTERY.format("Charging")], Power("mains", battery=True)),
        ([MAINS_OFF, BATTERY.format("Discharging"), MOUSE], Power("battery", battery=True)),
        ([BATTERY.format("Discharging"), USB_C.format(1)], Power("mains", battery=True)),
        ([BATTERY.format("Discharging"), USB_C.format(0)], Power("battery", battery=True)),
        ([BATTERY.format("Full")], Power("mains", battery=True)),
        ([BATTERY.format("Unknown")], Power(None, battery=True)),
        (["no=thing\nof this", BATTERY.format("Not charging")], Power("mains", battery=True)),
    ],
)
def test_power(supplies, power):
    assert power_of(supplies) == power


def test_power_is_read_from_the_system(tmp_path):
    (tmp_path / "BAT0").mkdir()
    (tmp_path / "BAT0" / "uevent").write_text(BATTERY.format("Discharging"))
    (tmp_path / "gone").mkdir()
    assert power_now(tmp_path) == Power("battery", battery=True)


@pytest.mark.parametrize(
    ("shown", "idle"),
    [
        ("IdleHint=no\nIdleSinceHintMonotonic=0\n", 0.0),
        ("IdleHint=no\nIdleSinceHintMonotonic=99000000\n", 0.0),
        ("IdleSinceHintMonotonic=400000000\nIdleHint=yes\n", 600.0),
        ("IdleHint=yes\nIdleSinceHintMonotonic=0\n", 1000.0),
        ("IdleHint=yes\nIdleSinceHintMonotonic=2000000000\n", 0.0),
        ("IdleHint=yes\n", None),
        ("", None),
    ],
)
def test_idle_as_logind_shows_it(shown, idle):
    assert idle_of_seat(shown, 1000.0) == idle


def test_idle_as_terminals_tell_it():
    assert idle_of_times([5.0, 90.0, 40.0], 100.0) == 10.0
    assert idle_of_times([120.0], 100.0) == 0.0
    assert idle_of_times([], 100.0) is None


@pytest.mark.parametrize("fails", ["absent", "refuses", "hangs"])
def test_without_logind_the_terminals_are_asked(monkeypatch, fails):
    def run(argv, **kwargs):
        if fails == "hangs":
            raise subprocess.TimeoutExpired(argv, 1)
        return subprocess.CompletedProcess(argv, 1, "", "System has not been booted with systemd as init system (PID 1).")

    monkeypatch.setattr(presence.shutil, "which", lambda _: None if fails == "absent" else "loginctl")
    monkeypatch.setattr(presence.subprocess, "run", run)
    monkeypatch.setattr(presence, "_times", lambda _: [presence.time.time() - 30])
    assert idle_now() == pytest.approx(30, abs=5)
    monkeypatch.setattr(presence, "_times", lambda _: [])
    assert idle_now() is None
