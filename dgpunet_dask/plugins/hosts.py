"""What the head tells the scheduler about whole hosts: lost ones, held ones, cards that were taken out, what may come back.

====================  ==========================================================================================================
``dgpunet_hosts``     the workers of each host, and how many tasks they have
``dgpunet_lose``      takes a host's workers out at once: its agent is silent, and Dask itself would wait for minutes
``dgpunet_expel``     the same for a host that was removed from the cluster, with every other connection of its certificate
``dgpunet_hold``      takes the devices that are held back, with the state of each; the others go on
``dgpunet_forget``    takes devices that are no more
====================  ==========================================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from dgpunet_dask.model.fleet import DeviceState, Fleet
from dgpunet_dask.plugins.facts import EXTRA

if TYPE_CHECKING:
    from distributed.scheduler import WorkerState

    from dgpunet_dask.plugins.scheduler import PlacementPlugin

logger = logging.getLogger(__name__)

#: How long a scheduler counts on the devices of the one before it. A worker is back within seconds, on a machine under load within
#: half a minute; what stays away for longer is not part of the fleet any more, and what only that could hold fails.
EXPECT_S: Final = 60.0
#: How long work waits for a card on its way that has its stage loaded, and what a CPU could do for any card (`Book.coming`).
CARDS_FIRST_S: Final = 15.0


def handlers(plugin: PlacementPlugin) -> Mapping[str, Callable[..., Any]]:
    """Return the RPC handlers by name."""

    def dgpunet_hosts() -> dict[str, Any]:
        return hosts(plugin)

    async def dgpunet_lose(host: str) -> list[str]:
        return await lose(plugin, host)

    async def dgpunet_expel(host: str) -> list[str]:
        return await expel(plugin, host)

    def dgpunet_hold(holds: Mapping[str, DeviceState]) -> None:
        hold(plugin, holds)

    def dgpunet_forget(devices: Iterable[str]) -> list[str]:
        return forget(plugin, devices)

    return {f.__name__: f for f in (dgpunet_hosts, dgpunet_lose, dgpunet_expel, dgpunet_hold, dgpunet_forget)}


def hosts(plugin: PlacementPlugin) -> dict[str, Any]:
    """Return, for each host, its workers' addresses (`workers`) and the tasks that these run or are about to (`tasks`).

    A call that lingers after its task has left counts as well.
    """
    found: dict[str, Any] = {}
    for ws in plugin.scheduler.workers.values():
        host = host_of(ws)
        if host is not None:
            entry = found.setdefault(host, {"workers": [], "tasks": 0})
            entry["workers"].append(ws.address)
            entry["tasks"] += len(ws.processing) + len(plugin.book.lingering_on(ws.address))
    return found


def host_of(ws: WorkerState) -> str | None:
    """Return the host that a worker announced, ``None`` for one that is not ours."""
    facts = (ws.extra or {}).get(EXTRA)
    host = facts.get("host") if isinstance(facts, Mapping) else None
    name = host.get("name") if isinstance(host, Mapping) else None
    return name if isinstance(name, str) else None


async def lose(plugin: PlacementPlugin, host: str) -> list[str]:
    """Remove the workers of a silent host; what they ran is tried elsewhere. Return their addresses."""
    lost = [ws.address for ws in plugin.scheduler.workers.values() if host_of(ws) == host]
    for address in lost:
        logger.warning("worker %s is given up: nothing is heard of host %s", address, host)
        await plugin.scheduler.remove_worker(address, stimulus_id=f"dgpunet-lost-{host}")
    return lost


async def expel(plugin: PlacementPlugin, host: str) -> list[str]:
    """Remove the workers of a host, and end every connection with its certificate: revocation stops new ones alone.

    Clients and workers hold some of them; one that was only kept open could become either. What has begun by half ends as
    `cluster.severing` finds it.
    """
    lost = await lose(plugin, host)
    kept = [comm for comm in plugin.scheduler._comms if certified_for(comm) == host]  # noqa: SLF001  # Dask tells of them nowhere else
    for comm in kept:
        comm.abort()
    if kept:
        logger.warning("%d connections are cut off: host %s was removed", len(kept), host)
    return lost


def certified_for(comm: Any) -> str | None:
    """Return the host in the certificate at the other end, ``None`` without TLS."""
    subject = (getattr(comm, "extra_info", None) or {}).get("peercert", {}).get("subject", ())
    return next((str(value) for group in subject for name, value in group if name == "commonName"), None)


def hold(plugin: PlacementPlugin, holds: Mapping[str, DeviceState]) -> None:
    """Hold back these devices and no others."""
    for device, state in plugin.book.set_holds(holds).items():
        plugin.journal.state(device, state)
    plugin.pump.arm()


def forget(plugin: PlacementPlugin, devices: Iterable[str]) -> list[str]:
    """Take devices out of the fleet that no worker speaks for; return those."""
    gone = plugin.book.forget_devices(tuple(devices))
    if gone:
        plugin.journal.fleet_changed()
        plugin.pump.arm()
    return list(gone)


def expect(plugin: PlacementPlugin, fleet: Fleet, seconds: float = EXPECT_S, cards_first_s: float = CARDS_FIRST_S) -> None:
    """Count on these devices for so many seconds: a demand that only one of them can hold waits for its worker instead of failing.

    For `cards_first_s` of these, work rather waits for a card on its way that has its stage loaded than to have it loaded elsewhere.
    """
    plugin.book.expect(fleet)

    def go_on() -> None:
        plugin.book.patient = False
        plugin.pump.arm()

    def give_up() -> None:
        gone = forget(plugin, plugin.book.expected)
        if gone:
            logger.warning("these devices have not come back within %g s and are no longer counted on: %s", seconds, ", ".join(gone))

    plugin.later("cards first", min(cards_first_s, seconds), go_on)
    plugin.later("expected", seconds, give_up)
