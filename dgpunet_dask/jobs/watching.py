"""Looks for units in flight that are slow, and asks for a second copy of each. `straggling` decides which; `attempting` starts the copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dgpunet_dask.jobs.flights import Attempt, Flights
from dgpunet_dask.jobs.straggling import Flight, stragglers
from dgpunet_dask.placement.estimate import Mean, device_class

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
    crowded
        Whether further units of the job wait until others end.
    """

    def __init__(self, flights: Flights, ports: Ports, crowded: Callable[[], bool] = lambda: False) -> None:
        self.flights, self.ports, self.crowded = flights, ports, crowded
        self._warm: set[tuple[str, str | None]] = set()
        self._took: dict[tuple[str, str], Mean] = {}  # seconds as they passed, beside whatever else ran there

    def worked(self, stage: str, device: str | None, seconds: float) -> None:
        """Take in that a stage has worked on a device, for so long: from now on it need not load there."""
        self._warm.add((stage, device))
        if device is not None and (facts := self.ports.devices().get(device)) is not None:
            key = stage, device_class(facts)
            self._took[key] = self._took.get(key, Mean()).with_sample(seconds)

    async def run(self) -> None:
        """Ask for a second copy of units that are much slower than they should be, until cancelled."""
        while True:
            await self.ports.sleep(WATCH_S)
            self._look()

    def _look(self) -> None:
        waiting = {name for attempt, name, _ in self.flights.pending() if name not in attempt.places}
        flying, now = self._flying(), self.ports.clock.monotonic()
        if self.crowded() and not all(flight.overdue(now) for flight in flying):
            return  # what waits needs the devices more than copies do; where nothing gets on any more, they are all that helps
        for flight in stragglers(flying, now, waiting):
            unit = self.flights.units[flight.number]
            if self.ports.could(self.flights.stages[flight.stage], (flight.device,)):
                unit.copied = True
                unit.copy_asked.set()

    def _flying(self) -> list[Flight]:
        devices = self.ports.devices()
        found = [(a, name) for a, name, _ in self.flights.pending() if a.asked[name] is not None and name in a.places and a.places[name][0] in devices]
        beside = Counter(attempt.places[name][0] for attempt, name in found)
        return [self._flight(attempt, name, beside[attempt.places[name][0]]) for attempt, name in found]

    def _flight(self, attempt: Attempt, stage: str, beside: int) -> Flight:
        device, since_s = attempt.places[stage]
        copied = attempt.unit.copied or attempt.copy or len(attempt.unit.attempts) > 1
        estimate_s = self._estimate_s(attempt, stage, device, beside)
        return Flight(number=attempt.number, stage=stage, device=device, since_s=since_s, estimate_s=estimate_s, copied=copied)

    def _estimate_s(self, attempt: Attempt, stage: str, device: str, beside: int) -> float | None:
        """Return how long a stage should take on a device that `beside` units share, with its loading where it has not worked there yet.

        What was learned is the time of a unit that has a card for itself, and a card's time is divided among those who share it. A CPU has
        many cores, and no unit of it need be faster alone: there, only what this job's units have really taken tells anything.
        """
        demand, facts = attempt.asked[stage], self.ports.devices()[device]
        if demand is None:
            return None
        kind, estimates = device_class(facts), self.ports.learned.estimates
        alone, took = estimates.run_s(demand.stage, demand.model, kind), self._took.get((stage, kind))
        if alone is None:
            return None  # of a stage that is met for the first time the first units tell too little: some of them were short of memory
        shared = None if facts.kind == "cpu" else alone * beside
        known = [seconds for seconds in (shared, None if took is None else took.value) if seconds is not None]
        if not known or (stage, device) in self._warm:
            return max(known, default=None)
        return max(known) + (estimates.load_s(demand.stage, demand.model, kind) or LOAD_S)
