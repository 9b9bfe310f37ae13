"""Stages that use a real card as they should and as they should not: within their charge, over it, killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.hardware.nvml import watching
from tests.acceptance.conftest import Cli
from tests.helpers import until

pytestmark = pytest.mark.timeout(300)

STAGES = '''
import os
import time
from pathlib import Path

from dgpunet_dask import Demand, Stage


class One(Stage):
    def __call__(self):
        yield "it"


class Hungry(Stage):
    """Takes 3 GiB, though it states 2."""

    demand = Demand(vram="2GiB", exclusive=True)

    def load(self) -> None:
        import torch

        self.torch = torch

    def __call__(self, batch):
        taken = self.torch.zeros(3 << 30, dtype=self.torch.uint8, device=self.context.torch_device)
        return [(self.device, self.context.vram_mib, int(taken[-1]))]


class Patient(Stage):
    """Holds 2 GiB and waits to be killed, the first time."""

    demand = Demand(vram="4GiB")

    def load(self, *, note: str) -> None:
        import torch

        self.note = Path(note)
        self.held = torch.ones(2 << 30, dtype=torch.uint8, device=self.context.torch_device)

    def __call__(self, batch):
        if not self.note.exists():
            self.note.write_text(str(os.getpid()))
            time.sleep(120)
        return [(self.device, os.getpid(), int(self.held[-1]))]
'''


@pytest.fixture(scope="module")
def client(card, homes: Path) -> Iterator[Client]:
    """Bring up a cluster on this machine's own cards."""
    cli = Cli(homes / "gpu-stages")
    up = cli("up", timeout_s=180)
    assert up.code == 0, up.err
    with Client(home=Home(cli.home)) as made:
        yield made
    assert cli("down", timeout_s=60).code == 0


def submit(client: Client, tmp_path: Path, kind: str, **params: str) -> str:
    """Submit a workload of one source and one stage; return the job's id."""
    types = {name: {"type": "string"} for name in params}
    stages = {"read": {"run": "stages:One"}, kind.lower(): {"run": f"stages:{kind}", "after": "read"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"version": 1, "name": kind.lower(), "params": types, "stages": stages}, sort_keys=False))
    (tmp_path / "stages.py").write_text(STAGES)
    return client.submit(tmp_path, params).job_id


def test_an_overrun_fails_itself_and_is_tried_again_with_more(client, tmp_path):
    job = submit(client, tmp_path, "Hungry")
    status = client.wait(job, 120)
    assert status.state == "done", status.error
    retries = [event["cause"] for event in client.api.events(job, since=0, wait_s=0.0) if event["kind"] == "retry"]
    assert retries[0] == "out_of_memory"
    assert "foreign_memory" not in retries, "the card was nearly empty: the cap met it, not the card"
    ((_, granted, zero),) = client.results(job)
    assert (granted > 3 << 10, zero) == (True, 0)


def test_a_killed_stage_host_frees_its_memory_and_its_unit_runs_again(client, card, tmp_path):
    note = tmp_path / "pid"
    with watching() as ask:
        job = submit(client, tmp_path, "Patient", note=str(note))
        first = int(until(lambda: note.exists() and note.read_text(), 90, "a unit that holds memory"))
        held = ask(card.uuid).used_mib
        os.kill(first, signal.SIGKILL)
        until(lambda: held - ask(card.uuid).used_mib >= 2048, 10, "the memory of the killed process")
        status = client.wait(job, 120)
    assert (status.state, status.units.attempts) == ("done", 2), status.error
    ((_, second, one),) = client.results(job)
    assert (second != first, one) == (True, 1)
