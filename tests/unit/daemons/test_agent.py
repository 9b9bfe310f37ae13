"""The agent of a cluster on one machine: it waits for its fleet, and ends what is loaded where no head comes back."""

from __future__ import annotations

import asyncio
import json
import os

import psutil
import pytest

from dgpunet_dask.cluster.headfile import HeadFile, write_head_file
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons import agent
from dgpunet_dask.daemons.agent import HEADLESS_S, head_runs, watch_for_head


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path).ensure()


def write_head(home, created):
    write_head_file(home.head_file, HeadFile(pid=os.getpid(), created=created, api="http://127.0.0.1:9", key="k", scheduler="tcp://x"))


def test_a_head_runs_while_its_process_does(home):
    assert not head_runs(home)
    write_head(home, psutil.Process().create_time())
    assert head_runs(home)
    write_head(home, 1.0)  # the number is somebody else's now
    assert not head_runs(home)
    home.head_file.write_text(json.dumps({"version": 99}))
    assert head_runs(home)


class Story:
    """Goes on by one step with each look; its clock and what it tells of the head follow."""

    def __init__(self, *steps):
        self.steps, self.at = steps, 0
        self.ended_at = []
        self.over = asyncio.Event()

    def monotonic(self):
        return self.steps[min(self.at, len(self.steps) - 1)][0]

    def runs(self):
        self.at += 1
        if self.at >= len(self.steps):
            self.over.set()
        return self.steps[min(self.at, len(self.steps) - 1)][1]

    async def end(self):
        self.ended_at.append(self.monotonic())
        return 1


async def told(*steps):
    story = Story(*steps)
    task = asyncio.create_task(watch_for_head(story.runs, story.end, story, look_s=0.0))
    await asyncio.wait_for(story.over.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return story.ended_at


async def test_what_is_loaded_ends_once_where_no_head_comes_back():
    assert await told((0, True), (100, True), (101, False), (100 + HEADLESS_S, False), (101 + HEADLESS_S, False)) == [100 + HEADLESS_S]


async def test_what_is_loaded_waits_for_a_head_that_starts_again():
    assert await told((0, True), (HEADLESS_S - 1, False), (HEADLESS_S + 10, True), (HEADLESS_S + 20, False)) == []


async def test_it_waits_for_the_fleet_and_no_longer_than_until_it_is_told_to_end(home, monkeypatch):
    monkeypatch.setattr(agent, "_POLL_S", 0.001)
    file, stop = home.run / "fleet.json", asyncio.Event()
    waiting = asyncio.create_task(agent._described(file, stop))
    file.write_text('{"hosts": []}')
    assert await asyncio.wait_for(waiting, 10) == {"hosts": []}
    file.unlink()
    waiting = asyncio.create_task(agent._described(file, stop))
    stop.set()
    assert await asyncio.wait_for(waiting, 10) is None
