"""Work on a fleet on a virtual clock: what a burst, a trace or a policy would come to, in seconds and without a GPU.

    run = simulate(fleet, policy, [Arrival(id="a", demand=Demand(stage="embed", vram="4GiB", work=10))])
    run.counts, run.makespan_s

The pool, and through it `place()`, decides, and `placement.order` says who comes first: both as in the live pump. What the simulation
adds is the course of time. A unit that is one of at most n on its card runs at speed ÷ n. A stage that is not there is loaded first, for
as long as the estimates say; it then stays, with the `resident` part of its demand, until other work needs the room. A unit that takes
more VRAM than it was charged runs out of memory at the end of its run, the worst case, and asks for more as its `on_oom` says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from dgpunet_dask.model.decision import Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Fleet
from dgpunet_dask.model.policy import NO_POLICY, Policy
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates
from dgpunet_dask.placement.feasible import slots
from dgpunet_dask.placement.oom import Overrun, next_demands
from dgpunet_dask.placement.order import Shares, Standing, Turns, gives_way, is_aged, passes, standing, urgency_of
from dgpunet_dask.placement.plans import Plan
from dgpunet_dask.placement.pool import Pool
from dgpunet_dask.placement.rank import Field, field_of, transfer_s
from dgpunet_dask.placement.run import Arrival, Change, Ending, Placement, Run

FOREIGN: Final = "foreign"
#: At one moment ends come first, then changes, then arrivals, then the pass over what waits.
_ENDS, _CHANGES, _ARRIVES, _LOOKS = range(4)

#: What became of a line's turn: its head was placed; it waits for a busy device by choice; it lets others go first; nothing will do.
Turn = Literal["placed", "by choice", "gives way", "nothing", "never"]


@dataclass
class Unit:
    """One arrival on its way. `demand` grows with each overrun, `since_s` is when it began to wait."""

    arrival: Arrival
    number: int
    demand: Demand
    since_s: float
    overruns: int = 0


class Line:
    """The waiting units of one demand, first come, first served."""

    def __init__(self, demand: Demand, plan: Plan) -> None:
        self.plan = plan
        self.demand = demand
        self.like = demand if demand.work is None else replace(demand, work=None)
        self.priority = plan.request.demand.priority or "batch"
        self.urgency = urgency_of(self.priority)
        self.units: deque[Unit] = deque()
        self.passed = 0
        self.overtaken_s: float | None = None
        self.aged = False
        self.kept: tuple[str, ...] = ()
        self.booked: tuple[tuple[str, float], ...] = ()

    def push(self, unit: Unit) -> None:
        """Let `unit` wait."""
        self.units.append(unit)

    def pop(self) -> Unit:
        """Take the head off: it has a device. The next one starts with full patience."""
        self.passed, self.kept, self.overtaken_s = 0, (), None
        return self.units.popleft()


@dataclass(frozen=True)
class _Running:
    """A started unit: where, since when, what it loaded, what its user has been counted for."""

    unit: Unit
    plan: Plan
    devices: tuple[str, ...]
    start_s: float
    load_s: float
    evicted: tuple[str, ...]
    share: int
    work_s: float
    overran: bool


class Simulation:
    """One simulation. `key`, `choose` and `giving` (whether lines give way) are what another way of placing would replace."""

    giving = True

    def __init__(self, fleet: Fleet, policy: Policy = NO_POLICY, estimates: Estimates = NO_ESTIMATES) -> None:
        self.pool = Pool(policy, estimates)
        self.pool.set_links(fleet.links)
        self.shares = Shares(policy.weight_of)
        self.now = 0.0
        self.lines: dict[Demand, Line] = {}
        self._fleet = fleet
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._running: dict[str, _Running] = {}
        self._uses: Counter[tuple[str, str | None, str | None]] = Counter()  # running units by device, stage and model
        self._users: Counter[str | None] = Counter()  # waiting and running units by user
        self._placements: list[Placement] = []
        self._never: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self._high: dict[str, int] = {}
        self._loading: dict[tuple[str, str | None, str | None], float] = {}  # when the last load of a stage and model ends
        self._loads = self._evictions = 0
        self._starved_s = 0.0

    # The course of time

    def run(self, arrivals: Iterable[Arrival], changes: Iterable[Change] = ()) -> Run:
        """Let `arrivals` come and `changes` happen, and return what came of it when nothing more can happen."""
        arrivals = sorted(arrivals, key=lambda a: a.at_s)
        self.now = self.pool.now = arrivals[0].at_s if arrivals else 0.0
        started = self.now
        self._enter_fleet()
        for number, arrival in enumerate(arrivals):
            self._at(arrival.at_s, _ARRIVES, partial(self._arrive, arrival, number))
        for change in changes:
            self._at(change.at_s, _CHANGES, partial(self._change, change))
        while self._events:
            self.now = max(self.now, self._events[0][0])
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[3]()
            self._pass()
        waiting = {u.arrival.id: reason for line in self.lines.values() if line.units for reason in [self._reason(line)] for u in line.units}
        return Run(
            placements=tuple(self._placements), waiting=waiting, never=self._never, held=self._held, high_water_mib=self._high,
            loads=self._loads, evictions=self._evictions, starvation_s=self._starvation_s(), started_s=started,
        )  # fmt: skip

    def _at(self, moment: float, kind: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, kind, next(self._count), what))

    def _enter_fleet(self) -> None:
        fleet, pool = self._fleet, self.pool
        pool.set_minute(fleet.minute)
        for device in fleet.devices:
            pool.add_device(device, fleet.host_by_name[device.host], fleet.states.get(device.name, "running"))
        for charge in fleet.charges:
            self._charge(charge)
            if charge.ends_s is not None:
                self._at(self.now + charge.ends_s, _ENDS, partial(self._let_go, charge.holder, (charge.device,)))

    def _charge(self, charge: Charge) -> None:
        self.pool.charge(charge)
        if charge.kind in {"activation", "lease"}:
            self._uses[charge.device, charge.stage, charge.model] += 1
        self._high[charge.device] = max(self._high.get(charge.device, 0), self.pool.slot(charge.device).charged_mib)

    def _arrive(self, arrival: Arrival, number: int) -> None:
        self._users[arrival.demand.user] += 1
        self._wait(Unit(arrival, number, arrival.demand, self.now))

    def _wait(self, unit: Unit) -> None:
        line = self.lines.get(unit.demand)
        if line is None:
            line = self.lines[unit.demand] = Line(unit.demand, self.pool.plan(unit.demand))
        line.push(unit)

    def _change(self, change: Change) -> None:
        pool = self.pool
        if change.joins is not None:
            pool.add_device(*change.joins)
        if change.device not in pool:
            return  # a trace may tell of a device that has left
        if change.foreign_mib is not None:
            if change.foreign_mib:
                self._charge(Charge(holder=FOREIGN, device=change.device, vram_mib=change.foreign_mib, kind="foreign"))
            elif FOREIGN in pool.slot(change.device).charges:
                pool.release(FOREIGN, change.device)
        if change.state is not None:
            pool.set_state(change.device, change.state)
            if change.state == "lost":
                self._lose(change.device)

    def _lose(self, device: str) -> None:
        """What ran on `device` starts anew elsewhere; what was loaded there is gone."""
        for holder in [h for h, running in self._running.items() if device in running.devices]:
            self._end(holder, "lost")
        for charge in list(self.pool.slot(device).charges.values()):
            if charge.kind == "resident":
                self.pool.release(charge.holder, device)

    # The pass over what waits

    def key(self, line: Line) -> Standing:
        """Return the sort key of a line's head."""
        request = line.plan.request
        share = self.shares.of(request.demand.user)
        head = line.units[0]
        return standing(priority=line.priority, aged=line.aged, share=share, work_s=request.work_s, arrival=(head.since_s, head.number))

    def _pass(self) -> None:
        self.pool.begin(self.now)
        self.shares.begin(u for u, n in self._users.items() if n)
        self.lines = {demand: line for demand, line in self.lines.items() if line.units}
        for line in self.lines.values():
            line.plan, line.booked = self.pool.current(line.plan), ()
            line.aged = is_aged(line.passed, sum(kind.size for kind in line.plan.able))
        barred: set[str] = set()
        late = self._serve(list(self.lines.values()), barred, giving=self.giving)
        if late:
            self._serve(late, barred, giving=False)
        self._look_again()

    def _serve(self, lines: list[Line], barred: set[str], *, giving: bool) -> list[Line]:
        """Serve `lines` in turn; return those that gave way."""
        turns = Turns(lines, self.key)
        kinds, nothing = {line.like for line in lines}, set[Demand]()
        late: list[Line] = []
        while len(nothing) < len(kinds) and (line := turns.pop()) is not None:
            if line.like in nothing:
                continue
            turn = self._turn(line, barred, giving=giving)
            if turn == "placed" and line.units:
                turns.push(line)
            elif turn == "gives way":
                late.append(line)
            elif turn == "nothing":
                nothing.add(line.like)
                self._keep_free(line, barred)
        return late

    def _turn(self, line: Line, barred: set[str], *, giving: bool) -> Turn:
        for name, seconds in line.booked:  # of its last turn; it books anew for those that are left
            self.pool.book(name, -seconds)
        decision, line.booked = self.choose(line, barred)
        for name, seconds in line.booked:
            self.pool.book(name, seconds)
        if decision.outcome == "placed":
            if giving and decision.evict and self._gives_way(line, decision):
                return "gives way"
            self._start(line, decision)
            return "placed"
        if decision.outcome == "never" and self._is_final(line):
            return "never"
        return "by choice" if line.booked else "nothing"

    def choose(self, line: Line, barred: set[str]) -> tuple[Decision, tuple[tuple[str, float], ...]]:
        """Decide upon the head of `line`; also return what its units that wait by choice book, as devices and seconds."""
        plan, pool = line.plan, self.pool
        if not plan.one_card:
            decision = pool.place(line.demand, barred=barred)
            device = decision.waits_for if decision.ranking else None
            return decision, () if device is None else ((device, plan.request.run_s(pool.slot(device).device)),)
        choice = pool.choose(plan, barred, len(line.units))
        if choice.slot is not None:
            return Decision("placed", devices=(choice.slot.name,), evict=plan.evict(choice.slot)), choice.ahead
        return Decision("wait" if plan.able or not len(pool) else "never"), choice.ahead

    def _gives_way(self, line: Line, decision: Decision) -> bool:
        leaving = [c for name in decision.devices for h, c in self.pool.slot(name).charges.items() if h in decision.evict]
        others = ((o.urgency, o.demand) for o in self.lines.values() if o is not line and o.units)
        return gives_way(line.urgency, aged=line.aged, leaving=leaving, others=others)

    def _keep_free(self, line: Line, barred: set[str]) -> None:
        """Keep others off the devices that the first of the aged lines needs, where units could still join there."""
        if not line.aged or barred:
            return
        usable = all(name in self.pool and self.pool.slot(name).usable for name in line.kept)
        if not line.kept or not usable:
            line.kept = self.pool.ideal(line.plan)
        if any(not self.pool.slot(name).full for name in line.kept):
            barred.update(line.kept)

    def _is_final(self, line: Line) -> bool:
        """Whether no waiting helps the line; its units are then told so, and leave."""
        decision = self.pool.place(line.demand, verdicts=True)
        if not decision.final:
            return False
        while line.units:
            unit = line.units.popleft()
            self._users[unit.arrival.demand.user] -= 1
            self._never[unit.arrival.id] = decision.summary()
        return True

    def _look_again(self) -> None:
        """Work that waits by choice looks again once the end that it waits for is overdue."""
        waits = [(line.plan, {name for name, _ in line.booked}) for line in self.lines.values() if line.booked and line.units]
        moment = min((self.pool.doubted_s(plan, names) for plan, names in waits), default=float("inf"))
        if self.now < moment < float("inf"):
            self._at(moment, _LOOKS, lambda: None)

    # A unit's life

    def _start(self, line: Line, decision: Decision) -> None:
        starved = None if line.overtaken_s is None else self.now - line.overtaken_s
        self._starved_s = max(self._starved_s, starved or 0.0)
        unit, plan = line.pop(), line.plan
        request, arrival = plan.request, unit.arrival
        holder = f"unit {arrival.id}"
        evicted = tuple(self._evict(decision))
        share, load_s, ends_s, work_s = 1, 0.0, 0.0, 0.0
        inputs = field_of(self.pool.fleet(), request) if request.demand.inputs else Field(0.0, request)
        charges = [self.pool.activation(name, line.demand, holder, plan) for name in decision.devices]
        for charge in charges:
            slot = self.pool.slot(charge.device)
            here = tuple(slot.charges.values())
            share = slots(here, request) if slot.is_gpu else 1
            load_s = max(request.load_s(slot.device, here), self._loading.get((charge.device, charge.stage, charge.model), 0.0) - self.now)
            alone_s = request.run_s(slot.device) * arrival.noise if arrival.work_s is None else arrival.work_s / slot.device.speed
            ends_s = max(ends_s, load_s + transfer_s(slot.device.host, inputs) + share * alone_s)
            work_s += alone_s * slot.device.speed
            self._put(charge, request.demand, load_s)
        overran = arrival.peak_mib is not None and any(arrival.peak_mib > self._given_mib(c, line.demand) for c in charges)
        expected = request.work_s * len(charges)
        self.shares.add(request.demand.user, expected)
        self._running[holder] = _Running(unit, plan, decision.devices, self.now, load_s, evicted, share, work_s - expected, overran)
        self._at(self.now + ends_s, _ENDS, partial(self._end_if, holder, self._running[holder]))
        self._pass_others(line, unit, decision.devices)

    def _evict(self, decision: Decision) -> Iterator[str]:
        for name in decision.devices:
            for holder in sorted(set(decision.evict).intersection(self.pool.slot(name).charges)):
                self._evictions += 1
                yield self.pool.slot(name).charges[holder].stage or holder
                self.pool.release(holder, name)

    def _put(self, charge: Charge, demand: Demand, load_s: float) -> None:
        """Charge a unit; where its stage is not loaded yet, the part that stays is charged apart."""
        device, stage = charge.device, charge.stage
        loaded = self._residents(device, stage, charge.model)
        if stage is not None and not loaded and (load_s or demand.resident_mib):
            self._loads += 1
            self._loading[device, stage, charge.model] = self.now + load_s
            gpu = self.pool.slot(device).is_gpu
            mib = min(demand.resident_mib, charge.vram_mib) if gpu else 0
            holder = " ".join(filter(None, (stage, demand.model, "on", device)))
            stays = Charge(
                holder=holder, device=device, vram_mib=mib, kind="resident", stage=stage, model=demand.model, user=demand.user,
                priority=demand.priority, reload_s=load_s or None,
            )  # fmt: skip
            charge = replace(charge, vram_mib=charge.vram_mib - mib)
            self._charge(stays)
        for resident in loaded:
            if resident.evictable:
                self.pool.charge(replace(resident, evictable=False))
        self._charge(charge)

    def _residents(self, device: str, stage: str | None, model: str | None) -> list[Charge]:
        return [c for c in self.pool.slot(device).charges.values() if c.holds(stage, model)]

    def _given_mib(self, charge: Charge, demand: Demand) -> int:
        """Return what a unit may take of its card: its charge as it was decided upon, with what its stage holds there."""
        usable = self.pool.slot(charge.device).usable_mib or 0
        return usable if demand.vram_mib is None else demand.vram_mib

    def _end_if(self, holder: str, running: _Running) -> None:
        if self._running.get(holder) is running:
            self._end(holder, "oom" if running.overran else "done")

    def _end(self, holder: str, outcome: Ending) -> None:
        running = self._running.pop(holder)
        unit, request = running.unit, running.plan.request
        self._let_go(holder, running.devices)
        self.shares.add(request.demand.user, running.work_s)
        found = Placement(
            unit.arrival.id, running.devices, running.start_s, self.now, running.start_s - unit.since_s, running.load_s,
            running.evicted, outcome, request.demand.priority or "batch", request.demand.user, running.share,
        )  # fmt: skip
        self._placements.append(found)
        if outcome == "done":
            self._users[request.demand.user] -= 1
        else:
            again = self._grown(unit, running) if outcome == "oom" else unit
            if again is not None:
                again.since_s = self.now
                self._wait(again)

    def _let_go(self, holder: str, devices: Iterable[str]) -> None:
        for device in devices:
            charge = self.pool.slot(device).charges.get(holder) if device in self.pool else None
            if charge is None:
                continue
            self.pool.release(holder, device)
            used = (device, charge.stage, charge.model)
            self._uses[used] -= 1
            if not self._uses[used]:
                for resident in self._residents(*used):
                    self.pool.charge(replace(resident, evictable=True))

    def _grown(self, unit: Unit, running: _Running) -> Unit | None:
        """Return the unit with the demand that it asks for after an overrun, ``None`` where it is held."""
        unit.overruns += 1
        on_oom, peak, demand = running.plan.request.on_oom, unit.arrival.peak_mib, running.plan.request.demand
        device = self.pool.slot(running.devices[0])
        usable, total = device.usable_mib or 0, device.device.vram_mib or 0
        given = usable if demand.vram_mib is None else demand.vram_mib
        overrun = Overrun(running.devices[0], given, peak, total, given >= usable)
        nexts = next_demands(unit.demand, overrun, on_oom) if unit.overruns <= on_oom.retries else ()
        unit.demand = next((d for d in nexts if not self.pool.plan(d).final), unit.demand)
        if not nexts or unit.demand not in nexts:
            self._users[demand.user] -= 1
            self._held[unit.arrival.id] = f"out of memory {unit.overruns} times, last on {overrun}; it takes {peak} MiB"
            return None
        return unit

    def _pass_others(self, line: Line, unit: Unit, devices: Iterable[str]) -> None:
        """Count the placement that `line` has just had against every other head that could have used one of `devices`."""
        kinds = {self.pool.slot(name).kind for name in devices}
        for other in self.lines.values():
            if other is not line and other.units and passes(line.urgency, other.urgency) and kinds & other.plan.classes:
                other.passed += 1
                if other.overtaken_s is None and other.units[0].arrival.at_s < unit.arrival.at_s:
                    other.overtaken_s = self.now

    # What comes of it

    def _reason(self, line: Line) -> str:
        decision = self.pool.place(line.demand, verdicts=True)
        if decision.outcome == "wait" and decision.ranking and decision.waits_for is not None:
            return f"waits by choice for {decision.waits_for}"
        return decision.summary()

    def _starvation_s(self) -> float:
        waiting = (self.now - line.overtaken_s for line in self.lines.values() if line.units and line.overtaken_s is not None)
        return max([self._starved_s, *waiting])


def simulate(
    fleet: Fleet,
    policy: Policy,
    arrivals: Iterable[Arrival],
    *,
    estimates: Estimates = NO_ESTIMATES,
    changes: Iterable[Change] = (),
) -> Run:
    """Return what becomes of `arrivals` on `fleet` under `policy`.

    Parameters
    ----------
    fleet
        With what is charged on it: a charge with `ends_s` goes then, the others stay.
    estimates
        What has been learned; nothing more is learned on the way.
    changes
        What happens to devices meanwhile.
    """
    return Simulation(fleet, policy, estimates).run(arrivals, changes)
