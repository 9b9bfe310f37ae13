from __future__ import annotations

import pytest

from dgpunet_dask.config.settings import PinnedModel
from dgpunet_dask.errors import RerankerUnavailable
from dgpunet_dask.retrieval.modelfiles import find_model
from dgpunet_dask.retrieval.rank import fuse
from dgpunet_dask.retrieval.rerank import SecondLook, find_reranker, load_reranker, reranked
from dgpunet_dask.retrieval.signals import Candidate


def found(count):
    texts = ["the first text, long enough to be no stub at all, which is how most chunks are, and then one more word: " + "x" * n for n in range(count)]
    return fuse([Candidate(f"k{n}", 0, f"{n}.py", 1, 2, None, None, None, "go", t, 0.9 - n / 100, None) for n, t in enumerate(texts)], (), (), "q w e")


class Longest:
    """Prefers long texts."""

    def scores(self, query, texts):
        return [len(text) / 100 for text in texts]


class Indifferent:
    def scores(self, query, texts):
        return [0.0 for _ in texts]


def keys(ranked):
    return [r.candidate.key for r in ranked]


@pytest.mark.parametrize("depth", [0, 1, 3, 5, 50])
def test_the_best_are_ordered_anew_and_the_others_follow(depth):
    before = found(5)
    after = reranked(before, "q", Longest(), depth)
    assert keys(after) == [*reversed(keys(before)[:depth]), *keys(before)[depth:]]
    assert [r.score for r in after] == sorted((r.score for r in after), reverse=True)
    for one in after:
        assert sum(one.why.values()) == pytest.approx(one.score)


def test_equal_judgements_keep_the_order():
    assert keys(reranked(found(5), "q", Indifferent())) == keys(found(5))


class Slow(Longest):
    """Takes a second for each call."""

    def __init__(self):
        self.now_s = 100.0

    def scores(self, query, texts):
        self.now_s += 1.0
        return super().scores(query, texts)


@pytest.mark.parametrize(("within_s", "read"), [(0.0, 8), (2.5, 24), (6.5, 50), (100.0, 50)])
def test_what_is_not_read_in_time_stays_as_it_was_and_is_told(within_s, read):
    before, slow = found(60), Slow()
    after, told = SecondLook("slow", slow, lambda: slow.now_s, within_s=within_s).over(before, "q")
    assert told == {"model": "slow", "read": read, "of": 50}
    assert keys(after) == [*reversed(keys(before)[:read]), *keys(before)[read:]]
    assert [r.score for r in after] == sorted((r.score for r in after), reverse=True)


def test_fewer_hits_than_are_looked_at_are_all_read():
    slow = Slow()
    assert SecondLook("slow", slow, lambda: slow.now_s).over(found(3), "q")[1] == {"model": "slow", "read": 3, "of": 3}
    assert SecondLook("slow", slow, lambda: slow.now_s).over([], "q") == ([], {"model": "slow", "read": 0, "of": 0})


def test_a_name_of_the_settings_is_the_folder_whose_files_are_pinned(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    known = {"tiny": PinnedModel(folder=folder, digest=find_model(str(folder)).digest)}
    assert find_reranker("tiny", known, None, folders=False) == folder
    for folders in (False, True):
        with pytest.raises(RerankerUnavailable, match=r"did you mean 'tiny'.*there are tiny"):
            find_reranker("tinny", known, None, folders=folders)
    with pytest.raises(RerankerUnavailable, match="none of this name"):
        find_reranker(str(folder), known, None, folders=False)
    assert find_reranker(str(folder), known, None, folders=True) == folder
    monkeypatch.chdir(tmp_path)
    assert find_reranker("model", {}, None, folders=True) == folder
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RerankerUnavailable, match="as pinned"):
        find_reranker("tiny", known, None, folders=True)


def test_nothing_is_reranked_to_nothing():
    assert reranked([], "q", Longest()) == []


def tiny(folder, labels=1):
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(7)
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=labels, initializer_range=2.0,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.mark.long
def test_a_cross_encoder_judges_as_the_library_does(tmp_path):
    from sentence_transformers import CrossEncoder

    folder = tiny(tmp_path / "model")
    texts = ["a b c", "d", "e f g h i j " * 20, ""]
    reranker = load_reranker(folder)
    wanted = CrossEncoder(str(folder), device="cpu").predict([("a b", text) for text in texts], activation_fn=None)
    scores = reranker.scores("a b", texts)
    assert sorted(range(4), key=lambda n: scores[n]) == sorted(range(4), key=lambda n: wanted[n])
    assert len(set(scores)) == 4
    assert reranker.scores("a b", []) == []


@pytest.mark.long
def test_a_model_with_several_outputs_is_refused(tmp_path):
    with pytest.raises(RerankerUnavailable, match="3 numbers"):
        load_reranker(tiny(tmp_path / "model", labels=3))


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(RerankerUnavailable, match="no such folder"):
        load_reranker(tmp_path / "nowhere")


@pytest.mark.long
def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(RerankerUnavailable):
        load_reranker(tmp_path)
