"""Models of a job by digest: which are noted, and which stages are told."""

from pathlib import Path

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.jobs.model_owners import Brought
from dgpunet_dask.jobs.models import brought, local_model, model_digests, model_folders, named_models, with_digests
from dgpunet_dask.jobs.plan import HeadHost, plan_job
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.model.pipeline import Param, StageFacts, StageSpec, Workload
from dgpunet_dask.stagehost.fetching import find_folder

PARAMS = {"model": Param(name="model", type="model"), "other": Param(name="other", type="model"), "path": Param(name="path", type="path")}
STAGES = (StageSpec(name="read", run="s:R"), StageSpec(name="embed", run="s:E", after="read"), StageSpec(name="end", run="s:G", after="embed", gather=True))
WORKLOAD = Workload(name="w", digest="0" * 64, folder="/w", params=PARAMS, stages=STAGES)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(("value", "named"), [("bge", {"model": "bge"}), ("/m", {"model": "/m"}), ("minilm", {}), ("", {}), (None, {})])
def test_models_are_what_parameters_of_that_type_name(value, named):
    assert named_models(WORKLOAD, {"model": value, "path": "/p"}) == named


def test_a_local_folder_gets_its_digest_and_can_be_given_to_others(tmp_path, model):
    home = Home(tmp_path / "home").ensure()
    found = model_digests(home, model_folders(WORKLOAD, {"model": str(model), "other": "some/hub-name"}))
    assert set(found) == {"model"}
    assert find_folder(home, "model", found["model"]) == model


def test_a_hub_name_is_looked_up_by_whoever_can(tmp_path, model):
    home = Home(tmp_path / "home").ensure()
    found = model_digests(home, model_folders(WORKLOAD, {"model": "some/hub-name"}, lambda name: model if name == "some/hub-name" else None))
    assert find_folder(home, "model", found["model"]) == model


def test_a_folder_that_holds_no_weights_is_not_read_through(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert model_folders(WORKLOAD, {"model": str(tmp_path / "photos")}) == {}


def test_relative_names_are_no_folders(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert local_model("model") is None
    assert local_model(str(model)) == model


def test_unit_stages_that_load_the_model_are_told_its_digest_and_keep_its_name():
    load = ("model",)
    facts = {
        "read": StageFacts(demand=None, light=False, load_params=load),
        "embed": StageFacts(demand=Demand(vram="2GiB"), light=False, load_params=load),
        "end": StageFacts(demand=None, light=False, load_params=load),
    }
    host = HeadHost(device="h/cpu", threads=1, home=Path("/h"))
    plan = plan_job(WORKLOAD, {"model": "/m"}, facts, job_id="j", host=host, scratch=Path("/h/s"))
    told = with_digests(plan, {"model": "ab" * 32, "other": "cd" * 32})
    (embed,) = told.units
    assert dict(embed.call.spec.models) == {"model": "ab" * 32}
    assert embed.call.spec.load["model"] == "/m"
    assert embed.demand.model == "/m"
    assert told.source.call.spec.models == {}
    assert told.gather.call.spec.models == {}
    assert embed.call.spec.host_key != plan.units[0].call.spec.host_key
    assert with_digests(plan, {}) is plan


def test_a_folder_is_known_by_where_it_really_is_and_a_hubs_model_by_its_name(tmp_path, model):
    (tmp_path / "link").symlink_to(model)
    params = {"model": str(tmp_path / "link"), "other": "some/hub-name"}
    folders = {"model": tmp_path / "link", "other": model}
    assert brought(params, folders, {"other": "ab"}) == [
        Brought(name=str(model.resolve()), digest=None, public=False), Brought(name="some/hub-name", digest="ab", public=True),
    ]  # fmt: skip
