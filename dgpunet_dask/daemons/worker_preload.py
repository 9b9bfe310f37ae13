"""Dask preload of every worker: announces the device that the worker stands for, passes on what its agent says is loaded there, and
tells what changes on a real machine.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons.hidden_pages import hide_prefix
from dgpunet_dask.daemons.watching import PROBED, watch
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.plugins.facts import device_from_wire, host_from_wire
from dgpunet_dask.plugins.shards import ShardWorker
from dgpunet_dask.plugins.worker import DeviceWorker, announce
from dgpunet_dask.stagehost.client import AgentClient, Subscription

log = logging.getLogger(__name__)

#: A worker that lost its scheduler waits for its running tasks, which wait for their stages: after this long it ends all the same,
#: so that its successor can join. The stages' results are lost with the scheduler anyway.
LINGER_S: Final = 3.0
#: The same without running tasks: a nanny's child waits for threads of its own otherwise, while a new scheduler waits for its successor.
IDLE_LINGER_S: Final = 1.0

_POLL_S: Final = 0.05
#: How soon an agent that does not answer is asked again what is loaded; each time after twice as long, up to the second.
SUBSCRIBE_FIRST_S: Final = 0.2
SUBSCRIBE_MOST_S: Final = 10.0

#: Set for workers whose pages are under a secret path.
HIDE_PAGES: Final = "DGPUNET_HIDE_PAGES"

_subscriptions: list[Subscription] = []
_ending = threading.Event()


async def dask_setup(worker: Any) -> None:
    """Announce the facts in the file that ``$DGPUNET_WORKER_FACTS`` names, and subscribe to what is loaded on the devices."""
    facts = _facts(Path(os.environ["DGPUNET_WORKER_FACTS"]))
    devices = [device_from_wire(raw) for raw in facts["devices"]]
    agent = AgentClient(os.environ["DGPUNET_AGENT_SOCKET"])
    evict = functools.partial(_evict, agent)
    if worker.security.require_encryption:
        from dgpunet_dask.cluster.severing import follow  # loads what reads certificates: not for workers without

        follow(worker)
    plugin = await announce(worker, host_from_wire(facts["host"]), devices, agent=facts["agent"], evict=evict)
    if any(device.kind == "cpu" for device in devices):
        await worker.plugin_add(plugin=ShardWorker(plugin.host), name=ShardWorker.name)
    loop = asyncio.get_running_loop()
    if os.environ.get(HIDE_PAGES):
        loop.call_later(0, hide_prefix, worker)
    names = [device.name for device in devices]
    loop.call_later(0, lambda: _background(_subscribe, worker, worker, plugin, agent, names))
    if os.environ.get(PROBED):
        loop.call_later(0, lambda: _background(watch, worker, plugin, _ending, SystemClock()))


def _facts(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def _background(function: Any, worker: Any, *args: Any) -> None:
    """Run `function` in a thread once `worker` can speak to its scheduler: Dask drops what is told before, without a word."""

    def run() -> None:
        while not registered(worker):
            if _ending.wait(_POLL_S):
                return
        function(*args)

    threading.Thread(target=run, name=function.__name__, daemon=True).start()


def registered(worker: Any) -> bool:
    """Whether what `worker` tells its scheduler arrives there."""
    stream = worker.batched_stream
    return stream is not None and stream.comm is not None


async def _evict(agent: AgentClient, device: str, resident: str) -> None:
    await asyncio.to_thread(agent.evict, device, resident)


def _subscribe(worker: Any, plugin: DeviceWorker, agent: AgentClient, devices: list[str]) -> None:
    """Pass on what is loaded.

    An agent that does not answer is asked again: until it does, the scheduler counts on what was loaded before.
    """

    def passed_on(device: str, residents: list[dict[str, Any]]) -> None:
        worker.loop.add_callback(plugin.report_residents, device, residents)

    wait_s = SUBSCRIBE_FIRST_S
    while not _ending.is_set():
        try:
            _subscriptions.append(agent.subscribe(devices, passed_on))
        except (DgpunetError, OSError) as error:
            log.warning("what is loaded on %s is not known yet: %s", ", ".join(devices), error)
            _ending.wait(wait_s)
            wait_s = min(2 * wait_s, SUBSCRIBE_MOST_S)
        else:
            return


async def dask_teardown(worker: Any) -> None:
    """Stop listening and watching, and see to it that the worker ends soon."""
    _ending.set()
    while _subscriptions:
        await asyncio.to_thread(_subscriptions.pop().close)
    ends = threading.Timer(LINGER_S if worker.state.executing else IDLE_LINGER_S, os._exit, (0,))
    ends.daemon = True
    ends.start()
