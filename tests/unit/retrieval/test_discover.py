from __future__ import annotations

import os
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.errors import MissingPath
from dgpunet_dask.retrieval import discover as module
from dgpunet_dask.retrieval import gitignored
from dgpunet_dask.retrieval.discover import discover, read_text, roots_of
from tests.unit.retrieval.trees import git, make, texts, walk


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("git-home")))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture(params=["git", "pathspec"])
def ignore_by(request, monkeypatch):
    """Both ways of knowing what is ignored: git, and pathspec where there is no git."""
    if request.param == "pathspec":

        def without(*_):
            raise gitignored.GitUnavailableError("not installed")

        monkeypatch.setattr(gitignored, "run_git", without)
    return request.param


def test_ignore_files_hold_outside_repositories(tmp_path, ignore_by):
    make(
        tmp_path,
        {
            ".gitignore": "*.log\nbuild/\n/top\n",
            "a.py": "",
            "a.log": "",
            "build/x.py": "",
            "build/deep/y.py": "",
            "top": "",
            "in/top": "",
        },
    )
    make(tmp_path, {"in/.gitignore": "!keep.log\n*.tmp\n", "in/keep.log": "", "in/x.tmp": "", "out.tmp": ""})
    found, skipped = walk(tmp_path)
    assert found == [".gitignore", "a.py", "in/.gitignore", "in/keep.log", "in/top", "out.tmp"]
    assert skipped == Counter([("ignored", p) for p in ("a.log", "build", "in/x.tmp", "top")])


def test_a_repository_has_gits_own_view(tmp_path):
    git(tmp_path, "init", "-q")
    make(
        tmp_path,
        {
            ".gitignore": "*.pyc\nout/\n",
            ".git/info/exclude": "secret.txt\n",
            "secret.txt": "",
            "a.py": "",
            "a.pyc": "",
            "out/x.py": "",
        },
    )
    make(tmp_path, {"tracked.pyc": "in the index", "only/p.pyc": "", "only/q.pyc": "", "only/out/z": ""})
    git(tmp_path, "add", "-f", "tracked.pyc")
    found, skipped = walk(tmp_path)
    assert found == [".gitignore", "a.py", "tracked.pyc"]
    assert sorted(p for _, p in skipped) == ["a.pyc", "only/out", "only/p.pyc", "only/q.pyc", "out", "secret.txt"]


def test_global_excludes_hold(tmp_path, monkeypatch):
    config = Path(os.environ["HOME"]) / ".config/git"
    make(config, {"ignore": "*.swp\n"})
    assert walk(make(tmp_path, {"a.py": "", "a.swp": ""})) == (["a.py"], Counter([("ignored", "a.swp")]))


def test_nested_repositories_follow_their_own_rules(tmp_path):
    git(tmp_path, "init", "-q")
    make(tmp_path, {".gitignore": "*.txt\n", "a.txt": "", "inner/b.txt": "", "inner/c.md": "", "inner/.gitignore": "*.md\n"})
    git(tmp_path / "inner", "init", "-q")
    found, skipped = walk(tmp_path)
    assert found == [".gitignore", "inner/.gitignore", "inner/b.txt"]
    assert skipped == Counter([("ignored", "a.txt"), ("ignored", "inner/c.md")])


def test_a_folder_that_merely_has_something_called_git_is_no_repository(tmp_path, ignore_by):
    make(tmp_path, {".gitignore": "*.txt\n", "sub/.git/HEAD": "nonsense", "sub/a.txt": "", "sub/a.py": ""})
    assert walk(tmp_path)[0] == [".gitignore", "sub/a.py"]


def test_an_ignored_folder_named_as_root_is_walked(tmp_path):
    git(tmp_path, "init", "-q")
    make(tmp_path, {".gitignore": "build/\n", "build/gen.py": ""})
    assert walk(tmp_path / "build")[0] == ["gen.py"]


def test_a_subfolder_of_a_repository_keeps_its_rules(tmp_path):
    git(tmp_path, "init", "-q")
    make(tmp_path, {".gitignore": "/src/skip\n", "src/skip": "", "src/a.py": ""})
    assert walk(tmp_path / "src") == (["a.py"], Counter([("ignored", "skip")]))


def test_nothing_that_a_tree_configures_is_run(tmp_path):
    git(tmp_path, "init", "-q")
    make(tmp_path, {"a.py": "", "evil.sh": f"#!/bin/sh\ntouch {tmp_path}/ran\n"})
    (tmp_path / "evil.sh").chmod(0o755)
    for key in ("core.fsmonitor", "core.hooksPath", "core.pager", "core.sshCommand"):
        git(tmp_path, "config", key, str(tmp_path / "evil.sh"))
    make(tmp_path, {".git/hooks/post-index-change": "#!/bin/sh\ntouch ran\n"})
    assert walk(tmp_path)[0] == ["a.py", "evil.sh"]
    assert not (tmp_path / "ran").exists()


def test_the_environments_git_settings_do_not_lead_elsewhere(tmp_path, monkeypatch):
    make(tmp_path, {"a/x.log": "", "a/.gitignore": "*.log", "b/y.py": ""})
    git(tmp_path / "b", "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "b/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "b"))
    assert walk(tmp_path / "a")[0] == [".gitignore"]


def test_a_repository_of_someone_else_is_listed(tmp_path):
    git(tmp_path, "init", "-q")
    make(tmp_path, {".gitignore": "x", "x": "", "y": ""})
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 12345, 12345)
    assert walk(tmp_path)[0] == [".gitignore", "y"]


names = st.sampled_from(["a", "b", "build", "x.log", "y.py", "deep", "A b", "ü"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
rules = st.lists(
    st.sampled_from(["*.log", "build/", "/a", "!x.log", "deep/**", "**/b", "b/*.py", "# no", "\\!a", "A b", "ü"]), max_size=4
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.sets(paths, max_size=12),
    ignores=st.dictionaries(st.sampled_from(["", "a/", "build/", "a/deep/"]), rules, max_size=3),
    add=st.booleans(),
)
def test_what_is_found_is_what_git_lists(tmp_path_factory, files, ignores, add):
    root = tmp_path_factory.mktemp("tree")
    git(root, "init", "-q")
    for name in sorted(files):
        if not any((root / part).is_file() for part in Path(name).parents) and not (root / name).exists():
            make(root, {name: ""})
    for folder, lines in ignores.items():
        if (root / folder).is_dir():
            make(root, {f"{folder}.gitignore": "\n".join(lines)})
    if add:
        git(root, "add", "-f", ".")
        make(root, {"late/x.log": "", "late/b/y.py": ""})
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=root, capture_output=True, check=True
    ).stdout
    assert sorted(walk(root)[0]) == sorted(os.fsdecode(p) for p in listed.split(b"\0") if p)


def test_each_kind_of_file_has_its_code(tmp_path, monkeypatch):
    make(
        tmp_path,
        {
            "bin": b"ELF\0\1",
            "late.bin": b"x" * 7999 + b"\0",
            "noise": bytes(range(128, 256)) * 8,
            "lib.min.js": "x",
            "Cargo.lock": "x",
        },
    )
    make(
        tmp_path,
        {
            "node_modules/a/index.js": "x",
            "src/vendor/b.c": "x",
            "x_pb2.py": "x",
            "gen.go": "// Code generated by x. DO NOT EDIT.\n",
        },
    )
    make(
        tmp_path,
        {
            "one.js": "var a=1;" * 5000,
            "prose.md": "word " * 5000,
            "latin.txt": "Größe über alles, schöne Grüße aus Köln".encode("latin-1"),
        },
    )
    make(
        tmp_path,
        {
            "wide.txt": "wide".encode("utf-16"),
            "bom.py": b"\xef\xbb\xbfx = 1\r\n",
            "env/pyvenv.cfg": "",
            "env/x.py": "",
            "empty.py": "",
        },
    )
    with (tmp_path / "huge.sql").open("wb") as sparse:
        sparse.truncate(200 << 20)
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink(".", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path holds about 100 bytes
        listener.bind("sock")
        found, skipped = texts(tmp_path)
    assert skipped == {
        "bin": "binary", "late.bin": "binary", "noise": "undecodable", "lib.min.js": "minified", "Cargo.lock": "lockfile",
        "node_modules": "vendored", "src/vendor": "vendored", "env": "vendored", "x_pb2.py": "generated", "gen.go": "generated",
        "one.js": "minified", "huge.sql": "too_large",
        "dangling": "symlink", "loop": "symlink", "pipe": "special", "sock": "special",
    }  # fmt: skip
    assert found["latin.txt"] == "Größe über alles, schöne Grüße aus Köln"
    assert (found["wide.txt"], found["bom.py"], found["empty.py"]) == ("wide", "x = 1\n", "")
    assert set(found) == {"prose.md", "latin.txt", "wide.txt", "bom.py", "empty.py"}


def test_a_name_that_is_not_utf8_is_shown_and_read(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.py", "wb") as file:
        file.write(b"x = 1")
    assert texts(tmp_path) == ({r"caf\xe9.py": "x = 1"}, {})


def test_what_cannot_be_read_is_counted(tmp_path, monkeypatch):
    make(tmp_path, {"open.py": "x", "shut.py": "x", "closed/y.py": "x"})
    real_open, real_scandir = os.open, os.scandir

    def no_open(path, *rest, **named):
        if os.fsencode(path).endswith(b"shut.py"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *rest, **named)

    def no_scandir(path):
        if not isinstance(path, int) and os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(module.os, "open", no_open)
    monkeypatch.setattr(module.os, "scandir", no_scandir)
    assert texts(tmp_path) == ({"open.py": "x"}, {"shut.py": "unreadable", "closed": "unreadable"})


def test_a_file_swapped_for_a_pipe_after_the_walk_is_not_waited_for(tmp_path):
    make(tmp_path, {"a.py": "x"})
    [entry] = discover(roots_of([tmp_path]), lambda *_: None)
    (tmp_path / "a.py").unlink()
    os.mkfifo(tmp_path / "a.py")
    assert read_text(entry) == "special"


def test_a_file_that_grew_since_the_walk_is_too_large(tmp_path):
    make(tmp_path, {"a.txt": "x"})
    [entry] = discover(roots_of([tmp_path]), lambda *_: None)
    (tmp_path / "a.txt").write_bytes(b"x" * (module.MAX_BYTES + 1))
    assert read_text(entry) == "too_large"


def test_several_roots_are_told_apart(tmp_path):
    make(tmp_path, {"one/src/a.py": "", "two/src/a.py": "", "lone.py": ""})
    assert walk(tmp_path / "one/src", tmp_path / "two/src", tmp_path / "lone.py")[0] == ["src/a.py", "src-2/a.py", "lone.py"]


def test_one_root_given_twice_is_one(tmp_path):
    make(tmp_path, {"a.py": ""})
    assert walk(tmp_path, tmp_path)[0] == ["a.py"]


def test_a_single_file_is_a_tree_of_its_own(tmp_path):
    make(tmp_path, {"a.py": "x = 1", ".gitignore": "*"})
    os.symlink("a.py", tmp_path / "link.py")
    assert texts(tmp_path / "a.py") == ({"a.py": "x = 1"}, {})
    assert texts(tmp_path / "link.py") == ({"link.py": "x = 1"}, {})


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(MissingPath, match="nowhere"):
        roots_of([tmp_path / "nowhere"])


def test_a_tree_may_be_deeper_than_python_recurses(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("bottom.py", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    try:
        assert walk(tmp_path)[0] == ["d/" * 1200 + "bottom.py"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # deeper than shutil.rmtree reaches
