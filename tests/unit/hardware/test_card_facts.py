"""Names of what slows a card, and facts as they travel."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.hardware.card_facts import CardFacts, Pcie, throttle_reasons


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0, ()),
        (0x1, ("gpu_idle",)),
        (0x4, ("sw_power_cap",)),
        (0x8 | 0x40, ("hw_slowdown", "hw_thermal")),
        (0x20 | 0x80, ("hw_power_brake", "sw_thermal")),
        (0x1FF, (
            "applications_clocks", "display_clocks", "gpu_idle", "hw_power_brake", "hw_slowdown", "hw_thermal", "sw_power_cap", "sw_thermal",
            "sync_boost",
        )),
        (1 << 40, ("bit_40",)),
    ],
)  # fmt: skip
def test_reasons_have_names_and_unknown_ones_their_number(mask, names):
    assert throttle_reasons(mask) == names


def test_facts_travel_as_json():
    card = CardFacts(index=1, model="RTX", process_mib=((7, None),), capability=(8, 9), throttle=("gpu_idle",), pcie=Pcie(width=8))
    plain = card.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["process_mib"], plain["capability"], plain["throttle"], plain["pcie"]["width"]) == ([[7, None]], [8, 9], ["gpu_idle"], 8)
    assert {plain["energy_j"], plain["power_limit_w"], plain["ecc"]} == {None}
