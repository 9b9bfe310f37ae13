"""Our encoders beside `SentenceTransformer.encode_query` and `encode_document`: the shipped model, and tiny random ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dgpunet_dask.errors import BadValue, ModelUnavailable
from dgpunet_dask.retrieval import modelfiles
from dgpunet_dask.retrieval.bert_numpy import NumpyMinilm
from dgpunet_dask.retrieval.encoder import load_encoder
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.selfcheck import probes
from dgpunet_dask.retrieval.tokens import load_tokens

TEXTS = [
    "def parse(text: str) -> list[int]:\n    return [int(part) for part in text.split(',')]", "x",
    "how are errors reported to the caller?",
    "Größe, 日本語 and 🎉", "a long text about many things, " * 60, "",
    "  leading and trailing blanks  ", "class A:\n\tpass\n\n\n",
]  # fmt: skip
WORDS = (
    *("def", "class", "return", "self", "import", "text", "error", "the", "a", "of", "and", "to", "in", "x", "y", "1", "2"),
    *(",", ".", "(", ")", ":", "#", "how", "are", "caller", "report", "##s", "##ed", "##ing", "##er"),
)


def tiny(
    folder: Path, pooling: str = "mean", *, dense: bool = False, normalize: bool = False, prompts: dict[str, str] | None = None
) -> Path:
    """Save a random model of two small layers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(7)
    base = folder / "base"
    base.mkdir(parents=True)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        *WORDS,
    ]
    (base / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    BertTokenizerFast(str(base / "vocab.txt"), model_max_length=48).save_pretrained(base)
    config = BertConfig(
        vocab_size=len(set(vocabulary)), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(base)
    modules = [Transformer(str(base)), Pooling(32, pooling_mode=pooling)]
    modules += [Dense(32, 24)] if dense else []
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(folder / "model"))
    return folder / "model"


def reference(folder: Path, truncate_dim: int | None = None):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=truncate_dim)
    return [_unit(model.encode_document(TEXTS)), _unit(model.encode_query(TEXTS))]


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def agree(encoder, wanted, least: float) -> None:
    for found, known in zip((encoder.encode_documents(TEXTS), encoder.encode_queries(TEXTS)), wanted, strict=True):
        assert found.dtype == np.float32
        assert found.shape == known.shape == (len(TEXTS), encoder.dimension)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
        assert (found * known).sum(1).min() >= least


@pytest.mark.parametrize(
    ("made", "truncate_dim"),
    [
        ({"pooling": "mean"}, None),
        ({"pooling": "cls", "normalize": True}, None),
        ({"pooling": "max"}, 16),
        ({"pooling": "mean", "dense": True}, None),
        ({"pooling": "mean", "dense": True, "normalize": True}, 8),
        ({"prompts": {"query": "how are ", "document": "text of the "}}, None),
        ({"prompts": {"query": "how ", "passage": "the "}, "pooling": "cls"}, 20),
    ],
)
def test_any_model_gives_what_sentence_transformers_gives(tmp_path, made, truncate_dim):
    folder = tiny(tmp_path, **made)
    encoder = load_encoder(str(folder), truncate_dim=truncate_dim, precision="fp32")
    agree(encoder, reference(folder, truncate_dim), 0.99999)
    assert encoder.encode_documents([]).shape == (0, encoder.dimension)


def test_lower_precision_is_taken_only_where_it_stays_close(tmp_path):
    folder = tiny(tmp_path)
    agree(load_encoder(str(folder), precision="auto"), reference(folder), 0.998)


@pytest.mark.parametrize("truncate_dim", [None, 100])
def test_the_shipped_model_gives_what_sentence_transformers_gives(truncate_dim):
    files = find_model("minilm")
    wanted = reference(files.folder, truncate_dim)
    agree(load_encoder("minilm", precision="fp32", truncate_dim=truncate_dim), wanted, 0.999999)
    agree(load_encoder("minilm", truncate_dim=truncate_dim), wanted, 0.999)
    agree(NumpyMinilm(files, truncate_dim), wanted, 0.999999)


def test_a_cold_shell_s_vectors_are_those_of_the_index():
    """A search from a cold shell embeds its query without any engine; what it is compared with was made by one."""
    files = find_model("minilm")
    texts = probes()[::3]
    cold = NumpyMinilm(files).encode_queries(texts)
    assert (cold * load_encoder("minilm", precision="fp32").encode_documents(texts)).sum(1).min() >= 0.999999
    cosine = (cold * load_encoder("minilm").encode_documents(texts)).sum(1)
    assert cosine.min() >= 0.999
    assert cosine.mean() >= 0.9999


def test_tokens_are_the_models_own():
    from sentence_transformers import SentenceTransformer

    tokens = load_tokens("minilm")
    model = SentenceTransformer(str(tokens.files.folder), device="cpu")
    features = model.preprocess(TEXTS)
    own = [ids[mask.bool()].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)]
    assert tokens.ids(TEXTS, "") == own
    assert tokens.budget == 254
    assert max(tokens.count(TEXTS)) > 254


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "a/b/c", "no-one/has-this-model", ""])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(ModelUnavailable):
        load_encoder(name)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelUnavailable, match=r"modules\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "modules.json").write_text("{damaged")
    with pytest.raises(ModelUnavailable):
        load_encoder(str(tmp_path))


def test_weights_that_are_damaged_are_told(tmp_path):
    folder = tiny(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelUnavailable):
        load_encoder(str(folder))


def test_a_model_cannot_bring_code_of_its_own(tmp_path):
    folder = tiny(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('ran')\nclass Evil: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": len(modules), "name": "evil", "path": "", "type": "evil.Evil"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelUnavailable):
        load_encoder(str(folder))


def test_a_shipped_file_that_changed_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(find_model("minilm").folder, folder)
    monkeypatch.setattr(modelfiles, "_minilm_folder", lambda: folder)
    assert find_model("minilm").folder == folder
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ModelUnavailable, match="pinned"):
        find_model("minilm")


def test_a_digest_is_over_what_decides_a_vector(tmp_path):
    folder = tiny(tmp_path)
    first = find_model(str(folder), tmp_path / "cache").digest
    (folder / "README.md").write_text("other")
    assert find_model(str(folder), tmp_path / "cache").digest == first
    (folder / "1_Pooling/config.json").write_text("{}")
    assert find_model(str(folder), tmp_path / "cache").digest != first


def test_a_truncation_that_no_model_has_is_refused(tmp_path):
    with pytest.raises(BadValue, match="truncate_dim"):
        load_encoder("minilm", truncate_dim=385)


@pytest.mark.parametrize("name", ["logs/../weights", "a/../../weights", "logs/.."])
def test_a_name_that_looks_like_a_hub_s_leads_to_no_folder(tmp_path, monkeypatch, name):
    for folder in ("logs", "weights"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable, match="no such folder"):
        find_model(name)
