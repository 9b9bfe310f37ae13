"""What a job's stages ask for, from what their code says and the job's parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpunet_dask.jobs.plan import HeadHost, plan_job
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.pipeline import StageFacts, StageSpec, Workload

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
