"""A card that is new to a home is tried with batch work before interactive work goes there, from start to end on a live head."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import dask
import pytest
from distributed import Client, wait

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.embedded import attach
from dgpunet_dask.daemons.lifeline import wait_until
from dgpunet_dask.placement.derive import read_standings
from dgpunet_dask.testing.processes import kill_all

OLD = 'version: 1\nhosts:\n  a: {gpus: {old: {vram: 24GiB, compute_capability: "8.9"}}}\n'
WITH_NEW = OLD + '  b: {gpus: {new: {vram: 16GiB, compute_capability: "8.6", speed: 9}}}\n'


def where(_):
    from dgpunet_dask.plugins.worker import current_device

    return current_device()


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "h")
    yield home
    kill_all(home.root)


@contextmanager
def cluster(home, text):
    file = home.root.parent / "fleet.yaml"
    file.write_text(text)
    with attach(home, simulate=file, environ={}) as api, Client(api.status()["address"]) as client:
        yield client


def devices(client, n, priority):
    with dask.annotate(demand={"vram": "4GiB", "priority": priority}):
        tasks = client.map(where, range(n), pure=False)
    wait(tasks, timeout=30)
    return Counter(client.gather(tasks))


@pytest.mark.long
def test_a_new_card(home):
    with cluster(home, OLD) as client:
        assert devices(client, 2, "interactive") == {"old": 2}  # nobody could stand in for the first card
    file = home.policy / "generated" / "b.yaml"
    with cluster(home, WITH_NEW) as client:
        assert "- name: probation-new" in file.read_text()
        assert devices(client, 8, "interactive") == {"old": 8}
        assert wait_until(lambda: devices(client, 8, "batch") and "probation" not in file.read_text(), 30), file.read_text()
        assert wait_until(lambda: "new" in devices(client, 8, "interactive"), 20)
    before = file.read_text()
    assert read_standings(before)["new"].tried
    with cluster(home, WITH_NEW) as client:
        assert file.read_text() == before
        assert "new" in devices(client, 8, "interactive")
