"""Versions of an index over many changes of a tree: whatever is published, merged, or killed, it is what the tree is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import DamagedFile, NoSuchIndex, NotAllowed
from dgpunet_dask.model.owner import User
from dgpunet_dask.retrieval import compacting, publishing
from dgpunet_dask.retrieval.compacting import compact, compact_if_due
from dgpunet_dask.retrieval.index import Index, open_index
from dgpunet_dask.retrieval.ingest import publish
from dgpunet_dask.retrieval.opened import OpenIndex
from dgpunet_dask.retrieval.segments import CHUNKS, KEYS, VECTORS, Segment
from dgpunet_dask.retrieval.verify import verify


def contents(home, name="x"):
    """Return the text of each chunk by path and first line, each found through its vector."""
    opened = OpenIndex(*open_index(home, name))
    everything = opened.nearest(np.ones(16, np.float32), 10_000)
    found = {f"{place.path}:{row['start_line']}": row["text"] for place in everything for row in [opened.chunk(place)]}
    assert len(found) == len(everything)
    return found


def of_tree(files):
    """What an index of these files has."""
    return {f"{path}:{1 + 2 * n}": part for path, text in files.items() for n, part in enumerate(text.split("\n\n")) if part.strip()}


PATHS = st.sampled_from(["a.py", "b.py", "c.txt", "sub/d.md", "sub/e.go"])
TEXTS = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), max_size=5).map("\n\n".join)
CHANGES = st.lists(st.tuples(st.dictionaries(PATHS, TEXTS, max_size=5), st.sampled_from(["", "compact", "due"])), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, st.integers(0, 10**6))
def test_an_index_is_what_its_tree_is_whatever_came_before(ingest, home, tmp_path, changes, number):
    root, name = tmp_path / f"tree-{number}-{ingest.runs}", f"x{number}-{ingest.runs}"
    for files, then in changes:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for path, text in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(text)
        done = ingest(root, index=name)
        if done.manifest is None:
            continue
        if then:
            compact(home, name, all_of_it=then == "compact")
        assert contents(home, name) == of_tree(files)
        verdict = verify(home, name)
        assert (verdict.faults, verdict.files, verdict.chunks, verdict.changed, verdict.gone) == ([], done.manifest.files, done.manifest.chunks, 0, 0)
        if then == "compact":
            assert verdict.segments <= 1
    shutil.rmtree(root)


def many(number, first=0):
    return {f"f{n:03d}.txt": f"text {n}" for n in range(first, first + number)}


def test_a_small_change_writes_a_small_segment_and_keeps_the_others(ingest, tree, home):
    root = tree(many(1100))
    [large] = ingest(root).manifest.segments
    tree({"f007.txt": "changed"})
    published = ingest(root).manifest
    assert published.segments[0] == large
    assert [segment.rows for segment in map(Segment, Index(home, "x").segments(published))] == [1100, 1]
    assert verify(home, "x").faults == []


def test_a_rename_writes_no_segment_at_all(ingest, tree, home):
    root = tree(many(50))
    before = ingest(root).manifest
    (root / "f007.txt").rename(root / "moved.txt")
    after = ingest(root)
    assert (after.manifest.segments, after.embedded) == (before.segments, 0)
    assert contents(home)["moved.txt:1"] == "text 7"


def test_what_is_gone_is_passed_over_and_found_again_without_embedding(ingest, tree, home):
    root = tree(many(1100))
    ingest(root)
    for n in range(100):
        (root / f"f{n:03d}.txt").unlink()
    ingest(root)
    assert len(contents(home)) == 1000
    compact(home, "x")
    tree(many(100))
    assert (ingest(root).embedded, len(contents(home))) == (0, 1100)


def test_a_compaction_leaves_out_what_is_gone(ingest, tree, home):
    root = tree(many(30))
    ingest(root)
    tree({**dict.fromkeys(many(20)), **many(5, 100)})
    ingest(root)
    done = compact(home, "x")
    assert (done.segments, done.rows) == (1, 15)
    assert compact(home, "x") == compacting.Compacted(1, 1, 15, 15)
    assert len(contents(home)) == 15
    tree(dict.fromkeys((*many(10, 20), *many(5, 100))))
    ingest(root)
    assert (compact(home, "x").segments, contents(home)) == (0, {})


def test_a_publication_may_come_while_segments_are_merged(ingest, tree, home, monkeypatch):
    monkeypatch.setattr(publishing, "along", lambda *_: [])
    root = tree(many(30))
    ingest(root)
    tree(dict.fromkeys(many(20)))
    ingest(root)
    real, met = compacting.append_segment, []

    def append(*args):
        real(*args)
        if not met:  # what the merge leaves out is listed again: it must not be put in force
            met.append(1)
            tree(many(20))
            ingest(root)

    monkeypatch.setattr(compacting, "append_segment", append)
    compact(home, "x")
    assert met
    assert len(contents(home)) == 30
    assert verify(home, "x").faults == []


def test_who_may_compact_and_verify(ingest, tree, home):
    root = tree({"a.py": "one"})
    folder, files = ingest.scan(root, by=User("ann"))
    publish(folder, home, ingest.units(files), ingest.clock, by=User("ann"))
    for act in (compact, verify):
        with pytest.raises(NoSuchIndex):
            act(home, "x", User("bob"))
    Index(home, "x").share(User("ann"))
    for act in (compact, verify):
        with pytest.raises(NotAllowed):
            act(home, "x", User("bob"))
        act(home, "x", User("ann"))


@pytest.mark.parametrize("name", [CHUNKS, VECTORS, KEYS])
def test_one_bit_is_noticed(ingest, tree, home, name):
    ingest(tree(many(20)))
    index, manifest = open_index(home, "x")
    file = index.segments(manifest)[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    faults = verify(home, "x").faults
    assert any(f"{name} changed since written" in fault or "cannot be read" in fault for fault in faults)


def test_files_that_changed_or_went_are_told_apart_from_faults(ingest, tree, home):
    root = tree({"a.py": "one\n\ntwo", "b.py": "three", "c.py": "four"})
    ingest(root)
    tree({"b.py": "other", "c.py": None})
    verdict = verify(home, "x")
    assert (verdict.faults, verdict.checked_spans, verdict.changed, verdict.gone) == ([], 2, 1, 1)


def test_several_roots_are_compared_with_their_files(ingest, tree, home):
    ingest(tree({"a.py": "one"}, "first"), tree({"b.py": "two"}, "second"))
    assert verify(home, "x").checked_spans == 2


def test_a_damaged_segment_is_not_compacted(ingest, tree, home):
    ingest(tree(many(20)))
    index, manifest = open_index(home, "x")
    (index.segments(manifest)[0] / KEYS).write_bytes(b"")
    with pytest.raises(DamagedFile):
        compact(home, "x")
    assert index.manifest() == manifest


KILLED = """
import sys, time
from pathlib import Path
from dgpunet_dask.config.home import Home
from dgpunet_dask.retrieval import compacting, publishing
def stay(*args):
    print("merging", flush=True)
    time.sleep(60)
compacting.append_segment = stay
compacting.compact(Home(Path(sys.argv[1])), "x")
"""


def test_a_killed_compaction_leaves_the_index_and_the_next_one_clears_up(ingest, tree, home):
    root = tree(many(30))
    ingest(root)
    tree(dict.fromkeys(many(5)))
    ingest(root)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(home.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "merging\n"
        tree({"new.txt": "new"})
        ingest(root)  # does not wait
        assert len(contents(home)) == 26
        waiting = threading.Thread(target=compact, args=(home, "x"))
        waiting.start()
        apart = Index(home, "x").folder / "compacting"
        assert len(list(apart.iterdir())) == 1
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    waiting.join(20)
    assert not apart.exists()
    assert (len(contents(home)), verify(home, "x").segments) == (26, 1)


def test_what_is_due_is_merged_and_what_goes_wrong_is_only_told(ingest, tree, home, monkeypatch, caplog):
    monkeypatch.setattr(publishing, "along", lambda *_: [])
    root = tree(many(30))
    ingest(root)
    compact_if_due(home, "x")
    tree(dict.fromkeys(many(20)))
    before = ingest(root).manifest
    compact_if_due(home, "x")
    index, after = open_index(home, "x")
    assert after.segments != before.segments
    assert [segment.rows for segment in map(Segment, index.segments(after))] == [10]
    tree(dict.fromkeys(many(9, 20)))
    ingest(root)
    (index.segments(after)[0] / KEYS).write_bytes(b"")
    compact_if_due(home, "x")
    assert "not merged" in caplog.text
