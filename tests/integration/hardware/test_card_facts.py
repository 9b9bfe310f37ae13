"""All that cards tell of themselves, and what befalls them while they are watched, through the real NVML bindings."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.daemons.lifeline import child_env
from dgpunet_dask.testing.fake_nvml import HOME5, FakeCard, FakeInstance, FakeUse, build, compiler, environment, write_uses
from dgpunet_dask.testing.processes import kill_all
from tests.helpers import until

pytestmark = pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake is compiled, for Linux")

#: Answers one line of JSON to each line that it is given, an expression.
ASKED = """
import dataclasses, json, sys, time
from dgpunet_dask.hardware.card_facts import card_facts
from dgpunet_dask.hardware.nvml import *
from dgpunet_dask.hardware.probe import local_fleet
from dgpunet_dask.hardware.xid_watch import XidWatch

with session() as nvml:
    cards, xids = Watching(nvml), XidWatch(nvml, time.time) if nvml else None
    for line in sys.stdin:
        print(json.dumps(eval(line), default=dataclasses.asdict), flush=True)
"""
DESKTOP, LAPTOP = HOME5["tower5090"], HOME5["m18r2"]
H100 = FakeCard("NVIDIA H100 80GB HBM3", "GPU-00000000-0000-4000-8000-0000000000a1", 81559, 700, (9, 0), 700, 700, ecc=True, energy=True, instances=(
    FakeInstance("MIG-00000000-0000-4000-8000-0000000000b1", 10040, "1g.10gb"),
    FakeInstance("MIG-00000000-0000-4000-8000-0000000000b2", 40448, "3g.40gb"),
))  # fmt: skip
SMALL, LARGE = (i.uuid for i in H100.instances or ())


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def state(tmp_path):
    return tmp_path / "nvml"


@pytest.fixture
def ask(library, state):
    """Start a process that sees cards; what it then answers to an expression."""
    started = []

    def start(*cards, **more):
        env = child_env(environment(library, cards, state, **more))
        child = subprocess.Popen([sys.executable, "-c", ASKED], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)

        def answer(expression):
            child.stdin.write(f"{expression}\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        return answer

    yield start
    for child in started:
        child.stdin.close()
        assert child.wait(20) == 0
        child.stdout.close()


def test_a_desktop_s_card_tells_everything_and_a_laptop_s_what_it_can(ask):
    desktop, laptop = ask(DESKTOP, LAPTOP)("card_facts()")
    assert (desktop["power_limit_w"], desktop["power_limit_default_w"], desktop["fan"]) == (575, 575, 30)
    assert desktop["pcie"] == {"generation": 5, "generation_max": 5, "width": 16, "width_max": 16}
    assert (desktop["sm_mhz"], desktop["memory_mhz"], desktop["cuda"], desktop["pci"]) == (2205, 9501, [12, 4], "0000:01:00")
    assert (desktop["throttle"], desktop["ecc"], desktop["recovery_action"], desktop["present"]) == ([], None, None, True)
    assert desktop["energy_j"] > 0
    assert (laptop["power_limit_w"], laptop["power_limit_default_w"], laptop["fan"]) == (None, None, None)
    assert (laptop["pci"], laptop["power_w"], laptop["temperature_c"]) == ("0000:02:00", 12.5, 41)
    assert not any("serial" in key for key in desktop)


def test_a_bare_card_reports_nothing_as_nothing(ask):
    (bare,) = ask(FakeCard("Old", "GPU-1", 4096, 0, (0, 0)))("card_facts()")
    missing = ("capability", "power_limit_w", "power_limit_default_w", "energy_j", "fan", "ecc", "recovery_action", "display")
    assert {bare[key] for key in missing} == {None}
    assert set(bare["pcie"].values()) == {None}


@pytest.mark.parametrize("old", [False, True])
def test_what_slows_a_card_is_named_by_drivers_of_both_ages(ask, state, old):
    answer = ask(DESKTOP, old=old)
    assert answer("card_facts()[0].throttle") == []
    write_uses(state, [FakeUse(DESKTOP.uuid, 0, throttle=0x4 | 0x20 | 0x80 | 0x400, temperature_c=88, power_w=300.5, utilisation=99)])
    (card,) = answer("card_facts()")
    assert card["throttle"] == ["bit_10", "hw_power_brake", "sw_power_cap", "sw_thermal"]
    assert (card["temperature_c"], card["power_w"], card["utilisation"]) == (88, 300.5, 99)


def test_limits_bus_energy_and_the_driver_s_wish_change_while_watched(ask, state):
    answer = ask(DESKTOP)
    write_uses(state, [FakeUse(DESKTOP.uuid, 0, power_limit_w=400, energy_j=1234.5, pcie=(1, 8), recovery=2)])
    (card,) = answer("card_facts()")
    assert (card["power_limit_w"], card["power_limit_default_w"], card["energy_j"], card["recovery_action"]) == (400, 575, 1234.5, "node_reboot")
    assert card["pcie"] == {"generation": 1, "generation_max": 5, "width": 8, "width_max": 16}


def test_energy_counts_on(ask):
    answer = ask(LAPTOP)
    first = answer("card_facts()[0].energy_j")
    assert until(lambda: answer("card_facts()[0].energy_j") > first, 5)


def test_a_card_that_falls_off_is_told_as_lost_while_the_other_goes_on(ask, state):
    answer = ask(DESKTOP, LAPTOP)
    there = {"present": True, "lost": False, "why": None}
    whole = f"{{u: cards.state(u)._asdict() for u in ('{DESKTOP.uuid}', '{LAPTOP.uuid}', 'GPU-none')}}"
    found = answer(whole)
    assert (found[DESKTOP.uuid], found[LAPTOP.uuid]) == (there, there)
    assert (found["GPU-none"]["present"], found["GPU-none"]["lost"]) == (False, False)
    write_uses(state, [FakeUse(DESKTOP.uuid, 100, lost=True), FakeUse(LAPTOP.uuid, 50)])
    found = answer(whole)
    assert (found[DESKTOP.uuid]["present"], found[DESKTOP.uuid]["lost"]) == (False, True)
    assert "lost" in found[DESKTOP.uuid]["why"].lower()
    assert found[LAPTOP.uuid] == there
    lost, other = answer("card_facts()")
    assert (lost["present"], lost["index"], lost["vram_mib"], other["present"], other["used_mib"]) == (False, 0, None, True, 50)
    assert lost["problem"]
    assert answer("[c.uuid for c in probe_cards()]") == [LAPTOP.uuid]
    assert answer(f"[cards('{DESKTOP.uuid}'), cards('{LAPTOP.uuid}').used_mib, card_state('0').lost]") == [None, 50, True]
    write_uses(state, [FakeUse(DESKTOP.uuid, 0)])
    assert answer("[c.uuid for c in probe_cards()]") == [DESKTOP.uuid, LAPTOP.uuid]


def test_memory_that_grows_is_seen_growing_up_to_all_there_is(ask, state):
    answer = ask(LAPTOP)
    write_uses(state, [FakeUse(LAPTOP.uuid, 100, None, {77: 100}, grow_mib_s=50, since=time.time() - 10)])
    used, ((pid, mib),) = answer(f"cards('{LAPTOP.uuid}')")
    assert 600 <= used < 5000
    assert (pid, mib >= 600) == (77, True)
    assert until(lambda: answer(f"cards('{LAPTOP.uuid}').used_mib") > used, 5)
    write_uses(state, [FakeUse(LAPTOP.uuid, 100, grow_mib_s=50, since=0.1)])
    assert answer(f"cards('{LAPTOP.uuid}').used_mib") == LAPTOP.vram_mib


def test_errors_are_heard_once_each_with_their_card(ask, state):
    write_uses(state, [FakeUse(DESKTOP.uuid, 0, xids=[13]), FakeUse(LAPTOP.uuid, 0)])
    answer = ask(DESKTOP, LAPTOP)
    assert answer("[xids.supported, xids.ready()]") == [True, []], "what was before is told to nobody"
    write_uses(state, [FakeUse(DESKTOP.uuid, 0, xids=[13, 79, 79]), FakeUse(LAPTOP.uuid, 0, xids=[31])])
    heard = answer("xids.ready()")
    assert sorted(event[:2] for event in heard) == sorted([[DESKTOP.uuid, 79], [DESKTOP.uuid, 79], [LAPTOP.uuid, 31]])
    assert all(abs(event[2] - time.time()) < 60 for event in heard)
    assert answer("xids.ready()") == []


def test_the_error_of_a_card_that_falls_off_is_still_its_own(ask, state):
    answer = ask(DESKTOP, LAPTOP)
    assert answer("xids.ready()") == []
    write_uses(state, [FakeUse(DESKTOP.uuid, 0, xids=[79], lost=True)])
    assert [event[:2] for event in answer("xids.ready()")] == [[DESKTOP.uuid, 79]]
    assert answer("xids.wait(0.05)") is None


def test_cards_without_events_say_so(ask):
    assert ask(FakeCard("Old", "GPU-1", 4096, events=False))("[xids.supported, xids.wait(5)]") == [False, None]


def test_instances_stand_in_place_of_their_card(ask, state):
    answer = ask(DESKTOP, H100)
    desktop, small, large = answer("card_facts()")
    assert (desktop["uuid"], desktop["mig_of"]) == (DESKTOP.uuid, None)
    assert (small["uuid"], small["model"], small["vram_mib"]) == (SMALL, "NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10040)
    assert (large["uuid"], large["index"], large["mig_of"], large["whole_mib"]) == (LARGE, 1, H100.uuid, 81559)
    assert (small["capability"], small["ecc"]) == ([9, 0], True), "what the whole card is, its parts are"
    assert {small[key] for key in ("power_w", "power_limit_w", "energy_j", "utilisation")} == {None}, "no part has these of its own"
    devices = {d["name"]: d for d in answer("[dataclasses.asdict(d) | {'features': 0} for d in local_fleet().gpus()]")}
    assert {name: d["uuid"] for name, d in devices.items()} == {
        "rtx5090-0": DESKTOP.uuid, "h10080gbhbm3mig1g10gb-0": SMALL, "h10080gbhbm3mig3g40gb-0": LARGE,
    }  # fmt: skip
    speeds = [devices[name]["speed"] for name in ("h10080gbhbm3mig1g10gb-0", "h10080gbhbm3mig3g40gb-0")]
    assert speeds[0] < speeds[1] < 7.0, "a part has its part of the speed"
    write_uses(state, [FakeUse(SMALL, 300, None, {12: 280}), FakeUse(LARGE, 0)])
    assert answer(f"cards('{SMALL}')") == [300, [[12, 280]]]
    write_uses(state, [FakeUse(H100.uuid, 0, lost=True)])
    assert answer(f"[cards.state(u).lost for u in ('{SMALL}', '{LARGE}')]") == [True, True]


def test_a_split_card_without_instances_can_run_nothing(ask):
    answer = ask(FakeCard("NVIDIA H100", "GPU-1", 81559, 0, (9, 0), instances=()))
    assert answer("[probe_cards(), card_facts()]") == [[], []]


def test_versions_of_driver_and_cuda(ask):
    assert ask(DESKTOP, driver="580.65.06", cuda=(13, 0))("[driver_versions(), driver_problem()]") == [[[580, 65, 6], [13, 0]], None]


def test_without_a_driver_the_reason_is_told():
    script = "from dgpunet_dask.hardware.nvml import *\nprint(driver_problem(), card_state('0').present, driver_versions(), sep=';')"
    env = child_env({"LD_LIBRARY_PATH": ""})
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True).stdout.strip().split(";")
    if found[0] != "None":  # a machine with a driver has no reason to tell
        assert found[1:] == ["None", "(None, None)"]


@pytest.mark.long
def test_a_dask_cuda_worker_takes_an_instance(library, tmp_path, monkeypatch):
    for name, value in environment(library, [H100]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")  # the fake has no CUDA behind it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    home = Home(tmp_path / "h")
    try:
        with attach(home, environ={}) as client:
            workers = {w["name"]: w for w in client.status()["workers"]}
            assert {n: w["vram_mib"] for n, w in workers.items() if "mig" in n} == {"h10080gbhbm3mig1g10gb-0": 10040, "h10080gbhbm3mig3g40gb-0": 40448}
            assert {w["state"] for w in workers.values()} == {"running"}
    finally:
        for file in sorted((home.run / "logs").glob("worker-h100*")):
            print(file.name, file.read_text()[-1500:])
        kill_all(home.root)
