"""Facts of cards and what becomes of them: displays, processes, arches, foreign use, through the real NVML bindings and real workers."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest
from distributed import Client as DaskClient

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.daemons.lifeline import child_env, wait_until
from dgpunet_dask.hardware.runtime import OVERRIDE
from dgpunet_dask.placement.derive import read_standings
from dgpunet_dask.testing.fake_nvml import FakeCard, FakeUse, build, compiler, environment, write_uses
from dgpunet_dask.testing.processes import commands_of, kill_all

pytestmark = pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="the fake is compiled, for Linux")

OLD, NEW = "GPU-00000000-0000-0000-0000-000000003090", "GPU-00000000-0000-0000-0000-000000005090"
CARDS = [FakeCard("NVIDIA GeForce RTX 5090", NEW, 32768, 0, (12, 0)), FakeCard("NVIDIA GeForce RTX 3090", OLD, 24576, 0, (8, 6))]
ARCHES = "sm_75 sm_80 sm_86 sm_90"
PROBE = """
import json
from dgpunet_dask.cluster.fleets import fleet_to_json
from dgpunet_dask.hardware.nvml import probe_cards, watching
from dgpunet_dask.hardware.probe import local_fleet
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.place import place
fleet = local_fleet()
decision = place(fleet, Demand(vram="1GiB"))
with watching() as ask:
    use = [ask(c.uuid) for c in probe_cards()] + [ask("0"), ask("GPU-none")]
print(json.dumps({
    "cards": [vars(c) for c in probe_cards()], "fleet": fleet_to_json(fleet), "use": use, "device": decision.device,
    "refusals": {name: [v.code for v in verdicts] for name, verdicts in decision.refusals.items()},
}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def state(tmp_path):
    file = tmp_path / "nvml"
    write_uses(file, [FakeUse(NEW, 0), FakeUse(OLD, 0)])
    return file


def probe(library, state, **more):
    env = child_env({**environment(library, CARDS, state), OVERRIDE: ARCHES, **more})
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_displays_and_processes(library, state):
    write_uses(state, [
        FakeUse(NEW, 900, True, {10: 100, 11: None}, {10: 120, 12: 300}),
        FakeUse(OLD, 5, "mode"),
    ])  # fmt: skip
    found = probe(library, state)
    first, second = found["cards"]
    assert (first["display"], second["display"]) == (True, False)
    assert first["process_mib"] == [[10, 120], [11, None], [12, 300]]
    assert second["process_mib"] == []
    assert found["use"] == [[900, first["process_mib"]], [5, []], [900, first["process_mib"]], None]
    reserves = {d["name"]: d["reserve_mib"] for d in found["fleet"]["devices"] if d["kind"] == "gpu"}
    assert reserves == {"rtx5090-0": 2048, "rtx3090-0": 512}


def test_a_card_that_the_installed_torch_lacks_is_refused_and_nothing_crashes(library, state):
    found = probe(library, state)
    assert found["device"] == "rtx3090-0"
    assert found["refusals"]["rtx5090-0"] == ["runtime_arch"]
    without = probe(library, state, **{OVERRIDE: ""})
    assert without["device"] is None
    assert without["refusals"]["rtx3090-0"] == ["runtime_arch"]


@pytest.fixture
def home(library, state, tmp_path, monkeypatch):
    for name, value in environment(library, CARDS, state).items():
        monkeypatch.setenv(name, value)
    # the fake has no CUDA behind it: dask-cuda's own switch for tests leaves out what would need it
    monkeypatch.setenv("DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC", "1")
    monkeypatch.setenv(OVERRIDE, ARCHES)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    home = Home(tmp_path / "h")
    yield home
    for file in sorted((home.run / "logs").glob("worker-rtx*")):
        print(file.name, file.read_text()[-1500:])
    kill_all(home.root)


def worker_pid(home, uuid):
    """The process under dask-cuda's nanny that is the worker of a card."""
    for pid, command in commands_of(home.root).items():
        if "dask_cuda.cli" in command and psutil.Process(pid).environ().get("CUDA_VISIBLE_DEVICES") == uuid:
            return next(c.pid for c in psutil.Process(pid).children(recursive=True) if "spawn_main" in " ".join(c.cmdline()))
    raise AssertionError("no such worker")


@pytest.mark.long
def test_what_others_use_is_charged_while_they_use_it_and_the_workers_context_kept_free(home, state):
    with attach(home, environ={}) as client, DaskClient(client.status()["address"]) as dask_client:

        def seen():
            fleet = dask_client.sync(dask_client.scheduler.dgpunet_fleet)
            charges = {c["device"]: c["vram_mib"] for c in fleet["charges"] if c["kind"] == "foreign"}
            return charges, {d["name"]: d["reserve_mib"] for d in fleet["devices"]}

        worker, other = worker_pid(home, OLD), psutil.Process().pid
        assert seen()[0] == {}
        write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 9400, True, {worker: 400}, {other: 8800})])
        # the rest, 200 MiB, is nobody's that is listed, and surely not ours
        assert wait_until(lambda: seen()[0] == {"rtx3090-0": 9000}, 15), seen()
        assert seen()[1] == {"rtx3090-0": 512 + 400, "rtx5090-0": 512, **{n: 0 for n in seen()[1] if n.endswith("/cpu")}}
        assert {w["name"]: w["charged_mib"] for w in client.status()["workers"]}["rtx3090-0"] == 9000
        write_uses(state, [FakeUse(NEW, 0), FakeUse(OLD, 450, True, {worker: 440})])
        assert wait_until(lambda: seen()[0] == {"rtx3090-0": 10}, 15), seen()


@pytest.mark.long
def test_the_head_derives_policies_from_what_it_probes(home):
    with attach(home, environ={}):
        (file,) = (home.policy / "generated").glob("*.yaml")
        text = file.read_text()
    assert read_standings(text).keys() == {"rtx3090-0", "rtx5090-0"}
    assert "The installed torch has no code for it (sm_75, sm_80, sm_86, sm_90)" in text
