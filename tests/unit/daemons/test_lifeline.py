"""Children end with their owner; the register never kills a stranger."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dgpunet_dask.daemons.lifeline import ENV, LOG_BYTES_MAX, child_env, open_log, spawn, wait_until, watch
from dgpunet_dask.daemons.register import Register

CHILD = "import sys, time; from dgpunet_dask.daemons.lifeline import end_now, watch; print(watch(end_now), flush=True); time.sleep(60)"
OWNER = f"""
import sys, time
from pathlib import Path
from dgpunet_dask.daemons.lifeline import child_env, spawn
child = spawn([sys.executable, "-c", {CHILD!r}], env=child_env({{}}), log_file=Path(sys.argv[1]))
print(child.pid, flush=True)
sys.stdin.readline()
child.release()
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """A process that owns a child; gives both, the child once it watches."""
    log = tmp_path / "child.log"
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(log)], env=child_env({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(process.stdout.readline()))
    assert wait_until(lambda: "True" in log.read_text(), 10)
    yield process, child
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.kill()


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_child_ends_when_its_owner_is_killed(owner):
    process, child = owner
    process.kill()
    assert wait_until(lambda: gone(child), 5)


def test_released_child_lives_on(owner):
    process, child = owner
    process.stdin.write("\n")
    process.stdin.flush()
    process.stdin.close()
    process.wait(5)
    with pytest.raises(psutil.TimeoutExpired):
        child.wait(0.3)
    assert not gone(child)


def test_without_a_lifeline_nothing_is_watched():
    ended = []
    with open(os.devnull, "rb") as other:
        for text in ("", "x", "3", "3:x", "99999:1", f"{other.fileno()}:1", f"{other.fileno()}:{os.fstat(other.fileno()).st_ino}"):
            environ = {ENV: text}
            assert not watch(lambda: ended.append(1), environ)
            assert ENV not in environ
    assert ended == []


async def test_stop_asks_first_and_then_kills(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    child = spawn([sys.executable, "-c", stubborn], env=child_env({}), log_file=log)
    assert wait_until(lambda: "ready" in log.read_text(), 10)
    assert await child.stop(0.1) == -signal.SIGKILL
    polite = spawn([sys.executable, "-c", "import time; time.sleep(60)"], env=child_env({}), log_file=log)
    assert await polite.stop(10) == -signal.SIGTERM
    assert await polite.ended() == -signal.SIGTERM


def test_a_program_that_is_not_there_leaks_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no-such-program"):
        spawn([str(tmp_path / "no-such-program")], env={}, log_file=tmp_path / "log")
    assert len(os.listdir("/proc/self/fd")) == before


def test_logs_are_private_and_do_not_grow_for_ever(tmp_path):
    file = tmp_path / "logs" / "x.log"
    with open_log(file) as log:
        log.truncate(LOG_BYTES_MAX + 1)
    assert file.stat().st_mode & 0o077 == 0
    with open_log(file) as log:
        log.write(b"new")
    assert file.read_bytes() == b"new"
    assert file.with_name("x.log.1").stat().st_size == LOG_BYTES_MAX + 1


def test_relative_import_paths_survive_another_working_directory():
    env = child_env({"A": "1"}, {"PYTHONPATH": f".{os.pathsep}lib"})
    assert all(os.path.isabs(p) for p in env["PYTHONPATH"].split(os.pathsep))
    assert env["A"] == "1"


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_register_ends_what_it_knows(tmp_path, sleeper):
    register = Register(tmp_path / "processes")
    register.add(sleeper.pid, "sleeper")
    register.add(os.getpid(), "this test")
    assert {e.what for e in register.running()} == {"sleeper", "this test"}
    assert [e.what for e in register.end_all()] == ["sleeper"]
    assert sleeper.wait(5) is not None
    assert [e.what for e in register.entries()] == ["this test"]


def test_register_spares_a_reused_pid(tmp_path, sleeper):
    register = Register(tmp_path)
    (tmp_path / f"{sleeper.pid}.json").write_text(json.dumps({"pid": sleeper.pid, "created": time.time() - 3600, "what": "old"}))
    assert register.running() == []
    assert register.end_all() == []
    assert sleeper.poll() is None
    assert list(register.entries()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_register_drops_broken_files(tmp_path, text):
    (tmp_path / "1.json").write_text(text)
    assert Register(tmp_path).end_all() == []
    assert list(tmp_path.iterdir()) == []


def test_register_removes_what_processes_that_are_gone_were_writing(tmp_path, sleeper):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".1.{gone.pid}", f".{gone.pid}.{gone.pid}", ".1.x", f".1.{sleeper.pid}"):
        (tmp_path / name).touch()
    assert Register(tmp_path).end_all() == []
    assert [path.name for path in tmp_path.iterdir()] == [f".1.{sleeper.pid}"]


def test_register_without_a_folder(tmp_path):
    assert Register(tmp_path / "none").end_all() == []
