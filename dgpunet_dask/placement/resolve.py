"""What a policy makes of a demand: every rule that matches, united into one request (design §5.3).

``require``, ``deny`` and ``exclusive`` accumulate over all matching rules, the stricter wins. ``allow``, ``prefer``, ``share``,
``priority`` and ``on_oom`` come from one rule each: of those that match and set the clause, the one of the highest layer, then the most
specific. A request depends on facts and rules only, so callers keep it per demand until the policy or the estimates change.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Charge, Device
from dgpunet_dask.model.policy import (
    DEFAULT_ON_OOM,
    LAYERS,
    NO_POLICY,
    HostRule,
    OnOom,
    Policy,
    Preference,
    Require,
    Reserve,
    Rule,
    Selector,
    SourceRef,
)
from dgpunet_dask.placement.estimate import NO_ESTIMATES, Estimates, device_class
from dgpunet_dask.units import Mib, VersionSpec

DEFAULT_PRIORITY: Final = "batch"
#: Weight of the `finish` part unless a policy sets it.
FINISH_WEIGHT: Final = 100.0
#: Seconds at speed 1 of a unit of which nothing is known: only ratios of speeds matter then.
PRIOR_WORK_S: Final = 1.0

Sources = tuple[SourceRef, ...]


@dataclass(frozen=True, eq=False)
class Request:
    """A demand under a policy. Compared by identity.

    Parameters
    ----------
    demand
        The united needs; its priority is the one in force.
    sources
        Where a need comes from that a rule made stricter than the demand, by reason code.
    roles, deny
        All of them hold, each with its place.
    share
        ``max_per_gpu``, ``None``: alone in its device's unit slot.
    prefer
        ``None``: nothing was preferred, so that work waits for a device that finishes it sooner.
    owner
        The owner's conditions under which this work may run on a host.
    reserves
        Standing reserves that are kept for other work.
    """

    demand: Demand
    sources: Mapping[str, SourceRef] = field(default_factory=dict)
    roles: tuple[tuple[str, SourceRef], ...] = ()
    deny: tuple[tuple[Selector, SourceRef | None], ...] = ()
    allow: tuple[Selector, ...] | None = None
    share: int | None = None
    prefer: tuple[Preference, ...] | None = None
    on_oom: OnOom = DEFAULT_ON_OOM
    owner: tuple[HostRule, ...] = ()
    reserves: tuple[Reserve, ...] = ()
    estimates: Estimates = NO_ESTIMATES
    rules: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the run time is stated or learned, and not only the prior."""
        return self.demand.work is not None or self.estimates.work_s(self.demand.stage, self.demand.model) is not None

    @property
    def work_s(self) -> float:
        """Seconds at speed 1: stated, else learned, else the prior."""
        if self.demand.work is not None:
            return float(self.demand.work)
        learned = self.estimates.work_s(self.demand.stage, self.demand.model)
        return PRIOR_WORK_S if learned is None else learned

    def run_s(self, device: Device) -> float:
        """Return the expected seconds of one unit that has `device` to itself: stated work, else learned for its class, else the prior."""
        if self.demand.work is None:
            learned = self.estimates.run_s(self.demand.stage, self.demand.model, device_class(device))
            if learned is not None:
                return learned
        return self.work_s / device.speed

    def load_s(self, device: Device, charges: Iterable[Charge]) -> float:
        """Return the expected seconds until the stage is loaded on `device`: none where it is, or where nothing was learned."""
        stage, model = self.demand.stage, self.demand.model
        if any(c.holds(stage, model) for c in charges):
            return 0.0
        return self.estimates.load_s(stage, model, device_class(device)) or 0.0

    def protects(self, charge: Charge) -> bool:
        """Whether `charge` draws on a standing reserve for other work than this."""
        return any(draws_on(charge, reserve) for reserve in self.reserves)


def draws_on(charge: Charge, reserve: Reserve) -> bool:
    """Whether `charge` is of the work that `reserve` is kept for."""
    here = charge.kind != "foreign" and charge.device == reserve.device
    return here and reserve.match.holds(charge.stage, charge.model, charge.user, charge.priority)


def resolve(demand: Demand, policy: Policy = NO_POLICY, estimates: Estimates = NO_ESTIMATES) -> Request:
    """Return `demand` as `policy` shapes it; what it leaves open is filled from `estimates`."""
    priority = priority_of(demand, policy)
    rules = [r for r in policy.rules if r.match.holds(demand.stage, demand.model, demand.user, priority)]
    needs = _Needs(dataclasses.replace(with_learned(demand, estimates), priority=priority))
    for rule in rules:
        needs.unite(rule)
    share, prefer, on_oom, allow = (clause_of(rules, name) for name in ("max_per_gpu", "prefer", "on_oom", "allow"))
    if allow is not None:
        needs.sources["not_allowed"] = allow.source("allow")
    return Request(
        demand=needs.demand(),
        sources=needs.sources,
        roles=tuple(needs.roles),
        deny=(*_avoided(demand), *((s, rule.source(f"deny.{i}")) for rule in rules for i, s in enumerate(rule.deny or ()))),
        allow=None if allow is None else allow.allow,
        share=None if share is None else share.max_per_gpu,
        prefer=None if prefer is None else prefer.prefer or None,
        on_oom=DEFAULT_ON_OOM if on_oom is None or on_oom.on_oom is None else on_oom.on_oom,
        owner=tuple(h for h in policy.hosts if priority not in h.otherwise),
        reserves=tuple(r for r in policy.reserves if not r.match.holds(demand.stage, demand.model, demand.user, priority)),
        estimates=estimates,
        rules=tuple(rule.name for rule in rules),
    )


def with_learned(demand: Demand, estimates: Estimates) -> Demand:
    """Return `demand` with the peak that was learned where it states none, and without the cards that have proved too small for it."""
    if demand.vram is not None:
        return demand
    peak, too_small = estimates.peak_mib(demand.stage, demand.model), estimates.larger_than_mib(demand.stage, demand.model)
    vram = None if peak is None else Mib.of(max(peak, demand.resident_mib))
    larger_than = max(int(demand.larger_than or 0), too_small or 0)
    return dataclasses.replace(demand, vram=vram, larger_than=Mib.of(larger_than) if larger_than else None)


def priority_of(demand: Demand, policy: Policy) -> str:
    """Return the priority in force: the demand's own, else that of the most specific rule that matches without it, else batch.

    A rule that matches on priority cannot match work that has none yet, unless its glob takes everything.
    """
    if demand.priority is not None:
        return demand.priority
    rules = [r for r in policy.rules if r.match.holds(demand.stage, demand.model, demand.user, None)]
    found = clause_of(rules, "priority")
    return DEFAULT_PRIORITY if found is None or found.priority is None else found.priority


def clause_of(rules: Iterable[Rule], name: str) -> Rule | None:
    """Return the rule whose clause `name` counts: of the highest layer that sets it, then the most specific, then the first by name."""
    found = [r for r in rules if getattr(r, name) is not None]
    return max(sorted(found, key=lambda r: r.name), key=lambda r: (LAYERS[r.layer], *r.match.specificity), default=None)


class _Needs:
    """A demand's needs under union with what rules require."""

    def __init__(self, demand: Demand) -> None:
        self._start = demand
        self._changes: dict[str, Any] = {}
        self.sources: dict[str, SourceRef] = {}
        self.roles: list[tuple[str, SourceRef]] = []

    def unite(self, rule: Rule) -> None:
        """Take in what `rule` asks."""
        if rule.exclusive:
            self._changes["exclusive"] = True
            self.sources["exclusive"] = rule.source("exclusive")
        need = rule.require
        if need is None:
            return
        self._at_least("vram", "vram_total", need.vram_mib, rule, Mib.of)
        self._at_least("ram", "host_ram", need.ram_mib, rule, Mib.of)
        self._at_least("cpus", "host_cpus", need.cpus, rule, int)
        self._both("compute_capability", "compute_capability", need.compute_capability, rule)
        self._both("driver", "driver", need.driver, rule)
        self._features(need, rule)
        if need.role is not None:
            self.roles.append((need.role, rule.source("require.role")))

    def _now(self, name: str) -> Any:
        return self._changes.get(name, getattr(self._start, name))

    def _at_least(self, name: str, code: str, need: int | None, rule: Rule, kind: Any) -> None:
        have = self._now(name)
        if need is not None and (have is None or need >= have):  # an equal need is named too: loosening the demand alone would not help
            self._changes[name] = kind(need)
            self.sources[code] = rule.source(f"require.{name}")

    def _both(self, name: str, code: str, spec: VersionSpec | None, rule: Rule) -> None:
        have = self._now(name)
        if spec is not None:
            self._changes[name] = spec if have in (None, spec) else VersionSpec(f"{have},{spec}")
            self.sources[code] = rule.source(f"require.{name}")

    def _features(self, need: Require, rule: Rule) -> None:
        if need.features:
            self._changes["features"] = tuple(sorted(need.features.union(self._now("features"))))
            self.sources["feature"] = rule.source("require.features")

    def demand(self) -> Demand:
        """Return the demand with all needs united."""
        return dataclasses.replace(self._start, **self._changes) if self._changes else self._start


def _avoided(demand: Demand) -> tuple[tuple[Selector, None], ...]:
    """Return the devices that the demand itself will not have, as a rule would deny them."""
    return tuple((Selector(device=glob.escape(name)), None) for name in demand.avoid)
