"""What happened to placed work, for the decision log: the last events, as the lines of `placement.trace`.

Events are kept as they come and become text only when they are asked for. Who asks too seldom is told how many were dropped.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import DeviceState, Fleet
from dgpunet_dask.model.policy import Layer
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.trace import (
    Ended,
    EndRecord,
    EstimatesRecord,
    FleetRecord,
    ForeignRecord,
    PlaceRecord,
    PolicyRecord,
    PolicySource,
    StateRecord,
    SubmitRecord,
    fleet_id,
    to_line,
)
from dgpunet_dask.plugins.observing import StartStops, run_seconds

if TYPE_CHECKING:
    from dask.typing import Key

    from dgpunet_dask.placement.trace import Record

#: Events that are kept.
MOST: Final = 50_000
#: What was learned is noted at most so often, since it changes with each unit that ends.
ESTIMATES_EVERY_S: Final = 60.0

Sources = Iterable[tuple[str, str, Layer]]


#: What comes with every unit is kept as (kind, t, id, …) until somebody asks.
Short: TypeAlias = tuple[Any, ...]


def _record(event: Short, fleet: str) -> Record:
    """Return what a short event stands for in the log."""
    kind, t, key, *rest = event
    if kind == "submit":
        return SubmitRecord(t, str(key), *rest)
    if kind == "end":
        outcome, devices, startstops, share = rest
        return EndRecord(t, str(key), outcome, devices, run_seconds(startstops) if outcome == "done" else None, share)
    devices, policy = rest
    return PlaceRecord(t, str(key), "placed", devices, fleet=fleet, policy=policy)


class Journal:
    """The last events. `wall`: seconds since 1970; `fleet`: gives the fleet as it is."""

    def __init__(self, wall: Callable[[], float], fleet: Callable[[], Fleet], most: int = MOST) -> None:
        self.wall, self.fleet = wall, fleet
        self.seq = 0
        self._events: deque[Any] = deque(maxlen=most)
        self._fleet_id: str | None = None
        self._fleet_known = False
        self._estimates: Estimates = NO_ESTIMATES
        self._estimates_told: tuple[Estimates, float] = (NO_ESTIMATES, 0.0)

    def _add(self, event: Short | Record) -> None:
        self.seq += 1
        self._events.append(event)

    # Noted by the pump and the plugin

    def submitted(self, key: Key, demand: Demand) -> None:
        """Note that a unit begins to wait."""
        self.seq += 1
        self._events.append(("submit", self.wall(), key, demand))

    def placed(self, key: Key, devices: tuple[str, ...], policy: str) -> None:
        """Note where a unit went."""
        if not self._fleet_known:
            self._note_fleet()
        self.seq += 1
        self._events.append(("place", self.wall(), key, devices, policy))

    def decided(self, key: str, decision: Decision) -> None:
        """Note a full decision, with the reasons of each device."""
        self._add(PlaceRecord.of(self.wall(), key, decision, self._note_fleet()))

    def left(self, key: Key, outcome: Ended, devices: tuple[str, ...], startstops: StartStops, share: int) -> None:
        """Note how a unit ended, and what Dask reports of its call."""
        self.seq += 1
        self._events.append(("end", self.wall(), key, outcome, devices, startstops, share))

    def policy(self, digest: str, sources: Sources) -> None:
        """Note the policy in force from now on."""
        self._add(PolicyRecord(self.wall(), digest, tuple(PolicySource(file, layer, text) for text, file, layer in sources)))

    def state(self, device: str, state: DeviceState) -> None:
        """Note that a device changed its state."""
        self._add(StateRecord(self.wall(), device, state))

    def foreign(self, device: str, mib: int) -> None:
        """Note what others use of a device."""
        self._add(ForeignRecord(self.wall(), device, mib))

    def estimates(self, estimates: Estimates) -> None:
        """Note what was learned; it is written down from time to time."""
        self._estimates = estimates
        told, since = self._estimates_told
        if estimates != told and self.wall() - since >= ESTIMATES_EVERY_S:
            self._estimates_told = (estimates, self.wall())
            self._add(EstimatesRecord(self.wall(), estimates))

    def fleet_changed(self) -> None:
        """Note that devices came, went or changed; the fleet is written down before the next placement."""
        self._fleet_known = False

    def _note_fleet(self) -> str:
        if not self._fleet_known or self._fleet_id is None:
            fleet = self.fleet()
            found, self._fleet_known = fleet_id(fleet), True
            if found != self._fleet_id:
                self._fleet_id = found
                self._add(FleetRecord.of(self.wall(), fleet))
        return self._fleet_id

    # Asked by the head

    def since(self, seq: int, most: int = 5000) -> Mapping[str, Any]:
        """Return the events after `seq` that are still kept, at most `most` of them.

        Returns
        -------
        dict
            ``lines`` of JSON; ``seq`` of the last of them, to ask from next; ``dropped``: how many were lost since `seq`.
        """
        first = self.seq - len(self._events)  # of the one before the oldest that is kept
        start = max(seq, first) if seq <= self.seq else first  # a greater one is of an earlier scheduler
        events = itertools.islice(self._events, start - first, start - first + most)
        lines = [to_line(_record(event, self._fleet_id or "") if isinstance(event, tuple) else event) for event in events]
        return {"lines": lines, "seq": start + len(lines), "dropped": max(0, first - seq) if seq <= self.seq else 0}
