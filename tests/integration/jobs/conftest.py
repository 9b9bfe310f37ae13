"""One embedded cluster for all tests of this folder, and small workloads written down as graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpunet_dask.client import Client
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.testing.livecluster import LiveCluster
from tests.integration.jobs.trouble import Trouble, two_hosts

#: Every stage that a graph may name.
STAGES = '''
import os
import signal
import time
from pathlib import Path

from dgpunet_dask import Demand, Stage


class Numbers(Stage):
    def load(self, *, count: int) -> None:
        self.total = count

    def __call__(self):
        for number in range(self.total):
            self.count("read")
            yield number


class Blocked(Stage):
    """Gives one item, then waits until its file is there."""

    def load(self, *, file: str) -> None:
        self.file = Path(file)

    def __call__(self):
        self.file.with_suffix(".begun").touch()
        yield 1
        while not self.file.exists():
            time.sleep(0.02)


class Watched(Numbers):
    """Notes in a file how far it is."""

    def load(self, *, count: int, file: str) -> None:
        self.total, self.file = count, Path(file)

    def __call__(self):
        for number in range(self.total):
            self.file.write_text(str(number + 1))
            yield number


class Plain(Stage):
    def __call__(self, batch):
        self.count("plain", len(batch))
        return [item + 1 for item in batch]


class Double(Stage):
    def __call__(self, batch):
        self.count("doubled", len(batch))
        return [item * 2 for item in batch]


class Heavy(Stage):
    demand = Demand(gpus=0)

    def load(self) -> None:
        pass

    def __call__(self, batch):
        self.count("heavy", len(batch))
        return [item * 10 for item in batch]


class Lag(Stage):
    """Notes how far the source was ahead of the units that this stage has seen."""

    demand = Demand(gpus=0)

    def load(self, *, file: str) -> None:
        self.file = Path(file)

    def __call__(self, batch):
        read = int(self.file.read_text() or 0)
        with self.file.with_suffix(".lag").open("a") as out:
            out.write(f"{read}\\n")
        return batch


class Broken(Stage):
    def __call__(self, batch):
        raise ValueError("broken on purpose")


class Dying(Stage):
    demand = Demand(gpus=0)

    def load(self) -> None:
        pass

    def __call__(self, batch):
        os._exit(3)


class Picky(Stage):
    """Is killed under the last item, once some others have passed."""

    demand = Demand(gpus=0)

    def load(self, *, file: str) -> None:
        self.file = Path(file)

    def __call__(self, batch):
        while 3 in batch:
            if self.file.exists() and len(self.file.read_text().split()) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
        with self.file.open("a") as out:
            out.write(f"{batch[0]}\\n")
        return batch


class Total(Stage):
    def __call__(self, items):
        yield sum(items)
'''

Graph = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def client(homes: Path) -> Iterator[Client]:
    """Connect to an embedded cluster that lasts for the session."""
    with Client(home=tempfile.mkdtemp(prefix="j", dir=homes)) as made:
        yield made


@pytest.fixture(scope="session")
def hosts(homes: Path) -> Iterator[LiveCluster]:
    """Bring up a cluster of two simulated hosts for all tests that trouble it; each leaves it whole."""
    with two_hosts(Path(tempfile.mkdtemp(prefix="t", dir=homes))) as cluster:
        yield cluster


@pytest.fixture
def trouble(hosts: LiveCluster, tmp_path: Path) -> Trouble:
    """Jobs that meet with trouble on two hosts."""
    return Trouble(hosts, tmp_path)


@pytest.fixture
def workload(tmp_path: Path) -> Callable[[Graph], Path]:
    """Write a workload of the given stages; its parameters are `count` and `file`."""

    def write(stages: Graph) -> Path:
        folder = tmp_path / "workload"
        folder.mkdir(exist_ok=True)
        params = {"count": {"type": "int", "default": 5}, "file": {"type": "string", "default": ""}}
        (folder / "job.yaml").write_text(yaml.safe_dump({"version": 1, "name": "shape", "params": params, "stages": stages}, sort_keys=False))
        (folder / "stages.py").write_text(STAGES)
        return folder

    return write


Run = Callable[..., tuple[JobStatus, list[Any]]]


@pytest.fixture
def run(client: Client, workload: Callable[[Graph], Path]) -> Run:
    """Run a graph to its end and return its status and results."""

    def go(stages: Graph, **params: Any) -> tuple[JobStatus, list[Any]]:
        job = client.submit(workload(stages), params)
        status = client.wait(job.job_id, 60)
        return status, list(client.results(job.job_id)) if status.state == "done" else []

    return go
