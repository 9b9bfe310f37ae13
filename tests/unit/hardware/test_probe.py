"""Names and prior speeds of probed cards."""

from __future__ import annotations

import pytest

from dgpunet_dask.hardware.cpu import host_name, probe_host
from dgpunet_dask.hardware.nvml import Card
from dgpunet_dask.hardware.probe import device_names, local_fleet, prior_speed, short_name
from dgpunet_dask.model.fleet import Host

HOST = Host(name="h", cpus=2, ram_mib=100)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx4090laptop"),
        ("NVIDIA RTX A6000", "rtxa6000"),
        ("Tesla T4", "t4"),
        ("NVIDIA H100 80GB HBM3", "h10080gbhbm3"),
        (None, "gpu"),
        ("", "gpu"),
        ("显卡", "gpu"),
    ],
)
def test_short_names(model, name):
    assert short_name(model) == name


def test_names_are_unique_and_in_order():
    assert device_names(["Tesla T4", "GeForce RTX 3090", "Tesla T4", None]) == ["t4-0", "rtx3090-0", "t4-1", "gpu-0"]


def test_a_fleet_of_cards_and_the_cpu():
    cards = [Card(index=0, model="RTX 3090", uuid="GPU-1", vram_mib=24576, capability=(8, 6)), Card(index=1)]
    fleet = local_fleet(cards, HOST)
    assert [d.name for d in fleet.devices] == ["gpu-0", "h/cpu", "rtx3090-0"]
    unknown, known = fleet.by_name["gpu-0"], fleet.by_name["rtx3090-0"]
    assert (known.uuid, known.speed, known.features) == ("GPU-1", 1.0, {"bf16", "flash-attention-2"})
    assert (unknown.uuid, unknown.vram_mib, unknown.capability, unknown.features) == ("1", None, None, frozenset())
    assert local_fleet([], HOST).by_name.keys() == {"h/cpu"}


def test_prior_speeds_order_the_cards_of_one_house():
    house = [((12, 0), 32), ((8, 9), 16), ((8, 9), 12), ((8, 9), 8)]
    speeds = [prior_speed(capability, gib << 10) for capability, gib in house]
    assert speeds == sorted(speeds, reverse=True)
    assert len(set(speeds)) == 4
    assert prior_speed(None, 1) == 1.0
    assert prior_speed((3, 5), None) > 0


@pytest.mark.parametrize(("raw", "name"), [("box.lan", "box"), ("my box", "my-box"), ("ünï", "n"), ("", "host"), ("...", "host")])
def test_host_names(raw, name):
    assert host_name(raw) == name


def test_this_machine():
    host = probe_host()
    assert host.cpus >= 1
    assert host.ram_mib > 100
    assert host.link is None


def test_a_part_of_a_card_has_its_part_of_the_speed():
    whole = Card(index=0, model="H100", uuid="GPU-1", vram_mib=80_000, capability=(9, 0))
    parts = [Card(index=0, model="H100 MIG", uuid=f"MIG-{n}", vram_mib=n * 10_000, capability=(9, 0), mig_of="GPU-1", whole_mib=80_000) for n in (1, 4)]
    speeds = [d.speed for d in local_fleet([*parts, whole], HOST).devices if d.kind != "cpu"]
    assert sorted(speeds) == pytest.approx([speeds[0] / 8, speeds[0] / 2, speeds[0]], rel=0.01)


def test_a_part_that_does_not_tell_its_memory_counts_like_a_card_that_does_not():
    part = Card(index=0, model="H100 MIG", uuid="MIG-1", capability=(9, 0), whole_mib=80_000)
    assert local_fleet([part], HOST).by_name["h100mig-0"].speed == prior_speed((9, 0), None)
