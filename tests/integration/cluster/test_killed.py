"""What `up` started outlives the loss of any of its processes, and none of it outlives its supervisor."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter

import psutil
import pytest

LOADED_YAML = """
version: 1
name: loaded
params: {mark: {type: string, required: true}}
stages:
  numbers: {run: "stages:Numbers"}
  work: {run: "stages:Work", after: numbers}
"""
LOADED_STAGES = """
import os, pathlib
from dgpunet_dask import Demand, Stage
class Numbers(Stage):
    def __call__(self):
        return [1]
class Work(Stage):
    demand = Demand(vram="9GiB", resident="600MiB")
    def load(self, *, mark: str) -> None:
        with pathlib.Path(mark).open("a") as loads:
            loads.write(f"{os.getpid()}\\n")
    def __call__(self, batch):
        return batch
"""
#: Only the large one of the two cards can hold the stage.
CARD = "b"
ROLES = {
    "supervisor": "daemons.supervisor", "head": "daemons.head", "scheduler": "dask_scheduler", "agent": "daemons.agent",
    "worker": f"--name {CARD} ",
}  # fmt: skip
#: What runs where all is well: two cards and two CPUs.
WHOLE = Counter({"supervisor": 1, "head": 1, "scheduler": 1, "agent": 1, "worker": 1, "all workers": 4})
SERVING_S = 30.0


class Workload:
    """A workload whose stage notes the process of each of its loads."""

    def __init__(self, site, folder):
        self.site, self.folder, self.mark = site, folder / "loaded", folder / "loads"
        self.folder.mkdir()
        (self.folder / "job.yaml").write_text(LOADED_YAML)
        (self.folder / "stages.py").write_text(LOADED_STAGES)

    def submit(self):
        code, _, err = self.site.run("submit", self.folder, "--set", f"mark={self.mark}", "--json")
        assert code == 0, err

    def loads(self):
        return [int(line) for line in self.mark.read_text().split()]


@pytest.fixture
def loaded(site, two_cards, tmp_path):
    """A cluster that has a stage loaded on its large card."""
    site.up("--simulate", two_cards)
    made = Workload(site, tmp_path)
    made.submit()
    site.until(lambda: charged(site.status()) == 600)
    return made


def charged(status):
    return next(worker["charged_mib"] for worker in status["workers"] if worker["name"] == CARD)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def serves(site):
    return {worker["state"] for worker in site.status()["workers"]} == {"running"}


@pytest.mark.long
def test_a_loaded_stage_outlives_its_head_and_is_charged_again(site, loaded):
    before, (stage,) = site.status(), loaded.loads()
    kill(before["head_pid"])
    site.until(lambda: serves(site) and charged(site.status()) == 600, SERVING_S)
    assert psutil.pid_exists(stage)
    loaded.submit()
    assert loaded.loads() == [stage]
    site.until(lambda: charged(site.status()) == 600)


@pytest.mark.long
def test_a_stage_that_ended_while_no_head_was_there_is_charged_no_more(site, loaded):
    (supervisor,), (stage,) = site.pids("daemons.supervisor"), loaded.loads()
    head = site.status()["head_pid"]
    os.kill(supervisor, signal.SIGSTOP)  # nobody starts a head until the stage is gone
    kill(head)
    site.until(lambda: not site.pids("dask_scheduler"))
    kill(stage)
    os.kill(supervisor, signal.SIGCONT)
    site.until(lambda: serves(site) and charged(site.status()) == 0, SERVING_S)


@pytest.mark.long
def test_a_scheduler_that_stands_still_is_replaced(site):
    site.up()
    (old,) = site.pids("dask_scheduler")
    os.kill(old, signal.SIGSTOP)
    site.until(lambda: site.pids("dask_scheduler") not in ([], [old]), SERVING_S)
    site.until(lambda: serves(site), SERVING_S)


@pytest.mark.long
@pytest.mark.parametrize("pair", list(itertools.permutations(ROLES, 2)), ids="-".join)
def test_after_any_two_kills_the_cluster_is_whole_or_gone(site, two_cards, pair):
    site.up("--simulate", two_cards)
    for role in pair:
        if pids := site.pids(ROLES[role]):
            kill(pids[0])
    killed = time.monotonic()
    if "supervisor" in pair:
        site.until(lambda: not site.left(), 10)
        site.up("--simulate", two_cards)
    site.until(lambda: serves(site) and running(site) == WHOLE, SERVING_S)
    print(f"{'-'.join(pair)}: whole again after {time.monotonic() - killed:.1f} s")
    assert site.run("down")[0] == 0
    assert site.left() == []


@pytest.mark.long
@pytest.mark.parametrize(("stopped", "owner"), [("worker", "agent"), ("scheduler", "head"), ("agent", "supervisor"), ("head", "supervisor")])
def test_what_stands_still_does_not_outlive_its_owner(site, two_cards, stopped, owner):
    site.up("--simulate", two_cards)
    (left,) = site.pids(ROLES[stopped])
    os.kill(left, signal.SIGSTOP)
    kill(site.pids(ROLES[owner])[0])
    if owner == "supervisor":
        site.up("--simulate", two_cards)
    site.until(lambda: not psutil.pid_exists(left), SERVING_S)
    site.until(lambda: serves(site) and running(site) == WHOLE, SERVING_S)
    assert site.run("down")[0] == 0
    assert site.left() == []


def running(site):
    found = Counter({role: len(site.pids(word)) for role, word in ROLES.items()})
    return found + Counter({"all workers": len(site.pids("dask_worker"))})
