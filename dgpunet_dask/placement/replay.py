"""A recorded log as a scenario: the same work at the same times, on a fleet and under a policy of one's choice. Pure.

A unit of the log arrives when it was first submitted. What it takes is what was measured: the seconds of its last start, times the speed
of its device, divided by how many could share it; where that is not known, what its demand states or what was learned. Starts that
failed, were lost or ran out of memory are no units of their own: the simulation finds its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Device, Fleet
from dgpunet_dask.model.policy import Policy
from dgpunet_dask.placement.bound import lower_bound_s
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates, device_class
from dgpunet_dask.placement.run import Arrival, Change, Run
from dgpunet_dask.placement.simulate import FOREIGN, simulate
from dgpunet_dask.placement.trace import (
    EndRecord,
    EstimatesRecord,
    FleetRecord,
    ForeignRecord,
    PolicyRecord,
    Record,
    StateRecord,
    SubmitRecord,
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What a log says, apart from the policy.

    Parameters
    ----------
    fleet
        At the start; its times count from then, as those of `arrivals` and `changes` do.
    recorded
        Finished units of each device, as it was.
    policy
        The files of the last policy that the log names, ``None`` where it names none.
    notes
        What of the log has no place in a simulation, as text.
    """

    fleet: Fleet
    arrivals: tuple[Arrival, ...] = ()
    changes: tuple[Change, ...] = ()
    estimates: Estimates = NO_ESTIMATES
    recorded: Mapping[str, int] = field(default_factory=dict)
    policy: PolicyRecord | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Life:
    """One unit of the log."""

    id: str
    demand: Demand
    t: float
    end: EndRecord | None = None
    peak_mib: int | None = None


def scenario_of(records: Sequence[Record], fleet: Fleet | None = None) -> Scenario | None:
    """Return what a log says, ``None`` where neither it nor the caller names a fleet.

    `fleet`: other machines than those of the log; what happened to devices that are not among them is left out.
    """
    first = next((r for r in records if isinstance(r, FleetRecord)), None)
    recorded = first.value if first is not None else fleet
    if recorded is None:
        return None
    start = records[0].t if records else 0.0
    devices = {d.name: d for r in records if isinstance(r, FleetRecord) for d in r.devices} or dict(recorded.by_name)
    lives, notes = _lives(records)
    ends = {r.id: r.t - start for r in records if isinstance(r, EndRecord)}
    known = {r.id for r in records if isinstance(r, SubmitRecord)}
    ended = [life.end for life in lives if life.end is not None and life.end.outcome == "done"]
    return Scenario(
        fleet=_at_start(recorded, known, ends, notes) if fleet is None else fleet,
        arrivals=tuple(_arrival(life, devices, start) for life in lives),
        changes=tuple(_changes(records, start, None if fleet is None else frozenset(fleet.by_name))),
        estimates=_estimates(records, lives, devices),
        recorded=dict(sorted(Counter(name for end in ended for name in end.devices).items())),
        policy=next((r for r in reversed(records) if isinstance(r, PolicyRecord) and r.sources), None),
        notes=tuple(notes),
    )


def _lives(records: Iterable[Record]) -> tuple[list[_Life], list[str]]:
    """Return the units of a log in the order of their arrival, and what is left out."""
    latest: dict[str, _Life] = {}
    lives: list[_Life] = []
    unknown = 0
    for record in records:
        if isinstance(record, SubmitRecord):
            life = latest.get(record.id)
            if life is None or (life.end is not None and life.end.outcome in {"done", "cancelled"}):
                again = sum(other.id.partition(" #")[0] == record.id for other in lives) if life is not None else 0
                latest[record.id] = _Life(f"{record.id} #{again + 1}" if again else record.id, record.demand, record.t)
                lives.append(latest[record.id])
        elif isinstance(record, EndRecord):
            life = latest.get(record.id)
            if life is None:
                unknown += 1
            else:
                life.end = record
                life.peak_mib = max(filter(None, (life.peak_mib, record.peak_mib)), default=None)
    unstarted = [life for life in lives if life.end is not None and life.end.outcome == "cancelled" and not life.end.devices]
    notes = [f"{unknown} ends of units that were submitted before the log began are left out"] if unknown else []
    notes += [f"{len(unstarted)} units that were cancelled before they started are left out"] if unstarted else []
    gone = set(map(id, unstarted))
    return [life for life in lives if id(life) not in gone], notes


def _arrival(life: _Life, devices: Mapping[str, Device], start: float) -> Arrival:
    return Arrival(
        id=life.id, demand=life.demand, at_s=life.t - start, work_s=_work_s(life.end, devices), peak_mib=life.peak_mib
    )  # fmt: skip


def _work_s(end: EndRecord | None, devices: Mapping[str, Device]) -> float | None:
    """Return the seconds at speed 1 that a start took in truth, ``None`` where it did not come to an end by itself or was not measured."""
    if end is None or end.seconds is None or end.outcome in {"lost", "oom"} or not end.devices:
        return None
    if any(name not in devices for name in end.devices):
        return None
    return end.seconds * min(devices[name].speed for name in end.devices) / max(1, end.share)


def _at_start(fleet: Fleet, known: Collection[str], ends: Mapping[str, float], notes: list[str]) -> Fleet:
    """Return `fleet` with what ran there at the start until it ended.

    Units that the log knows (`known`) come as arrivals; what is not known to have ended is left out.
    """
    charges, endless = [], 0
    for charge in fleet.charges:
        if charge.kind == "activation" and charge.holder.partition(" #")[0] in known:
            continue
        if charge.kind == "activation" and charge.ends_s is None and charge.holder not in ends:
            endless += 1
        else:
            charges.append(replace(charge, ends_s=ends.get(charge.holder, charge.ends_s)) if charge.kind == "activation" else charge)
    if endless:
        notes.append(f"{endless} units that ran when the log began and whose end it does not tell are left out")
    return fleet.with_charges(charges)


def _changes(records: Iterable[Record], start: float, only: frozenset[str] | None) -> Iterable[Change]:
    """Yield what happened to devices. `only`: the devices that count."""
    before: FleetRecord | None = None
    for record in records:
        at_s = record.t - start
        if isinstance(record, StateRecord) and (only is None or record.device in only):
            yield Change(at_s=at_s, device=record.device, state=record.state)
        elif isinstance(record, ForeignRecord) and (only is None or record.device in only):
            yield Change(at_s=at_s, device=record.device, foreign_mib=record.vram_mib)
        elif isinstance(record, FleetRecord):
            if before is not None and only is None:
                yield from _between(before.value, record.value, at_s)
            before = record


def _between(old: Fleet, new: Fleet, at_s: float) -> Iterable[Change]:
    """Yield what happened from one picture of the fleet to the next."""
    for device in new.devices:
        host, state = new.host_by_name[device.host], new.states.get(device.name, "running")
        if old.by_name.get(device.name) != device or old.host_by_name.get(host.name) != host:
            yield Change(at_s=at_s, device=device.name, joins=(device, host))
        if old.states.get(device.name, "running") != state or device.name not in old.by_name:
            yield Change(at_s=at_s, device=device.name, state=state)
        was, now = (sum(c.vram_mib for c in f.charges_on(device.name) if c.kind == FOREIGN) for f in (old, new))
        if was != now:
            yield Change(at_s=at_s, device=device.name, foreign_mib=now)
    for name in old.by_name:
        if name not in new.by_name:
            yield Change(at_s=at_s, device=name, state="lost")


def _estimates(records: Iterable[Record], lives: Iterable[_Life], devices: Mapping[str, Device]) -> Estimates:
    """Return what had been learned when the log began; of stages that it does not tell of, what its own units teach."""
    learned = NO_ESTIMATES
    for life in lives:
        work_s, end = _work_s(life.end, devices), life.end
        if work_s is None or end is None or end.outcome != "done" or life.demand.stage is None:
            continue
        stage, model, device = life.demand.stage, life.demand.model, devices[end.devices[0]]
        if end.seconds is not None:
            learned = learned.with_run(stage, model, device_class(device), end.seconds, speed=device.speed, share=end.share)
        if end.load_s:
            learned = learned.with_load(stage, model, device_class(device), end.load_s)
    found = next((r for r in records if isinstance(r, EstimatesRecord)), None)
    return learned if found is None else found.estimates.joined(learned)


# What comes of it


class Replay(NamedTuple):
    """A simulated scenario: its run, and the time in which no schedule could have done what was done, ``None`` where nothing was."""

    run: Run
    bound_s: float | None

    @property
    def ratio(self) -> float | None:
        """Makespan ÷ lower bound."""
        return self.run.makespan_s / self.bound_s if self.bound_s else None


def replay(scenario: Scenario, policy: Policy) -> Replay:
    """Simulate a scenario under `policy`."""
    run = simulate(scenario.fleet, policy, scenario.arrivals, estimates=scenario.estimates, changes=scenario.changes)
    done = [a for a in scenario.arrivals if a.id in run.done]
    ever = _with_all(scenario.fleet, scenario.changes)
    return Replay(run, lower_bound_s(ever, policy, done, estimates=scenario.estimates) if done else None)


def _with_all(fleet: Fleet, changes: Iterable[Change]) -> Fleet:
    """Return `fleet` with all devices that ever join; a card that changes its facts counts as the faster one."""
    devices, hosts = dict(fleet.by_name), dict(fleet.host_by_name)
    for change in changes:
        if change.joins is not None:
            device, host = change.joins
            known = devices.get(device.name)
            if known is None or device.speed > known.speed:
                devices[device.name] = device
            hosts.setdefault(host.name, host)
    return replace(fleet, hosts=tuple(hosts.values()), devices=tuple(devices.values()))


class Move(NamedTuple):
    """One unit that runs elsewhere."""

    id: str
    stage: str | None
    before: tuple[str, ...]
    after: tuple[str, ...]


class Loss(NamedTuple):
    """One unit that runs under one of two policies only, and what the other says."""

    id: str
    stage: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changes from one policy to another.

    Parameters
    ----------
    moved
        Units that run under both, on other devices.
    newly_waiting
        Units that ran and now do not, with the reason.
    newly_runnable
        Units that did not run and now do, with what kept them.
    metrics
        Before and after, by name.
    """

    moved: tuple[Move, ...] = ()
    newly_waiting: tuple[Loss, ...] = ()
    newly_runnable: tuple[Loss, ...] = ()
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether anything differs."""
        return bool(self.moved or self.newly_waiting or self.newly_runnable or any(a != b for a, b in self.metrics.values()))


def difference(scenario: Scenario, before: Run, after: Run) -> Difference:
    """Return what changes for the units of a scenario between two runs of it."""
    moved, waiting, runnable = [], [], []
    for arrival in scenario.arrivals:
        unit, stage = arrival.id, arrival.demand.stage
        old, new = before.done.get(unit), after.done.get(unit)
        if old is not None and new is not None:
            if old.devices != new.devices:
                moved.append(Move(unit, stage, old.devices, new.devices))
        elif old is not None:
            waiting.append(Loss(unit, stage, _reason(after, unit)))
        elif new is not None:
            runnable.append(Loss(unit, stage, _reason(before, unit)))
    figures = _figures(before), _figures(after)
    metrics = {name: (figures[0].get(name, 0.0), figures[1].get(name, 0.0)) for name in figures[0] | figures[1]}
    return Difference(moved=tuple(moved), newly_waiting=tuple(waiting), newly_runnable=tuple(runnable), metrics=metrics)


def _reason(run: Run, unit: str) -> str:
    return run.never.get(unit) or run.held.get(unit) or run.waiting.get(unit) or "does not end"


def _figures(run: Run) -> dict[str, float]:
    """Return the figures of a run that can be compared, flat."""
    found: dict[str, Any] = {
        "makespan_s": run.makespan_s, "finished": len(run.done), "ooms": run.ooms, "loads": run.loads, "evictions": run.evictions,
        "starvation_s": run.starvation_s,
    }  # fmt: skip
    for priority, waits in run.waits.items():
        found |= {f"wait {priority} p50_s": waits.p50_s, f"wait {priority} p95_s": waits.p95_s, f"wait {priority} max_s": waits.max_s}
    found |= {f"units on {name}": count for name, count in run.counts.items()}
    found |= {f"high water on {name} MiB": mib for name, mib in sorted(run.high_water_mib.items())}
    return found
