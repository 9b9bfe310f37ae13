from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dgpunet_dask.errors import BadName, DamagedFile, DiskFull, NotAllowed
from dgpunet_dask.model.owner import User
from dgpunet_dask.retrieval import ingest as module
from dgpunet_dask.retrieval.discover import Root
from dgpunet_dask.retrieval.filetable import FILES, read_files
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.ingest import index_name, publish
from dgpunet_dask.retrieval.modelfiles import ModelFiles
from dgpunet_dask.retrieval.opened import OpenIndex
from dgpunet_dask.retrieval.segments import VECTORS, SegmentWriter, open_new


def contents(home, name="x"):
    """Return the index's text by path and first line, each found through its own vector."""
    index = Index(home, name)
    manifest = index.manifest()
    opened = OpenIndex(index, manifest)
    everything = opened.nearest(np.ones(16, np.float32), 10_000)
    return {f"{place.path}:{row['start_line']}": row["text"] for place in everything for row in [opened.chunk(place)]}


def test_an_index_is_what_the_tree_is(ingest, tree, home):
    root = tree({"a.py": "one\n\ntwo", "b/c.md": "three"})
    done = ingest(root)
    assert contents(home) == {"a.py:1": "one", "a.py:3": "two", "b/c.md:1": "three"}
    assert (done.index, done.chunks, done.embedded, done.reused, done.tokens) == ("x", 3, 3, 0, 3)
    tree({"a.py": "one\n\nother", "b/c.md": None, "d.txt": "four"})
    done = ingest(root)
    assert contents(home) == {"a.py:1": "one", "a.py:3": "other", "d.txt:1": "four"}
    assert (done.chunks, done.embedded) == (3, 2)


def test_rename_copy_and_touch_embed_nothing(ingest, tree, home):
    root = tree({"a.py": "one\n\ntwo", "b.py": "three"})
    ingest(root)
    (root / "a.py").rename(root / "moved.py")
    tree({"sub/copy.py": "three"})
    (root / "b.py").touch()
    done = ingest(root)
    assert (done.chunks, done.embedded, done.reused, done.tokens) == (4, 0, 4, 0)
    assert contents(home) == {"moved.py:1": "one", "moved.py:3": "two", "b.py:1": "three", "sub/copy.py:1": "three"}


def test_equal_files_are_embedded_once(ingest, tree):
    _, files = ingest.scan(tree({"a.py": "same", "b.py": "same", "c.txt": "same"}))
    assert [(f.path, f.language) for f in files] == [("a.py", "python"), ("c.txt", "text")]


def test_a_file_with_an_unchanged_stat_is_not_read(ingest, tree, monkeypatch):
    root = tree({"a.py": "one", "b.py": "two"})
    ingest(root)
    tree({"b.py": "changed"})
    read = []
    real = module.read_text
    monkeypatch.setattr(module, "read_text", lambda entry: read.append(entry.path) or real(entry))
    ingest(root)
    assert read == ["b.py"]


def test_a_file_written_just_before_the_scan_is_read_again(ingest, tree, home):
    root = tree({"a.py": "one"})
    ingest.clock.now = (root / "a.py").stat().st_mtime + 1
    ingest(root)
    index = Index(home, "x")
    [row] = read_files(index.version(index.manifest()) / FILES)
    assert row.key == module.content_key("one", "python")
    _, files = ingest.scan(root)
    assert files == []
    assert ingest.counts == {"files": 1}


def test_another_model_reuses_nothing(ingest, tree):
    root = tree({"a.py": "one"})
    ingest(root)
    ingest.model = ModelFiles("fake", Path(), "digest-2", 64)
    assert ingest(root).embedded == 1


def test_a_tree_without_text_publishes_nothing(ingest, tree, home):
    root = tree({"data.bin": "\0", "blank.txt": "\n \n", "empty.py": ""})
    done = ingest(root)
    assert (done.index, done.chunks, done.manifest) == (None, 0, None)
    assert Index(home, "x").manifest() is None
    assert ingest.counts == {"skipped.binary": 1, "files": 2}


def test_an_index_follows_its_tree_into_emptiness_and_back(ingest, tree, home):
    root = tree({"a.py": "one"})
    ingest(root)
    tree({"a.py": None})
    done = ingest(root)
    assert (done.index, done.chunks) == ("x", 0)
    assert contents(home) == {}
    tree({"a.py": "one"})
    assert ingest(root).embedded == 0
    assert contents(home) == {"a.py:1": "one"}


def test_the_manifest_says_what_was_skipped(ingest, tree, home):
    root = tree({"a.py": "one", "b.bin": "\0", "c.bin": "\0", "Cargo.lock": "x"})
    ingest(root)
    manifest = Index(home, "x").manifest()
    assert (
        dict(manifest.skipped)
        == {"binary": 2, "lockfile": 1}
        == {k.removeprefix("skipped."): n for k, n in ingest.counts.items() if k != "files"}
    )
    assert (manifest.files, manifest.chunks, manifest.roots, manifest.scanned_s) == (1, 1, (str(root),), ingest.clock.now)


def test_what_a_scan_counts_on_stays_whatever_happens_to_the_index(ingest, tree, home):
    root = tree({"a.py": "one", "b.py": "two"})
    ingest(root)
    tree({"b.py": "changed"})
    folder, files = ingest.scan(root)
    other = tree({"z.py": "other"}, "other")
    ingest(other)
    Index(home, "x").remove()
    publish(folder, home, ingest.units(files), ingest.clock)
    assert contents(home) == {"a.py:1": "one", "b.py:1": "changed"}


def test_without_hard_links_the_base_is_copied(ingest, tree, home, monkeypatch):
    root = tree({"a.py": "one"})
    ingest(root)

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", no_links)
    assert ingest(root).reused == 1


def test_publishing_twice_from_one_scan_gives_the_same(ingest, tree, home):
    root = tree({"a.py": "one"})
    folder, files = ingest.scan(root)
    for _ in range(2):
        publish(folder, home, ingest.units(files), ingest.clock)
        assert contents(home) == {"a.py:1": "one"}


class Full:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file, room: int, code: int) -> None:
        self._file, self._room, self._code = file, room, code

    def write(self, data) -> int:
        self._room -= len(memoryview(data).cast("B"))
        if self._room < 0:
            raise OSError(self._code, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@pytest.mark.parametrize("room", [0, 100, 1500])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_version(ingest, tree, home, monkeypatch, room, code):
    root = tree({"a.py": "one"})
    ingest(root)
    before = Index(home, "x").manifest()
    tree({"a.py": "\n\n".join(f"text {n}" for n in range(50))})
    folder, files = ingest.scan(root)
    monkeypatch.setattr(SegmentWriter.__init__, "__defaults__", (lambda path: Full(open_new(path), room, code),))
    with pytest.raises(DiskFull):
        publish(folder, home, ingest.units(files), ingest.clock)
    index = Index(home, "x")
    assert index.manifest() == before
    assert [f.name for f in (index.folder / "segments").iterdir()] == list(before.segments)
    assert contents(home) == {"a.py:1": "one"}


def test_an_error_within_a_unit_leaves_the_old_version(ingest, tree, home):
    root = tree({"a.py": "one"})
    ingest(root)
    tree({"b.py": "two"})
    folder, files = ingest.scan(root)

    def breaking():
        yield from ingest.units(files)
        raise RuntimeError("damaged unit")

    with pytest.raises(RuntimeError):
        publish(folder, home, breaking(), ingest.clock)
    assert contents(home) == {"a.py:1": "one"}


def test_vectors_are_a_flat_index_that_faiss_reads(ingest, tree, home):
    import faiss

    ingest(tree({f"{n}.txt": f"text {n}" for n in range(5)}))
    index = Index(home, "x")
    [segment] = index.segments(index.manifest())
    file = segment / VECTORS
    read = faiss.read_index(str(file))
    assert (read.ntotal, read.d, read.metric_type) == (5, 16, faiss.METRIC_INNER_PRODUCT)
    written = file.with_name("again.faiss")
    faiss.write_index(read, str(written))
    assert written.read_bytes() == file.read_bytes()


def test_a_base_that_disagrees_with_itself_is_not_trusted(ingest, tree, home):
    root = tree({"a.py": "one", "b.py": "two"})
    ingest(root)
    tree({"b.py": "changed"})
    folder, files = ingest.scan(root)
    [segment] = (folder / "base").iterdir()
    file = segment / VECTORS
    damaged = file.read_bytes()[:4] + b"\0" + file.read_bytes()[5:]
    file.unlink()
    file.write_bytes(damaged[:8] + (7).to_bytes(8, "little") + damaged[16:])
    Index(home, "x").remove()
    with pytest.raises(DamagedFile, match="does not hold"):
        publish(folder, home, ingest.units(files), ingest.clock)


@pytest.mark.parametrize(
    ("name", "root", "found"), [("given", "/a/b", "given"), (None, "/a/my-repo.git", "my-repo.git"), (None, "/", "root")]
)
def test_the_name_of_an_index(name, root, found):
    assert index_name(name, [Root(Path(root))]) == found


@pytest.mark.parametrize(
    ("name", "root"), [("no/slash", "/a"), ("..", "/a"), (None, "/a/with space"), (None, "/a/.hidden"), ("", "/a")]
)
def test_names_that_an_index_may_not_have(name, root):
    with pytest.raises(BadName):
        index_name(name, [Root(Path(root))])


def test_the_listing_survives_odd_names(ingest, tree, home):
    ingest(tree({'new\nline "quoted".py': "one", "ü 🎉.py": "two"}))
    assert set(contents(home)) == {'new\nline "quoted".py:1', "ü 🎉.py:1"}
    shutil.rmtree(home.jobs)
    assert json.loads((home.indexes / "x" / "manifest.json").read_text())["format"] == 2


def test_another_users_index_is_refused_before_a_file_is_read(ingest, tree, home, monkeypatch):
    root = tree({"a.py": "one"})
    folder, files = ingest.scan(root)
    publish(folder, home, ingest.units(files), ingest.clock, by=User("ann"), shared=True)
    monkeypatch.setattr(module, "read_text", lambda entry: pytest.fail(f"{entry.path} was read"))
    monkeypatch.setattr(module, "discover", lambda *_: pytest.fail("the tree was walked"))
    with pytest.raises(NotAllowed, match="--set index=NAME"):
        ingest.scan(root, by=User("bob"))
    assert not (home.jobs / "2" / "base").exists()


def test_who_publishes_first_wins_the_name(ingest, tree, home):
    anns, bobs = tree({"a.py": "one"}, "anns"), tree({"b.py": "two"}, "bobs")
    first, second = ingest.scan(anns, by=User("ann")), ingest.scan(bobs, by=User("bob"))
    publish(second[0], home, ingest.units(second[1]), ingest.clock, by=User("bob"))
    with pytest.raises(NotAllowed):
        publish(first[0], home, ingest.units(first[1]), ingest.clock, by=User("ann"))
    assert contents(home) == {"b.py:1": "two"}
    assert Index(home, "x").manifest().owner == "bob"
