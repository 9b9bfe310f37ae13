from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest

from dgpunet_dask.errors import BadName, MalformedFile, NewerFormat, NoSuchIndex
from dgpunet_dask.retrieval.index import Index, Manifest, check_index_name, index_names, open_index, size_bytes
from dgpunet_dask.retrieval.search import _opened
from tests.helpers import until

MANIFEST = Manifest("", "fake", "digest", 4, None, 1)


def publish(index: Index, word: str = "x") -> Manifest:
    def write(folder):
        (folder / "data").write_text(word)
        return MANIFEST

    return index.publish(write)


def data(index: Index) -> str:
    return (index.segment(index.manifest()) / "data").read_text()


def test_a_new_version_replaces_the_old_one(home):
    index = Index(home, "a")
    assert index.manifest() is None
    first = publish(index, "first")
    assert data(index) == "first"
    assert publish(index, "second").segment != first.segment
    assert data(index) == "second"
    assert len(list((index.folder / "segments").iterdir())) == 1
    assert size_bytes(index, index.manifest()) == len("second")


def test_a_reader_of_the_old_version_keeps_its_files(home):
    index = Index(home, "a")
    publish(index, "first")
    with (index.segment(index.manifest()) / "data").open() as opened:
        publish(index, "second")
        assert opened.read() == "first"


@pytest.mark.parametrize("step", ["write", "rename", "manifest"])
def test_a_failure_at_any_step_leaves_the_old_version(home, monkeypatch, step):
    index = Index(home, "a")
    publish(index, "first")

    def fail(*_):
        raise RuntimeError(step)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        if step == "write":
            index.publish(fail)
        patch.setattr("pathlib.Path.rename" if step == "rename" else "pathlib.Path.replace", fail)
        publish(index, "second")
    assert data(index) == "first"
    assert len(list((index.folder / "segments").iterdir())) == 1
    assert sorted(f.name for f in index.folder.iterdir()) == ["manifest.json", "segments"]


KILLED = """
import sys, time
from pathlib import Path
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.index import Index
def write(folder):
    (folder / "data").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
Index(Home(Path(sys.argv[1])), "a").publish(write)
"""


def test_a_killed_publisher_frees_its_lock_and_the_next_one_clears_up(home):
    index = Index(home, "a")
    publish(index, "first")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(home.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        assert data(index) == "first"
        waiting = threading.Thread(target=publish, args=(index, "second"))
        waiting.start()
        assert len(list((index.folder / "segments").glob("tmp-*"))) == 1
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    waiting.join(20)
    assert data(index) == "second"
    assert [f.name for f in (index.folder / "segments").iterdir()] == [index.manifest().segment]


def test_removing_waits_for_a_publisher(home):
    index, began, go = Index(home, "a"), threading.Event(), threading.Event()

    def write(folder):
        began.set()
        assert go.wait(20)
        return MANIFEST

    publisher = threading.Thread(target=index.publish, args=(write,))
    publisher.start()
    assert began.wait(20)
    remover = threading.Thread(target=index.remove)
    remover.start()
    assert index.folder.is_dir()
    go.set()
    publisher.join(20)
    remover.join(20)
    until(lambda: not index.folder.exists())
    assert index_names(home) == []
    assert not list(home.root.glob("removed-*"))


def test_names_are_listed_in_order_and_near_ones_offered(home):
    for name in ("beta", "alpha"):
        publish(Index(home, name))
    (home.indexes / "half").mkdir()
    assert index_names(home) == ["alpha", "beta"]
    with pytest.raises(NoSuchIndex, match="did you mean 'alpha'"):
        open_index(home, "alpa")


@pytest.mark.parametrize("name", ["missing", "../jobs", "a/b", ""])
def test_what_is_no_index_is_not_found(home, name):
    with pytest.raises(NoSuchIndex):
        open_index(home, name)


def test_removing_what_is_not_there_is_an_error(home):
    with pytest.raises(NoSuchIndex):
        Index(home, "none").remove()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "ü", "a b", "a\n"])
def test_bad_names(name):
    with pytest.raises(BadName):
        check_index_name(name)


def test_a_newer_format_is_refused_and_kept(home):
    index = Index(home, "a")
    publish(index)
    file = index.folder / "manifest.json"
    file.write_text(json.dumps({"format": 2, "anything": "else"}))
    with pytest.raises(NewerFormat):
        open_index(home, "a")
    with pytest.raises(NewerFormat):
        publish(index)
    assert json.loads(file.read_text())["format"] == 2
    assert list((index.folder / "segments").iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": "x"}'])
def test_a_damaged_manifest_is_named(home, text):
    index = Index(home, "a")
    publish(index)
    (index.folder / "manifest.json").write_text(text)
    with pytest.raises(MalformedFile, match=r"manifest\.json"):
        open_index(home, "a")


def test_fields_of_a_later_release_within_the_format_are_left_alone(home):
    index = Index(home, "a")
    publish(index)
    file = index.folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "later": 1}))
    assert asdict(index.manifest())["model"] == "fake"


def test_a_reader_opens_again_when_its_segment_went(ingest, tree, home, monkeypatch):
    root = tree({"a.py": "one"})
    ingest(root)
    stale = Index(home, "x").manifest()
    tree({"a.py": "two"})
    ingest(root)
    answers = iter([stale])
    real = Index.manifest
    monkeypatch.setattr(Index, "manifest", lambda self: next(answers, None) or real(self))
    assert _opened(home, "x").manifest == real(Index(home, "x"))
