"""Files are cut and removed as told, while others write, fetch and read them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import tidying
from dgpunet_dask.daemons.rooms import Cut, Entry
from dgpunet_dask.daemons.tidying import Caches, EventsCut, cut_log, cut_logs, environments_running, result_entry, size_of
from dgpunet_dask.stagehost.environments import MARKER

A, B, E = "a" * 64, "b" * 64, "e" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "h").ensure()


def make(folder: Path, size: int = 5000, *, used_s: float = 1000.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * size)
    os.utime(folder, (used_s, used_s))
    return folder


def names(home: Home) -> set[str]:
    return {path.name for store in (home.models, home.workloads, home.envs) if store.is_dir() for path in store.iterdir() if path.is_dir()}


# Caches


def test_the_caches_are_listed_with_size_and_last_use(home: Home) -> None:
    make(home.models / A, 50_000)
    make(home.workloads / B, used_s=2000.0)
    make(home.envs / E)
    (home.models / f"{A}.json").write_text("{}")
    make(home.models / f".part-{B}")
    (home.models / B).symlink_to(home.models / A)
    found = {(e.kind, e.name): e for e in Caches(home, lambda: 0.0).entries({("env", E)})}
    assert set(found) == {("model", A), ("workload", B), ("env", E)}
    assert found["model", A].size >= 50_000
    assert (found["model", A].used_s, found["workload", B].used_s) == (1000.0, 2000.0)
    assert [e.in_use for e in found.values()] == [False, False, True]
    assert found["env", E].used_s > 10**9, "use is marked on disk, for other processes"


def test_what_is_complete_is_measured_once_and_what_grows_each_time(home: Home) -> None:
    model, env, caches = make(home.models / A), make(home.envs / E), Caches(home, lambda: 0.0)
    first = {e.kind: e.size for e in caches.entries(())}
    for folder in (model, env):
        (folder / "more").write_bytes(b"x" * 100_000)
    second = {e.kind: e.size for e in caches.entries(())}
    assert second["model"] == first["model"]
    assert second["env"] >= first["env"] + 100_000
    (env / MARKER).write_text("{}")
    caches.entries(())
    (env / "more").unlink()
    assert {e.kind: e.size for e in caches.entries(())}["env"] >= second["env"]


def test_a_folder_goes_whole_with_its_note(home: Home) -> None:
    make(home.models / A)
    (home.models / f"{A}.json").write_text("{}")
    caches = Caches(home, lambda: 0.0)
    (entry,) = caches.entries(())
    assert caches.remove(entry)
    assert not (home.models / f"{A}.json").exists()
    assert names(home) == set()
    assert not caches.remove(entry), "it is gone already"


def test_one_that_was_used_meanwhile_stays(home: Home) -> None:
    folder, caches = make(home.models / A), Caches(home, lambda: 0.0)
    (entry,) = caches.entries(())
    tidying.touch(folder)
    assert not caches.remove(entry)
    assert names(home) == {A}


@pytest.mark.parametrize(("kind", "name", "lock"), [("model", A, f".{A}.lock"), ("env", E, f"{E}.lock")])
def test_one_that_somebody_builds_or_fetches_stays(home: Home, kind: str, name: str, lock: str) -> None:
    folder = make(tidying.store_of(home, kind) / name)
    caches = Caches(home, lambda: 0.0)
    (entry,) = caches.entries(())
    with open(folder.parent / lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not caches.remove(entry)
    assert caches.remove(entry)


def test_what_a_kill_left_is_swept_after_a_day(home: Home) -> None:
    make(home.models / f".gone-{A}", used_s=1000.0)
    make(home.workloads / ".incoming-xyz", used_s=1000.0)
    make(home.workloads / ".incoming-new", used_s=90_000.0)
    make(home.models / f".part-{B}", used_s=1000.0)  # the fetch goes on with it
    Caches(home, lambda: 100_000.0).sweep()
    assert names(home) == {".incoming-new", f".part-{B}"}


def test_an_environment_whose_interpreter_runs_is_in_use(home: Home) -> None:
    commands = [str(home.envs / E / "bin/python"), sys.executable, str(home.envs), ""]
    assert environments_running(lambda: iter(commands), home) == {("env", E)}


def test_processes_of_this_machine_are_seen(home: Home) -> None:
    python = home.envs / E / "bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    process = subprocess.Popen([python, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert environments_running(tidying.commands_running, home) == {("env", E)}
    finally:
        process.communicate(b"\n", timeout=30)
    assert environments_running(tidying.commands_running, home) == set()


def test_size_counts_what_is_on_disk_and_follows_no_link(tmp_path: Path) -> None:
    make(tmp_path / "a/b/c", 100_000)
    (tmp_path / "a/out").symlink_to("/usr")
    assert 100_000 <= size_of(tmp_path / "a") < 200_000
    assert size_of(tmp_path / "none") == 0


def test_what_would_go_of_a_job(tmp_path: Path) -> None:
    assert result_entry(tmp_path, "j", 5.0) == Entry(kind="results", name="j", size=0, used_s=5.0)
    make(tmp_path / "results", 20_000)
    (tmp_path / "events.jsonl").write_bytes(b"x" * (tidying.EVENTS_ENDED + 7))
    assert result_entry(tmp_path, "j", 5.0).size >= 20_007


# Logs


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_a_log_is_emptied_and_its_end_kept_while_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with open(path, "a") as writer:
        writer.writelines(f"line {n:04}\n" for n in range(1000))
        writer.flush()
        cut_log(path, 95)
        assert path.read_text() == ""
        assert (tmp_path / "worker.log.1").read_text().splitlines() == [f"line {n:04}" for n in range(991, 1000)]
        writer.write("next\n")
    assert path.read_text() == "next\n", "no hole before it"
    assert (tmp_path / "worker.log.1").stat().st_mode & 0o777 == 0o600


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(sizes=st.dictionaries(st.sampled_from("abcdefghijkl"), st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=12), most=st.integers(1 << 12, 1 << 16))
def test_logs_are_within_their_bound_after_a_round(tmp_path: Path, sizes: dict[str, tuple[int, int]], most: int) -> None:
    folder = tmp_path / f"logs{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    for name, (now, before) in sizes.items():
        (folder / f"{name}.log").write_bytes(b"words\n" * now)
        (folder / f"{name}.log.1").write_bytes(b"older\n" * before)
    (folder / "gone.log.1").write_text("its log is not there any more")
    (folder / "other").write_text("not ours")
    before = sum(path.stat().st_size for path in folder.iterdir() if path.name != "other")
    freed = cut_logs(folder, most)
    after = sum(path.stat().st_size for path in folder.iterdir() if path.name != "other")
    assert after <= most
    assert freed == before - after
    assert {path.name for path in folder.glob("*.log")} == {f"{name}.log" for name in sizes}
    assert (folder / "other").exists()
    assert not (folder / "gone.log.1").exists()


def test_a_folder_without_logs_is_left_alone(tmp_path: Path) -> None:
    assert cut_logs(tmp_path / "none", 1 << 20) == 0


# Events


def events(path: Path, numbers: range, size: int = 50) -> None:
    append(path, *(json.dumps({"seq": n, "time": n / 2, "kind": "log", "text": "x" * size}) for n in numbers))


def told(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_middle_of_the_events_goes_and_nothing_that_is_written_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events(path, range(1, 1001))
    cut = EventsCut.of(path, 50_000)
    cut.prepare()
    events(path, range(1001, 1004))
    cut.finish()
    found = told(path)
    seqs = [event["seq"] for event in found]
    (place,) = [i for i, event in enumerate(found) if event["kind"] == "cut"]
    assert path.stat().st_size <= 26_000
    assert seqs[:place] == list(range(1, place + 1))
    assert seqs[place + 1 :] == list(range(seqs[place] + 1, 1004))
    assert found[place] == {"seq": seqs[place], "time": seqs[place] / 2, "kind": "cut", "events": seqs[place] - place}
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_cut_counts_what_the_first_one_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events(path, range(1, 1001))
    for more in (range(1001, 2001), range(2001, 3001)):
        cut = EventsCut.of(path, 50_000)
        cut.prepare()
        cut.finish()
        events(path, more)
    cut = EventsCut.of(path, 50_000)
    cut.prepare()
    cut.finish()
    found = told(path)
    cuts = [event for event in found if event["kind"] == "cut"]
    assert sum(event["events"] for event in cuts) + len(found) - len(cuts) == 3000
    assert [event["seq"] for event in found] == sorted({event["seq"] for event in found})


def test_a_short_file_is_not_cut(tmp_path: Path) -> None:
    events(tmp_path / "events.jsonl", range(5))
    assert EventsCut.of(tmp_path / "events.jsonl", 50_000) is None
    assert EventsCut.of(tmp_path / "none", 50_000) is None


@pytest.mark.parametrize("middle", [b"", b"\xff\xfe torn\n", b"[1]\n5\nnull\n", b'{"kind": "cut"\n'])
def test_a_line_that_is_no_event_or_longer_than_all_harms_nothing(tmp_path: Path, middle: bytes) -> None:
    path = tmp_path / "events.jsonl"
    events(path, range(1, 3), 10)
    path.write_bytes(path.read_bytes() + middle + b'{"seq": 3, "text": "' + b"x" * 100_000 + b'"}\n')
    events(path, range(4, 6), 10)
    cut = EventsCut(path, Cut(head=150, tail=1000))
    cut.prepare()
    cut.finish()
    assert path.stat().st_size < 2000
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["seq"] for line in (*lines[:2], *lines[-3:])] == [1, 2, 3, 4, 5]
