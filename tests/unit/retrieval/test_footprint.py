"""What a model takes of a card, told from its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgpunet_dask.retrieval.footprint import footprint
from dgpunet_dask.stagehost.memory import CONTEXT_MIB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 1024, "intermediate_size": 4096}))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * (3 << 20))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\0" * (3 << 20))  # the same weights once more
    return tmp_path


def test_weights_stay_and_a_batch_comes_on_top(folder: Path) -> None:
    need = footprint(str(folder), batch_tokens=1024)
    assert need is not None
    assert need.resident_mib == CONTEXT_MIB + 3
    assert need.peak_mib - need.resident_mib == 1024 * (10 * 1024 + 2 * 4096) * 4 >> 20


def test_twice_the_batch_takes_twice_the_room_and_the_same_weights(folder: Path) -> None:
    one, two = footprint(str(folder), 4096), footprint(str(folder), 8192)
    assert one is not None
    assert two is not None
    assert two.resident_mib == one.resident_mib
    assert two.peak_mib - two.resident_mib == 2 * (one.peak_mib - one.resident_mib)


@pytest.mark.parametrize("missing", ["config.json", "weights"])
def test_what_is_not_known_is_not_guessed(folder: Path, missing: str) -> None:
    for file in folder.iterdir():
        if (file.name == missing) or (missing == "weights" and file.suffix != ".json"):
            file.unlink()
    assert footprint(str(folder), 1024) is None


def test_a_model_that_was_never_fetched_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert footprint("nobody/nothing", 1024) is None


@pytest.mark.parametrize("config", ["garbage", "[]", '{"hidden_size": "many"}'])
def test_a_garbled_configuration_is_left_to_whoever_loads_the_model(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    assert footprint(str(folder), 1024) is None
