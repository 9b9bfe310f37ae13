"""A cluster of two hosts and a workload whose items say what befalls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dgpunet_dask.client.results import items
from dgpunet_dask.jobs import lease_steps, schema
from dgpunet_dask.jobs.ledger import read_copy
from dgpunet_dask.jobs.rows import AttemptRow
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.testing.livecluster import LiveCluster, live_cluster
from tests.helpers import until

FLEET = """
version: 1
defaults: {reserve: 0MiB}
hosts:
  one:
    roles: [head]
    ram: 16GiB
    cpus: 2
    gpus: {a0: {vram: 8GiB, compute_capability: "8.9"}}
  two:
    ram: 16GiB
    cpus: 2
    gpus: {b0: {vram: 8GiB, compute_capability: "8.9"}}
"""

STAGES = '''
import os
import signal
import time
from pathlib import Path

from dgpunet_dask import Demand, Stage


class Items(Stage):
    """Gives the numbers that stand in the file `numbers`, with `how` what befalls those in `bad`."""

    def load(self, *, folder: str, bad: str, how: str) -> None:
        self.folder, self.bad, self.how = folder, bad.split(), how

    def __call__(self):
        for number in (Path(self.folder) / "numbers").read_text().split():
            yield {"number": number, "how": self.how if number in self.bad else "", "folder": self.folder}


def befall(item, where):
    folder = Path(item["folder"])
    with (folder / "ran").open("a") as out:
        out.write(f"{item['number']} {where} {os.getpid()}\\n")
    how = item["how"]
    if how == "raise" and not (folder / "mended").exists():
        raise ValueError(f"number {item['number']} is bad on purpose")
    if how == "memory":
        raise MemoryError
    if how == "import":
        import no_such_module
    if how == "reset":
        raise ConnectionResetError("the peer is gone")
    if how == "full":
        with open("/dev/full", "wb", buffering=0) as out:
            out.write(b"x")
    if how == "exit":
        os._exit(7)
    if how in ("SIGKILL", "SIGSEGV"):
        os.kill(os.getpid(), getattr(signal, how))
    while how == "hang":
        time.sleep(0.1)
    if how == "gate":
        (folder / "at-gate").touch()
        while not (folder / "go").exists():
            time.sleep(0.02)
    if how == "slow" and not (folder / "slow").exists():
        (folder / "slow").write_text(where)
        while not (folder / "go").exists():
            time.sleep(0.02)
    if how == "brief":
        time.sleep(0.25)


class Heavy(Stage):
    demand = Demand(vram="1GiB")

    def load(self) -> None:
        pass

    def __call__(self, batch):
        for item in batch:
            befall(item, self.device)
        return [item["number"] for item in batch]


class Light(Stage):
    def __call__(self, batch):
        for item in batch:
            befall(item, "light")
        return [item["number"] for item in batch]
'''


@dataclass(frozen=True)
class Trouble:
    """Jobs of one test: their workload, and the folder in which its stages leave what they did."""

    cluster: LiveCluster
    folder: Path

    def submit(self, kind: str, numbers: Sequence[object], bad: Sequence[object] = (), how: str = "", *, stage: Mapping[str, Any] | None = None, **asked: Any) -> str:
        """Submit a job over `numbers` with one stage, `kind`; return its id."""
        code = self.folder / kind
        code.mkdir(exist_ok=True)
        stages = {
            "items": {"run": "stages:Items", "unit": {"items": 1}},
            "work": {"run": f"stages:{kind}", "after": "items", **(stage or {})},
        }
        params = {name: {"type": "string", "default": ""} for name in ("folder", "bad", "how")}
        described = {"version": 1, "name": "trouble", "params": params, "stages": stages}
        (code / "job.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
        (code / "stages.py").write_text(STAGES)
        self.numbers(numbers)
        given = {"folder": str(self.folder), "bad": " ".join(map(str, bad)), "how": how}
        return self.cluster.submit(code, given, **asked).job_id

    def numbers(self, numbers: Sequence[object]) -> None:
        """Write what the source reads."""
        (self.folder / "numbers").write_text(" ".join(map(str, numbers)))

    def ended(self, job_id: str, timeout_s: float = 120.0) -> JobStatus:
        """Return a job once it has ended."""
        return self.cluster.ended(job_id, timeout_s)

    def done(self, job_id: str, count: int) -> None:
        """Wait until so many units of a job are committed."""
        until(lambda: self.cluster.asked(lambda api: api.show(job_id)).units.done >= count, 60, f"{count} committed units")

    def events(self, job_id: str, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind."""
        return [e for e in self.cluster.asked(lambda api: api.events(job_id)) if e["kind"] == kind]

    def results(self, job_id: str) -> list[str]:
        """Return the numbers that came out, in order."""
        return list(items(self.cluster.home, job_id))

    def ran(self) -> Counter[str]:
        """Return how often each number was worked on."""
        return Counter(line[0] for line in self.lines())

    def lines(self) -> list[list[str]]:
        """Return number, device and pid of each call."""
        file = self.folder / "ran"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def wait_for(self, name: str) -> None:
        """Wait until a stage has made the file of that name."""
        until((self.folder / name).exists, 60, name)

    def make(self, name: str) -> None:
        """Make the file of that name."""
        (self.folder / name).touch()

    def attempts(self, job_id: str, unit: int | None = None) -> list[AttemptRow]:
        """Return the attempts of a job, or of one of its units, as the ledger has them; nothing in it contradicts anything else."""
        with read_copy(self.cluster.home.ledger) as db:
            faults = {what: rows for what, query in schema.FAULTS.items() if (rows := db.execute(query).fetchall())}
            rows = lease_steps.attempts(db, job_id, None, 1000)
        assert not faults
        return [row for row in rows if unit in (None, row.number)]


@contextmanager
def two_hosts(folder: Path) -> Iterator[LiveCluster]:
    """Give the cluster."""
    fleet = folder / "fleet.yaml"
    fleet.write_text(FLEET)
    with live_cluster(folder / "h", fleet) as cluster:
        cluster.ready(4)
        yield cluster
