"""A worker learns what is loaded on its devices from an agent that may not answer at once."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from dgpunet_dask.daemons import worker_preload
from dgpunet_dask.errors import StageHostLost

LOADED = [{"stage": "embed", "id": "1", "mib": 600, "busy": False}]


class Agent:
    """Fails in the given ways, then tells what is loaded, as far as it is asked."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.asked = 0

    def subscribe(self, devices, callback):
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        for device in devices:
            callback(device, LOADED)
        return self


def lost():
    return StageHostLost(stage="a", device="this host", how="its agent does not answer", attempts=1, log="the agent's log")


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(worker_preload, "SUBSCRIBE_FIRST_S", 0.001)
    monkeypatch.setattr(worker_preload, "_subscriptions", [])
    monkeypatch.setattr(worker_preload, "_ending", threading.Event())
    return {}


def subscribe(told, agent):
    loop = SimpleNamespace(add_callback=lambda function, *args: function(*args))
    plugin = SimpleNamespace(report_residents=told.__setitem__)
    worker_preload._subscribe(SimpleNamespace(loop=loop), plugin, agent, ["4090l"])


def test_an_agent_that_does_not_answer_is_asked_again(told):
    agent = Agent(lost(), lost(), BrokenPipeError())
    subscribe(told, agent)
    assert told == {"4090l": LOADED}
    assert agent.asked == 4
    assert worker_preload._subscriptions == [agent]


def noted(event):
    def note():
        event.set()

    return note


def test_nothing_is_told_before_it_would_arrive(told):
    """Dask drops what a worker tells before it has registered."""
    told_at, began = threading.Event(), threading.Event()
    stream = SimpleNamespace(comm=None)

    class Stream:
        @property
        def comm(self):
            began.set()
            return stream.comm

    worker_preload._background(noted(told_at), SimpleNamespace(batched_stream=Stream()))
    assert began.wait(10)
    assert not told_at.is_set()
    stream.comm = object()
    assert told_at.wait(10)


def test_a_worker_that_ends_before_it_has_registered_tells_nothing(told):
    worker_preload._ending.set()
    asked = threading.Event()
    worker_preload._background(noted(asked), SimpleNamespace(batched_stream=None))
    for thread in threading.enumerate():
        if thread.name == "note":
            thread.join(10)
    assert not asked.is_set()


def test_a_worker_that_ends_asks_no_more(told):
    class Last(Agent):
        def subscribe(self, devices, callback):
            worker_preload._ending.set()
            return super().subscribe(devices, callback)

    agent = Last(lost(), lost())
    subscribe(told, agent)
    assert (agent.asked, told) == (1, {})
