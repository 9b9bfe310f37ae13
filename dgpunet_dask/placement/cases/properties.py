"""What holds of every decision under a policy, tried on generated fleets. Each property says what is wrong, None where it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from dgpunet_dask.model.decision import REASON_ORDER, Decision
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Fleet
from dgpunet_dask.model.policy import Policy, Require, Rule, Selector
from dgpunet_dask.placement.cases.generate import Generator
from dgpunet_dask.placement.place import charges_of, place
from dgpunet_dask.placement.resolve import priority_of, resolve
from dgpunet_dask.units import VersionSpec

if TYPE_CHECKING:
    from random import Random


class Trial(NamedTuple):
    """One demand on one fleet under one policy."""

    fleet: Fleet
    demand: Demand
    policy: Policy

    def decide(self) -> Decision:
        """Return the decision."""
        return place(self.fleet, self.demand, self.policy)


Property = Callable[[Trial, Decision], str | None]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A property that does not hold: what is wrong, and a small trial that shows it. `example`: its number under `seed`."""

    name: str
    seed: int
    example: int
    fault: str
    trial: Trial


def failures(policy: Policy, seed: int, examples: int, chance_of: Callable[[str], Random]) -> Iterator[Failure]:
    """Yield each property that does not hold of `policy`, with the first example that shows it.

    Parameters
    ----------
    seed, examples
        Which fleets and demands, and how many.
    chance_of
        Returns a source of chance for a text: the same for the same text.
    """
    open_ = dict(PROPERTIES)
    for i in range(examples):
        generator = Generator(policy, chance_of(f"{seed}/{i}"))
        trial = Trial(generator.fleet(), generator.demand(), policy)
        decision = trial.decide()
        for name, holds in tuple(open_.items()):
            if holds(trial, decision) is not None:
                del open_[name]
                small = shrunk(trial, holds)
                fault = holds(small, small.decide()) or ""
                yield Failure(name=name, seed=seed, example=i, fault=fault, trial=small)


def shrunk(trial: Trial, holds: Property) -> Trial:
    """Return a trial that is as small as leaving out one thing at a time makes it, and still shows the fault."""
    todo = True
    while todo:
        smaller = (small for small in _smaller(trial) if holds(small, small.decide()) is not None)
        found = next(smaller, None)
        todo = found is not None
        trial = found or trial
    return trial


def _smaller(trial: Trial) -> Iterator[Trial]:
    fleet, demand, _ = trial
    for charge in fleet.charges:
        yield trial._replace(fleet=fleet.with_charges(c for c in fleet.charges if c is not charge))
    for device in fleet.devices:
        yield trial._replace(fleet=_without(fleet, device.name))
    for name in (*fleet.states, *fleet.booked):
        kept = {k: v for k, v in fleet.states.items() if k != name}
        yield trial._replace(fleet=replace(fleet, states=kept, booked={k: v for k, v in fleet.booked.items() if k != name}))
    plain = Demand()
    for field in dataclasses.fields(Demand):
        if getattr(demand, field.name) != getattr(plain, field.name) and field.name != "vram":
            yield trial._replace(demand=replace(demand, **{field.name: getattr(plain, field.name)}))


def _without(fleet: Fleet, name: str) -> Fleet:
    return replace(
        fleet,
        devices=tuple(d for d in fleet.devices if d.name != name),
        charges=tuple(c for c in fleet.charges if c.device != name),
        states={device: state for device, state in fleet.states.items() if device != name},
        booked={device: seconds for device, seconds in fleet.booked.items() if device != name},
    )


# The properties


def started(trial: Trial, decision: Decision) -> Fleet:
    """Return the fleet once what was decided has been done: idle stages unloaded, and the unit charged."""
    left = trial.fleet.with_charges(
        c for c in trial.fleet.charges if not (c.holder in decision.evict and c.device in decision.devices)
    )
    request = resolve(trial.demand, trial.policy)
    return left.with_charges((*left.charges, *charges_of(left, request, decision, "the unit")))


def _no_overcommit(trial: Trial, decision: Decision) -> str | None:
    after = started(trial, decision)
    for name in decision.devices:
        device, charges = after.by_name[name], after.charges_on(name)
        free = after.free_mib(name)
        if device.kind == "gpu" and free is not None and free < 0 and after.charges_on(name)[-1].vram_mib:
            return f"{name} is charged {-free} MiB more than it has"
        units, host = [c for c in charges if c.kind == "activation"], after.host_by_name[device.host]
        if device.kind == "cpu" and host.cpus is not None and sum(c.cpus for c in units) > host.cpus >= 0 and len(units) > 1:
            return f"{name} is to run more than its {host.cpus} cores"
    return None


def _denied_never_placed(trial: Trial, decision: Decision) -> str | None:
    fleet, demand, policy = trial
    priority = priority_of(demand, policy)
    rules = [r for r in policy.rules if r.match.holds(demand.stage, demand.model, demand.user, priority)]
    for scored in decision.ranking:
        device = fleet.by_name[scored.device]
        by = next((r.name for r in rules for s in r.deny or () if s.picks(device, fleet.host_by_name[device.host])), None)
        if by is not None:
            return f"{scored.device} will do, though {by} denies it"
    return None


def _exclusive_is_alone(trial: Trial, decision: Decision) -> str | None:
    after = started(trial, decision)
    for name in decision.devices:
        charges = [c for c in after.charges_on(name) if c.kind != "foreign" and not _own_stage(c, trial.demand)]
        if any(c.exclusive for c in charges) and len(charges) > 1:
            return f"{name} is to be held alone, and by {', '.join(sorted(c.holder for c in charges))}"
    return None


def _own_stage(charge: Charge, demand: Demand) -> bool:
    return charge.holds(demand.stage, demand.model)


def _every_device_is_told(trial: Trial, decision: Decision) -> str | None:
    told = [*(s.device for s in decision.ranking), *decision.refusals]
    if sorted(told) != [d.name for d in trial.fleet.devices]:
        return f"the fleet has {', '.join(d.name for d in trial.fleet.devices)}, the decision tells of {', '.join(sorted(told))}"
    for name, verdicts in decision.refusals.items():
        codes = [REASON_ORDER[v.code] for v in verdicts]
        if not codes or codes != sorted(set(codes)):
            return f"the reasons of {name} are {', '.join(v.code for v in verdicts) or 'none'}"
    return None


def _same_input_same_output(trial: Trial, decision: Decision) -> str | None:
    fleet = trial.fleet
    turned = Fleet(
        fleet.hosts[::-1], fleet.devices[::-1], fleet.charges[::-1], dict(sorted(fleet.states.items(), reverse=True)), fleet.minute,
        dict(sorted(fleet.booked.items(), reverse=True)),
    )  # fmt: skip
    other = place(turned, trial.demand, trial.policy)
    same = (other.outcome, other.devices, other.ranking, _codes(other)) == (
        decision.outcome, decision.devices, decision.ranking, _codes(decision),
    )  # fmt: skip
    return None if same else f"with the fleet written down backwards the outcome is {_outcome(other)}, not {_outcome(decision)}"


#: Each asks for more than before, in a rule of its own that sets nothing else.
_NARROWER: Final[Mapping[str, Rule]] = {
    "compute_capability >=8.9": Rule(name="~", require=Require(compute_capability=VersionSpec(">=8.9"))),
    "features [bf16]": Rule(name="~", require=Require(features=frozenset({"bf16"}))),
    "driver >=550": Rule(name="~", require=Require(driver=VersionSpec(">=550"))),
    "role batch": Rule(name="~", require=Require(role="batch")),
    "ram 12GiB": Rule(name="~", require=Require(ram_mib=12288)),
    "cpus 9": Rule(name="~", require=Require(cpus=9)),
    "vram 13GiB": Rule(name="~", require=Require(vram_mib=13312)),
    "exclusive": Rule(name="~", exclusive=True),
    "deny of half the devices": Rule(name="~", deny=(Selector(device="*[02468acegikmoqsuwy]"),)),
}


def _a_constraint_never_widens(trial: Trial, decision: Decision) -> str | None:
    """Work that states no VRAM, and is asked for none, takes the whole card: for that a `vram` asks for less, not more."""
    before = {s.device for s in decision.ranking}
    whole = resolve(trial.demand, trial.policy).demand.vram_mib is None
    for what, rule in _NARROWER.items():
        if whole and rule.require is not None and rule.require.vram_mib is not None:
            continue
        narrow = replace(trial.policy, rules=(*trial.policy.rules, rule))
        more = {s.device for s in place(trial.fleet, trial.demand, narrow).ranking} - before
        if more:
            return f"with {what} required as well, {', '.join(sorted(more))} will do"
    return None


def _renaming_changes_only_ties(trial: Trial, decision: Decision) -> str | None:
    """Only names change that the policy's globs take alike, in the order of the alphabet turned round."""
    fleet, demand, policy = trial
    names = _other_names(fleet, policy)
    renamed = Fleet(
        fleet.hosts,
        tuple(replace(d, name=names[d.name]) for d in fleet.devices),
        tuple(replace(c, device=names[c.device]) for c in fleet.charges),
        {names[name]: state for name, state in fleet.states.items()},
        fleet.minute,
        {names[name]: seconds for name, seconds in fleet.booked.items()},
    )
    inputs = {names.get(where, where): size for where, size in demand.inputs.items()}
    other = place(renamed, replace(demand, inputs=inputs), policy)
    totals = [[round(s.total, 6) for s in d.ranking] for d in (decision, other)]
    codes = {names[name]: found for name, found in _codes(decision).items()}
    if other.outcome != decision.outcome or totals[0] != totals[1] or codes != _codes(other):
        changed = ", ".join(f"{old} as {new}" for old, new in names.items() if old != new)
        return f"with {changed}, the outcome is {_outcome(other)}, not {_outcome(decision)}"
    return None


def _other_names(fleet: Fleet, policy: Policy) -> dict[str, str]:
    globs = {s.device for s in policy.selectors if s.device} | {r.device for r in policy.reserves}
    names = {d.name: d.name for d in fleet.devices}
    for i, device in enumerate(fleet.devices):
        new = f"z{len(names) - i:03}"
        alike = all(fnmatchcase(device.name, g) == fnmatchcase(new, g) for g in globs)
        if device.kind == "gpu" and alike and new not in names:
            names[device.name] = new
    return names


def _never_is_for_ever(trial: Trial, decision: Decision) -> str | None:
    """The owner's conditions apart, which `never` takes as they are, and which stay as they are here."""
    idle = replace(
        trial.fleet, charges=(), states={}, booked={}, devices=tuple(replace(d, cordoned=False) for d in trial.fleet.devices)
    )
    empty = place(idle, trial.demand, trial.policy)
    if (decision.outcome == "never") != (empty.outcome == "never"):
        return f"the outcome is {_outcome(decision)}, but on the same fleet without work it is {_outcome(empty)}"
    return None


def _codes(decision: Decision) -> dict[str, list[str]]:
    return {name: [v.code for v in verdicts] for name, verdicts in decision.refusals.items()}


def _outcome(decision: Decision) -> str:
    return f"on {' + '.join(decision.devices)}" if decision.devices else decision.outcome


PROPERTIES: Final[Mapping[str, Property]] = {
    "no card is overcommitted": _no_overcommit,
    "what is denied is never used": _denied_never_placed,
    "exclusive work is alone": _exclusive_is_alone,
    "every device will do or is refused, with its reasons": _every_device_is_told,
    "the same input gives the same output": _same_input_same_output,
    "another constraint never widens": _a_constraint_never_widens,
    "renaming devices changes only ties": _renaming_changes_only_ties,
    "never is for ever": _never_is_for_ever,
}


def told(failure: Failure) -> list[str]:
    """Return a failure in lines."""
    fleet, demand, _ = failure.trial
    facts = [_shown(thing) for thing in (*fleet.hosts, *fleet.devices, *fleet.charges)]
    states = [f"{name} is {state}" for name, state in fleet.states.items()]
    return [
        failure.fault,
        f"seed {failure.seed}, example {failure.example}, made smaller:",
        f"demand {demand.to_mapping()}",
        *facts,
        *states,
    ]


def _shown(thing: object) -> str:
    """Return the fields of a host, device or charge that differ from their defaults."""
    assert dataclasses.is_dataclass(thing)
    given = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if getattr(thing, f.name) != f.default}
    return f"{type(thing).__name__.lower()} {' '.join(f'{k}={v}' for k, v in given.items() if v or v == 0)}"
