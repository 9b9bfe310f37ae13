"""Rerankers that are named in the settings: which are loaded, when, and which are refused."""

from __future__ import annotations

import threading

import pytest

from dgpunet_dask.errors import MalformedFile, ModelUnavailable, RerankerUnavailable
from tests.unit.daemons.indexed import Shelf


@pytest.fixture
def shelf(home, tmp_path):
    return Shelf(home, tmp_path)


def test_a_search_that_asks_for_none_has_none(shelf):
    assert shelf.rerankers.named(None) is None


def test_a_model_is_loaded_once_until_another_is_asked_for(shelf):
    first = shelf.name_reranker("a")
    assert shelf.rerankers.named("a").name == "a"
    assert shelf.rerankers.named("a").reranker is shelf.rerankers.named("a").reranker
    second = shelf.name_reranker("b")
    shelf.rerankers.named("b")
    with pytest.raises(RerankerUnavailable, match="there are b"):
        shelf.rerankers.named("a")
    assert shelf.loaded == [first, second]


def test_files_that_are_not_the_pinned_ones_are_not_loaded(shelf):
    folder = shelf.name_reranker("a")
    (folder / "config.json").write_text('{"other": 1}')
    with pytest.raises(RerankerUnavailable, match=r"not .* as pinned") as raised:
        shelf.rerankers.named("a")
    assert str(folder) not in str(raised.value), "whoever may search need not know where things lie"
    (folder / "config.json").unlink()
    folder.rmdir()
    with pytest.raises(RerankerUnavailable, match="its folder is not there"):
        shelf.rerankers.named("a")
    assert shelf.loaded == []


def test_weights_that_there_is_no_room_for_are_not_loaded(shelf, monkeypatch):
    from dgpunet_dask.daemons import searchers

    folder = shelf.folder / "model-a"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(3 << 20))
    shelf.name_reranker("a")
    monkeypatch.setattr(searchers.check_weights, "__defaults__", (2 << 20,))
    with pytest.raises(ModelUnavailable, match="too large"):
        shelf.rerankers.named("a")


def test_without_settings_there_is_none_and_bad_ones_are_told(shelf):
    with pytest.raises(RerankerUnavailable, match="the settings name none"):
        shelf.rerankers.named("a")
    shelf.home.config.write_text("version: 1\nrerankers: {a: {folder: rel, digest: short}}\n")
    with pytest.raises(MalformedFile) as raised:
        shelf.rerankers.named("a")
    assert "whole path" in str(raised.value)
    assert "model digest FOLDER" in str(raised.value)


def test_one_thread_at_a_time_reads(shelf):
    inside, most, lock = [], [], threading.Lock()

    class Counting:
        def scores(self, query, texts):
            with lock:
                inside.append(1)
                most.append(len(inside))
            threading.Event().wait(0.02)
            with lock:
                inside.pop()
            return [0.0 for _ in texts]

    shelf.rerankers._load = lambda folder: Counting()
    shelf.name_reranker("a")
    looks = [shelf.rerankers.named("a") for _ in range(4)]
    threads = [threading.Thread(target=look.reranker.scores, args=("q", ["x"])) for look in looks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [1] * 4
