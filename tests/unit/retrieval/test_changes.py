"""An index that is told what has changed is the one that a look at the whole trees would make."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval import standing
from dgpunet_dask.retrieval.changes import PATHS_MAX, Below, Changes, below, changes_of
from dgpunet_dask.retrieval.filetable import FILES, read_files
from dgpunet_dask.retrieval.index import Index
from dgpunet_dask.retrieval.lexical import LexicalIndex
from dgpunet_dask.retrieval.lexicon import LEXICAL
from dgpunet_dask.retrieval.skips import read_skips
from dgpunet_dask.retrieval.verify import verify
from tests.unit.retrieval.test_versions import contents


def state(home, name):
    """Return all that two indexes of one tree must agree in."""
    index = Index(home, name)
    manifest = index.manifest()
    version = index.version(manifest)
    rows = sorted((row.path, row.key, row.language, row.chunks) for row in read_files(version / FILES))
    skips = sorted(skip[:3] for skip in read_skips(version))
    counts = (manifest.files, manifest.chunks, manifest.tokens, dict(manifest.skipped), LexicalIndex(version / LEXICAL).count())
    return rows, skips, counts, contents(home, name)


class Tree:
    """A tree that is changed at random, and the paths that somebody who follows it would hear of."""

    NAMES = ("a.py", "b.txt", "c.min.js", "img.bin", "package-lock.json", ".gitignore", ".dgpunetignore", "pyvenv.cfg", "d.md", "\u00e9.go")
    FOLDERS = ("", "s", "s/t", "node_modules", "build", "s/build")
    RULES = ("", "*.txt\n", "build/\n", "a.py\n!b.txt\n", "t\n")

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.heard: set[str] = set()

    def change(self) -> None:
        kind = self.random.choice([self.write, self.write, self.write, self.delete, self.move, self.move_folder, self.mode, self.link, self.touch])
        kind()

    def told(self, version: str) -> Changes:
        heard, self.heard = self.heard, set()
        return Changes(version, tuple(os.fsencode(path) for path in sorted(heard)))

    def _some(self) -> Path | None:
        files = sorted(path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return self.random.choice(files) if files else None

    def _hear(self, *paths: Path) -> None:
        self.heard |= {str(path) for path in paths}

    def _new(self) -> Path:
        path = self.root / self.random.choice(self.FOLDERS) / self.random.choice(self.NAMES)
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._hear(*missing, path)
        return path

    def write(self) -> None:
        path = self._new()
        if path.is_symlink():
            path.unlink()
        if path.name in (".gitignore", ".dgpunetignore"):
            path.write_text(self.random.choice(self.RULES))
        elif path.suffix == ".bin":
            path.write_bytes(b"\0" * self.random.randint(1, 9))
        else:
            path.write_text("\n\n".join(self.random.choices(("one", "two", "three", "four"), k=self.random.randint(0, 3))))

    def delete(self) -> None:
        if (path := self._some()) is not None:
            path.unlink()
            self._hear(path)

    def move(self) -> None:
        if (path := self._some()) is not None:
            to = self._new()
            to.unlink(missing_ok=True)
            path.rename(to)
            self._hear(path)

    def move_folder(self) -> None:
        folder = self.root / self.random.choice(self.FOLDERS[1:])
        to = self.root / self.random.choice(("moved", "vendor", *self.FOLDERS[1:]))
        if folder.is_dir() and not to.exists() and to.parent.is_dir() and folder not in to.parents:
            folder.rename(to)
            self._hear(folder, to)  # of what is in it nothing is heard

    def mode(self) -> None:
        if (path := self._some()) is not None:
            path.chmod(self.random.choice((0o644, 0o755)))
            self._hear(path)

    def link(self) -> None:
        path = self._new()
        if not path.is_dir():
            path.unlink(missing_ok=True)
            path.symlink_to("elsewhere")

    def touch(self) -> None:
        if (path := self._some()) is not None:
            os.utime(path)
            self._hear(path)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.lists(st.integers(1, 4), min_size=1, max_size=6), st.booleans())
def test_what_is_told_of_changes_is_what_a_whole_look_finds(ingest, home, tmp_path, seed, batches, repository):
    run = ingest.runs
    root, told, whole = tmp_path / f"tree-{run}", f"told-{run}", f"whole-{run}"
    root.mkdir()
    if repository:
        git(root, "init")
    (root / "first.py").write_text("first")
    version = ingest(root, index=told).manifest.version
    ingest(root, index=whole)
    tree = Tree(root, seed)
    for count in batches:
        for _ in range(count):
            tree.change()
        version = ingest(root, index=told, changes=tree.told(version)).manifest.version
        ingest(root, index=whole)
        assert state(home, told) == state(home, whole)
        assert verify(home, told).faults == []
    shutil.rmtree(root)


def git(root, *arguments):
    options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *options, *arguments], cwd=root, check=True, capture_output=True).stdout


def changed_between(root, one, other):
    names = git(root, "diff", "--name-only", "--no-renames", "-z", one, other).split(b"\0")
    return tuple(os.fsencode(root) + b"/" + name for name in names if name)


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init")
    for n in range(8):
        (root / f"pkg{n % 2}").mkdir(exist_ok=True)
        (root / f"pkg{n % 2}" / f"f{n}.py").write_text(f"text {n}\n\nmore {n}")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    return root


@pytest.mark.parametrize("told", [True, False])
def test_a_rename_a_copy_and_a_branch_switch_embed_nothing(ingest, home, repository, told):
    def again(*paths):
        before = Index(home, "x").manifest().version
        return ingest(repository, changes=Changes(before, paths) if told else None)

    top = os.fsencode(repository)
    assert ingest(repository).embedded == 16
    (repository / "pkg0").rename(repository / "renamed")
    renamed = again(top + b"/pkg0", top + b"/renamed")
    assert (renamed.embedded, renamed.chunks) == (0, 16)
    shutil.copytree(repository / "renamed", repository / "copy")
    copied = again(top + b"/copy")
    assert (copied.embedded, copied.chunks) == (0, 24)
    git(repository, "checkout", "-q", "-b", "other")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "two")
    git(repository, "checkout", "-q", "main")
    back = again(*changed_between(repository, "main", "other"))
    assert (back.embedded, back.chunks) == (0, 16)
    git(repository, "checkout", "-q", "other")
    forth = again(*changed_between(repository, "main", "other"))
    assert (forth.embedded, forth.chunks) == (0, 24)
    assert verify(home, "x").faults == []


def test_touching_changes_no_version_and_says_that_the_trees_were_looked_at(ingest, tree, home):
    root = tree({"a.py": "one", "b.bin": "\0", "sub/c.py": "two"})
    first = ingest(root).manifest
    before = {path.name: path.stat().st_ino for path in Index(home, "x").folder.rglob("*") if path.name != "manifest.json"}
    ingest.clock.now += 100
    os.utime(root / "a.py")
    os.utime(root / "b.bin")
    again = ingest(root)
    assert (again.manifest.content, again.chunks, again.embedded) == (first.content, 2, 0)
    assert (again.manifest.scanned_s, again.manifest.reconciled_s, again.manifest.published_s) == (4e9 + 100, 4e9 + 100, 4e9)
    ingest.clock.now += 100
    told = ingest(root, changes=Changes(first.version, (os.fsencode(root / "a.py"),)))
    assert (told.manifest.scanned_s, told.manifest.reconciled_s, told.manifest.content) == (4e9 + 200, 4e9 + 100, first.content)
    assert ingest.counts == {"files": 2, "skipped.binary": 1}
    assert before == {path.name: path.stat().st_ino for path in Index(home, "x").folder.rglob("*") if path.name != "manifest.json"}


def test_many_touched_files_make_a_version_that_knows_their_times(ingest, tree, monkeypatch):
    monkeypatch.setattr(standing, "_TOUCHED_MAX", 1)
    root = tree({"a.py": "one", "b.py": "two"})
    first = ingest(root).manifest
    for name in ("a.py", "b.py"):
        os.utime(root / name)
    again = ingest(root)
    assert (again.manifest.version != first.version, again.embedded) == (True, 0)


def looked(monkeypatch):
    """Note for each walk whether it is of the whole trees."""
    seen = []
    real = standing.standing

    def noting(*arguments):
        seen.append(real(*arguments))
        return seen[-1]

    monkeypatch.setattr("dgpunet_dask.retrieval.ingest.standing", noting)
    return seen


def test_what_another_publication_has_changed_makes_it_a_whole_look(ingest, tree, monkeypatch):
    root = tree({"a.py": "one", "b.py": "two"})
    old = ingest(root).manifest.version
    tree({"a.py": "three"})
    ingest(root)
    tree({"a.py": "four", "b.py": "five"})
    seen = looked(monkeypatch)
    done = ingest(root, changes=Changes(old, (os.fsencode(root / "a.py"),)))
    assert (seen, done.embedded) == ([None], 2)


def test_only_what_was_told_is_looked_at(ingest, tree, home, monkeypatch):
    root = tree({"a.py": "one", "b.py": "two", "sub/c.py": "three"})
    version = ingest(root).manifest.version
    tree({"a.py": "four", "b.py": "five"})
    seen = looked(monkeypatch)
    done = ingest(root, changes=Changes(version, (os.fsencode(root / "a.py"),)))
    assert (len(seen), done.embedded, contents(home)["b.py:1"]) == (1, 1, "two")
    assert ingest(root).embedded == 1


@pytest.mark.parametrize("damage", ["skips", "words", "segment"])
def test_a_version_that_is_not_whole_is_not_built_upon(ingest, tree, home, damage):
    root = tree({"a.py": "one", "b.py": "two"})
    manifest = ingest(root).manifest
    index = Index(home, "x")
    if damage == "skips":
        (index.version(manifest) / "skipped.jsonl").write_text('{"reading": "code-1"}\n["binary", "gone.bin", ""]\n')
    elif damage == "words":
        shutil.rmtree(index.version(manifest) / LEXICAL)
    else:
        (index.segments(manifest)[0] / "keys.arrow").write_bytes(b"no")
    done = ingest(root, changes=Changes(manifest.version, (os.fsencode(root / "a.py"),)))
    assert done.manifest.version != manifest.version
    assert contents(home) == {"a.py:1": "one", "b.py:1": "two"}
    assert verify(home, "x").faults == []


def test_what_lies_below_a_root_and_what_makes_all_of_it_changed():
    assert below(b"/r", [b"/r/a/b.py", b"/r/a", b"/elsewhere/x"]) == Below(frozenset([b"a"]), frozenset([b""]))
    assert below(b"/r", [b"/r/a/b/c.py"]) == Below(frozenset([b"a/b/c.py"]), frozenset([b"a/b", b"a", b""]))
    assert below(b"/r", [b"/r/sub/pyvenv.cfg"]) == Below(frozenset([b"sub"]), frozenset([b""]))
    assert below(b"/r", [b"/r/sub/.git"]) == Below(frozenset([b"sub"]), frozenset([b""]))
    assert below(b"/r", [b"/r/.git/index", b"/r2/x"]) == Below(frozenset(), frozenset())
    for path in (b"/r", b"/", b"/r/.gitignore", b"/r/sub/.dgpunetignore", b"/r/pyvenv.cfg", b"/r/.git", b"/r/.git/info/exclude"):
        assert below(b"/r", [b"/r/a.py", path]) is None


def test_changes_are_whole_paths_and_speak_of_a_version():
    assert changes_of(["/a"], None) is None
    assert changes_of([], "v") is None
    assert changes_of(["/a"], "v") == Changes("v", (b"/a",))
    with pytest.raises(BadValue, match="whole path"):
        changes_of(["a"], "v")


def test_more_changes_than_are_worth_it_are_a_whole_look(ingest, tree, monkeypatch):
    root = tree({"a.py": "one"})
    version = ingest(root).manifest.version
    seen = looked(monkeypatch)
    ingest(root, changes=Changes(version, tuple(os.fsencode(root / f"{n}.py") for n in range(PATHS_MAX + 1))))
    assert seen == [None]
