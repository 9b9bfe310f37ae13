"""A Dask cluster in one process with devices that are only said to exist, and tasks that report where and when they ran.

Scheduler and workers validate their own state. Tasks run in threads of this process, so tests steer them with `Gate` and read what they
did from `Spans`, which knows nothing of the ledger under test.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import dask
from distributed import Client, Scheduler, Worker

from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.plugins.scheduler import NAME, PlacementPlugin
from dgpunet_dask.plugins.worker import DeviceWorker, current_device

GIB: Final = 1024
#: No event of a test takes longer, or the test has failed.
DEADLINE_S: Final = 20.0
CONFIG: Final = {
    "distributed.scheduler.validate": True,
    "distributed.worker.validate": True,
    "distributed.admin.tick.limit": "1h",
    "distributed.worker.memory.terminate": False,
    "distributed.scheduler.allowed-failures": 10,
}


class Span(NamedTuple):
    """One call: where it ran, from when to when, and the VRAM that it was to take, in MiB."""

    device: str
    start: float
    stop: float
    mib: int
    tag: Any


class Spans:
    """What the tasks themselves noted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.all: list[Span] = []

    @contextmanager
    def note(self, mib: int = 0, tag: Any = None) -> Iterator[str]:
        """Note the time spent inside on the current device, whose name is given."""
        device, start = current_device(), time.perf_counter()
        try:
            yield device
        finally:
            with self._lock:
                self.all.append(Span(device, start, time.perf_counter(), mib, tag))

    def devices(self) -> list[str]:
        """Return the devices used, in the order in which calls ended."""
        return [span.device for span in self.all]

    def peak(self, device: str, weight: Callable[[Span], int] = lambda span: span.mib) -> int:
        """Return the greatest sum of `weight` of calls that overlapped on `device`."""
        mine = [span for span in self.all if span.device == device]
        moments = [(s.stop, 0, -weight(s)) for s in mine] + [(s.start, 1, weight(s)) for s in mine]
        total = most = 0
        for _, _, change in sorted(moments):
            total += change
            most = max(most, total)
        return most


spans = Spans()


class Gate:
    """A door that calls wait at: `entered` counts those that came, `open` lets all through."""

    def __init__(self) -> None:
        self.entered = 0
        self._door = threading.Condition()
        self._open = False

    def pass_through(self) -> None:
        """Wait until the gate is open."""
        with self._door:
            self.entered += 1
            assert self._door.wait_for(lambda: self._open, DEADLINE_S), "the gate was never opened"

    def open(self) -> None:
        """Let everyone through, now and later."""
        with self._door:
            self._open = True
            self._door.notify_all()


gates: dict[str, Gate] = {}


def work(tag: Any = None, *, mib: int = 0, gate: str | None = None, pause_s: float = 0.0, wait_for: Any = None) -> str:
    """Be a task: note the span, wait at `gate` if there is one, and return the device's name. `wait_for`: futures to depend on."""
    del wait_for
    with spans.note(mib, tag) as device:
        if gate is not None:
            gates[gate].pass_through()
        time.sleep(pause_s)
        return device


@dataclass
class PlacedCluster:
    """A scheduler with the placement plugin, workers that speak for devices, and a client."""

    scheduler: Scheduler
    client: Client
    workers: dict[str, Worker] = field(default_factory=dict)

    @property
    def plugin(self) -> PlacementPlugin:
        """The placement plugin."""
        found = self.scheduler.plugins[NAME]
        assert isinstance(found, PlacementPlugin)
        return found

    async def add_worker(self, name: str, devices: Sequence[Device], *, host: Host | None = None, **options: Any) -> Worker:
        """Start a worker that speaks for `devices`."""
        host = host or Host(name=devices[0].host, cpus=4, ram_mib=64 * GIB)
        speaker = DeviceWorker(host, devices, evict=options.pop("evict", None))
        worker = Worker(
            self.scheduler.address, name=name, plugins=(speaker,), nthreads=options.pop("nthreads", 4), validate=True, **options
        )
        self.workers[name] = await worker
        return worker

    async def fleet(self) -> dict[str, Any]:
        """Return what the scheduler answers about the fleet."""
        return dict(await self.client.scheduler.dgpunet_fleet())

    def charges(self, kind: str = "activation") -> dict[str, list[str]]:
        """Return the holders of charges of `kind` by device."""
        found: dict[str, list[str]] = {}
        for charge in self.plugin.book.pool.fleet().charges:
            if charge.kind == kind:
                found.setdefault(charge.device, []).append(charge.holder)
        return found

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Wait until `condition` holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, what or "the condition never held"
            await asyncio.sleep(0.005)


def card(name: str, gib: int, **facts: Any) -> Device:
    """Return a card of `gib` GiB, as fast as it is large, on a host of its own; `facts` say otherwise."""
    default: dict[str, Any] = {"host": f"host-{name}", "vram_mib": gib * GIB, "speed": float(gib)}
    return Device(name=name, **default | facts)


@asynccontextmanager
async def placed_cluster(*cards: Device, plugin: bool = True, validate: bool = True) -> AsyncIterator[PlacedCluster]:
    """Run a cluster with one worker per card; afterwards Dask's own state must be in order and no charge may be left over."""
    spans.all.clear()
    gates.clear()
    with dask.config.set({**CONFIG, "distributed.scheduler.validate": validate}):
        async with Scheduler(dashboard=False, host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", validate=validate) as scheduler:
            if plugin:
                await scheduler.register_scheduler_plugin(PlacementPlugin(), idempotent=True)
            async with Client(scheduler.address, asynchronous=True) as client:
                cluster = PlacedCluster(scheduler, client)
                try:
                    for device in cards:
                        await cluster.add_worker(device.name, [device])
                    yield cluster
                    scheduler.validate_state()
                finally:
                    for gate in gates.values():
                        gate.open()
                    for worker in cluster.workers.values():
                        await worker.close()
