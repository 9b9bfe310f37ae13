"""Fixtures for every suite."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from dgpunet_dask.config.home import Home
from tests.helpers import processes_with_home, until
from tests.parsing import compile_in_turn

# Nothing in a test may ask a model hub, and the tokenizers' own threads would only fight for two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# How long an example takes is no property of the code: a machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Threads of ours log tracebacks, whose formatting parses code, while Hypothesis and pytest parse it.
builtins.compile = compile_in_turn

# A shell that starts the suite in the background ignores Ctrl-C for it and all below it; the commands under test must get theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """Make a short folder for the homes of this run."""
    folder = Path(tempfile.mkdtemp(prefix="dgt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left(homes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run if a process with a home of this run outlives it; end it, so that one fault does not disturb the next run."""
    yield
    folders = (homes, tmp_path_factory.getbasetemp())
    left = _settled(folders)
    described = [f"{process.pid} {' '.join(process.cmdline()[:6])}" for process in left if process.is_running()]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    assert not described, f"these processes outlived their tests: {described}"


def _settled(folders: tuple[Path, ...]) -> list[psutil.Process]:
    """Return what still runs after the time that a lifeline is allowed to take."""
    try:
        until(lambda: not processes_with_home(*folders), timeout_s=10, what="the end of every process", every_s=0.1)
    except AssertionError:
        return processes_with_home(*folders)
    return []


@pytest.fixture
def home(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Make a fresh home, which `$DGPUNET_HOME` names too; no cluster is chosen by the environment."""
    root = Path(tempfile.mkdtemp(prefix="h", dir=homes))
    monkeypatch.setenv("DGPUNET_HOME", str(root))
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    return Home(root).ensure()
