"""What a simulation is given, and what it gives: arrivals and changes of the fleet in, placements and their figures out. Values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from dgpunet_dask.model.demand import PRIORITIES, Demand
from dgpunet_dask.model.fleet import Device, DeviceState, Host
from dgpunet_dask.placement.estimate import percentile

Ending = Literal["done", "oom", "lost"]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One unit of work that comes at `at_s`.

    Parameters
    ----------
    id
        Unique among the arrivals.
    demand
        What it asks for; placement sees nothing else of it.
    work_s
        The seconds at speed 1 that it will take in truth; ``None``: as long as is expected.
    noise
        A factor on what is expected, where `work_s` is ``None``.
    peak_mib
        The VRAM that it will take of each card in truth; ``None``: what it is charged. More than that is out of memory.
    """

    id: str
    demand: Demand
    at_s: float = 0.0
    work_s: float | None = None
    noise: float = 1.0
    peak_mib: int | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that happens to a device at `at_s`.

    Parameters
    ----------
    device
        Its name.
    state
        The state that it takes; units that run on a device that is `lost` start anew elsewhere.
    foreign_mib
        What processes that are not ours take of it from now on.
    joins
        The device and its host, where it is new or its facts have changed.
    """

    at_s: float
    device: str
    state: DeviceState | None = None
    foreign_mib: int | None = None
    joins: tuple[Device, Host] | None = None


class Placement(NamedTuple):
    """One start of one unit.

    `queued_s`: from arrival, or from the end of the start before, to this start. `load_s`: spent on loading the stage. `evicted`: stages that left for it.
    `outcome`: ``oom`` and ``lost`` are followed by a further start, or by a unit that is held.
    """

    id: str
    devices: tuple[str, ...]
    start_s: float
    end_s: float
    queued_s: float
    load_s: float = 0.0
    evicted: tuple[str, ...] = ()
    outcome: Ending = "done"
    priority: str = "batch"
    user: str | None = None
    share: int = 1


class Waits(NamedTuple):
    """How long units waited for their first start: median, 95th percentile (nearest rank), longest; in seconds."""

    units: int
    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """The course of a simulation.

    Parameters
    ----------
    placements
        Every start that has ended, in the order of the ends.
    waiting, never, held
        Units that have no device at the end of it, with the reason: they wait still, could never run, or ran out of memory too often.
    high_water_mib
        The most that was charged at once on each device that was used.
    loads, evictions
        Times that a stage was loaded, and sent away for another.
    starvation_s
        The longest time that a unit waited after one that came later and is no more urgent was placed on a device that it could have
        used.
    started_s
        When the first unit came.
    """

    placements: tuple[Placement, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    never: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    high_water_mib: Mapping[str, int] = field(default_factory=dict)
    loads: int = 0
    evictions: int = 0
    starvation_s: float = 0.0
    started_s: float = 0.0

    @cached_property
    def done(self) -> Mapping[str, Placement]:
        """The start that brought each finished unit to its end."""
        return {p.id: p for p in self.placements if p.outcome == "done"}

    @property
    def makespan_s(self) -> float:
        """Seconds from the first arrival to the last end, 0 where nothing ran."""
        return max((p.end_s for p in self.placements), default=self.started_s) - self.started_s

    @property
    def ooms(self) -> int:
        """Starts that ran out of memory."""
        return sum(p.outcome == "oom" for p in self.placements)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Finished units of each device that had any; a unit on several cards counts on each."""
        counted = Counter(name for p in self.done.values() for name in p.devices)
        return {name: counted[name] for name in sorted(counted)}

    @cached_property
    def waits(self) -> Mapping[str, Waits]:
        """By priority, the most urgent first; only those that occurred."""
        first: dict[str, Placement] = {}
        for p in sorted(self.placements, key=lambda p: p.start_s):
            first.setdefault(p.id, p)
        by_priority = {name: [p.queued_s for p in first.values() if p.priority == name] for name in PRIORITIES}
        return {name: waits_of(found) for name, found in by_priority.items() if found}

    def metrics(self) -> dict[str, Any]:
        """Return all figures as plain JSON values."""
        return {
            "makespan_s": self.makespan_s,
            "finished": len(self.done),
            "waits": {name: w._asdict() for name, w in self.waits.items()},
            "counts": dict(self.counts),
            "high_water_mib": dict(sorted(self.high_water_mib.items())),
            "ooms": self.ooms,
            "loads": self.loads,
            "evictions": self.evictions,
            "starvation_s": self.starvation_s,
            "waiting": dict(self.waiting),
            "never": dict(self.never),
            "held": dict(self.held),
        }


def waits_of(seconds: Iterable[float]) -> Waits:
    """Return the figures of some waits; there is at least one."""
    found = sorted(seconds)
    return Waits(len(found), percentile(found, 0.5), percentile(found, 0.95), found[-1])
