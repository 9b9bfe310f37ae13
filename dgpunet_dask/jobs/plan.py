"""From a workload, its parameters and what its code says to a call per stage. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgpunet_dask.errors import BadWorkload
from dgpunet_dask.jobs.task import StageCall
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.pipeline import StageFacts, StageSpec, Workload
from dgpunet_dask.stagehost.spec import StageCallSpec

#: A stage that loads something and states no demand takes no card: it must say so to get one.
DEFAULT_DEMAND = Demand(gpus=0)


@dataclass(frozen=True)
class StagePlan:
    """One stage of one job: its call, and its demand unless it is light."""

    spec: StageSpec
    call: StageCall
    demand: Demand | None

    def asking(self, demand: Demand) -> StagePlan:
        """Return this plan with another demand, and its call with the charge of that."""
        return replace(self, demand=demand, call=replace(self.call, spec=replace(self.call.spec, vram_mib=demand.vram_mib)))

    def of_user(self, user: str) -> StagePlan:
        """Return this plan with `user` in its demand, where that names none."""
        return self if self.demand is None or self.demand.user is not None else self.asking(replace(self.demand, user=user))

    def told(self, user: User, *, shared: bool) -> StagePlan:
        """Return this plan, of a stage on the head's host, with whose job it is."""
        spec = replace(self.call.spec, user=user.name, operates=user.operates, shared=shared)
        return replace(self, call=replace(self.call, spec=spec))


@dataclass(frozen=True)
class JobPlan:
    """All stages of one job in the order of the data."""

    workload: Workload
    source: StagePlan
    units: tuple[StagePlan, ...]
    gather: StagePlan | None

    @property
    def leaves(self) -> tuple[str, ...]:
        """The stages whose results are committed: what the gather stage takes, else the ends of the graph."""
        return self._open_ends if self.gather is None else (str(self.gather.spec.after),)

    @property
    def ends(self) -> tuple[str, ...]:
        """The stages that a unit must pass before it is done: the leaves, and the ends of branches that nothing takes from."""
        return tuple(dict.fromkeys((*self.leaves, *self._open_ends)))

    def from_stage(self, name: str) -> tuple[str, ...]:
        """Return `name` and all unit stages after it, in the order of the data."""
        found = {name: None}
        for plan in self.units:
            if plan.spec.after in found:
                found[plan.spec.name] = None
        return tuple(found)

    @property
    def _open_ends(self) -> tuple[str, ...]:
        taken = {plan.spec.after for plan in self.units}
        return tuple(p.spec.name for p in (self.source, *self.units) if p.spec.name not in taken)


@dataclass(frozen=True)
class HeadHost:
    """The host where sources and gather stages run: its CPU device, threads, and the home they may use."""

    device: str
    threads: int
    home: Path


def facts_from_wire(raw: Mapping[str, Any]) -> StageFacts:
    """Return the facts that a stage's interpreter reported."""
    demand = raw.get("demand")
    return StageFacts(
        demand=None if demand is None else Demand.parse(demand),
        light=bool(raw["light"]),
        load_params=tuple(raw.get("load_params", ())),
        load_required=tuple(raw.get("load_required", ())),
    )


def plan_job(
    workload: Workload, params: Mapping[str, Any], facts: Mapping[str, StageFacts], *, job_id: str, host: HeadHost, scratch: Path
) -> JobPlan:
    """Return the plan of one job.

    Raises
    ------
    BadWorkload
        If a stage's `load` wants something that is no parameter.
    """
    gather = workload.gather

    def planned(spec: StageSpec) -> StagePlan:
        on_head = spec is workload.source or spec is gather
        call = _call(workload, spec, facts[spec.name], params, job_id, host if on_head else None, scratch)
        if spec.at_head:
            call = replace(call, spec=replace(call.spec, home=str(host.home)))
        return StagePlan(spec, call, _demand(workload.name, spec, facts[spec.name], params, on_head=on_head))

    return JobPlan(
        workload=workload,
        source=planned(workload.source),
        units=tuple(planned(s) for s in workload.unit_stages),
        gather=None if gather is None else planned(gather),
    )


def _demand(workload: str, spec: StageSpec, facts: StageFacts, params: Mapping[str, Any], *, on_head: bool) -> Demand | None:
    if on_head or facts.light:
        return None
    if spec.at_head:
        raise BadWorkload(workload=workload, why=f"the stage {spec.name} has `at: head` and so may neither have a `load` nor an `env`")
    demand = (facts.demand or DEFAULT_DEMAND).named(spec.name)
    return demand.of_model(params.get("model") or None)  # a parameter that is left empty names no model


def _call(
    workload: Workload,
    spec: StageSpec,
    facts: StageFacts,
    params: Mapping[str, Any],
    job_id: str,
    host: HeadHost | None,
    scratch: Path,
) -> StageCall:
    unknown = [name for name in facts.load_required if name not in params]
    if unknown:
        known = ", ".join(sorted(params)) or "none"
        raise BadWorkload(workload=workload.name, why=f"{spec.run}.load wants {', '.join(unknown)}, and its parameters are {known}")
    demand = facts.demand or DEFAULT_DEMAND
    call = StageCallSpec(
        stage=spec.name,
        run=spec.run,
        digest=workload.digest,
        env=spec.env,
        load={name: params[name] for name in facts.load_params if name in params},
        device="" if host is None else host.device,
        vram_mib=None if host is not None else demand.vram_mib,
        resident_mib=0 if host is not None else demand.resident_mib,
        threads=max(1, demand.cpus) if host is None else host.threads,
        deadline_s=spec.deadline_s,
        job_id=job_id,
        folder=None if host is None else str(scratch),
        home=None if host is None else str(host.home),
        keep_s=0.0 if host is None else spec.keep_s,
        batch_items=spec.batch_items,
        batch_tokens=spec.batch_tokens,
        interactive=demand.priority == "interactive",
    )
    return StageCall(call, light=facts.light and host is None, retries=spec.retries)


def of_user(plan: JobPlan, user: User, *, shared: bool = False) -> JobPlan:
    """Return `plan` with its user in the demands of its units, as policies match them, and told to its source and its gather stage."""
    units = plan.units if user.name is None else tuple(stage.of_user(user.name) for stage in plan.units)
    gather = None if plan.gather is None else plan.gather.told(user, shared=shared)
    return replace(plan, source=plan.source.told(user, shared=shared), units=units, gather=gather)
