"""Failpoints: what is armed happens where and when it was armed to, once, and leaves its line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgpunet_dask import failpoints
from dgpunet_dask.errors import BadValue
from dgpunet_dask.failpoints import Failure, Folder, Inherited, parse
from tests.helpers import ROOT, until

LOOP = """\
import sys
from dgpunet_dask.failpoints import hit
for number in range(5):
    try:
        hit("commit.before", unit=number)
    except OSError as error:
        print("errno", error.errno, flush=True)
    print(number, flush=True)
"""


def started(text: str, log: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), failpoints.VARIABLE: text, failpoints.LOG_VARIABLE: str(log)}
    return subprocess.Popen([sys.executable, "-c", LOOP], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(text: str, log: Path) -> tuple[int, list[str]]:
    process = started(text, log)
    out, err = process.communicate(timeout=20)
    assert "Traceback" not in err, err
    return process.returncode, out.split()


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize(
    ("text", "status", "printed", "unit"),
    [
        ("commit.before=kill", -signal.SIGKILL, [], "0"),
        ("commit.before@3=kill", -signal.SIGKILL, ["0", "1"], "2"),
        ("commit.before{unit=4}=exit:7", 7, ["0", "1", "2", "3"], "4"),
        ("commit.before{unit=9}=kill", 0, ["0", "1", "2", "3", "4"], None),
        ("commit.before@2=enospc", 0, ["0", "errno", str(errno.ENOSPC), "1", "2", "3", "4"], "1"),
        ("commit.before{unit=3}=enospc; commit.done=kill", 0, ["0", "1", "2", "errno", str(errno.ENOSPC), "3", "4"], "3"),
        ("commit.done=kill", 0, ["0", "1", "2", "3", "4"], None),
        ("", 0, ["0", "1", "2", "3", "4"], None),
    ],
)
def test_what_is_armed_happens_there_and_then(tmp_path, text, status, printed, unit):
    log = tmp_path / "log"
    assert ran(text, log) == (status, printed)
    assert [line["facts"] for line in lines(log)] == ([] if unit is None else [{"unit": unit}])


def test_a_stopped_process_goes_on_when_it_is_continued(tmp_path):
    process = started("commit.before@2=stop", log := tmp_path / "log")
    until(lambda: lines(log) and Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T", what="it stands still")
    assert [line["pid"] for line in lines(log)] == [process.pid]
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20)[0].split() == ["0", "1", "2", "3", "4"]


def test_a_pause_lasts_while_its_file_is_there(tmp_path):
    (gate := tmp_path / "gate").touch()
    process = started(f"commit.before@2=pause:{gate}", log := tmp_path / "log")
    until(lambda: lines(log))
    assert process.poll() is None
    gate.unlink()
    assert process.communicate(timeout=20)[0].split() == ["0", "1", "2", "3", "4"]


def test_an_armed_folder_fires_once_in_all_processes(tmp_path):
    (folder := tmp_path / "armed").mkdir()
    log = tmp_path / "log"
    assert ran(f"@{folder}", log) == (0, ["0", "1", "2", "3", "4"])
    (folder / "commit.before").write_text("@2=kill")
    assert ran(f"@{folder}", log) == (-signal.SIGKILL, ["0"])
    assert ran(f"@{folder}", log) == (0, ["0", "1", "2", "3", "4"])
    assert len(lines(log)) == 1


def test_only_one_of_many_takes_a_file(tmp_path):
    (folder := tmp_path / "armed").mkdir()
    log = tmp_path / "log"
    (folder / "commit.before").write_text("=exit:3")
    processes = [started(f"@{folder}", log) for _ in range(4)]
    assert sorted(p.wait(timeout=30) for p in processes) == [0, 0, 0, 3]
    for process in processes:
        process.communicate()
    assert len(lines(log)) == 1


def test_hits_count_from_the_arming(tmp_path):
    armed = Folder(tmp_path)
    for stamp, hits in ((1, 3), (2, 2)):  # the file was there for two hits, then armed anew
        armed.hit("commit.before", {})
        (tmp_path / "commit.before").write_text(f"@{hits}=enospc")
        os.utime(tmp_path / "commit.before", ns=(stamp, stamp))
        for _ in range(hits - 1):
            armed.hit("commit.before", {})
        with pytest.raises(OSError, match="failpoint"):
            armed.hit("commit.before", {})
        armed.hit("commit.before", {})


@pytest.mark.parametrize("text", ["commit.before", "commit.before=", "commit.before=melt", "commit.before@0=kill", "commit.never=kill", "=kill", "commit.before=exit:"])
def test_a_failure_of_another_form_is_refused(text):
    with pytest.raises(BadValue):
        parse(text)


def test_the_form_is_read_whole():
    armed = parse("stage.before{stage=heavy,unit=3}@12=pause:/tmp/a b;commit.done=kill")
    assert isinstance(armed, Inherited)
    assert armed._failures == (
        Failure("stage.before", "pause", 12, (("stage", "heavy"), ("unit", "3")), "/tmp/a b"),
        Failure("commit.done", "kill"),
    )


def test_a_point_that_is_off_costs_next_to_nothing():
    rounds, best = 100_000, float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for number in range(rounds):
            failpoints.hit("commit.done", unit=number)
        best = min(best, (time.perf_counter() - began) / rounds)
    assert best < 2e-6
