"""What the facts of one machine mean: one broken thing, one finding."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.observe.finding import CAUSES, LEVELS, summary
from dgpunet_dask.observe.local import OF_A_CARD, OF_A_HOST, check_host
from tests.unit.observe.facts import FACTS, facts

BROKEN = [
    ("no driver", {"nvml.available": False, "pci.0.driver": None, "cards": []}, "driver", "fault", "hardware", "no driver runs it"),
    ("nouveau", {"nvml.available": False, "pci.0.driver": "nouveau", "cards": []}, "driver", "fault", "hardware", "nouveau drives"),
    ("no NVML", {"nvml.available": False, "cards": []}, "driver", "fault", "hardware", "NVML does not answer"),
    ("gone from the driver", {"pci": FACTS["pci"] * 2}, "driver", "fault", "hardware", "answers for fewer"),
    ("lost", {"cards.0.present": False}, "card_lost", "fault", "hardware", "fell off the bus"),
    ("recovery", {"cards.0.recovery_action": "reset"}, "card_lost", "fault", "hardware", "recovery: reset"),
    ("hot", {"cards.0.throttle": ["sw_thermal_slowdown"]}, "throttle", "warn", "hardware", "sw_thermal_slowdown"),
    ("power brake", {"cards.0.throttle": ["hw_power_brake_slowdown"]}, "throttle", "warn", "hardware", "power_brake"),
    ("narrow slot", {"cards.0.pcie.width": 4}, "pcie_link", "warn", "hardware", "x4 of x16 under load"),
    ("old slot", {"cards.0.pcie.generation": 1}, "pcie_link", "warn", "hardware", "generation 1 of 4"),
    ("low limit", {"cards.0.power_limit_w": 200.0}, "power_limit", "warn", "hardware", "200 W"),
    ("Xid 79", {"xid": [{"uuid": "GPU-1", "xid": 79, "at": 5.0, "severity": "critical", "meaning": "fell off"}]}, "xid", "fault", "hardware", "Xid 79"),
    ("Xid 94", {"xid": [{"uuid": "GPU-1", "xid": 94, "at": 5.0, "severity": "warning"}]}, "xid", "warn", "hardware", "Xid 94"),
    ("Xid 13", {"xid": [{"uuid": "GPU-1", "xid": 13, "at": 5.0, "severity": "job"}]}, "xid", "warn", "workload", "Xid 13"),
    ("wrong result", {"canary.0.ok": False}, "canary", "fault", "hardware", "another result"),
    ("no canary", {"canary.0.ok": None}, "canary", "warn", "hardware", "could not run"),
    ("crowded desktop", {"cards.0.display": True}, "display_reserve", "warn", "hardware", "512 MiB"),
    ("no torch", {"software.torch": None}, "torch_cuda", "fault", "versions", "not installed"),
    ("CPU torch", {"software.torch_cuda": None}, "torch_cuda", "fault", "versions", "built without CUDA"),
    ("old driver", {"cards.0.driver": "470.82"}, "driver_version", "fault", "versions", "too old"),
    ("oldish driver", {"cards.0.driver": "550.54.14"}, "driver_version", "warn", "versions", "older than CUDA 12.8"),
    ("driver for 12, torch for 13", {"cards.0.driver": "575.57", "software.torch_cuda": "13.0"}, "driver_version", "fault", "versions", "too old"),
    ("card too new", {"cards.0.capability": [12, 0], "software.torch_arches": ["sm_86", "sm_90"]}, "torch_arch", "fault", "versions", "sm_120"),
    ("card too old", {"cards.0.capability": [6, 1]}, "torch_arch", "fault", "versions", "sm_61"),
    ("Wi-Fi", {"network.interfaces.1.kind": "wifi"}, "interface", "warn", "network", "eth0 is Wi-Fi"),
    ("half duplex", {"network.interfaces.1.duplex": "half"}, "interface", "warn", "network", "half duplex"),
    ("path MTU", {"network.interfaces.1.mtu": 9000}, "path_mtu", "warn", "network", "9000 bytes"),
    ("port taken", {"ports.0.state": "foreign", "ports.0.program": "nginx"}, "port_taken", "fault", "network", "nginx"),
    ("clock off", {"clock.offset_s": -2.5}, "clock", "warn", "system", "2.5 s behind"),
    ("clock far off", {"clock.offset_s": 31.0}, "clock", "fault", "system", "31 s ahead"),
    ("clock alone", {"clock": {"synchronised": False}}, "clock", "warn", "system", "not synchronised"),
    ("disk at 9%", {"disk.0.free": (1 << 40) * 9 // 100}, "disk", "warn", "system", "only"),
    ("disk at 4 GiB", {"disk": [{"path": "/d", "total": 10 << 30, "free": 4 << 30}]}, "disk", "warn", "system", "4.0 GiB"),
    ("disk below its floor", {"disk.0.floor": (1 << 39) + 1}, "disk", "fault", "system", "no unit is started"),
    ("settings wrong", {"settings": {"path": "/h/config.yaml", "exists": True, "mistakes": ["/h/config.yaml:2:1: unknown key"]}}, "settings", "fault", "system", ":2:1:"),
    ("disk full", {"disk.0.free": (1 << 40) // 100}, "disk", "fault", "system", "only"),
    ("RAM short", {"memory.available_mib": 4000}, "memory", "warn", "system", "4000"),
    ("RAM gone", {"memory.available_mib": 1000}, "memory", "fault", "system", "kill"),
    ("few files", {"limits.nofile": 1024}, "open_files", "warn", "system", "1024"),
    ("battery", {"power.source": "battery"}, "power", "warn", "system", "battery"),
    ("read-only home", {"home.writable": False}, "home", "fault", "system", "cannot be written"),
    ("home on NFS", {"home.network": True, "home.file_system": "nfs4"}, "home", "fault", "system", "nfs4"),
    ("temp on NFS", {"temp.network": True}, "temp", "warn", "system", "network file system"),
    ("certificate over", {"certificate.expires_s": 900.0}, "certificate", "fault", "system", "expired"),
    ("certificate not renewed", {"certificate.expires_s": 1000.0 + 3600}, "certificate", "warn", "system", "1.0 h"),
    ("a probe failed", {"probes.cards.error": "OSError: no"}, "probe", "warn", "system", "OSError: no"),
    ("a game", {"cards.0.processes": [{"pid": 9, "mib": 6000, "name": "game", "ours": False}]}, "foreign_memory", "warn", "workload", "game (pid 9, 6000 MiB)"),
    ("a newer release's facts", {"version": 99}, "facts", "warn", "versions", "format 99"),
]  # fmt: skip


def wrong(found):
    return [finding for finding in found if finding.level != "ok"]


def test_a_healthy_machine_has_nothing_wrong_and_every_check_has_spoken():
    found = check_host(facts())
    assert wrong(found) == []
    assert {"driver", "card_lost", "throttle", "pcie_link", "power_limit", "ecc", "canary", "torch_cuda", "driver_version", "torch_arch"} <= {
        finding.check for finding in found
    }
    assert {finding.cause for finding in found} == set(CAUSES)


@pytest.mark.parametrize(("changed", "check", "level", "cause", "text"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_one_broken_thing_is_one_finding_with_evidence_and_cure(changed, check, level, cause, text):
    found = wrong(check_host(facts(**changed)))
    assert [(finding.check, finding.level, finding.cause) for finding in found] == [(check, level, cause)]
    assert text in found[0].what
    assert found[0].cure
    assert found[0].subject.split("/")[0] == "pc"
    json.dumps(found[0].to_json())


@pytest.mark.parametrize(
    ("changed", "check", "text"),
    [
        ({"cards.0.ecc": None}, "ecc", "no ECC"),
        ({"cards.0.ecc": True}, "ecc", "corrects"),
        ({"cards.0.power_limit_w": None}, "power_limit", "no power limit is reported"),
        ({"cards.0.pcie.generation": 1, "cards.0.utilisation": 0}, "pcie_link", "while it idles"),
        ({"software.sqlite": "3.40.1"}, "sqlite", "the ledger has one"),
        ({"cards.0.display": True, "cards.0.reserve_mib": 2048}, "display_reserve", "2048 MiB are kept free"),
        ({"pci.0.driver": "vfio-pci", "cards": [], "nvml.available": False}, "driver", "no NVIDIA card"),
        ({"pci": FACTS["pci"] * 8, "nvml.nodes": 1}, "driver", "answers for the card"),
        ({"cards.0.throttle": ["sw_power_cap", "gpu_idle"]}, "throttle", "nothing holds it back"),
        ({"cards.0.processes": [{"pid": 9, "mib": 300, "name": "Xorg", "ours": False}]}, "foreign_memory", "300 MiB"),
        ({"cards.0.processes": [{"pid": 9, "mib": 9000, "name": None, "ours": None}]}, "foreign_memory", "nobody else"),
    ],
)  # fmt: skip
def test_what_is_told_though_nothing_is_wrong(changed, check, text):
    found = check_host(facts(**changed))
    assert wrong(found) == []
    assert [finding.what for finding in found if finding.check == check and text in finding.what]


def test_a_faster_wired_interface_beside_the_one_in_use_is_told():
    slow = [{"name": "eth1", "kind": "ethernet", "addresses": ["10.0.1.2"], "mtu": 1500, "speed_mbit_s": 40000, "duplex": "full", "up": True}]
    found = wrong(check_host(facts(**{"network.interfaces": [*FACTS["network"]["interfaces"], *slow]})))
    assert [(finding.check, "eth1 (40 Gbit/s) is faster" in finding.what) for finding in found] == [("interface", True)]


def test_an_xid_that_means_nothing_is_silent():
    assert wrong(check_host(facts(xid=[{"uuid": "GPU-1", "xid": 63, "at": 1.0, "severity": "silent"}]))) == []


def test_a_lost_card_is_asked_nothing_else():
    found = check_host(facts(**{"cards.0.present": False, "cards.0.throttle": ["hw_thermal_slowdown"]}))
    assert [finding.check for finding in found if finding.subject == "pc/rtx3090-0" and finding.check not in {"torch_arch", "canary"}] == ["card_lost"]


def test_nothing_known_is_no_fault():
    assert wrong(check_host({})) == []


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(FACTS)), anything))
def test_facts_of_any_shape_end_in_findings(raw):
    found = check_host(facts() | raw)
    assert all(finding.level in LEVELS and finding.cause in CAUSES for finding in found)


@given(st.sampled_from(sorted(FACTS["cards"][0])), anything)
def test_cards_of_any_shape_end_in_findings(key, value):
    assert not [f for f in check_host(facts(**{f"cards.0.{key}": value})) if f.check == "facts"]


def test_a_check_that_fails_is_told_and_harms_no_other(monkeypatch):
    def broken(facts):
        raise ZeroDivisionError("no")

    monkeypatch.setattr("dgpunet_dask.observe.local.OF_A_HOST", (broken, *OF_A_HOST))
    found = check_host(facts())
    assert [(finding.check, finding.level) for finding in wrong(found)] == [("facts", "warn")]
    assert "broken" in wrong(found)[0].what
    assert len(found) > len(OF_A_CARD)


def test_the_summary_counts_each_level():
    found = check_host(facts(**{"power.source": "battery", "cards.0.present": False}))
    count = summary(found)
    assert (count["warn"], count["fault"]) == (1, 1)
    assert count["ok"] == len(found) - 2
