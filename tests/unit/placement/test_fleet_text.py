"""A recorded fleet is read back as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.fleet_text import fleet_text
from dgpunet_dask.testing.fleets import fleets
from tests.helpers import ROOT


def cards(fleet: Fleet) -> tuple[Device, ...]:
    return tuple(fleet.gpus())


@given(fleets())
def test_hosts_and_cards_come_back(fleet: Fleet) -> None:
    assume(all(d.vram_mib is None or d.reserve_mib < d.vram_mib for d in cards(fleet)))  # a file refuses what keeps all back
    back = parse_fleet(fleet_text(fleet), "recorded")
    kept_off = {name for name, state in fleet.states.items() if state == "cordoned"}  # a file has no states, and says so of the card
    assert cards(back) == tuple(replace(d, uuid=None, cordoned=d.cordoned or d.name in kept_off) for d in cards(fleet))
    assert back.host_by_name == {h.name: replace(h, idle_s=None, battery=h.battery and None) for h in fleet.hosts}


@pytest.mark.parametrize("file", sorted((ROOT / "policies" / "fleets").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_shipped_fleets_come_back(file: Path) -> None:
    fleet = parse_fleet(file.read_text(), str(file))
    back = parse_fleet(fleet_text(fleet), "recorded")
    assert (back.devices, back.host_by_name) == (fleet.devices, fleet.host_by_name)


@given(st.floats(1, 1e13, allow_nan=False).map(lambda x: round(x, 2)), st.sampled_from(["3090", "1e3", "0x1F", "null", "yes", "12.0", "a"]))
def test_odd_rates_and_names_come_back(link: float, name: str) -> None:
    fleet = Fleet((Host(name=name, link=link),), (Device(name=name, host=name, vram_mib=8191, driver=(550, 90), runtime_arches=()),))
    back = parse_fleet(fleet_text(fleet), "recorded")
    assert cards(back) == fleet.devices
    assert back.hosts[0].link == pytest.approx(link, abs=0.001)


def test_a_cordoned_device_is_recorded_so() -> None:
    fleet = Fleet((Host(name="h"),), (Device(name="a", host="h"),), states={"a": "cordoned"})
    assert cards(parse_fleet(fleet_text(fleet), "recorded"))[0].cordoned
