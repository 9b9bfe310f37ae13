"""Bad input: a clear error, the documented exit code, valid JSON, and no harm."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import Cli
from tests.helpers import processes_with_home

pytestmark = pytest.mark.long

JOB = """\
version: 1
name: t
stages:
  read: {run: "stages:Read", unit: {items: 1}}
  work: {run: "stages:Work", after: read}
"""

STAGES = """\
import os, sys
from dgpunet_dask import Demand, Stage

class Read(Stage):
    def __call__(self):
        yield from range(2)

class Work(Stage):
    demand = Demand(vram="1GiB", cpu_ok=True)
    def load(self): pass
    def __call__(self, batch):
        BODY
"""

Maker = Callable[[Path], object]


def folder(job: str | bytes, stages: str = "") -> Maker:
    """Return what makes a workload's folder."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / "job.yaml").write_bytes(job if isinstance(job, bytes) else job.encode())
        (path / "stages.py").write_text(stages)

    return make


def body(code: str) -> Maker:
    return folder(JOB, STAGES.replace("BODY", code))


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))

#: Before a job begins: the whole table of what is refused at once, or by the job when it looks. Code of the command, then of the error.
REFUSED: dict[str, tuple[list[str], int, str]] = {
    "missing path": (["submit", "embed-codebase", "--set", "path={t}/none"], 2, "missing_path"),
    "no path": (["submit", "embed-codebase"], 2, "missing_parameter"),
    "empty path": (["submit", "embed-codebase", "--set", "path="], 2, "bad_value"),
    "unknown parameter": (["submit", "embed-codebase", "--set", "paht=x"], 2, "unknown_parameter"),
    "no equals sign": (["submit", "embed-codebase", "--set", "path"], 2, "bad_value"),
    "a number that is none": (["submit", "embed-codebase", "--set", "path={t}", "--set", "truncate_dim=x"], 2, "bad_value"),
    "index name with a path": (["submit", "embed-codebase", "--set", "path={t}", "--set", "index=../x"], 2, "bad_name"),
    "empty index name": (["submit", "embed-codebase", "--set", "path={t}", "--set", "index="], 2, "bad_name"),
    "long index name": (["submit", "embed-codebase", "--set", "path={t}", "--set", "index=" + "a" * 300], 2, "bad_name"),
    "missing model folder": (["submit", "embed-codebase", "--set", "path={t}", "--set", "model=./none"], 2, "missing_path"),
    "unknown workload": (["submit", "embed-codebsae"], 102, "no_workload"),
    "unknown index": (["search", "none", "q"], 102, "no_index"),
    "unknown index, long": (["search", "a" * 300, "q"], 102, "no_index"),
    "unknown index, a path": (["index", "show", "../../etc"], 102, "no_index"),
    "removing an unknown index": (["index", "remove", "none"], 102, "no_index"),
    "removing a path": (["index", "remove", ".."], 2, "bad_name"),
    "missing queries": (["search", "none", "--queries", "{t}/none.jsonl"], 2, "missing_path"),
    "unknown job": (["jobs", "show", "none"], 102, "no_job"),
    "nothing answers": (["status", "--cluster", "http://127.0.0.1:1"], 102, "no_head"),
    "no address": (["status", "--cluster", "http://[::1"], 2, "bad_value"),
    "folder without job.yaml": (["submit", "{t}/tree"], 2, "bad_workload"),
}

WORKLOADS: dict[str, tuple[Maker, int, str]] = {
    "yaml bomb": (folder(BOMB), 2, "malformed_file"),
    "tabs": (folder("version: 1\n\tname: t\n"), 2, "malformed_file"),
    "keys given twice": (folder("version: 1\nversion: 1\n" + JOB[11:]), 2, "malformed_file"),
    "wrong types": (folder('version: "1"\nname: 5\nstages: [a]\n'), 2, "malformed_file"),
    "deeply nested": (folder("[" * 3000), 2, "malformed_file"),
    "a tag that runs code": (folder("version: 1\nname: !!python/object/apply:os.abort []\n"), 2, "malformed_file"),
    "binary": (folder(bytes(range(256))), 2, "malformed_file"),
    "empty": (folder(""), 2, "malformed_file"),
    "newer": (folder("version: 99\n"), 2, "newer_format"),
    "a lock file outside": (folder(JOB.replace('"stages:Work",', '"stages:Work", env: ../../etc/passwd,')), 2, "malformed_file"),
    "syntax error": (folder(JOB, "def (:"), 2, "bad_workload"),
    "missing class": (folder(JOB, "x = 1"), 2, "bad_workload"),
    "no stage": (folder(JOB, "class Read: pass\nWork = 3"), 2, "bad_workload"),
    "import that ends the process": (folder(JOB, "import os; os._exit(4)"), 100, "stage_host_lost"),
    "sys.exit": (body("sys.exit(0)"), 100, "stage_failed"),
    "os._exit": (body("os._exit(0)"), 100, "stage_host_lost"),
    "results that cannot be pickled": (body("return [lambda: 1 for _ in batch]"), 100, "stage_failed"),
    "endless recursion": (body("return self(batch)"), 100, "stage_failed"),
    "memory": (body("return [bytearray(1 << 50)]"), 100, "stage_failed"),
    "no list": (body("return 7"), 100, "stage_failed"),
    "a long and hostile message": (body(r"raise ValueError('\x1b[2Jone\ntwo' + 'z' * 100000)"), 100, "stage_failed"),
}


def check_told(ran_out: str, ran_err: str, code: str) -> None:
    """JSON alone on stdout with the error, and one line about it on stderr that moves no cursor."""
    assert json.loads(ran_out)["error"]["code"] == code
    lines = [line for line in ran_err.splitlines() if " units" not in line]
    assert len(lines) == 1 or code == "malformed_file", ran_err
    assert lines
    assert "Traceback" not in ran_err
    assert "\x1b" not in ran_err


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a small tree, in a folder that the tables call {t}."""
    made = tmp_path / "tree"
    made.mkdir()
    (made / "a.py").write_text("def hello():\n    return 'world'\n")
    return made


@pytest.mark.parametrize("name", REFUSED)
def test_refused(shared_cluster: Cli, tmp_path: Path, tree: Path, name: str) -> None:
    words, exit_code, code = REFUSED[name]
    ran = shared_cluster(*(w.replace("{t}", str(tmp_path)) for w in words), "--json")
    assert ran.code == exit_code, ran.err
    check_told(ran.out, ran.err, code)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_hostile_workload(shared_cluster: Cli, tmp_path: Path, name: str) -> None:
    make, exit_code, code = WORKLOADS[name]
    make(tmp_path / "w")
    ran = shared_cluster("submit", tmp_path / "w", "--json")
    assert ran.code == exit_code, ran.err
    check_told(ran.out, ran.err, code)


def test_stages_that_print_and_fork_disturb_nothing(shared_cluster: Cli, tmp_path: Path) -> None:
    code = "print('out'); os.write(1, b'raw'); pid = os.fork() or os._exit(0); os.waitpid(pid, 0); return batch"
    body(code)(tmp_path / "w")
    ran = shared_cluster("submit", tmp_path / "w", "--json")
    assert (ran.code, ran.json["units"]["done"]) == (0, 2), ran.err


def nothing(path: Path) -> None:
    """Leave the tree empty."""


def no_text(path: Path) -> None:
    (path / "x.bin").write_bytes(bytes(range(256)) * 20)
    with (path / "big.txt").open("wb") as file:
        file.truncate(200 << 20)
    (path / "line.js").write_text("x = 1; " * 700_000)
    (path / "loop").symlink_to(path)
    (path / "self").symlink_to("self")
    os.mkfifo(path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path)  # a socket's path may be short only
        try:
            made.bind("socket")
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    ("fill", "skipped"), [(nothing, {}), (no_text, {"binary": 1, "too_large": 2, "symlink": 2, "special": 2})], ids=["empty", "no text"]
)
def test_a_tree_without_text_is_done_and_publishes_nothing(
    shared_cluster: Cli, tmp_path: Path, fill: Callable[[Path], None], skipped: dict[str, int]
) -> None:
    (tmp_path / "none").mkdir()
    fill(tmp_path / "none")
    ran = shared_cluster("submit", "embed-codebase", "--set", f"path={tmp_path / 'none'}", "--set", "index=none", "--json")
    assert ran.code == 0, ran.err
    metrics = ran.json["metrics"]
    assert (metrics["files"], metrics["skipped"], metrics["index"]) == (0, skipped, None)
    assert shared_cluster("search", "none", "q").code == 102


def test_names_that_would_steer_a_terminal_are_found_and_shown_harmless(shared_cluster: Cli, tmp_path: Path) -> None:
    names = [b"caf\xe9.py", b"new\nline.py", b"esc\x1b]0;title\x07.py", "\u202egnp.py".encode()]
    (tmp_path / "odd").mkdir()
    for name in names:
        with open(os.fsencode(tmp_path / "odd") + b"/" + name, "w") as file:
            file.write("# needle \x1b[2J\n")
    ran = shared_cluster("submit", "embed-codebase", "--set", f"path={tmp_path / 'odd'}", "--set", "index=odd", "--json")
    assert ran.json["metrics"]["files"] == len(names), ran.err
    paths = {hit["path"] for hit in shared_cluster("search", "odd", "needle", "--json").json["hits"]}
    assert paths == {"caf\\xe9.py", "new\nline.py", "esc\x1b]0;title\x07.py", "\u202egnp.py"}
    shown = shared_cluster("search", "odd", "needle").out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert len(shown.splitlines()) == 2 * len(names)


def test_what_a_repository_configures_is_never_run(shared_cluster: Cli, tree: Path, tmp_path: Path) -> None:
    proof, evil = tmp_path / "ran", tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\necho x >> {proof}\ncat\n")
    evil.chmod(0o755)
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "filter.x.clean", "filter.x.process", "diff.x.textconv", "diff.external"):
        subprocess.run(["git", "-C", str(tree), "config", key, str(evil)], check=True)
    subprocess.run(["git", "-C", str(tree), "config", "core.hooksPath", str(tmp_path)], check=True)
    (tmp_path / "post-index-change").symlink_to(evil)
    (tree / ".gitattributes").write_text("* filter=x diff=x\n")
    (tree / ".gitignore").write_text("ignored/\n")
    (tree / "ignored" / "deep").mkdir(parents=True)
    for number in range(3):
        (tree / "ignored" / "deep" / f"{number}.txt").write_text("x")
    ran = shared_cluster("submit", "embed-codebase", "--set", f"path={tree}", "--set", "index=repo", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["metrics"]["skipped"] == {"ignored": 1}
    assert not proof.exists()


def test_two_submissions_to_one_index_take_turns_while_it_is_searched(shared_cluster: Cli, tmp_path: Path) -> None:
    for word in ("alpha", "beta"):
        (tmp_path / word).mkdir()
        for number in range(8):
            (tmp_path / word / f"{number}.txt").write_text(f"{word} number {number}\n")
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(shared_cluster, "submit", "embed-codebase", "--set", f"path={tmp_path / word}", "--set", "index=two", "--json")
            for word in ("alpha", "beta")
        ]
        while not all(job.done() for job in jobs):
            assert shared_cluster("search", "two", "number").code in {0, 102}
    assert [job.result().code for job in jobs] == [0, 0]
    hits = shared_cluster("search", "two", "number", "-k", "100", "--json").json["hits"]
    assert len(hits) == 8
    assert len({hit["text"].split()[0] for hit in hits}) == 1


def test_every_listener_is_on_the_loopback_and_what_is_private_stays_so(shared_cluster: Cli) -> None:
    ours = processes_with_home(shared_cluster.home)
    listening = [c.laddr.ip for process in ours for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}
    assert urllib.parse.urlsplit(shared_cluster("status", "--json").json["api"]).hostname == "127.0.0.1"
    for path in (shared_cluster.home, shared_cluster.home / "run" / "head.json", shared_cluster.home / "run" / "agent.sock"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.fixture
def bounded() -> list[str]:
    """Return what stands before a command so that root reads no more than others do; nothing for other users."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and subprocess.run([*drop, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root reads everything here, and setpriv cannot take that from it")
    return drop if os.geteuid() == 0 else []


@pytest.mark.parametrize("place", ["locked", "locked/inside"])
def test_an_unreadable_path(shared_cluster: Cli, tmp_path: Path, bounded: list[str], place: str) -> None:
    (tmp_path / "locked" / "inside").mkdir(parents=True)
    (tmp_path / "locked").chmod(0)
    words = [str(tmp_path / place)], ["embed-codebase", "--set", f"path={tmp_path / place}"]
    try:
        for some in words:
            argv = [*bounded, *shared_cluster.argv("submit", *some, "--json")]
            done = subprocess.run(argv, env=shared_cluster.env, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 2, done.stderr
            check_told(done.stdout, done.stderr, "unreadable_path")
    finally:
        (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize("words", [["index", "list"], ["index", "remove", "x"], ["status"], ["jobs", "list"], ["search", "x", "q"]])
@pytest.mark.parametrize("kind", ["a file", "too long"])
def test_a_home_that_cannot_be_one(tmp_path: Path, words: list[str], kind: str) -> None:
    home = tmp_path / ("h" * 300 if kind == "too long" else "h")
    if kind == "a file":
        home.touch()
    ran = Cli(home)(*words, "--json")
    assert ran.code in {0, 2, 102}, ran.err
    assert "no name yet" not in ran.err
    json.loads(ran.out)
    assert kind == "too long" or home.read_bytes() == b""


def test_after_all_this_nothing_temporary_is_left(shared_cluster: Cli) -> None:
    left = [p for pattern in ("*.tmp*", "tmp-*", "removed-*") for p in shared_cluster.home.rglob(pattern)]
    assert left == []
    assert list((shared_cluster.home / "run").glob("uploads/*")) == []
