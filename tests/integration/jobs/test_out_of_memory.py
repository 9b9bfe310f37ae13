"""Units that run out of GPU memory, on a simulated fleet: tried again with more, on larger cards, and held when that does not help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpunet_dask.client import Client
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.lifeline import child_env, python_argv
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.placement.estimate import Estimates
from dgpunet_dask.testing.processes import commands_of
from tests.helpers import until

#: The smaller a card, the faster: placement tries the small ones first.
FLEET = """
version: 1
defaults: {reserve: 0MiB}
hosts:
  one:
    ram: 64GiB
    cpus: 8
    gpus:
      a8: {vram: 8GiB, compute_capability: "8.9", speed: 4.0}
      b12: {vram: 12GiB, compute_capability: "8.9", speed: 3.0}
      c24: {vram: 24GiB, compute_capability: "8.6", speed: 2.0}
      d32: {vram: 32GiB, compute_capability: "12.0", speed: 1.0}
"""

POLICY = """
version: 1
rules:
- name: eager
  match: {model: eager}
  on_oom: {grow: 4, retries: 1}
- name: bounded
  match: {model: bounded}
  on_oom: {grow: 1.5, max: 5GiB, retries: 5}
- name: patient
  match: {model: patient}
  on_oom: {grow: 1.5, retries: 9}
"""

STAGES = '''
from dgpunet_dask import Demand, Stage

GIB = 1024


class Numbers(Stage):
    def load(self, *, count: int) -> None:
        self.total = count

    def __call__(self):
        yield from range(self.total)


class Needy(Stage):
    """Needs some GiB; `asks` is the VRAM that it states."""

    @classmethod
    def demand_for(cls, *, asks: str) -> Demand:
        return Demand(vram=asks or None)

    def load(self, *, needs: int) -> None:
        self.needs = needs

    def __call__(self, batch):
        if self.context.vram_mib < self.needs * GIB:
            raise RuntimeError(self.told(self.context.vram_mib - 500, self.needs * GIB - self.context.vram_mib + 500))
        return [f"{self.device} {self.context.vram_mib}" for _ in batch]

    def told(self, used, more):
        """What PyTorch says; the charge is far from what others leave free."""
        return (
            f"CUDA out of memory. Tried to allocate {more:.2f} MiB. GPU 0 has a total capacity of 80.00 GiB of which 0 bytes is free. "
            f"Including non-PyTorch memory, this process has {used:.2f} MiB memory in use. Of the allocated memory 1.00 MiB is allocated."
        )


class Mute(Needy):
    def told(self, used, more):
        """What the driver says: no numbers."""
        return "CUDA error: out of memory"


class Torch(Needy):
    """Raises the real class, as a cause."""

    def load(self, *, needs: int) -> None:
        import torch

        self.torch, self.needs = torch, needs

    def __call__(self, batch):
        try:
            if self.context.vram_mib < self.needs * GIB:
                raise self.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        except RuntimeError as error:
            raise ValueError("the batch failed") from error
        return [f"{self.device} {self.context.vram_mib}" for _ in batch]


class Crowded(Needy):
    """Finds its card filled by others, `count` times a process."""

    def load(self, *, needs: int) -> None:
        self.left = needs

    def __call__(self, batch):
        if self.left:
            self.left -= 1
            raise RuntimeError(self.told(1000, 500))
        return [f"{self.device} {self.context.vram_mib}" for _ in batch]


class After(Stage):
    def __call__(self, batch):
        return [item + "!" for item in batch]
'''

Run = Callable[..., tuple[JobStatus, list[Any], list[Mapping[str, Any]]]]


@pytest.fixture(scope="module")
def fleet_home(homes: Path) -> Iterator[Home]:
    """Bring up the fleet for all tests of this file."""
    home = Home(Path(tempfile.mkdtemp(prefix="o", dir=homes))).ensure()
    file = homes / "oom-fleet.yaml"
    file.write_text(FLEET)
    env = child_env({"DGPUNET_HOME": str(home.root)})

    def command(*args: str) -> None:
        done = subprocess.run(python_argv("dgpunet_dask.cli.main", *args), env=env, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    policy = homes / "oom-policy.yaml"
    policy.write_text(POLICY)
    command("up", "--simulate", str(file), "--policy", str(policy))
    yield home
    command("down")


@pytest.fixture
def run(fleet_home: Home, tmp_path: Path) -> Iterator[Run]:
    """Run a stage of the given class and one after it; give the status, the results and the events."""
    with Client(home=fleet_home) as client:

        def go(kind: str, **params: Any) -> tuple[JobStatus, list[Any], list[Mapping[str, Any]]]:
            folder = tmp_path / kind
            folder.mkdir(exist_ok=True)
            stages = {
                "read": {"run": "stages:Numbers", "unit": {"items": 1}},
                kind.lower(): {"run": f"stages:{kind}", "after": "read"},
                "after": {"run": "stages:After", "after": kind.lower()},
            }
            types = {"count": {"type": "int", "default": 1}, "needs": {"type": "int"}, "asks": {"type": "string", "default": ""},
                     "model": {"type": "string", "default": ""}}  # fmt: skip
            described = {"version": 1, "name": "needy", "params": types, "stages": stages}
            (folder / "job.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
            (folder / "stages.py").write_text(STAGES)
            job = client.submit(folder, params)
            status = client.wait(job.job_id, 60)
            events = list(client.api.events(job.job_id, since=0, wait_s=0.0))
            return status, list(client.results(job.job_id)) if status.state == "done" else [], events

        yield go


def tried(events: list[Mapping[str, Any]]) -> list[str]:
    return [str(e["device"]) for e in events if e["kind"] == "placement"]


def test_a_unit_that_states_nothing_moves_to_larger_cards_until_it_fits(run: Run) -> None:
    status, results, events = run("Needy", needs=20, model="m1")
    assert status.state == "done", status.error
    assert results == ["d32 30720!"], "half as much again as its peak, on a card that has that"
    assert tried(events) == ["a8", "d32"]
    assert (status.units.attempts, status.units.failed) == (2, 0)


def test_what_was_stated_too_low_grows_and_stays_grown_for_later_units(run: Run) -> None:
    status, results, events = run("Needy", needs=5, asks="4GiB", count=40, model="m2")
    assert status.state == "done", status.error
    assert len(results) == 40
    retries = [e for e in events if e["kind"] == "retry"]
    assert retries
    assert {e["cause"] for e in retries} == {"out_of_memory"}
    assert status.units.attempts == 40 + len(retries)
    assert len(retries) <= 14, "only the units that were on their way already meet it too"


def test_the_next_job_starts_with_what_was_learned(run: Run) -> None:
    first, _, _ = run("Needy", needs=10, model="m3")
    again, results, events = run("Needy", needs=10, model="m3")
    assert (first.units.attempts, again.units.attempts) == (2, 1)
    assert "a8" not in tried(events)
    assert results[0].endswith(" 15360!")


def test_torch_s_own_error_raised_as_a_cause_moves_the_unit(run: Run) -> None:
    status, _, events = run("Torch", needs=9, model="t")
    assert status.state == "done", status.error
    assert tried(events)[0] == "a8"
    assert status.units.attempts > 1


def test_what_never_fits_is_held_with_its_peak_after_the_retries(run: Run) -> None:
    status, _, events = run("Needy", needs=500, asks="2GiB", model="m4")
    assert (status.state, status.exit_code) == ("failed", 100)
    assert status.error is not None
    assert status.error["code"] == "out_of_memory"
    assert "500GiB" in status.error["message"], "its peak"
    assert tried(events) == ["a8", "b12", "c24"], "what it asks for next is more than any has: then the whole of larger ones"
    assert "a8 (2GiB of 8GiB), b12 (12GiB of 12GiB), c24 (24GiB of 24GiB)" in status.error["message"]
    assert (status.units.attempts, status.units.failed) == (3, 1)


def test_units_that_meet_a_grown_demand_which_no_device_has_go_on_with_the_next(run: Run) -> None:
    status, results, events = run("Needy", needs=30, asks="4GiB", count=12, model="patient")
    assert (status.state, status.units.failed) == ("done", 0), status.error
    assert results == ["d32 32768!"] * 12, "half as much again is more than any has, and the whole of the largest is enough"
    assert status.units.attempts == 12 + sum(e["kind"] == "retry" and e["cause"] == "out_of_memory" for e in events)
    assert "unplaceable" in {e.get("cause") for e in events}


def test_the_policy_says_how_much_more_to_ask_for(run: Run) -> None:
    status, results, events = run("Mute", needs=10, asks="4GiB", model="eager")
    assert (status.state, results) == ("done", ["c24 16384!"]), status.error
    assert tried(events) == ["a8", "c24"]


def test_the_policy_says_how_far_a_demand_may_grow(run: Run) -> None:
    status, _, events = run("Mute", needs=6, asks="4GiB", model="bounded")
    assert status.error is not None
    assert "at least 5GiB" in status.error["message"]
    assert (tried(events), status.units.attempts) == (["a8", "b12"], 2), "more than the bound is never asked for"


def test_a_filled_card_is_tried_again_and_asks_for_no_more(run: Run, fleet_home: Home) -> None:
    status, results, events = run("Crowded", needs=1, asks="4GiB", model="m5")
    assert status.state == "done", status.error
    assert [e["cause"] for e in events if e["kind"] == "retry"] == ["foreign_memory"]
    assert results == ["a8 4096!"]
    assert status.units.attempts == 2


@pytest.mark.long
def test_a_new_scheduler_is_told_what_was_learned(run: Run, fleet_home: Home) -> None:
    assert run("Needy", needs=10, model="m8")[0].units.attempts == 2
    (scheduler,) = [pid for pid, command in commands_of(fleet_home.root).items() if "dask_scheduler" in command]
    os.kill(scheduler, signal.SIGKILL)
    until(lambda: scheduler not in commands_of(fleet_home.root), what="the end of the scheduler")
    status, results, events = run("Needy", needs=10, model="m8")
    assert (status.state, status.units.attempts) == ("done", 1), (status.error, events)
    assert results[0].endswith(" 15360!")


@pytest.mark.long
def test_a_card_that_stays_filled_is_given_up(run: Run) -> None:
    status, _, _ = run("Crowded", needs=100, asks="4GiB", model="m6")
    assert status.exit_code == 100
    assert status.error is not None
    assert status.error["code"] == "foreign_memory"
    assert "4GiB" in status.error["message"]
    assert status.units.attempts == 5


def test_what_was_learned_is_kept(run: Run, fleet_home: Home) -> None:
    run("Needy", needs=1, model="m7")

    def kept() -> Estimates:
        return Estimates.from_json(json.loads(fleet_home.learned.read_text()))

    until(lambda: kept().work_s("needy", "m7") is not None, timeout_s=10, what="what the unit taught on disk")
    assert kept().load_s("needy", "m7", "cpu") is not None, "no card of its class is known: the mean of the others"
    assert kept().peak_mib("needy", "m7") is None, "nothing was measured on a simulated card"
