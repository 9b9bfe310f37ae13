"""What the installed torch has code for."""

from __future__ import annotations

import json
import subprocess

import pytest

from dgpunet_dask.hardware import runtime
from dgpunet_dask.hardware.nvml import Card
from dgpunet_dask.hardware.probe import local_fleet, reserve_mib
from dgpunet_dask.hardware.runtime import OVERRIDE, arches_of, torch_arches, version_of
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Host
from dgpunet_dask.placement.place import place

CUDA = (
    "from typing import Optional\n__version__ = '2.13.0+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\ngit_version = 'ab12'\n"
    "hip: Optional[str] = None\n"
)
CPU = CUDA.replace("'13.0'", "None").replace("+cu130", "+cpu")
OLD = "arches sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"


@pytest.fixture
def torch(monkeypatch, tmp_path):
    """A torch that is said to be installed; what it would print, and how often it was asked."""
    monkeypatch.delenv(OVERRIDE, raising=False)
    asked = []

    def install(version, printed="", code=0):
        folder = tmp_path / "torch"
        folder.mkdir(exist_ok=True)
        (folder / "version.py").write_text(version)

        class Spec:
            origin = str(folder / "__init__.py")

        def run(argv, **kwargs):
            asked.append(argv)
            if printed is None:
                raise subprocess.TimeoutExpired(argv, 1)
            return subprocess.CompletedProcess(argv, code, printed, "ImportError: libcudart.so.13")

        monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda _: Spec)
        monkeypatch.setattr(runtime.subprocess, "run", run)
        return asked

    return install


def test_a_torch_without_cuda_has_none_and_is_not_run(torch):
    asked = torch(CPU)
    assert torch_arches() == ()
    assert asked == []


def test_no_torch_tells_nothing(monkeypatch):
    monkeypatch.delenv(OVERRIDE, raising=False)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda _: None)
    assert torch_arches() is None


def test_asked_once_for_each_version(torch, tmp_path):
    cache = tmp_path / "deep" / "arches.json"
    asked = torch(CUDA, f"a warning\n{OLD} compute_90\n")
    assert torch_arches(cache)[-2:] == ("sm_90", "compute_90")
    assert torch_arches(cache)[0] == "sm_50"
    assert len(asked) == 1
    torch(CUDA.replace("ab12", "cd34"), "arches sm_120\n")
    assert torch_arches(cache) == ("sm_120",)
    assert len(asked) == 2
    for broken in ("{", "[]", '{"2.13.0+cu130 cd34": 5}'):
        cache.write_text(broken)
        assert torch_arches(cache) == ("sm_120",)
    assert json.loads(cache.read_text()) == {"2.13.0+cu130 cd34": ["sm_120"]}


@pytest.mark.parametrize("printed", [None, "", "Traceback"])
def test_a_torch_that_does_not_tell_is_asked_again(torch, tmp_path, printed):
    asked = torch(CUDA, printed, 1)
    assert torch_arches(tmp_path / "c.json") is None
    assert torch_arches(tmp_path / "c.json") is None
    assert len(asked) == 2


def test_a_setting_stands_in_for_torch(monkeypatch):
    monkeypatch.setenv(OVERRIDE, "sm_86, compute_120 nonsense")
    assert torch_arches() == ("sm_86", "compute_120")


def test_parsing():
    assert version_of(CUDA)["cuda"] == "13.0"
    assert version_of("def") == {}
    assert version_of("x = y\nz[0] = 1") == {}
    assert arches_of("arches ") == ()
    assert arches_of("arch") is None


def test_a_card_that_torch_has_no_code_for_is_refused_by_name():
    cards = [
        Card(index=0, model="RTX 5090", uuid="GPU-0", vram_mib=32 << 10, capability=(12, 0)),
        Card(index=1, model="RTX 3090", uuid="GPU-1", vram_mib=24 << 10, capability=(8, 6)),
    ]
    old = local_fleet(cards, Host(name="h"), lambda: arches_of(OLD))
    decision = place(old, Demand(vram="1GiB"))
    assert decision.device == "rtx3090-0"
    (refusal,) = decision.refusals["rtx5090-0"]
    assert refusal.code == "runtime_arch"
    assert "12.0" in refusal.need
    assert "sm_90" in refusal.have
    assert place(local_fleet(cards, Host(name="h"), lambda: None), Demand(vram="1GiB")).device == "rtx5090-0"
    without_cuda = place(local_fleet(cards, Host(name="h"), tuple), Demand(vram="1GiB"))
    assert without_cuda.outcome == "never"
    assert {v[0].code for name, v in without_cuda.refusals.items() if name != "h/cpu"} == {"runtime_arch"}
    assert place(local_fleet(cards, Host(name="h"), tuple), Demand(vram="1GiB", cpu_ok=True)).device == "h/cpu"


def test_a_machine_without_cards_asks_no_torch():
    fleet = local_fleet([], Host(name="h"), lambda: pytest.fail("asked"))
    assert [device.name for device in fleet.devices] == ["h/cpu"]


@pytest.mark.parametrize(
    ("display", "gib", "mib"), [(None, 24, 512), (False, 24, 512), (True, 24, 2048), (True, 8, 1024), (True, 2, 512), (True, None, 512)]
)
def test_a_card_with_a_display_keeps_more_free(display, gib, mib):
    assert reserve_mib(Card(index=0, display=display, vram_mib=None if gib is None else gib << 10)) == mib
