from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dgpunet_dask.retrieval import discover as module
from dgpunet_dask.retrieval import gitignored, rules
from dgpunet_dask.retrieval.discover import roots_of
from dgpunet_dask.retrieval.gitignored import spec_of, verdict_of
from tests.unit.retrieval.trees import git, make, walk


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("git-home")))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def committed(tmp_path):
    """A repository with one commit: `git worktree` and `git submodule` want one."""
    root = make(tmp_path / "main", {".gitignore": "*.log\n", "a.py": "", "a.log": ""})
    git(root, "init", "-q", "-b", "trunk")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_a_submodule_is_walked_and_follows_its_own_rules(tmp_path, committed):
    inner = make(tmp_path / "inner", {".gitignore": "*.md\n", "b.py": ""})
    git(inner, "init", "-q")
    git(inner, "add", ".")
    git(inner, "commit", "-q", "-m", "first")
    git(committed, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "lib/inner")
    assert (committed / "lib/inner/.git").is_file(), "a submodule has a file where a repository has a folder"
    make(committed, {"lib/inner/kept.log": "", "lib/inner/x.md": ""})
    found, skipped = walk(committed)
    assert found == [".gitignore", ".gitmodules", "a.py", "lib/inner/.gitignore", "lib/inner/b.py", "lib/inner/kept.log"]
    assert skipped == Counter([("ignored", "a.log"), ("ignored", "lib/inner/x.md")])


def test_a_submodule_named_as_root_is_a_repository(tmp_path, committed):
    git(committed, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(committed), "again")
    make(committed, {"again/x.log": ""})
    assert walk(committed / "again") == ([".gitignore", "a.py"], Counter([("ignored", "x.log")]))


@pytest.mark.parametrize("place", ["beside", "main/inside"])
def test_a_linked_worktree_is_a_repository(tmp_path, committed, place):
    linked = tmp_path / place
    git(committed, "worktree", "add", "-q", "-b", "other", str(linked))
    make(linked, {"b.log": "", "b.py": ""})
    assert (linked / ".git").is_file()
    assert walk(linked) == ([".gitignore", "a.py", "b.py"], Counter([("ignored", "b.log")]))
    if place.startswith("main"):
        assert walk(committed)[0] == [".gitignore", "a.py", "inside/.gitignore", "inside/a.py", "inside/b.py"]


@pytest.mark.parametrize("content", ["", "gitdir: ./nowhere\n", "gitdir: .\n", "no such words"])
def test_a_git_file_that_leads_nowhere_makes_no_repository(tmp_path, content):
    make(tmp_path, {".gitignore": "*.txt\n", "sub/.git": content, "sub/a.txt": "", "sub/a.py": "", "sub/.gitignore": "*.md", "sub/x.md": ""})
    assert walk(tmp_path)[0] == [".gitignore", "sub/.gitignore", "sub/a.py"]
    assert walk(tmp_path / "sub")[0] == [".gitignore", "a.py", "a.txt"]


@pytest.mark.parametrize("kind", ["repository", "plain", "without git"])
def test_own_ignore_files_hold_everywhere(tmp_path, kind, monkeypatch):
    make(tmp_path, {".dgpunetignore": "*.csv\n/data/\n", "a.py": "", "a.csv": "", "data/x.py": "", "in/data/y.py": "", "in/z.csv": ""})
    make(tmp_path, {"in/.dgpunetignore": "!keep.csv\n*.tmp\n", "in/keep.csv": "", "in/q.tmp": "", "q.tmp": ""})
    if kind == "repository":
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", ".")  # what git tracks is left out as well
    if kind == "without git":
        monkeypatch.setattr(gitignored, "run_git", _no_git)
    found, skipped = walk(tmp_path)
    assert found == [".dgpunetignore", "a.py", "in/.dgpunetignore", "in/data/y.py", "in/keep.csv", "q.tmp"]
    assert skipped == Counter(("ignored", p) for p in ("a.csv", "data", "in/z.csv", "in/q.tmp"))


def _no_git(*_):
    raise gitignored.GitUnavailableError("not installed")


def test_own_ignore_files_bring_nothing_back_that_git_ignores(tmp_path):
    make(tmp_path, {".gitignore": "*.log\nbuild/\n", ".dgpunetignore": "!*.log\n!build/\n", "a.log": "", "build/x.py": "", "a.py": ""})
    assert walk(tmp_path) == ([".dgpunetignore", ".gitignore", "a.py"], Counter([("ignored", "a.log"), ("ignored", "build")]))


def test_own_ignore_files_reach_into_nested_repositories(tmp_path):
    make(tmp_path, {".dgpunetignore": "*.csv\n", "inner/a.csv": "", "inner/a.py": "", "inner/.dgpunetignore": "/b.py", "inner/b.py": ""})
    git(tmp_path / "inner", "init", "-q")
    assert walk(tmp_path)[0] == [".dgpunetignore", "inner/.dgpunetignore", "inner/a.py"]


def test_own_ignore_files_above_a_root_hold_within_its_repository_only(tmp_path):
    make(tmp_path, {".dgpunetignore": "a.py\n", "repo/.dgpunetignore": "*.csv\n/out/\n", "repo/src/a.py": "", "repo/src/b.csv": ""})
    make(tmp_path / "repo", {"out/kept.csv": "", "out/.dgpunetignore": "b.py", "out/b.py": ""})
    git(tmp_path / "repo", "init", "-q")
    assert walk(tmp_path / "repo/src") == (["a.py"], Counter([("ignored", "b.csv")]))
    assert walk(tmp_path / "repo/out")[0] == [".dgpunetignore", "kept.csv"], "it was named on purpose, and has its own rules"


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_an_own_ignore_file_that_is_no_file_has_no_rules(tmp_path, kind):
    make(tmp_path, {"a.py": "", "rules": "a.py\n"})
    place = tmp_path / ".dgpunetignore"
    {"pipe": os.mkfifo, "link": lambda p: p.symlink_to("rules"), "folder": os.mkdir}[kind](place)
    assert walk(tmp_path)[0] == ["a.py", "rules"]


def test_ignore_files_are_read_as_git_reads_them(tmp_path):
    file = tmp_path / "rules"
    file.write_bytes(b"\xef\xbb\xbf*.bom\r\nodd\x0bname\nform\x0cfeed\n\\#real\n# comment\nlast")
    spec = spec_of(os.fsencode(file))
    for name in (b"x.bom", b"odd\x0bname", b"form\x0cfeed", b"#real", b"last"):
        assert verdict_of(spec, name, is_dir=False) is True, name
    for name in (b"odd", b"name", b"feed", b"comment"):
        assert verdict_of(spec, name, is_dir=False) is None, name


names = st.sampled_from(["a", "b", "build", "x.log", "y.py", "deep", "A b", "ü"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
lines = st.sampled_from(
    ["*.log", "build/", "/a", "!x.log", "deep/**", "**/b", "b/*.py", "# no", "\\!a", "A b", "ü", "a*b", "a/**/b", "!b/", "[ab]", "*", "x.log ", "y.??", "/*/deep", "*/", "!*/", "**"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(files={"x.log/b"}, ignores={"": ["**/b", "!x.log"]})  # what re-includes a folder says nothing of what lies in it
@example(files={"a/deep/b", "b"}, ignores={"": ["*/"]})
@given(
    files=st.sets(paths, max_size=12),
    ignores=st.dictionaries(st.sampled_from(["", "a/", "build/", "a/deep/", "b/"]), st.lists(lines, max_size=4), max_size=3),
)
def test_own_ignore_files_mean_what_they_would_to_git(tmp_path_factory, files, ignores):
    root = tmp_path_factory.mktemp("tree")
    git(root, "init", "-q")
    for name in sorted(files):
        if not any((root / part).is_file() for part in Path(name).parents) and not (root / name).exists():
            make(root, {name: ""})
    for folder, rules_of_it in ignores.items():
        if (root / folder).is_dir():
            make(root, {f"{folder}.dgpunetignore": "\n".join(rules_of_it)})
    asked = ["git", "ls-files", "-z", "-o", "--exclude-per-directory=.dgpunetignore"]
    listed = subprocess.run(asked, cwd=root, capture_output=True, check=True).stdout
    assert sorted(walk(root)[0]) == sorted(os.fsdecode(p) for p in listed.split(b"\0") if p)


def test_what_two_roots_hold_belongs_to_the_first(tmp_path):
    make(tmp_path, {"all/a.py": "", "all/in/b.py": "", "all/in/c.min.js": "", "all/.gitignore": "out/\n", "all/out/d.py": ""})
    outer, inner, ignored = tmp_path / "all", tmp_path / "all/in", tmp_path / "all/out"
    found, skipped = walk(outer, inner)
    assert found == ["all/.gitignore", "all/a.py", "all/in/b.py"]
    assert skipped == Counter([("ignored", "all/out"), ("minified", "all/in/c.min.js")])
    found, skipped = walk(inner, outer)
    assert found == ["in/b.py", "all/.gitignore", "all/a.py"]
    assert skipped == Counter([("ignored", "all/out"), ("minified", "in/c.min.js")])
    assert walk(outer, ignored)[0] == ["all/.gitignore", "all/a.py", "all/in/b.py", "out/d.py"], "it was named on purpose"
    assert walk(outer, inner / "b.py", tmp_path / "all/in")[0].count("all/in/b.py") == 1


def test_a_root_beside_another_whose_name_it_begins_with_is_no_part_of_it(tmp_path):
    make(tmp_path, {"ab/x.py": "", "a/x.py": "", "a-b/x.py": ""})
    assert walk(tmp_path / "ab", tmp_path / "a", tmp_path / "a-b")[0] == ["ab/x.py", "a/x.py", "a-b/x.py"]


def test_the_file_systems_own_root_holds_every_other(tmp_path):
    assert module.overlap(roots_of(["/", tmp_path]))
    assert not module.overlap(roots_of([make(tmp_path / "a", {"x": ""}), make(tmp_path / "b", {"x": ""})]))
    assert not module.overlap(roots_of(["/"]))


def test_a_root_given_by_a_link_too_is_one(tmp_path):
    make(tmp_path, {"tree/a.py": ""})
    (tmp_path / "link").symlink_to("tree")
    assert walk(tmp_path / "link", tmp_path / "tree", tmp_path / "tree/../tree")[0] == ["a.py"]
    assert walk(tmp_path / "link", make(tmp_path / "other", {"b.py": ""}))[0] == ["link/a.py", "other/b.py"]


stems = st.sampled_from(["a", "x.min", "x-min", "x_min", "xmin", "a.js", "a.css", "q_pb2", "q_pb2_grpc", "q.pb", "q.Designer", "q.g", "q.g.i"])
ends = st.sampled_from(["js", "cjs", "css", "html", "svg", "map", "MAP", "py", "pyi", "go", "h", "cs", "dart", "x", ""])


@given(st.one_of(st.text(max_size=12), st.builds("{}.{}".format, stems, ends), st.builds("{}_generated.{}".format, stems, ends)))
def test_the_quick_look_at_a_stem_misses_no_pattern(name):
    patterns = ((rules._MINIFIED, "minified"), (rules._GENERATED, "generated"))
    wanted = next((code for pattern, code in patterns if re.search(pattern, name)), None)
    assert rules.skip_by_name(name) == ("lockfile" if name.lower() in rules.LOCKFILES else wanted)
