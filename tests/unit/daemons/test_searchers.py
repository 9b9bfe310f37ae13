"""Indexes that stay open: which, how many, and for whom."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from dgpunet_dask.daemons.searchers import check_weights
from dgpunet_dask.errors import ModelUnavailable, NoSuchIndex
from dgpunet_dask.retrieval.index import Index
from tests.unit.daemons.indexed import ANN, BOB, ROOT, Shelf


@pytest.fixture
def shelf(home, tmp_path):
    return Shelf(home, tmp_path, most=2)


def segment(shelf, name, by):
    with shelf.searchers.of(name, by) as searcher:
        return searcher.index.manifest.version


def test_an_index_is_opened_once_for_each_version_and_keeps_its_model(shelf):
    first = shelf.put("a", ANN)
    assert [segment(shelf, "a", by) for by in (ANN, ROOT, ANN)] == [first.version] * 3
    assert shelf.opened == ["a"]
    with shelf.searchers.of("a", ANN) as searcher:
        encoder = searcher.encoder
    second = shelf.put("a", ANN, text="three")
    assert segment(shelf, "a", ANN) == second.version != first.version
    assert shelf.opened == ["a", "a"]
    with shelf.searchers.of("a", ANN) as searcher:
        assert searcher.encoder is encoder


@pytest.mark.parametrize(("model", "common"), [("minilm", True), ("fake", False)])
def test_only_the_shipped_model_is_common_to_several_indexes(shelf, model, common):
    shelf.ingest.model = replace(shelf.ingest.model, name=model)
    shelf.put("a", ANN)
    shelf.put("b", BOB)
    with shelf.searchers.of("a", ANN) as first, shelf.searchers.of("b", BOB) as second:
        assert (first.encoder is second.encoder) is common


def test_weights_that_the_head_has_no_room_for_are_not_loaded(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(3 << 20))
    check_weights(str(folder), tmp_path / "cache", most=3 << 20)
    with pytest.raises(ModelUnavailable, match="3 MiB are too large for the head"):
        check_weights(str(folder), tmp_path / "cache", most=(3 << 20) - 1)


def test_few_stay_open_and_those_the_last_asked_for(shelf):
    for name in ("a", "b", "c"):
        shelf.put(name, ANN)
    for name in ("a", "b", "a", "c", "a", "b"):
        segment(shelf, name, ANN)
    assert shelf.opened == ["a", "b", "c", "b"]
    assert list(shelf.searchers._places) == ["a", "b"]


def test_what_was_removed_is_let_go(shelf):
    shelf.put("a", ANN)
    segment(shelf, "a", ANN)
    Index(shelf.home, "a").remove()
    with pytest.raises(NoSuchIndex):
        segment(shelf, "a", ANN)
    shelf.searchers.forget("a")
    assert not shelf.searchers._places


def test_who_may_read_is_looked_up_each_time_even_where_it_is_open(shelf):
    shelf.put("a", ANN, shared=True)
    segment(shelf, "a", BOB)
    Index(shelf.home, "a").share(shared=False)
    with pytest.raises(NoSuchIndex):
        segment(shelf, "a", BOB)
    assert shelf.opened == ["a"]


def test_an_index_that_became_anothers_while_it_was_opened_is_not_given(shelf):
    shelf.put("a", BOB)

    def replaced():
        shelf.before_opening = lambda: None
        Index(shelf.home, "a").remove()
        shelf.put("a", ANN, text="private")

    shelf.before_opening = replaced
    with pytest.raises(NoSuchIndex):
        segment(shelf, "a", BOB)
    assert segment(shelf, "a", ANN)


def test_one_search_at_a_time_is_let_in(shelf):
    shelf.put("a", ANN)
    order = []
    with shelf.searchers.of("a", ANN):
        other = threading.Thread(target=lambda: order.append(segment(shelf, "a", ANN)))
        other.start()
        other.join(0.3)
        order.append("first")
    other.join(20)
    assert order[0] == "first"
    assert len(order) == 2
