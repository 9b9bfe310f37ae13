from __future__ import annotations

import json

import pytest
from hypothesis import given

from dgpunet_dask.errors import BadValue
from dgpunet_dask.model.fleet import Charge, Device, Fleet, Host, features_of
from dgpunet_dask.plugins.facts import charge_from_wire, device_from_wire, host_from_wire, resource_name, to_wire
from dgpunet_dask.testing.fleets import fleets


@given(fleets())
def test_facts_survive_the_wire(fleet: Fleet) -> None:
    for device in fleet.devices:
        assert device_from_wire(json.loads(json.dumps(to_wire(device)))) == device
    for host in fleet.hosts:
        assert host_from_wire(json.loads(json.dumps(to_wire(host)))) == host
    for charge in fleet.charges:
        assert charge_from_wire(json.loads(json.dumps(to_wire(charge)))) == charge


def test_a_card_with_all_facts_survives_the_wire() -> None:
    card = Device(
        name="5090", host="h", vram_mib=32768, capability=(12, 0), driver=(580, 65), features=features_of((12, 0)),
        runtime_arches=("sm_120",), bandwidth=1.8e12, uuid="GPU-1", model="NVIDIA GeForce RTX 5090",
    )  # fmt: skip
    assert device_from_wire(json.loads(json.dumps(to_wire(card)))) == card


def test_unknown_and_missing_fields_are_told() -> None:
    with pytest.raises(BadValue, match="vram_mib"):
        device_from_wire({"name": "a", "host": "h", "vram_mb": 3})
    with pytest.raises(BadValue, match="host"):
        device_from_wire({"name": "a"})
    assert charge_from_wire(to_wire(Charge(holder="x", device="a"))) == Charge(holder="x", device="a")
    assert host_from_wire({"name": "h", "roles": ["head"]}) == Host(name="h", roles=("head",))


def test_each_device_has_one_interlock() -> None:
    assert resource_name(Device(name="a", host="h")) == "VRAM:a"
    assert resource_name(Device(name="h/cpu", host="h", kind="cpu")) == "CPUS:h/cpu"
