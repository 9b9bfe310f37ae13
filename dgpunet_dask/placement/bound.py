"""The least time in which any schedule could have done some work: what a makespan is measured against.

Linear programming with a deadline (Lenstra, Shmoys and Tardos 1990): for a deadline T, no unit may go where it alone would end after T,
and then fractions of units are spread over the devices such that each has done its part by T. The smallest T for which that is possible
is found by bisection. It is never less than the bound of Lawler and Labetoulle 1978, whose row for each unit follows from the deadline.

A device that runs a stage must have loaded it: of T only T - load is left for that stage, so that a second of its units takes
1 + load ÷ (T - load) seconds of the device. Where units share a card, each of n runs at speed ÷ n, so that a card still does one second
of work in a second, and loads meanwhile in one of n slots; where their n differ that does not hold, and the number of slots bounds them.
In both cases memory does too: Σ VRAM × time ≤ usable VRAM × T, where the time is that of the smallest n on the card.

Devices that no unit can tell apart are one class, and units of like demands are one group, so that the size of the program hangs on kinds.
Left out, so that the bound is valid and perhaps low: transfers, what is charged on the fleet already, and when devices join or leave.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet, Host
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.place import never_table
from dgpunet_dask.placement.resolve import Request, resolve
from dgpunet_dask.placement.run import Arrival

#: Bisection ends when the bound is known to this part.
PRECISION: Final = 1e-4
#: Groups of units in one program; beyond that, units of like size are taken together.
MOST_GROUPS: Final = 1500
#: Moments of arrival from which what is still to come is bounded apart.
CUTS: Final = 8

#: Seconds to load a stage, by device.
Loads: TypeAlias = dict[tuple[str, str | None], float]
Shares: TypeAlias = dict[str, frozenset[int]]


class Kind(NamedTuple):
    """A demand under a policy, and the devices that can hold it."""

    request: Request
    able: frozenset[str]

    @property
    def share(self) -> int:
        """How many such units may be on a card."""
        return 1 if self.request.demand.exclusive else self.request.share or 1


class Group(NamedTuple):
    """Units of one kind: how much they take together and the least of them, as `(seconds at speed 1, factor on what is expected)`.

    Only one of the two is used by a unit.
    """

    kind: Kind
    work_s: float
    noise: float
    least: tuple[float, float]

    def total_s(self, device: Device) -> float:
        """Return the seconds that all of them take on `device`, one after the other."""
        return self.work_s / device.speed + (self.noise * self.kind.request.run_s(device) if self.noise else 0.0)

    def least_s(self, device: Device) -> float:
        """Return the seconds of the shortest of them on `device`."""
        work_s, noise = self.least
        return work_s / device.speed + (noise * self.kind.request.run_s(device) if noise else 0.0)


@dataclass(frozen=True)
class Class:
    """`size` devices that no group can tell apart; `device` is one of them.

    `shares`: the numbers of units that may share such a card, of those that share at all.
    """

    device: Device
    host: Host
    size: int
    shares: frozenset[int]


class Row(NamedTuple):
    """One resource of a class: what a unit takes of it for each second of its time, and a load for each of its own, and how much there is."""

    weight: Callable[[Kind], float]
    room: float
    load_weight: float = 0.0


def lower_bound_s(
    fleet: Fleet, policy: Policy, arrivals: Iterable[Arrival], *, estimates: Estimates = NO_ESTIMATES
) -> float:
    """Return a time that no schedule of `arrivals` on `fleet` can beat, in seconds from the first arrival; 0 without any.

    Parameters
    ----------
    arrivals
        Only units that some device can hold; what they take in truth counts, where it is told.

    Raises
    ------
    ValueError
        If no device can hold a unit.
    """
    arrivals = sorted(arrivals, key=lambda a: a.at_s)
    if not arrivals:
        return 0.0
    kinds = _kinds(fleet, policy, arrivals, estimates)
    loads = _loads(fleet, kinds.values())
    start, moments = arrivals[0].at_s, sorted({a.at_s for a in arrivals})
    step = math.ceil(len(moments) / CUTS)
    loaded = dict.fromkeys(loads, 0.0)  # who comes later may find his stage loaded
    shares = _shares(fleet, list(kinds.values()))
    best = 0.0
    for cut in moments[::step]:
        rest = [a for a in arrivals if a.at_s >= cut]
        best = max(best, cut - start + _least_s(fleet, _groups(rest, kinds), loads if cut == start else loaded, shares))
    return max(best, *(a.at_s - start + min(_alone_s(a, kinds[a.demand], fleet)) for a in arrivals))


def _kinds(fleet: Fleet, policy: Policy, arrivals: Sequence[Arrival], estimates: Estimates) -> dict[Demand, Kind]:
    kinds: dict[Demand, Kind] = {}
    likes: dict[Demand, frozenset[str]] = {}
    for demand in {a.demand: None for a in arrivals}:
        request = resolve(demand, policy, estimates)
        like = replace(demand, work=None)
        if like not in likes:
            table = never_table(fleet, request)
            likes[like] = frozenset(name for name, verdicts in table.items() if not verdicts)
        if not likes[like]:
            raise ValueError(f"no device can hold {demand}")
        kinds[demand] = Kind(request, likes[like])
    return kinds


def _loads(fleet: Fleet, kinds: Iterable[Kind]) -> Loads:
    """Return the seconds to load each stage on each device; none where it is loaded at the start."""
    found: Loads = {}
    for kind in kinds:
        for device in fleet.devices:
            if device.name in kind.able:
                key, seconds = (device.name, _stage(kind)), kind.request.load_s(device, fleet.charges_on(device.name))
                found[key] = min(found.get(key, math.inf), seconds)  # models of one stage stand in for each other
    return found


def _shares(fleet: Fleet, kinds: Sequence[Kind]) -> Shares:
    """Return the numbers of units that may share each device, of those that share at all: of all work, whenever it comes."""
    running = {c.share for c in fleet.charges if c.kind == "activation" and c.share is not None}
    return {
        d.name: frozenset({k.share for k in kinds if d.name in k.able} | running) - {1} if d.kind == "gpu" else frozenset()
        for d in fleet.devices
    }


def _stage(kind: Kind) -> str | None:
    return kind.request.demand.stage


def _alone_s(arrival: Arrival, kind: Kind, fleet: Fleet) -> Iterable[float]:
    """Yield how long a unit takes on each device that can hold it."""
    one = _group_of([arrival], kind)
    return (one.least_s(d) for d in fleet.devices if d.name in kind.able)


def _groups(arrivals: Sequence[Arrival], kinds: dict[Demand, Kind]) -> list[Group]:
    """Return the units as groups: those that take the same, and where that makes too many, those that take nearly the same."""
    by_kind: dict[Demand, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_kind[replace(arrival.demand, work=None) if arrival.work_s is not None else arrival.demand].append(arrival)
    most = max(1, MOST_GROUPS // len(by_kind))
    groups = []
    for members in by_kind.values():
        members.sort(key=_size)
        kind = kinds[members[0].demand]
        chunks: dict[tuple[float, float], list[Arrival]] = defaultdict(list)
        for arrival in members:
            chunks[_size(arrival)].append(arrival)
        rows = list(chunks.values())
        if len(rows) > most:
            width = math.ceil(len(members) / most)
            rows = [members[i : i + width] for i in range(0, len(members), width)]
        groups += [_group_of(row, kind) for row in rows]
    return groups


def _size(arrival: Arrival) -> tuple[float, float]:
    """Return what a unit takes: its seconds at speed 1, or a factor on what is expected of it."""
    return (0.0, arrival.noise) if arrival.work_s is None else (arrival.work_s, 0.0)


def _group_of(members: Sequence[Arrival], kind: Kind) -> Group:
    cards = max(1, kind.request.demand.gpus)
    sizes = [_size(a) for a in members]
    return Group(kind, cards * sum(s[0] for s in sizes), cards * sum(s[1] for s in sizes), min(sizes))


# The program


def _least_s(fleet: Fleet, groups: Sequence[Group], loads: Loads, shares: Shares) -> float:
    """Return the least deadline for which the groups can be spread, by bisection."""
    classes = _classes(fleet, groups, loads, shares)
    program = _Program(classes, groups, loads)
    low, high = 0.0, 1.0
    while not program.possible(high):
        low, high = high, 2 * high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if program.possible(middle) else (middle, high)
    return low


def _classes(fleet: Fleet, groups: Sequence[Group], loads: Loads, shares: Shares) -> list[Class]:
    found: dict[Hashable, list[Device]] = defaultdict(list)
    kinds = list({id(g.kind): g.kind for g in groups}.values())
    for device in fleet.devices:
        host = fleet.host_by_name[device.host]
        seen = tuple((k.request.run_s(device), loads[device.name, _stage(k)]) if device.name in k.able else None for k in kinds)
        if any(row is not None for row in seen):
            cpu = (host.cpus, host.ram_mib) if device.kind == "cpu" else None
            found[seen, device.speed, device.usable_mib, device.kind, cpu, shares[device.name]].append(device)
    return [Class(m[0], fleet.host_by_name[m[0].host], len(m), key[-1]) for key, m in found.items()]  # type: ignore[index]  # a tuple


class _Program:
    """The linear program of one deadline: spread each group over the classes so that the fullest row is as empty as can be."""

    def __init__(self, classes: Sequence[Class], groups: Sequence[Group], loads: Loads) -> None:
        import numpy as np

        pairs = [(g, c) for g, group in enumerate(groups) for c, found in enumerate(classes) if found.device.name in group.kind.able]
        at = [(groups[g], classes[c]) for g, c in pairs]
        self.count = len(groups)
        self.group_of = np.array([g for g, _ in pairs])
        self.load = np.array([loads[c.device.name, _stage(g.kind)] for g, c in at])
        self.total = np.array([g.total_s(c.device) for g, c in at])
        self.least = np.array([g.least_s(c.device) * _slowdown(c, g.kind) for g, c in at])
        class_of = np.array([c for _, c in pairs])
        self.rows: list[tuple[Any, Any, float]] = []
        for number, found in enumerate(classes):
            mine = np.flatnonzero(class_of == number)
            here = [groups[g].kind for g in self.group_of[mine]]
            for row in _rows(found) if len(mine) else ():
                weights = np.array([row.weight(k) for k in here]) / (row.room * found.size)
                self.rows.append((mine, weights, row.load_weight))

    def possible(self, deadline: float) -> bool:
        """Whether all can be done by `deadline`."""
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import coo_array

        usable = self.load + self.least <= deadline * (1 + 1e-12)
        kept = np.flatnonzero(usable)
        if len(np.unique(self.group_of[kept])) < self.count:
            return False
        column = np.cumsum(usable) - 1
        width = len(kept) + 1  # the last column is how full the fullest row is
        data, rows, columns = [np.full(len(self.rows), -1.0)], [np.arange(len(self.rows))], [np.full(len(self.rows), width - 1)]
        for number, (mine, weights, load_weight) in enumerate(self.rows):
            here = usable[mine]
            pair = mine[here]
            load = self.load[pair]
            data.append(weights[here] * self.total[pair] * (1 + load_weight * load / np.maximum(deadline - load, 1e-12)) / deadline)
            rows.append(np.full(len(pair), number))
            columns.append(column[pair])
        shape = (len(self.rows), width)
        over = coo_array((np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))), shape=shape).tocsr()
        whole = coo_array((np.ones(len(kept)), (self.group_of[kept], np.arange(len(kept)))), shape=(self.count, width)).tocsr()
        cost = np.zeros(width)
        cost[-1] = 1.0
        found = linprog(cost, A_ub=over, b_ub=np.zeros(len(self.rows)), A_eq=whole, b_eq=np.ones(self.count), method="highs")
        assert found.status == 0, found.message  # each group may go somewhere, at some fullness
        return bool(found.fun <= 1.0 + 1e-9)


def _slowdown(found: Class, kind: Kind) -> int:
    """Return how many times longer than alone a unit takes at least: as one of the fewest that it may be on a card with."""
    return 1 if kind.share == 1 else min(found.shares, default=1)


def _rows(found: Class) -> Iterable[Row]:
    """Yield what is scarce on a class of devices."""
    cpus, ram = found.host.cpus, found.host.ram_mib
    if found.device.kind == "cpu" and cpus is not None:
        yield Row(lambda k: k.request.demand.cpus, cpus)
        if ram:
            yield Row(lambda k: k.request.demand.ram_mib, ram)
        return
    if len(found.shares) < 2:
        yield Row(lambda _: 1.0, 1.0, 1.0 / min(found.shares, default=1))
    else:
        yield Row(lambda _: 1.0, max(found.shares))
    usable = found.device.usable_mib
    if usable and found.shares:
        yield Row(lambda k: _slowdown(found, k) * _memory_mib(k, usable), usable)


def _memory_mib(kind: Kind, usable: int) -> float:
    """Return what a unit takes of a card's memory at least: the part that stays is shared by as many of its stage as fit there."""
    demand = kind.request.demand
    peak, stays = usable if demand.vram_mib is None else demand.vram_mib, demand.resident_mib
    fit = (usable - stays) // (peak - stays) if peak > stays else kind.share
    return peak - stays + stays / max(1, min(kind.share, fit))
