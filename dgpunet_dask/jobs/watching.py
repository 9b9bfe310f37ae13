"""Looks for units in flight that are slow, and asks for a second copy of each. `straggling` decides which; `attempting` starts the copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dgpunet_dask.jobs.flights import Attempt, Flights
from dgpunet_dask.jobs.straggling import Flight, stragglers
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.estimate import device_class

if TYPE_CHECKING:
    from dgpunet_dask.jobs.runner import Ports

#: How often it is looked for units that are slow.
WATCH_S: Final = 1.0
#: How long a stage may take to load that was never seen to, in seconds.
LOAD_S: Final = 60.0


class Watch:
    """Watches the units of one job.

    Parameters
    ----------
    flights
        What is in flight.
    ports
        Tells the devices, what was learned, and where a stage could go.
    """

    def __init__(self, flights: Flights, ports: Ports) -> None:
        self.flights, self.ports = flights, ports
        self._warm: set[tuple[str, str | None]] = set()

    def worked(self, stage: str, device: str | None) -> None:
        """Take in that a stage has worked on a device: from now on it need not load there."""
        self._warm.add((stage, device))

    async def run(self) -> None:
        """Ask for a second copy of units that are much slower than they should be, until cancelled."""
        while True:
            await self.ports.sleep(WATCH_S)
            self._look()

    def _look(self) -> None:
        waiting = {name for attempt, name, _ in self.flights.pending() if name not in attempt.places}
        for flight in stragglers(self._flying(), self.ports.clock.monotonic(), waiting):
            unit = self.flights.units[flight.number]
            if self.ports.could(self.flights.stages[flight.stage], (flight.device,)):
                unit.copied = True
                unit.copy_asked.set()

    def _flying(self) -> list[Flight]:
        devices, found = self.ports.devices(), []
        for attempt, name, _ in self.flights.pending():
            demand = attempt.asked[name]
            if demand is not None and name in attempt.places and attempt.places[name][0] in devices:
                found.append(self._flight(attempt, name, demand, device_class(devices[attempt.places[name][0]])))
        return found

    def _flight(self, attempt: Attempt, stage: str, demand: Demand, kind: str) -> Flight:
        device, since_s = attempt.places[stage]
        copied = attempt.unit.copied or attempt.copy or len(attempt.unit.attempts) > 1
        estimate_s = self._estimate_s(demand, kind, warm=(stage, device) in self._warm)
        return Flight(number=attempt.number, stage=stage, device=device, since_s=since_s, estimate_s=estimate_s, copied=copied)

    def _estimate_s(self, demand: Demand, kind: str, *, warm: bool) -> float | None:
        """Return how long a stage should take on a class of device, with its loading where it has not worked there yet."""
        estimates = self.ports.learned.estimates
        run_s = estimates.run_s(demand.stage, demand.model, kind)
        if run_s is None or warm:
            return run_s
        return run_s + (estimates.load_s(demand.stage, demand.model, kind) or LOAD_S)
