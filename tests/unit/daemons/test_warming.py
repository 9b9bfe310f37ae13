"""What a new head opens before anybody asks."""

from __future__ import annotations

import json
import threading

import pytest

from dgpunet_dask.daemons.indexes import Indexes
from dgpunet_dask.daemons.searchers import Searchers, one_thread_a_product
from dgpunet_dask.daemons.warming import keep_names, names_file, wanted, warm
from dgpunet_dask.retrieval.index import MANIFEST
from tests.unit.daemons.indexed import ANN, BOB, Shelf


@pytest.fixture
def shelf(home, tmp_path):
    made = Shelf(home, tmp_path, most=3)
    made.searchers = Searchers(home, made._open, 3, noted=names_file(home))
    for name in ("a", "b", "c"):
        made.put(name, ANN if name != "b" else BOB)
    return made


def asked(shelf, *names):
    for name in names:
        with shelf.searchers.of(name, ANN if name != "b" else BOB):
            pass


def test_what_was_open_last_is_opened_first(shelf, home):
    asked(shelf, "c", "b", "a")
    assert wanted(home, 4) == ["a", "b", "c"]
    assert wanted(home, 2) == ["a", "b"]


def test_of_what_nobody_asked_for_only_the_shipped_models_is_opened(shelf, home):
    assert wanted(home, 4) == [], "these are a fake model's"
    for name in ("a", "b"):
        file = home.indexes / name / MANIFEST
        file.write_text(json.dumps({**json.loads(file.read_text()), "model": "minilm", "published_s": {"a": 1.0, "b": 2.0}[name]}))
    assert wanted(home, 4) == ["b", "a"]
    asked_before = names_file(home)
    keep_names(asked_before, ["c", "gone"])
    assert wanted(home, 4) == ["c", "b", "a"]


def test_memory_is_bounded_by_chunks(shelf, home):
    asked(shelf, "b", "a")
    held = json.loads((home.indexes / "a" / MANIFEST).read_text())["chunks"]
    assert wanted(home, 4, chunks_max=held) == ["a"]
    assert wanted(home, 4, chunks_max=held - 1) == []


def test_the_order_outlives_heads_that_nobody_asks(shelf, home):
    asked(shelf, "c", "b", "a")
    for _ in range(2):
        warm(home, Searchers(home, shelf._open, 4, noted=names_file(home)), 4, threading.Event())
        assert wanted(home, 4) == ["a", "b", "c"]


def test_one_that_cannot_be_opened_is_told_and_the_others_are_open(shelf, home, caplog):
    asked(shelf, "a", "b", "c")
    for file in (home.indexes / "b" / "segments").glob("*/segment.json"):
        file.write_text("{")
    later = Searchers(home, shelf._open, 3)
    shelf.opened.clear()
    warm(home, later, 4, threading.Event())
    assert shelf.opened == ["a", "b", "c"]
    assert "the index b could not be opened in advance" in caplog.text
    shelf.opened.clear()
    with later.of("a", ANN), later.of("c", ANN):
        assert shelf.opened == []


@pytest.mark.parametrize("text", ["", "[1, null]", "{}", "\x00"])
def test_a_damaged_list_is_none(shelf, home, text):
    names_file(home).parent.mkdir(exist_ok=True)
    names_file(home).write_text(text)
    assert wanted(home, 4) == []


def test_a_list_that_cannot_be_written_is_told(home, caplog):
    (home.root / "file").touch()
    keep_names(home.root / "file" / "names.json", ["a"])
    assert "not kept for the next head" in caplog.text


def test_nothing_waits_for_it_and_a_stopped_head_opens_no_more(shelf, home):
    asked(shelf, "a", "b")
    began, go_on = threading.Event(), threading.Event()

    def held() -> None:
        began.set()
        go_on.wait(30)

    shelf.before_opening = held
    shelf.opened.clear()
    indexes = Indexes(home, Searchers(home, shelf._open, 3))
    indexes.warm()
    assert began.wait(30)
    indexes.close()
    go_on.set()
    [thread] = [t for t in threading.enumerate() if t.name == "warm"]
    thread.join(30)
    assert shelf.opened == ["a"]


def test_products_of_a_query_keep_to_one_thread():
    from threadpoolctl import threadpool_info

    one_thread_a_product()
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} <= {1}
