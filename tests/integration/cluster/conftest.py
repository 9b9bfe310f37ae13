"""A fresh home for each test, commands as real processes, and a look at what they leave behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.lifeline import child_env, python_argv, wait_until
from dgpunet_dask.testing.processes import commands_of, kill_all

TWO_CARDS = """
version: 1
hosts:
  small: {ram: 8GiB, cpus: 2, gpus: {a: {vram: 8GiB, compute_capability: "8.9"}}}
  large: {ram: 8GiB, cpus: 2, gpus: {b: {vram: 24GiB, compute_capability: "8.6"}}}
"""

#: A command that uses the cluster until it is told to end, as `submit` does while a job runs.
HOLD = """
import sys
from dgpunet_dask.config.home import home_from
from dgpunet_dask.daemons.embedded import attach
with attach(home_from()) as client:
    print(client.status()["head_pid"], flush=True)
    sys.stdin.read()
"""


@dataclass
class Site:
    """One home and the commands run under it."""

    home: Home
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return child_env({"DGPUNET_HOME": str(self.home.root), "COLUMNS": "200"})

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        return self._popen(python_argv("dgpunet_dask.cli.main", *map(str, args)))

    def hold(self) -> subprocess.Popen[str]:
        """Start a command that holds an embedded cluster; it prints the head's pid, and ends when its input is closed."""
        return self._popen([*python_argv("x")[:2], "-c", HOLD])

    def _popen(self, argv: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, env=self.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def run(self, *args: str | Path) -> tuple[int, str, str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err

    def up(self, *args: str | Path) -> dict[str, Any]:
        code, _, err = self.run("up", *args)
        assert code == 0, err
        return self.status()

    def status(self) -> dict[str, Any]:
        code, out, err = self.run("status", "--json")
        assert code == 0, err
        return dict(json.loads(out))

    def pids(self, word: str) -> list[int]:
        """Return the processes whose command line has `word`."""
        return [pid for pid, command in commands_of(self.home.root).items() if word in command]

    def left(self) -> list[str]:
        """Return what runs, without the commands that this test started."""
        mine = {p.pid for p in self.started if p.poll() is None}
        return [command for pid, command in commands_of(self.home.root).items() if pid not in mine]

    def until(self, condition: Callable[[], object], deadline_s: float = 20.0) -> None:
        assert wait_until(lambda: bool(condition()), deadline_s), self.logs()

    def logs(self) -> str:
        files = sorted((self.home.run / "logs").glob("*.log"))
        return "\n".join(f"== {f.name}\n{f.read_text()[-1500:]}" for f in files)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
            process.wait()
        kill_all(self.home.root)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(Home(tmp_path / "home"))
    yield made
    made.close()


@pytest.fixture
def two_cards(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(TWO_CARDS)
    return file
