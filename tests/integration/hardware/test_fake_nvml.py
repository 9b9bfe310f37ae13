"""Cards through the real NVML bindings and dask-cuda's own worker, on a machine without any: a library answers as the driver would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.daemons.lifeline import child_env, wait_until
from dgpunet_dask.testing.fake_nvml import FakeCard, build, compiler, environment
from dgpunet_dask.testing.processes import commands_of, kill_all, listening_addresses

pytestmark = pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake is compiled, for Linux")

CARDS = [
    FakeCard("NVIDIA GeForce RTX 5090", "GPU-00000000-0000-0000-0000-000000005090", 32607, 1200, (12, 0)),
    FakeCard("NVIDIA GeForce RTX 4090 Laptop GPU", "GPU-00000000-0000-0000-0000-000000004090", 16376),
    FakeCard("NVIDIA GeForce RTX 4090 Laptop GPU", "GPU-00000000-0000-0000-0000-000000004091", 16376, 0, (0, 0)),
]
PROBE = """
import json
from dgpunet_dask.cluster.fleets import fleet_to_json
from dgpunet_dask.hardware.nvml import probe_cards
from dgpunet_dask.hardware.probe import local_fleet
print(json.dumps({"cards": [vars(c) for c in probe_cards()], "fleet": fleet_to_json(local_fleet())}))
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


def probe(env):
    done = subprocess.run([sys.executable, "-c", PROBE], env=child_env(env), capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_cards_are_read_through_the_real_bindings(fake):
    found = probe(environment(fake, CARDS))
    first, second, third = found["cards"]
    assert first["model"] == "NVIDIA GeForce RTX 5090"
    assert (first["vram_mib"], first["used_mib"], first["capability"], first["driver"]) == (32607, 1200, [12, 0], [550, 54, 14])
    assert (first["utilisation"], first["power_w"], first["temperature_c"]) == (7, 12.5, 41)
    assert first["process_mib"] == [[4242, 1200]]
    assert second["process_mib"] == []
    assert third["capability"] is None
    devices = {d["name"]: d for d in found["fleet"]["devices"] if d["kind"] == "gpu"}
    assert sorted(devices) == ["rtx4090laptop-0", "rtx4090laptop-1", "rtx5090-0"]
    assert "fp4" in devices["rtx5090-0"]["features"]
    assert devices["rtx4090laptop-1"]["features"] == []
    assert devices["rtx5090-0"]["speed"] > devices["rtx4090laptop-0"]["speed"]


def test_a_driver_without_cards_is_a_cpu_host(fake):
    found = probe(environment(fake, []))
    assert found["cards"] == []
    assert [d["kind"] for d in found["fleet"]["devices"]] == ["cpu"]


@pytest.fixture
def home(fake, tmp_path, monkeypatch):
    """A home under which cards are seen; whatever runs there in the end is killed."""
    for name, value in environment(fake, CARDS[:2]).items():
        monkeypatch.setenv(name, value)
    # the fake has no CUDA behind it: dask-cuda's own switch for tests leaves out what would need it
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    home = Home(tmp_path / "h")
    yield home
    for file in sorted((home.run / "logs").glob("worker-rtx*")):
        print(file.name, file.read_text()[-1500:])
    kill_all(home.root)


@pytest.mark.long
def test_dask_cuda_workers_join_as_different_cards(home):
    with attach(home, environ={}) as client:
        workers = {w["name"]: w for w in client.status()["workers"]}
        assert workers["rtx5090-0"]["vram_mib"] == 32607
        assert workers["rtx4090laptop-0"]["vram_mib"] == 16376
        assert {w["state"] for w in workers.values()} == {"running"}
        running = commands_of(home.root)
        assert sum("dask_cuda.cli" in command for command in running.values()) == 2
        addresses = [a for pid in running for a in listening_addresses(pid)]
        assert {a.rpartition(":")[0] for a in addresses} == {"0100007F"}
    assert commands_of(home.root) == {}


@pytest.mark.long
def test_a_killed_head_takes_nannies_and_their_workers_along(home):
    with attach(home, environ={}) as client:
        os.kill(client.status()["head_pid"], signal.SIGKILL)
    assert wait_until(lambda: not commands_of(home.root), 8), commands_of(home.root)
