"""The head's generated policies: kept equal to what the machines of its fleet report, and to how far the trials of new cards are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from dgpunet_dask.cluster.fleets import live_fleet
from dgpunet_dask.cluster.generated import changes, forget_simulated, generated_folder, note_simulated, past_standings, write
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DgpunetError
from dgpunet_dask.model.fleet import Fleet
from dgpunet_dask.placement.derive import derive, with_units
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates

log = logging.getLogger(__name__)

#: How often the scheduler is asked for machines that have joined and units that have succeeded.
PERIOD_S: Final = 5.0


class Deriving:
    """Writes ``policy/generated`` under `home`. Whoever applies policies watches that folder.

    Parameters
    ----------
    fleet
        What the head was started with; what joins later is added to it.
    simulated
        Whether its machines are those of a file. Their rules are not in force for real machines: a head of these removes them.

    `learned` tells the estimates by which the speed of a new card is measured, once there is somebody who learns.
    """

    def __init__(self, home: Home, fleet: Fleet, *, simulated: bool = False) -> None:
        self.home, self.fleet, self.simulated = home, fleet, simulated
        self.learned: Callable[[], Estimates] = lambda: NO_ESTIMATES
        self._counted: dict[str, int] = {}

    def refresh(self, done: Mapping[str, int] | None = None) -> None:
        """Write what has changed; `done`: units that have succeeded on each device since the last time.

        A folder that cannot be written costs the generated rules, not the cluster.
        """
        folder = generated_folder(self.home)
        try:
            if not self.simulated:
                forget_simulated(self.home)
            past = past_standings(folder)
            now = {name: standing for one in derive(self.fleet, past) for name, standing in one.standings.items()}
            derived = derive(self.fleet, with_units(past | now, done or {}), self.learned())
            found = changes(folder, derived)
            if self.simulated:
                note_simulated(self.home, found)
            written = write(found)
        except (DgpunetError, OSError) as error:
            log.warning("generated policies are not up to date: %s", error)
            return
        for path in written:
            log.info("%s was derived anew", path)

    def met(self, seen: Mapping[str, Any]) -> None:
        """Take in what the scheduler's plugin reports: machines and cards that have joined, units that have succeeded."""
        before, self.fleet = self.fleet, joined(self.fleet, live_fleet(seen))
        succeeded = {name: int(n) for name, n in seen.get("succeeded", {}).items()}
        # a scheduler that was started again counts from 0
        done = {name: n - had if n >= (had := self._counted.get(name, 0)) else n for name, n in succeeded.items()}
        self._counted = succeeded
        if self.fleet != before or any(done.values()):
            self.refresh(done)

    async def run(self, ask: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        """Follow the scheduler's plugin, which `ask` asks for the live fleet, until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.met(await ask())
            except DgpunetError as error:
                log.debug("the scheduler is away: %s", error)


def joined(known: Fleet, live: Fleet) -> Fleet:
    """Return `known` with the facts that `live` has of the same hosts and devices, and with what has joined since."""
    hosts = {host.name: host for host in (*known.hosts, *live.hosts)}
    devices = {device.name: device for device in (*known.devices, *live.devices)}
    return replace(known, hosts=tuple(hosts.values()), devices=tuple(devices.values()))
