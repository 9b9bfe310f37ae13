"""The fleet file: what it may say, each mistake at its place, and the facts of the shipped fleet."""

from __future__ import annotations

import pytest

from dgpunet_dask.errors import MalformedFile, NewerFormat
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.placement.fleet_file import CPU_SPEED, parse_fleet

SMALL = """\
version: 1
defaults: {reserve: 512MiB, link: 10Gbit/s}
hosts:
  m18r2:
    roles: [head, chat-llm]
    ram: 64GiB
    cpus: 32
    gpus:
      4090l: {model: NVIDIA GeForce RTX 4090 Laptop GPU, vram: 16GiB, compute_capability: "8.9", speed: 1.6}
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(MalformedFile) as caught:
        parse_fleet(text, "fleet.yaml")
    return str(caught.value).splitlines()


def test_the_documented_example() -> None:
    fleet = parse_fleet(SMALL, "fleet.yaml")
    assert fleet.hosts == (Host(name="m18r2", roles=("head", "chat-llm"), ram_mib=65536, cpus=32, link=1.25e9),)
    assert fleet.devices == (
        Device(
            name="4090l", host="m18r2", model="NVIDIA GeForce RTX 4090 Laptop GPU", vram_mib=16384, capability=(8, 9), speed=1.6,
            reserve_mib=512, features=frozenset({"bf16", "flash-attention-2", "fp8"}),
        ),
        Device(name="m18r2/cpu", host="m18r2", kind="cpu", speed=CPU_SPEED),
    )  # fmt: skip


def test_all_that_may_be_said_of_a_card_and_a_host() -> None:
    text = """\
version: 1
defaults: {reserve: 1GiB}
hosts:
  a:
    link: 1GB/s
    power: battery
    idle: 20m
    gpus:
      g:
        display: true
        vram: 8GiB
        reserve: 0MiB
        bandwidth: 256GB/s
        driver: "550.54.14"
        compute_capability: "8.10"
        runtime_arches: [sm_86, compute_120, sm_90a]
        features: [fp8]
        cordoned: true
  bare: {}
"""
    fleet = parse_fleet(text, "f")
    card = fleet.by_name["g"]
    assert card.display is True
    assert (card.reserve_mib, card.bandwidth, card.driver, card.capability) == (0, 256e9, (550, 54, 14), (8, 10))
    assert (card.runtime_arches, card.features, card.cordoned) == (("sm_86", "compute_120", "sm_90a"), {"fp8"}, True)
    assert fleet.host_by_name["a"] == Host(name="a", link=1e9, power="battery", idle_s=1200.0)
    assert fleet.host_by_name["bare"] == Host(name="bare")
    assert sorted(fleet.by_name) == ["a/cpu", "bare/cpu", "g"]


def test_what_is_not_said_is_not_known() -> None:
    card = parse_fleet("version: 1\nhosts: {a: {gpus: {g: {}}}}\n", "f").by_name["g"]
    assert card == Device(name="g", host="a")
    assert (card.vram_mib, card.capability, card.driver, card.runtime_arches, card.features) == (
        None,
        None,
        None,
        None,
        frozenset(),
    )


def test_every_mistake_at_once() -> None:
    text = """\
version: 1
defaults: {reserve: 512, lnk: 10Gbit/s}
hosts:
  3090:
    ram: 64
    cpus: "32"
    gpus:
      3090: {vram: 24GiB, compute_capability: 8.6}
      4070l: {vram: 8GiB, speed: 0, reserve: 8GiB}
  m18 r2:
    power: solar
    link: fast
    gpus:
      4070l: {vrm: 8GiB, runtime_arches: [sm_86, sm86]}
      5090: {vram: 0GiB, features: fp8, driver: 580.1, cordoned: yes}
      a/b: {}
  7:
    gpus: [4090l]
"""
    assert mistakes(text) == [
        "fleet.yaml:2:21: reserve: 512 is not valid: write a number with its unit, such as 512MiB or 2GiB",
        "fleet.yaml:2:26: unknown key 'lnk'; did you mean 'link'?",
        'fleet.yaml:4:3: YAML reads 3090 as a number; as a key write it in quotes: "3090"',
        "fleet.yaml:5:10: ram: 64 is not valid: write a number with its unit, such as 512MiB or 2GiB",
        "fleet.yaml:6:11: cpus: write a whole number, not '32'",
        'fleet.yaml:8:7: YAML reads 3090 as a number; as a key write it in quotes: "3090"',
        'fleet.yaml:8:47: compute_capability: YAML reads 8.6 as a number; here write it in quotes: "8.6"',
        "fleet.yaml:9:34: speed: write a number greater than 0.0, not 0",
        "fleet.yaml:9:46: reserve: 8GiB leaves nothing of the card's 8GiB; keep back less, or use `cordoned: true`",
        "fleet.yaml:10:3: the name 'm18 r2' will not do: use letters, digits, dot, underscore and hyphen, starting with a letter or digit",
        "fleet.yaml:11:12: power: write 'mains' or 'battery', not 'solar'",
        "fleet.yaml:12:11: link: 'fast' is not valid: write it as 10Gbit/s or 1GB/s",
        "fleet.yaml:14:7: device '4070l' is in host '3090' already; give each device of the fleet its own name",
        "fleet.yaml:14:15: unknown key 'vrm'; did you mean 'vram'?",
        "fleet.yaml:14:50: runtime_arches: 'sm86' is not valid: write it as sm_86 or compute_120",
        'fleet.yaml:15:7: YAML reads 5090 as a number; as a key write it in quotes: "5090"',
        "fleet.yaml:15:20: vram: '0GiB' is not valid: it must be more than 0; leave the key out where the size is not known",
        "fleet.yaml:15:36: features: write a list such as [a, b], not 'fp8'",
        'fleet.yaml:15:49: driver: YAML reads 580.1 as a number; here write it in quotes: "580.1"',
        "fleet.yaml:15:66: cordoned: write true or false, not 'yes'",
        "fleet.yaml:16:7: the name 'a/b' will not do: use letters, digits, dot, underscore and hyphen, starting with a letter or digit",
        'fleet.yaml:17:3: YAML reads 7 as a number; as a key write it in quotes: "7"',
        "fleet.yaml:18:5: gpus: write a mapping such as {key: value}, not a list",
    ]


@pytest.mark.parametrize("text", ["", "[]", "hosts", "version: 1", "version: 1\nhosts: []", "hosts: {}", "version: '1'\nhosts: {}"])
def test_files_of_another_shape(text: str) -> None:
    assert all(line.startswith("fleet.yaml:") for line in mistakes(text))


def test_a_newer_version_is_told_alone() -> None:
    with pytest.raises(NewerFormat, match="up to 1"):
        parse_fleet("version: 2\nmachines: {}\n", "fleet.yaml")


def test_an_empty_fleet_is_a_fleet() -> None:
    assert parse_fleet("version: 1\nhosts: {}\n", "f") == Fleet()


def test_the_shipped_fleet_is_the_owners(home5: Fleet) -> None:
    cards = {d.name: (d.vram_mib or 0) >> 10 for d in home5.gpus()}
    assert cards == {"4090l": 16, "4080l": 12, "3090": 24, "4070l": 8, "5090": 32}
    assert {d.name: d.capability for d in home5.gpus()} == {
        "4090l": (8, 9), "4080l": (8, 9), "3090": (8, 6), "4070l": (8, 9), "5090": (12, 0),
    }  # fmt: skip
    assert len(home5.hosts) == 5
    assert sum(h.ram_mib or 0 for h in home5.hosts) == 448 << 10
    assert sum(h.cpus or 0 for h in home5.hosts) == 100
    assert {h.link for h in home5.hosts} == {1.25e9}
    assert home5.by_name["4090l"].host == "m18r2"
    assert home5.host_by_name["m18r2"].roles == ("head", "chat-llm")
    assert all(h.ram_mib == 64 << 10 for h in home5.hosts if h.name == "m18r2")


def test_the_shipped_fleet_has_the_features_of_its_capabilities(home5: Fleet) -> None:
    assert {d.name for d in home5.gpus() if "fp8" in d.features} == {"4070l", "4080l", "4090l", "5090"}
    assert {d.name for d in home5.gpus() if "fp4" in d.features} == {"5090"}
    assert all({"bf16", "flash-attention-2"} <= d.features for d in home5.gpus())
    assert all(d.reserve_mib == 512 and d.bandwidth and d.model for d in home5.gpus())


def test_a_cpu_is_slower_than_any_card(home5: Fleet) -> None:
    assert min(d.speed for d in home5.gpus()) > 10 * CPU_SPEED
    assert {d.name for d in home5.devices if d.kind == "cpu"} == {f"{h.name}/cpu" for h in home5.hosts}


@pytest.mark.parametrize("speed", ["1e-308", "1e308", "2000000", "0.0000001"])
def test_a_speed_that_no_machine_has_is_a_mistake(speed: str) -> None:
    told = mistakes(f"version: 1\nhosts: {{h: {{gpus: {{a: {{vram: 1GiB, speed: {speed}}}}}}}}}\n")
    assert len(told) == 1
    assert told[0].startswith("fleet.yaml:2:43: speed: ")
    assert "between 0.000001 and 1000000" in told[0]
