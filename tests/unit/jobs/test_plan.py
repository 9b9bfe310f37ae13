"""What a job's stages ask for, from what their code says and the job's parameters."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from dgpunet_dask.cli.submit import total_of
from dgpunet_dask.errors import BadWorkload
from dgpunet_dask.jobs.plan import HeadHost, of_user, plan_job
from dgpunet_dask.jobs.service import stage_rows
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.fleet import Fleet, Host
from dgpunet_dask.model.owner import User
from dgpunet_dask.model.pipeline import StageFacts, StageSpec, Workload
from dgpunet_dask.placement.estimate import NO_ESTIMATES, device_class
from dgpunet_dask.placement.explanation import explanation
from tests.unit.jobs.runs import DEVICES, plan_of

WORKLOAD = Workload(
    name="w", digest="0" * 64, folder="/w", stages=(StageSpec(name="read", run="s:R"), StageSpec(name="embed", run="s:E", after="read"))
)


@pytest.mark.parametrize(("given", "model"), [({"model": "bge"}, "bge"), ({"model": ""}, None), ({"model": None}, None), ({}, None)])
def test_the_parameter_model_names_the_model_unless_it_is_empty(given: dict[str, str | None], model: str | None) -> None:
    facts = {"read": StageFacts(demand=None, light=True), "embed": StageFacts(demand=Demand(vram="2GiB"), light=False)}
    host = HeadHost(device="h/cpu", threads=1, home=Path("/h"))
    (embed,) = plan_job(WORKLOAD, given, facts, job_id="j", host=host, scratch=Path("/h/s")).units
    assert embed.demand is not None
    assert (embed.demand.stage, embed.demand.model) == ("embed", model)


def test_a_light_stage_at_the_head_is_told_the_home_and_any_other_is_refused() -> None:
    look = StageSpec(name="look", run="s:L", after="read", at_head=True)
    workload = replace(WORKLOAD, stages=(WORKLOAD.source, look, replace(WORKLOAD.stages[1], after="look")))
    host = HeadHost(device="h/cpu", threads=1, home=Path("/h"))
    facts = {"read": StageFacts(demand=None, light=True), "look": StageFacts(demand=None, light=True), "embed": StageFacts(demand=Demand(), light=False)}
    looking, embedding = plan_job(workload, {}, facts, job_id="j", host=host, scratch=Path("/h/s")).units
    assert (looking.call.light, looking.demand) == (True, None)
    assert (looking.call.spec.context().home, embedding.call.spec.context().home) == (Path("/h"), None)
    with pytest.raises(BadWorkload, match="look has `at: head`"):
        plan_job(workload, {}, {**facts, "look": facts["embed"]}, job_id="j", host=host, scratch=Path("/h/s"))


def test_whose_a_job_is_is_told_to_its_ends_on_the_head_and_units_are_matched_by_it() -> None:
    stages = (*WORKLOAD.stages, StageSpec(name="end", run="s:G", after="embed", gather=True))
    facts = {name: StageFacts(demand=Demand(vram="2GiB"), light=False) for name in ("read", "embed", "end")}
    host = HeadHost(device="h/cpu", threads=1, home=Path("/h"))
    plan = plan_job(replace(WORKLOAD, stages=stages), {}, facts, job_id="j", host=host, scratch=Path("/h/s"))
    told = of_user(plan, User("ann", operates=True), shared=True)
    assert told.gather is not None
    for stage in (told.source, told.gather):
        context = stage.call.spec.context()
        assert (context.user, context.shared) == (User("ann", operates=True), True)
    (unit,) = told.units
    assert unit.demand is not None
    assert unit.demand.user == "ann"
    assert unit.call.spec.context().user == User()  # units of several users may share a stage host
    assert unit.call.spec.host_key == plan.units[0].call.spec.host_key
    assert of_user(plan, User()).units == plan.units


@pytest.mark.parametrize(("priority", "interactive"), [(None, False), ("batch", False), ("idle", False), ("interactive", True)])
def test_only_a_stage_that_says_that_people_wait_for_it_keeps_its_os_priority(priority: str | None, interactive: bool) -> None:
    facts = {name: StageFacts(demand=Demand(priority=priority), light=False) for name in ("read", "embed")}
    host = HeadHost(device="h/cpu", threads=1, home=Path("/h"))
    plan = plan_job(WORKLOAD, {}, facts, job_id="j", host=host, scratch=Path("/h/s"))
    assert [stage.call.spec.interactive for stage in (plan.source, *plan.units)] == [interactive, interactive]


def test_a_dry_run_tells_the_seconds_of_a_unit_only_where_they_were_learned(tmp_path: Path) -> None:
    plan, fleet = plan_of(tmp_path, ("work", False)), Fleet((Host(name="one"),), (DEVICES["a0"],))
    known = NO_ESTIMATES.with_run("work", None, device_class(DEVICES["a0"]), 0.02)
    for estimates, told in ((NO_ESTIMATES, None), (known, 0.02)):
        stages = stage_rows(plan, functools.partial(explanation, fleet, estimates=estimates), "one/cpu")
        assert total_of({"stages": stages}, 1)["seconds_per_unit"] == told
