"""One secret path for each home, whoever asks first."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dgpunet_dask.daemons.secret import http_prefix

PROGRAM = "import sys; from pathlib import Path; from dgpunet_dask.daemons.secret import http_prefix; sys.stdin.read(1); print(http_prefix(Path(sys.argv[1])))"


def test_it_is_made_once_and_for_its_owner_alone(tmp_path):
    run = tmp_path / "run"
    first = http_prefix(run)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert http_prefix(run) == first
    assert (run / "dashboard.secret").stat().st_mode & 0o777 == 0o600
    assert http_prefix(tmp_path / "other") != first


def test_threads_agree(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(http_prefix, [tmp_path / "run"] * 64))) == 1


def test_processes_agree(tmp_path):
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
    processes = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    assert len({process.communicate(timeout=30)[0] for process in processes}) == 1


@pytest.mark.parametrize("text", ["", "12ab", "\xff" * 32, "g" * 32])
def test_a_secret_that_was_cut_short_is_none(tmp_path, text):
    (tmp_path / "dashboard.secret").write_bytes(text.encode("latin-1"))
    found = http_prefix(tmp_path)
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert http_prefix(tmp_path) == found


def test_a_draft_that_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".dashboard.secret.1").write_text("x")
    assert len(http_prefix(tmp_path)) == 32
