"""The probe beside `nvidia-smi`, which asks the same driver by itself; memory that a process takes; the canary under CUDA."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from dgpunet_dask.hardware.canary import run_canary
from dgpunet_dask.hardware.card_facts import card_facts
from dgpunet_dask.hardware.nvml import watching
from dgpunet_dask.hardware.runtime import torch_arches
from dgpunet_dask.model.fleet import runs_arch

FIELDS = "name,uuid,memory.total,compute_cap,driver_version,power.limit,pcie.link.gen.max,pcie.link.width.max"
TAKE = "import torch; taken = torch.zeros(1 << 30, dtype=torch.uint8, device='cuda'); torch.cuda.synchronize(); print('taken', flush=True); input()"


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs nvidia-smi to compare with")
def test_the_facts_are_those_of_nvidia_smi(card):
    asked = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", f"--id={card.uuid}"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    told = dict(zip(FIELDS.split(","), (word.strip() for word in answer.split(",")), strict=True))
    capability, driver = ".".join(map(str, card.capability)), tuple(map(int, told["driver_version"].split(".")))
    assert (card.model, card.uuid, card.driver) == (told["name"], told["uuid"], driver)
    assert (card.vram_mib, capability) == (int(told["memory.total"]), told["compute_cap"])
    pcie = ((card.pcie.generation_max, "pcie.link.gen.max"), (card.pcie.width_max, "pcie.link.width.max"))
    for ours, name in ((card.power_limit_w, "power.limit"), *pcie):
        if told[name].startswith("["):  # [N/A], [Not Supported]
            assert ours is None, name
        else:
            assert ours == pytest.approx(float(told[name])), name


def test_what_changes_is_told_as_numbers_or_not_at_all(card):
    assert card.cuda is not None
    assert card.temperature_c is None or 0 < card.temperature_c < 110
    assert card.power_w is None or 0 < card.power_w < 2000
    assert card.throttle is None or all(isinstance(reason, str) for reason in card.throttle)
    if card.energy_j is not None:
        assert card_facts()[card.index].energy_j >= card.energy_j > 0


def test_memory_that_a_process_takes_is_seen_and_seen_freed(card):
    with watching() as ask, subprocess.Popen([sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        before = ask(card.uuid).used_mib
        assert process.stdout.readline() == "taken\n"
        use = ask(card.uuid)
        listed = dict(use.process_mib or ())
        assert use.used_mib - before >= 1024
        assert listed.get(process.pid) is None or listed[process.pid] >= 1024  # in a container the driver may know other numbers
        process.communicate("\n", timeout=60)
        assert process.wait() == 0
        assert ask(card.uuid).used_mib - before < 512


def test_this_torch_has_code_for_the_card(card):
    assert any(runs_arch(card.capability, arch) for arch in torch_arches() or ())


def test_the_canary_computes_the_same_twice(card):
    first, second = run_canary(card.uuid), run_canary(card.uuid)
    assert (first.ok, first.why, first.mismatches) == (True, None, 0)
    assert second.digest == first.digest
    assert first.gflops > 100
