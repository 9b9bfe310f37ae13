"""The command line as a user has it: a real process, a real home, JSON read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which must be JSON and nothing else."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Cli:
    """Runs commands under one home."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of the commands."""
        return {**os.environ, "DGPUNET_HOME": str(self.home), "COLUMNS": "200"}

    def argv(self, *args: str | Path) -> list[str]:
        """Return the whole command."""
        return [sys.executable, "-m", "dgpunet_dask.cli.main", *map(str, args)]

    def __call__(self, *args: str | Path, cwd: Path | None = None, timeout_s: float = 300) -> Ran:
        """Run one command to its end."""
        done = subprocess.run(
            self.argv(*args), env=self.env, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start one command and return at once; the caller waits for it."""
        return subprocess.Popen(
            self.argv(*args), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )


@pytest.fixture
def cli(home: Path) -> Iterator[Cli]:
    """Commands under a fresh home; whatever cluster a test leaves running is taken down."""
    made = Cli(Path(getattr(home, "root", home)))
    yield made
    made("down", timeout_s=60)


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A running cluster that the tests of one module share."""
    made = Cli(tmp_path_factory.mktemp("h"))
    up = made("up", timeout_s=180)
    assert up.code == 0, up.err
    yield made
    assert made("down", timeout_s=60).code == 0


@pytest.fixture
def texts(tmp_path: Path) -> Callable[[int], Path]:
    """Make a folder of small text files."""

    def make(count: int) -> Path:
        folder = tmp_path / "texts"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:03d}.txt").write_text("word " * (number + 1))
        return folder

    return make
