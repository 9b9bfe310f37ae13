"""The canary tells right results from wrong ones, and whatever keeps it from running."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from dgpunet_dask.hardware import canary as module
from dgpunet_dask.hardware.canary import canary, main, result_of, run_canary

pytest.importorskip("torch")

SMALL = {"size": 64, "memory_mib": 1}


class Flip:
    """Flips one bit of the tensor that a step computed, at its nth time."""

    def __init__(self, step, nth=0, bit=0):
        self.step, self.left, self.bit = step, nth, bit

    def __call__(self, step, tensor):
        import torch

        if step != self.step:
            return
        if self.left == 0:
            width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
            tensor.view(-1).view(width)[tensor.numel() // 2] ^= 1 << self.bit
        self.left -= 1


@pytest.fixture(scope="module")
def sound():
    return canary("cpu", 7, **SMALL)


def test_a_sound_device_passes(sound):
    assert (sound.ok, sound.mismatches, sound.wrong, sound.why) == (True, 0, (), None)
    assert sound.gflops > 0
    assert sound.seconds > 0


def test_the_digest_is_of_the_seed_and_repeats(sound):
    assert canary("cpu", 7, **SMALL).digest == sound.digest
    assert canary("cpu", 8, **SMALL).digest != sound.digest


@pytest.mark.parametrize(
    ("step", "nth", "bit"),
    [
        ("matrix", 0, 0),
        ("matrix", 2, 22),
        ("half", 0, 0),
        ("half", 2, 10),
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
    found = canary("cpu", 7, **SMALL, fault=Flip(step, nth, bit))
    assert (found.ok, found.mismatches, found.wrong) == (False, 1, (step,))
    assert (found.digest == sound.digest) == (step == "memory")


def test_faults_of_several_steps_are_all_told():
    faults = [Flip("matrix"), Flip("memory", 1)]
    found = canary("cpu", 7, **SMALL, fault=lambda step, tensor: [fault(step, tensor) for fault in faults])
    assert (found.wrong, found.mismatches) == (("matrix", "memory"), 2)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "no such device"])
def test_a_device_that_cannot_run_it_is_neither_good_nor_bad(device):
    found = canary(device, 7, **SMALL)
    assert (found.ok, found.mismatches, found.device) == (None, None, device)
    assert found.why


def test_it_runs_in_a_process_of_its_own():
    found = run_canary(seed=7, timeout_s=120)
    assert (found.ok, found.wrong, found.device, found.why) == (True, (), "cpu", None)


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exec sleep 60", "no answer within 1 s"),
        ("kill -SEGV $$", "its process was killed by signal 11"),
        ("echo no room >&2; exit 3", "its process ended with code 3: no room"),
        ("echo canary nonsense", "its process ended with code 0"),
    ],
)
def test_a_process_that_hangs_or_dies_is_told(tmp_path, text, why):
    found = run_canary("GPU-1", python=program(tmp_path, "python", text), timeout_s=1)
    assert (found.device, found.ok, found.why) == ("cuda:0", None, why)


def test_a_process_that_survives_the_kill_is_left(tmp_path, monkeypatch):
    """As one does that hangs inside the driver: who waited for its end would hang with it."""
    left = []

    def survive(process):
        left.append(process)

    monkeypatch.setattr(module, "KILL_S", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", survive)
        found = run_canary("GPU-1", python=program(tmp_path, "python", "exec sleep 60"), timeout_s=0.2)
        assert [process.poll() for process in left] == [None]
    left[0].kill()
    left[0].wait()
    assert (found.ok, found.why) == (None, "no answer within 0.2 s")


def test_a_program_that_is_not_there_is_told(tmp_path):
    assert "did not start" in run_canary(python=str(tmp_path / "none")).why


@pytest.mark.parametrize(("uuid", "device"), [("GPU-12ab", "cuda:0"), ("MIG-12ab", "cuda:0"), (None, "cpu")])
def test_the_process_is_asked_for_the_card_and_sees_no_other(tmp_path, uuid, device):
    fake = program(tmp_path, "python", 'echo "$CUDA_VISIBLE_DEVICES $*" >&2; exit 1')
    why = run_canary(uuid, seed=5, python=fake).why
    assert why == f"its process ended with code 1: {uuid or ''} -P -m dgpunet_dask.hardware.canary --device {device} --seed 5".replace(":  -P", ": -P")


def test_what_it_prints_is_read_back(capsys):
    main(["--device", "meta", "--seed", "3"])
    found = result_of(f"noise\n{capsys.readouterr().out}", "cuda:0")
    assert (found.ok, found.device) == (None, "cuda:0")
    assert found.why


@pytest.mark.parametrize("printed", ["", "noise", "canary", "canary {", "canary []", "canary {}", 'canary {"ok": true, "novel": 1, "wrong": []}'])
def test_what_is_no_result_is_none(printed):
    assert result_of(printed, "cpu") is None


def test_a_result_travels_as_json(sound):
    bad = replace(sound, ok=False, wrong=("half",))
    assert result_of(f"noise\ncanary {json.dumps(asdict(bad))}\n", "cpu") == bad


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = canary("cpu", 7)
    assert found.ok is None
    assert "torch cannot be imported" in found.why
