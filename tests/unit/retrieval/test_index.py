from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from dgpunet_dask.errors import BadName, MalformedFile, NewerFormat, NoSuchIndex, NotAllowed
from dgpunet_dask.model.owner import OPERATOR, User
from dgpunet_dask.retrieval.described import all_described, size_bytes
from dgpunet_dask.retrieval.index import Index, Manifest, check_index_name, index_names, open_index
from dgpunet_dask.retrieval.search import _opened
from tests.helpers import until

MANIFEST = Manifest("", (), "fake", "digest", 4, None, 1)


def publish(index: Index, word: str = "x") -> Manifest:
    def write(draft):
        (draft.version / "list").write_text(word)
        (draft.new_segment() / "data").write_text(word)
        return version()

    return index.publish(write)


def version(**fields) -> Manifest:
    return replace(MANIFEST, version=uuid.uuid4().hex, **fields)


def data(index: Index) -> str:
    manifest = index.manifest()
    [segment] = index.segments(manifest)
    found = (segment / "data").read_text()
    assert (index.version(manifest) / "list").read_text() == found
    return found


def test_a_new_version_replaces_the_old_one(home):
    index = Index(home, "a")
    assert index.manifest() is None
    first = publish(index, "first")
    assert data(index) == "first"
    assert publish(index, "second").version != first.version
    assert data(index) == "second"
    assert len(list((index.folder / "segments").iterdir())) == 1
    assert size_bytes(index, index.manifest()) == 2 * len("second")


def test_a_reader_of_the_old_version_keeps_its_files(home):
    index = Index(home, "a")
    publish(index, "first")
    with (index.segments(index.manifest())[0] / "data").open() as opened:
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
    assert sorted(f.name for f in index.folder.iterdir()) == ["drafts", "manifest.json", "segments", "versions"]


KILLED = """
import sys, time
from pathlib import Path
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval.index import Index
def write(draft):
    (draft.new_segment() / "data").write_text("half")
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
        assert len(list((index.folder / "drafts").iterdir())) == 1
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    waiting.join(20)
    assert data(index) == "second"
    assert [f.name for f in (index.folder / "segments").iterdir()] == list(index.manifest().segments)


def test_removing_waits_for_a_publisher(home):
    index, began, go = Index(home, "a"), threading.Event(), threading.Event()

    def write(draft):
        began.set()
        assert go.wait(20)
        return version()

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
    file.write_text(json.dumps({"format": 3, "anything": "else"}))
    with pytest.raises(NewerFormat):
        open_index(home, "a")
    with pytest.raises(NewerFormat):
        publish(index)
    assert json.loads(file.read_text())["format"] == 3
    assert list((index.folder / "segments").iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": "x"}'])
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


ANN, BOB, ROOT = User("ann"), User("bob"), User("root", operates=True)


def whose(index: Index) -> tuple[str | None, bool]:
    manifest = index.manifest()
    return manifest.owner, manifest.shared


@pytest.mark.parametrize(("first", "then", "owner", "shared"), [
    ((ANN, False), (ANN, False), "ann", False), ((ANN, False), (ANN, True), "ann", True), ((ANN, True), (ANN, False), "ann", True),
    ((ANN, False), (ROOT, False), "ann", False), ((ANN, False), (ROOT, True), "ann", True), ((ROOT, False), (ROOT, False), "root", False),
    ((OPERATOR, False), (ROOT, False), "root", False), ((ANN, False), (BOB, True), None, None), ((ANN, True), (BOB, False), None, None),
    ((ROOT, True), (BOB, False), None, None), ((OPERATOR, False), (BOB, False), None, None), ((User(), False), (User(), False), None, None),
])  # fmt: skip
def test_the_first_publisher_owns_an_index_and_sharing_lasts(home, first, then, owner, shared):
    index = Index(home, "a")
    index.publish(lambda _: version(), first[0], shared=first[1])
    before = index.manifest()
    if shared is None:
        with pytest.raises(NotAllowed, match="--set index=NAME"):
            index.publish(lambda _: pytest.fail("it was begun"), then[0], shared=then[1])
        assert index.manifest() == before
        assert [f.name for f in (index.folder / "versions").iterdir()] == [before.version]
    else:
        index.publish(lambda _: version(), then[0], shared=then[1])
        assert whose(index) == (owner, shared)


def test_what_the_written_manifest_says_of_its_owner_does_not_count(home):
    index = Index(home, "a")
    index.publish(lambda _: version(owner="bob", shared=True), ANN)
    assert whose(index) == ("ann", False)


def test_an_index_of_an_older_release_is_the_operators(home):
    index = Index(home, "a")
    publish(index)
    file = index.folder / "manifest.json"
    raw = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in raw.items() if k not in ("owner", "shared")}))
    assert whose(index) == (None, False)
    with pytest.raises(NoSuchIndex):
        open_index(home, "a", ANN)
    assert open_index(home, "a", ROOT)[1] == index.manifest()


@pytest.mark.parametrize("field", [{"owner": 1}, {"shared": "yes"}, {"shared": None}])
def test_an_owner_that_is_no_name_is_a_damage(home, field):
    index = Index(home, "a")
    publish(index)
    file = index.folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **field}))
    with pytest.raises(MalformedFile, match=next(iter(field))):
        index.manifest()


@pytest.mark.parametrize(("by", "shared", "error"), [
    (ANN, False, None), (ROOT, False, None), (BOB, True, NotAllowed), (BOB, False, NoSuchIndex), (User(), False, NoSuchIndex),
])  # fmt: skip
def test_who_may_share_and_remove(home, by, shared, error):
    index = Index(home, "anns")
    index.publish(lambda _: version(), ANN, shared=shared)
    before = index.manifest()
    if error is None:
        assert index.share(by).shared
        assert index.manifest() == replace(before, shared=True)
        assert not index.share(by, shared=False).shared
        assert index.manifest() == before
        index.remove(by)
        assert not index.folder.exists()
        return
    for act in (index.share, index.remove):
        with pytest.raises(error) as told:
            act(by)
        assert error is NotAllowed or str(told.value) == str(NoSuchIndex(name="anns", hint="."))
    assert index.manifest() == before


def test_what_another_has_is_neither_listed_nor_offered(home):
    for name, by, shared in (("anns", ANN, False), ("bobs", BOB, False), ("ours", ANN, True)):
        Index(home, name).publish(lambda _: version(), by, shared=shared)
    Index(home, "odd").folder.mkdir()
    (home.indexes / "odd" / "manifest.json").write_text("{}")
    assert index_names(home, BOB) == ["bobs", "ours"]
    assert index_names(home, ROOT) == ["anns", "bobs", "odd", "ours"]
    assert [found["index"] for found in all_described(home, BOB)] == ["bobs", "ours"]
    assert [found["error"] is None for found in all_described(home, ROOT)] == [True, True, False, True]
    for name in ("anns", "annz", "odd"):
        with pytest.raises(NoSuchIndex) as told:
            open_index(home, name, BOB)
        assert "did you mean" not in str(told.value)
    with pytest.raises(NoSuchIndex, match="did you mean 'anns'"):
        open_index(home, "annz", ANN)


def test_who_may_not_remove_an_index_learns_it_while_it_is_being_published(home):
    index = Index(home, "anns")
    index.publish(lambda _: version(), ANN)
    with index.lock(), ThreadPoolExecutor(1) as other, pytest.raises(NoSuchIndex):
        other.submit(Index(home, "anns").remove, BOB).result(10)


def test_sharing_what_is_not_there_leaves_nothing_behind(home):
    with pytest.raises(NoSuchIndex):
        Index(home, "none").share(ROOT)
    assert not list((home.root / "locks").glob("*none*"))


def test_removing_what_cannot_be_read_is_the_operators(home):
    index = Index(home, "a")
    index.publish(lambda _: version(), ANN)
    (index.folder / "manifest.json").write_text("{}")
    with pytest.raises(NoSuchIndex):
        index.remove(ANN)
    with pytest.raises(NotAllowed, match="an operator has to remove it"):
        index.check_publisher(ANN)
    with pytest.raises(MalformedFile):
        index.check_publisher(ROOT)
    index.remove(ROOT)
    assert not index.folder.exists()
