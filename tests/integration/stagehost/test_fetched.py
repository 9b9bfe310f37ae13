"""A stage that runs where its workload and its model are not: the agent fetches both, and the stage loads the model from there."""

import shutil

import pytest

from dgpunet_dask.errors import FolderMissing
from dgpunet_dask.jobs.task import SOCKET_VARIABLE, Parcel, StageCall, run_stage
from dgpunet_dask.stagehost.fetching import find_folder, note_model
from dgpunet_dask.stagehost.frames import pack, unpack
from tests.integration.stagehost.helpers import DIGEST, Agent, spec

STAGES = """
from pathlib import Path
from dgpunet_dask import Stage

class Reads(Stage):
    def load(self, *, model):
        self.model = model
    def __call__(self, batch):
        return [(self.model, (Path(self.model) / "config.json").read_text()) for _ in batch]

class Light(Stage):
    def __call__(self, batch):
        return [item + 1 for item in batch]
"""


@pytest.fixture
def hosts(tmp_path):
    """Two agents; the second gets what it lacks from the first."""
    first = Agent(tmp_path / "first")
    asked = []

    async def fetch(kind, digest):
        asked.append(kind)
        source = find_folder(first.home, kind, digest)
        if source is None:
            raise FolderMissing(kind=kind, digest=digest[:16], why="first: it does not have it")
        return shutil.copytree(source, (second.home.workloads if kind == "workload" else second.home.models) / digest)

    second = Agent(tmp_path / "second", fetch=fetch)
    first.start()
    second.start()
    yield first, second, asked
    first.stop()
    second.stop()


def test_workload_and_model_are_brought_once_and_the_name_stays(hosts, tmp_path):
    first, second, asked = hosts
    first.write(STAGES)
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text('{"here": 1}')
    digest = note_model(first.home, model)
    loads = spec("Reads", load={"model": str(model)}, models={"model": digest}, vram_mib=100, device="g")
    ((where, text),) = unpack(second.client.call(loads, pack([0])).frames)
    assert where == str(second.home.models / digest)
    assert text == '{"here": 1}'
    second.client.call(loads, pack([0]))
    assert asked == ["workload", "model"]
    assert second.now(second.hosts.residents)["g"][0]["model"] == str(model)
    ((where, _),) = unpack(first.client.call(loads, pack([0])).frames)
    assert where == str(model)  # it is not copied on the host that has it


def test_a_light_stage_in_a_worker_has_its_workload_fetched_by_the_agent(hosts, monkeypatch):
    first, second, asked = hosts
    digest = "e1" * 32  # no other test has imported it into this process
    first.write(STAGES, digest=digest)
    monkeypatch.setenv("DGPUNET_HOME", str(second.home.root))
    monkeypatch.setenv(SOCKET_VARIABLE, str(second.home.agent_socket))
    call = StageCall(spec("Light", digest=digest), light=True, retries=0)
    for _ in range(2):
        assert unpack(run_stage(call, Parcel(pack([1, 2]), 2)).frames) == [2, 3]
    assert asked == ["workload"]


def test_a_stage_on_the_heads_host_is_given_the_name(hosts, tmp_path):
    first, _, _ = hosts
    first.write(STAGES)
    (tmp_path / "config.json").write_text("{}")
    loads = spec("Reads", load={"model": str(tmp_path)}, models={"model": "ab" * 32}, home=str(first.home.root))
    ((where, _),) = unpack(first.client.call(loads, pack([0])).frames)
    assert where == str(tmp_path)


def test_what_nobody_has_fails_the_call_in_words_and_leaves_nothing_behind(hosts):
    first, second, _ = hosts
    with pytest.raises(FolderMissing, match="workload"):
        second.client.call(spec("Reads", load={"model": "m"}), pack([0]))
    first.write(STAGES)
    with pytest.raises(FolderMissing, match="model"):
        second.client.call(spec("Reads", load={"model": "m"}, models={"model": "ab" * 32}), pack([0]))
    assert second.pids() == []
    with pytest.raises(FolderMissing):
        second.client.inspect("cd" * 32, {"s": ("stages:S", None)})
    assert DIGEST in [p.name for p in second.home.workloads.iterdir()]


def test_an_agent_alone_says_that_it_knows_no_other(hosts):
    first, _, _ = hosts
    with pytest.raises(FolderMissing, match="knows no other"):
        first.client.call(spec("Reads", load={"model": "m"}), pack([0]))
