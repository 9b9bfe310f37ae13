"""The engines agree with one another, and what runs a model is chosen, remembered, and replaced where it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dgpunet_dask.errors import BadValue
from dgpunet_dask.hardware.cpu import usable_cpus
from dgpunet_dask.retrieval import engines, openvino_engine, selfcheck
from dgpunet_dask.retrieval.bertfiles import bert_files, float_weights
from dgpunet_dask.retrieval.engines import load_engine
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.openvino_engine import OpenVinoEngine
from dgpunet_dask.retrieval.selfcheck import Candidate, Memory
from dgpunet_dask.retrieval.torch_engine import BertEngine
from tests.helpers import ROOT
from tests.unit.retrieval.tinybert import Tokens, tiny_bert, vectors_of


def by_input(query, key, value, bounds, longest):
    """Attention without padding, written out: each input by itself."""
    from torch import cat
    from torch.nn.functional import scaled_dot_product_attention

    assert longest >= int(bounds.diff().max())
    parts = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        parts.append(scaled_dot_product_attention(*own)[0].transpose(0, 1))
    return cat(parts)


@pytest.fixture(params=["mean", "cls"])
def files(tmp_path, request):
    found = bert_files(tiny_bert(tmp_path / "model", request.param))
    assert found is not None
    return found


def test_all_engines_give_the_same_vectors(files):
    padded = vectors_of(BertEngine(files, "cpu", "fp32"))
    single = vectors_of(BertEngine(files, "cpu", "fp32"), 1)  # nothing to pad
    assert np.allclose(single, padded, atol=1e-5)
    assert np.allclose(vectors_of(BertEngine(files, "cpu", "fp32", by_input)), padded, atol=1e-5)
    assert np.allclose(vectors_of(OpenVinoEngine(files, "fp32", 2)), padded, atol=1e-5)
    assert not np.allclose(padded, padded[::-1], atol=0.1)


def test_fewer_bits_stay_near_and_are_really_fewer(files):
    exact = vectors_of(OpenVinoEngine(files, "fp32", 1))
    eight = vectors_of(OpenVinoEngine(files, "int8", 1))
    assert (exact * eight).sum(1).min() > 0.9
    assert not np.allclose(exact, eight, atol=1e-6)


def test_an_engine_may_be_asked_again_after_a_fault(files):
    engine = OpenVinoEngine(files, "fp32", 1)
    wanted = vectors_of(engine)

    def broken():
        yield from ()
        raise KeyError("x")

    with pytest.raises(KeyError):
        list(engine.pooled(broken()))
    assert np.array_equal(vectors_of(engine), wanted)


def test_threads_that_share_an_engine_get_their_own_vectors(files):
    engine = OpenVinoEngine(files, "fp32", 2)
    wanted = vectors_of(engine)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda size: vectors_of(engine, size), [1, 2, 3, 4] * 4):
            assert np.allclose(found, wanted, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or usable_cpus() < 2, reason="nothing is bound to cores, or there is no other core")
def test_processes_with_a_share_of_the_cores_do_not_all_take_the_first(files):
    engine = OpenVinoEngine(files, "fp32", 1)
    vectors_of(engine)
    assert {frozenset(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()} == {frozenset(os.sched_getaffinity(0))}


@pytest.mark.parametrize(
    ("changed", "file"),
    [
        ({"model_type": "roberta"}, "config.json"),
        ({"hidden_act": "relu"}, "config.json"),
        ({"position_embedding_type": "relative_key"}, "config.json"),
        ({"max_position_embeddings": 8}, "config.json"),
        ({"hidden_size": None}, "config.json"),
        ({"pooling_mode": "max"}, "1_Pooling/config.json"),
        ({"include_prompt": False}, "1_Pooling/config.json"),
        ({"do_lower_case": True}, "sentence_bert_config.json"),
        (None, "config.json"),
        (None, "modules.json"),
        (None, "model.safetensors"),
    ],
)
def test_what_is_no_plain_bert_is_left_to_its_own_modules(tmp_path, changed, file):
    folder = tiny_bert(tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    assert bert_files(folder) is not None
    if changed is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))
    assert bert_files(folder) is None


@pytest.mark.parametrize("module", ["evil.Normalize", "sentence_transformers.models.Dense", "sentence_transformers.models.LayerNorm"])
def test_a_module_that_changes_vectors_makes_no_plain_bert(tmp_path, module):
    folder = tiny_bert(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"path": "2", "type": module}]))
    assert bert_files(folder) is None


def test_older_folders_state_pooling_by_switches_and_weights_with_a_prefix(tmp_path):
    folder = tiny_bert(tmp_path / "model", prefix="bert.")
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    found = bert_files(folder)
    assert found is not None
    assert found.pooling == "cls"
    assert "embeddings.LayerNorm.bias" in float_weights(found)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}))
    assert bert_files(folder) is None  # two vectors, one after the other


def loaded(folder: Path, cache: Path | None, precision: str = "auto"):
    return load_engine(find_model(str(folder)), Tokens(), "cpu", 1, None, precision, cache)  # type: ignore[arg-type]


def test_a_finding_is_made_once(tmp_path, monkeypatch):
    folder = tiny_bert(tmp_path / "model")
    first = loaded(folder, tmp_path / "cache").engine
    monkeypatch.setattr(selfcheck, "measure", None)  # a second measurement would fail
    again = loaded(folder, tmp_path / "cache").engine
    assert (again.name, again.precision) == (first.name, first.precision)
    [entry] = (tmp_path / "cache/engines").iterdir()
    told = json.loads(entry.read_text())
    assert told["chosen"] == {"engine": first.name, "precision": first.precision}
    assert all(m["seconds"] > 0 and m["cosine"] <= 1.001 for m in told["measured"])


def test_a_batch_size_that_held_is_remembered_with_its_engine(tmp_path):
    folder = tiny_bert(tmp_path / "model")
    first = loaded(folder, tmp_path / "cache", "fp32")
    assert first.batch_tokens == first.engine.batch_tokens
    first.remember(100)
    assert loaded(folder, tmp_path / "cache", "fp32").batch_tokens == 100


def test_where_openvino_is_missing_torch_takes_over_and_says_so(tmp_path, monkeypatch, caplog):
    def missing():
        raise ImportError("no module named openvino")

    monkeypatch.setattr(openvino_engine, "import_openvino", missing)
    folder = tiny_bert(tmp_path / "model")
    assert loaded(folder, tmp_path / "cache").engine.name == "torch"
    assert "OpenVINO cannot be used here (ImportError: no module named openvino); torch takes over" in caplog.text
    caplog.clear()
    assert loaded(folder, None, "fp32").engine.name == "torch"
    assert "trying another engine" in caplog.text


def test_what_was_found_and_fails_today_is_replaced(tmp_path, monkeypatch, caplog):
    folder = tiny_bert(tmp_path / "model")
    loaded(folder, tmp_path / "cache")
    [entry] = (tmp_path / "cache/engines").iterdir()
    Memory(entry.parent).remember(entry.stem, chosen={"engine": "openvino", "precision": "fp32"})
    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "__init__", lambda *_: 1 / 0)
    engine = loaded(folder, tmp_path / "cache").engine
    assert (engine.name, engine.precision) == ("torch", "fp32")
    assert "ZeroDivisionError" in caplog.text


def test_a_processor_without_16_bit_numbers_compares_two_engines_at_float32(monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "_openvino_lower", list)
    tried: list[list[Candidate]] = []

    def measured(candidates, run, timer, trial):
        tried.append(list(candidates))
        return [selfcheck.Measured(c, float(c.engine == "openvino"), 1.0) for c in candidates]

    monkeypatch.setattr(selfcheck, "measure", measured)
    assert loaded(tiny_bert(tmp_path / "model"), None).engine.name == "torch"
    assert tried == [[Candidate("openvino", "fp32"), Candidate("torch", "fp32")]]


def test_a_finding_made_for_lack_of_memory_is_not_kept(monkeypatch, tmp_path):
    def measured(candidates, run, timer, trial):
        [*others, last] = candidates
        return [*(selfcheck.Measured(c, why="MemoryError", passing=True) for c in others), selfcheck.Measured(last, 1.0, 1.0)]

    monkeypatch.setattr(selfcheck, "measure", measured)
    assert loaded(tiny_bert(tmp_path / "model"), tmp_path / "cache").engine.precision == "fp32"
    assert not (tmp_path / "cache/engines").exists()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_what_a_device_cannot_do_is_refused(tmp_path, precision):
    folder = tiny_bert(tmp_path / "model", "cls" if precision == "fp16" else "max")
    with pytest.raises(BadValue, match="precision"):
        loaded(folder, None, precision)


@pytest.mark.parametrize("convert", ["", "openvino.convert_model(input_model=None)"])
def test_nothing_is_ever_sent(tmp_path, convert):
    """OpenVINO's converter reports its use unless told otherwise; a home that says yes shows that it is not even loaded."""
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel/openvino_telemetry").write_text("1")
    code = f"""
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen"):
        print("SENT", event, arguments)
sys.addaudithook(watch)
from dgpunet_dask.retrieval.encoder import load_encoder
load_encoder("minilm", precision="fp32").encode_queries(["x"])
import openvino
try:
    {convert or "pass"}
except Exception as error:
    print("CONVERTED", type(error).__name__)
print("LOADED", [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module is not None])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True, capture_output=True, text=True
    )
    assert "SENT" not in done.stdout
    assert "LOADED []" in done.stdout
    assert ("CONVERTED" in done.stdout) == bool(convert)
    assert [path.name for path in (tmp_path / "intel").iterdir()] == ["openvino_telemetry"]  # no id was made either
