"""The worker's side of placement: announce devices, know which device each task is on, report the end of cancelled calls."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from distributed import get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from dgpunet_dask.errors import NotFound
from dgpunet_dask.model.fleet import Device, Host
from dgpunet_dask.plugins.facts import EXTRA, resource_name, to_wire
from dgpunet_dask.plugins.records import ANNOTATION, DEVICE, VRAM

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.worker import Worker

logger = logging.getLogger(__name__)

NAME: Final = "dgpunet-device"
#: Tasks of light stages ask a CPU worker for one of these.
LIGHT: Final = "LIGHT"
Evict = Callable[[str, str], Awaitable[None] | None]


class DeviceWorker(WorkerPlugin):
    """Speaks for devices on a worker. It must be there before the worker registers: ``Worker(plugins=[...])`` or `announce`.

    Parameters
    ----------
    host
        The machine.
    devices
        The devices that this worker runs tasks for.
    agent
        Process id of the agent, ``None`` without one.
    evict
        Called with device and resident id on the worker's loop when a resident should leave; may be a coroutine function.
    light
        How many light tasks a CPU worker takes at a time; ``None``: as many as it has threads.
    """

    name = NAME

    def __init__(
        self,
        host: Host,
        devices: Sequence[Device],
        *,
        agent: int | None = None,
        evict: Evict | None = None,
        light: int | None = None,
    ) -> None:
        self.host, self.devices, self.agent, self.light = host, tuple(devices), agent, light
        self._on_evict = evict
        self.running: dict[Key, str | None] = {}
        self._asked: dict[Key, list[str]] = {}

    def setup(self, worker: Worker) -> None:
        """Announce facts and interlock resources, and listen to the scheduler."""
        self.worker = worker
        facts = {"host": to_wire(self.host), "devices": [to_wire(d) for d in self.devices], "agent": self.agent}
        worker.startup_information[EXTRA] = lambda _: facts
        amounts = self._resources()
        worker.state.total_resources.update(amounts)
        worker.state.available_resources.update(amounts)
        worker.stream_handlers["dgpunet-settle"] = self._settle
        worker.handlers["dgpunet_evict"] = self._evict

    def _resources(self) -> dict[str, int]:
        found = {resource_name(d): d.usable_mib for d in self.devices if d.kind == "gpu" and d.usable_mib}
        cpus = [d for d in self.devices if d.kind == "cpu"]
        found |= {resource_name(d): _ANY if self.host.cpus is None else self.host.cpus for d in cpus}
        return found | ({LIGHT: self.light or self.worker.state.nthreads} if cpus else {})

    def transition(self, key: Key, start: str, finish: str, **kwargs: Any) -> None:
        """Note which calls run, and report the end of those that the scheduler has asked about."""
        if finish == "executing":
            # setdefault: a cancelled call that is wanted again goes on where it started
            self.running.setdefault(key, (self.worker.state.tasks[key].annotations or {}).get(DEVICE))
        elif key in self.running and not self._runs(key):
            del self.running[key]
            for holder in self._asked.pop(key, ()):
                self._report_end(holder)

    def _runs(self, key: Key) -> bool:
        state = self.worker.state
        ts = state.tasks.get(key)
        return ts is not None and (ts in state.executing or ts in state.long_running)

    def _settle(self, key: Key, holder: str, **kwargs: Any) -> None:
        """Answer the scheduler's question whether a call still runs: now if it does not, else when it has ended."""
        if self._runs(key):
            self._asked.setdefault(key, []).append(holder)
        else:
            self._report_end(holder)

    def _report_end(self, holder: str) -> None:
        self.worker.batched_stream.send({"op": "dgpunet-ended", "holder": holder})

    def report_residents(self, device: str, residents: Iterable[Mapping[str, Any]]) -> None:
        """Tell the scheduler what is loaded on `device`: mappings with `stage`, `id`, `mib`, `busy`. May be called from any thread."""
        self.worker.log_event("dgpunet", {"action": "residents", "device": device, "residents": [dict(r) for r in residents]})

    def report_use(self, device: str, use: Mapping[str, int | None]) -> None:
        """Tell the scheduler whose memory `device` holds: `used_mib`, `ours_mib`, `others_mib`, `context_mib`. From any thread."""
        self.worker.log_event("dgpunet", {"action": "foreign", "device": device, **use})

    def report_host(self, power: str | None, idle_s: float | None) -> None:
        """Tell the scheduler what feeds this worker's host, and for how long nobody has touched it. From any thread."""
        self.worker.log_event("dgpunet", {"action": "host", "host": self.host.name, "power": power, "idle_s": idle_s})

    async def _evict(self, device: str, stage: str) -> str:
        if self._on_evict is None:
            raise NotFound(what=f"Something that can unload {stage} from {device}")
        answer = self._on_evict(device, stage)
        if inspect.isawaitable(answer):
            await answer
        return "OK"


#: Where a host does not report its cores: room for any sum of `cpus`; placement admits one unit at a time there.
_ANY: Final = 1 << 20


async def announce(
    worker: Worker, host: Host, devices: Sequence[Device], *, agent: int | None = None, evict: Evict | None = None, light: int | None = None
) -> DeviceWorker:
    """Let `worker`, which has not registered yet, speak for `devices`; for a preload's ``dask_setup``. See `DeviceWorker`."""
    plugin = DeviceWorker(host, devices, agent=agent, evict=evict, light=light)
    await worker.plugin_add(plugin=plugin, name=NAME)
    return plugin


def current_device() -> str:
    """Return the name of the device that the running task was placed on.

    A task that was not placed, or is a coroutine, gets its worker's device where there is only one.

    Raises
    ------
    NotFound
        If the worker speaks for no device, or for several and the task was not placed.
    """
    worker = get_worker()
    plugin = worker.plugins.get(NAME)
    key = worker.active_threads.get(threading.get_ident())  # none for a coroutine, which runs on the worker's own loop
    device = plugin.running.get(key) if plugin is not None else None
    if device is not None:
        return str(device)
    if plugin is not None and len(plugin.devices) == 1:
        return str(plugin.devices[0].name)
    raise NotFound(what=f"The device of task {key}")


def current_host() -> str | None:
    """Return the name of the host that the running task's worker is on; ``None`` outside one, and where it speaks for no device."""
    try:
        plugin = get_worker().plugins.get(NAME)
    except ValueError:
        return None
    return None if plugin is None else str(plugin.host.name)


def current_vram_mib() -> int | None:
    """Return the VRAM that the running task was charged for, in MiB on each card; ``None`` where it was not placed."""
    worker = get_worker()
    found = _annotations(worker, worker.active_threads.get(threading.get_ident())).get(VRAM)
    return None if found is None else int(found)


def sharing() -> int:
    """Return between how many stages the running task's card is shared now, its own among them.

    Units of one stage wait for its one process, so they do not slow one another down; neither do those on a CPU, which have cores of
    their own.
    """
    worker = get_worker()
    plugin, key = worker.plugins.get(NAME), worker.active_threads.get(threading.get_ident())
    device = None if plugin is None else plugin.running.get(key)
    if device is None or device_facts(device).kind == "cpu":
        return 1
    stages = [_stage(worker, other) for other, at in list(plugin.running.items()) if at == device and other != key]
    return 1 + len(set(stages) - {_stage(worker, key)})


def _stage(worker: Worker, key: Key | None) -> str | None:
    demand = _annotations(worker, key).get(ANNOTATION)
    return demand.get("stage") if isinstance(demand, Mapping) else None


def _annotations(worker: Worker, key: Key | None) -> Mapping[str, Any]:
    ts = worker.state.tasks.get(key)
    return (ts.annotations or {}) if ts is not None else {}


def device_facts(name: str) -> Device:
    """Return the facts of a device that the running task's worker speaks for; call it inside a task.

    Raises
    ------
    NotFound
        If the worker does not speak for it.
    """
    plugin = get_worker().plugins.get(NAME)
    for device in () if plugin is None else plugin.devices:
        if device.name == name:
            return device
    raise NotFound(what=f"Device {name} on this worker")
