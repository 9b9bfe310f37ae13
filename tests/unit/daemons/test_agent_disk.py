"""The disk of an agent's host: what is loaded stays, the head's host is tidied by the head alone, settings are the host's own."""

from __future__ import annotations

import os

import pytest

from dgpunet_dask.cluster.workers import WorkerSite
from dgpunet_dask.config.settings_file import DEFAULTS
from dgpunet_dask.daemons.agent import Agent
from dgpunet_dask.daemons.agent_disk import agent_disk
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.stagehost.hosts import Host as LoadedHost
from dgpunet_dask.stagehost.spec import StageCallSpec
from tests.unit.daemons.members import ManualClock

SPEC = StageCallSpec(stage="s", run="m:S", digest="a" * 64, models={"model": "b" * 64})
OLD_S = 1e6


@pytest.fixture
def cached(home):
    """Caches of which all is old, beyond what may stay."""
    home.config.write_text("version: 1\ndisk: {caches: 0B, floor: 0B, spill: 3GiB}")
    for folder in [home.workloads / (letter * 64) for letter in "ac"]:
        folder.mkdir(parents=True)
        (folder / "stages.py").write_text("pass")
        os.utime(folder, (OLD_S, OLD_S))
    return home


def left(home):
    return sorted(folder.name[0] for folder in home.workloads.iterdir() if not folder.name.startswith("."))


async def test_on_a_host_of_its_own_what_is_loaded_stays_and_the_rest_goes(cached):
    disk = agent_disk(cached, lambda: [SPEC], ManualClock(), beside_head=False)
    await disk.tidy()
    assert left(cached) == ["a"]


async def test_beside_a_head_what_is_loaded_is_marked_and_nothing_goes(cached):
    disk = agent_disk(cached, lambda: [SPEC], ManualClock(), beside_head=True)
    await disk.tidy()
    assert left(cached) == ["a", "c"]
    assert (cached.workloads / ("a" * 64)).stat().st_mtime > OLD_S
    assert (cached.workloads / ("c" * 64)).stat().st_mtime == OLD_S


def test_a_mistake_in_the_settings_stops_no_agent(home, caplog):
    home.config.write_text("version: 1\ndisk: {caches: odd}")
    disk = agent_disk(home, list, ManualClock(), beside_head=False)
    assert disk.limits == DEFAULTS.disk
    assert disk.watch.error is not None
    assert "the defaults hold" in caplog.text


def test_workers_may_spill_what_the_host_says(cached):
    fleet = Fleet(hosts=(Host(name="pc"),), devices=(Device(name="pc/cpu", host="pc", kind="cpu"),))
    paths = {"scheduler_file": cached.run / "s.json", "facts_folder": cached.run / "facts", "scratch": cached.run / "scratch"}
    agent = Agent(cached, fleet, WorkerSite(**paths, agent_socket=cached.agent_socket, home=cached.root, cores=2), ManualClock())
    assert agent.site.spill_bytes == 3 << 30
    agent.hosts.book.hosts.append(LoadedHost(SPEC))
    assert agent.hosts.specs() == [SPEC]
    assert agent.disk.ports.in_use() == {("workload", "a" * 64), ("model", "b" * 64)}
