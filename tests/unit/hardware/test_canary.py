"""The canary tells right results from wrong ones, and whatever keeps it from running."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import pytest

from dgpunet_dask.hardware.canary import CanaryResult, as_row, canary, canary_apart, result_of

pytest.importorskip("torch")

MIB = 8


class Flip:
    """Flips one bit of the tensor that a step computed, at its nth time."""

    def __init__(self, step, nth=0, bit=0):
        self.step, self.left, self.bit = step, nth, bit

    def __call__(self, step, tensor):
        import torch

        if step != self.step:
            return
        if self.left == 0:
            width = {4: torch.int32, 8: torch.int64}[tensor.element_size()]
            tensor.view(-1).view(width)[tensor.numel() // 2] ^= 1 << self.bit
        self.left -= 1


@pytest.fixture(scope="module")
def sound():
    return canary("cpu", 7, memory_mib=MIB)


def test_a_sound_device_passes(sound):
    assert (sound.ok, sound.mismatches, sound.failed, sound.why) == (True, 0, (), None)
    assert sound.gflops > 0
    assert sound.seconds > 0


def test_the_digest_is_of_the_seed_and_repeats(sound):
    assert canary("cpu", 7, memory_mib=MIB).digest == sound.digest
    assert canary("cpu", 8, memory_mib=MIB).digest != sound.digest


@pytest.mark.parametrize(
    ("step", "nth", "bit"),
    [
        ("matmul", 0, 0),
        ("matmul", 2, 22),
        ("integer", 0, 0),
        ("integer", 0, 30),
        ("chain", 0, 0),
        ("chain", 1, 3),
        ("chain", 2, 0),
        ("memory", 0, 0),
        ("memory", 3, 63 - 1),
        ("memory", 4, 5),
    ],
)
def test_one_flipped_bit_is_found(sound, step, nth, bit):
    found = canary("cpu", 7, memory_mib=MIB, fault=Flip(step, nth, bit))
    assert (found.ok, found.mismatches, found.failed) == (False, 1, (step,))
    assert (found.digest == sound.digest) == (step == "memory")


def test_faults_of_several_steps_are_all_told():
    faults = [Flip("matmul"), Flip("memory", 1)]
    found = canary("cpu", 7, memory_mib=MIB, fault=lambda step, tensor: [fault(step, tensor) for fault in faults])
    assert (found.failed, found.mismatches) == (("matmul", "memory"), 2)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "no such device"])
def test_a_device_that_cannot_run_it_is_neither_good_nor_bad(device):
    found = canary(device, 7, memory_mib=MIB)
    assert (found.ok, found.mismatches, found.device) == (None, None, device)
    assert found.why


def test_it_runs_in_a_process_of_its_own(sound):
    found = canary_apart("cpu", 7, memory_mib=MIB)
    assert replace(found, seconds=None, gflops=None) == replace(sound, seconds=None, gflops=None)


def test_a_process_that_hangs_dies_or_is_not_there_is_told(tmp_path):
    def program(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        return str(path)

    assert canary_apart("cpu", 7, python=program("hangs", "exec sleep 60"), timeout_s=0.2).why == "it did not end within 0.2 s"
    assert canary_apart("cpu", 7, python=program("dies", "kill -SEGV $$")).why == "its process was killed by signal 11"
    assert canary_apart("cpu", 7, python=program("fails", "echo no room >&2; exit 3")).why == "its process ended with code 3: no room"
    assert "did not start" in canary_apart("cpu", 7, python=str(tmp_path / "none")).why


def test_the_process_sees_only_the_card(tmp_path):
    path = tmp_path / "python"
    told = "canary " + json.dumps(asdict(CanaryResult(device="cuda", ok=None, why="WHY"))).replace("WHY", "'\"$CUDA_VISIBLE_DEVICES\"'")
    path.write_text(f"#!/bin/sh\necho '{told}'\n")
    path.chmod(0o700)
    assert canary_apart("cuda", 7, card="GPU-12ab", python=str(path)).why == "GPU-12ab"


def test_a_result_travels_as_json(sound):
    bad = replace(sound, ok=False, failed=("half",))
    assert result_of(f"noise\ncanary {json.dumps(asdict(bad))}\n") == bad
    assert result_of("noise\n") is None
    row = json.loads(json.dumps(as_row(bad, "4090l")))
    assert (row["device"], row["torch_device"], row["ok"], row["failed"]) == ("4090l", "cpu", False, ["half"])


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = canary("cpu", 7)
    assert found.ok is None
    assert "torch cannot be imported" in found.why
