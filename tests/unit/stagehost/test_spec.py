"""Which calls share a process, and what a stage host is started with."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dgpunet_dask import errors
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DiskFull, MalformedFile, ModelUnavailable, Problem, StageFailed
from dgpunet_dask.stagehost import launching
from dgpunet_dask.stagehost.environments import environment_digest
from dgpunet_dask.stagehost.process import how_ended
from dgpunet_dask.stagehost.reports import error_from_json, error_to_json, failure_of
from dgpunet_dask.stagehost.spec import StageCallSpec

SPEC = StageCallSpec(stage="embed", run="stages:Embed", digest="ab", load={"model": "m"}, device="4090l", vram_mib=2048, job_id="j1")


@pytest.mark.parametrize("change", [{"deadline_s": 1.0}, {"batch_items": 3}, {"batch_tokens": 3}, {"job_id": "j2"}, {"vram_mib": 4096}])
def test_calls_that_differ_in_limits_charge_or_job_share_a_process(change):
    assert replace(SPEC, **change).host_key == SPEC.host_key


@pytest.mark.parametrize(
    "change",
    [{"load": {"model": "n"}}, {"device": "4080l"}, {"digest": "cd"}, {"env": "x.lock"}, {"threads": 2}, {"resident_mib": 64}, {"run": "s:E"}],
)
def test_calls_that_differ_in_what_is_loaded_do_not(change):
    assert replace(SPEC, **change).host_key != SPEC.host_key


def test_source_and_gather_belong_to_one_job():
    source = replace(SPEC, folder="/scratch")
    assert source.of_one_job
    assert replace(source, job_id="j2").host_key != source.host_key


def test_a_spec_is_plain_json():
    assert StageCallSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    assert SPEC.context().folder is None
    assert replace(SPEC, folder="/a", home="/b").context().home == Path("/b")


def test_a_card_is_visible_by_uuid_and_nowhere_else():
    base = {"CUDA_VISIBLE_DEVICES": "0,1,2", "PATH": "/bin"}
    on_card = launching.environ(SPEC, False, Path("/i"), 7, "GPU-1", base)
    on_cpu = launching.environ(replace(SPEC, device="h/cpu", threads=3), False, Path("/i"), 7, None, base)
    assert on_card["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert {on_cpu[name] for name in launching.THREAD_VARIABLES} == {"3"}


def test_an_interpreter_of_its_own_sees_nothing_of_ours():
    base = {"PYTHONPATH": "ours", "VIRTUAL_ENV": "/v", "PYTHONHOME": "/p"}
    own = launching.environ(SPEC, True, Path("/i"), 7, None, base)
    assert own["PYTHONPATH"] == "/i"
    assert not {"VIRTUAL_ENV", "PYTHONHOME"} & own.keys()
    shared = launching.environ(SPEC, False, Path("/i"), 7, None, base)
    assert shared["PYTHONPATH"] == os.pathsep.join(["/i", str(Path("ours").absolute())])


def test_the_package_is_linked_alone_and_again(tmp_path):
    for _ in range(2):
        launching.link_package(tmp_path / "import")
    assert [p.name for p in (tmp_path / "import").iterdir()] == ["dgpunet_dask"]
    assert (tmp_path / "import" / "dgpunet_dask" / "errors" / "base.py").is_file()


def test_environments_differ_by_what_they_install(tmp_path):
    for name, text in (("a", "click==8.0\n"), ("b", "click==8.1\n"), ("c", "--find-links wheels\nx==1\n")):
        for workload in ("w1", "w2"):
            (tmp_path / workload).mkdir(exist_ok=True)
            (tmp_path / workload / f"{name}.lock").write_text(text)
    digest = {(w, n): environment_digest(tmp_path / w / f"{n}.lock") for w in ("w1", "w2") for n in "abc"}
    assert digest["w1", "a"] == digest["w2", "a"]
    assert digest["w1", "a"] != digest["w1", "b"]
    assert digest["w1", "c"] != digest["w2", "c"], "it installs files of its own workload"


@pytest.mark.parametrize(("code", "how"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (3, "exit status 3"), (0, "exit status 0")])
def test_how_a_process_ended_is_said(code, how):
    assert how_ended(code) == how


def test_errors_of_ours_keep_their_class_across_a_border():
    told = [
        ModelUnavailable(model="m", why="no such folder"),
        StageFailed(stage="s", kind="KeyError", why="'k'", traceback="..."),
        MalformedFile([Problem("f.yaml", 1, 2, "no")]),
    ]
    for error in told:
        again = error_from_json(json.loads(json.dumps(error_to_json(error))))
        assert type(again) is type(error)
        assert again.message == error.message
        assert again.exit_code == error.exit_code


def test_what_user_code_raises_becomes_an_error_of_ours():
    class OddError(Exception):
        def __str__(self):
            raise RuntimeError

    full = failure_of(OSError(28, "No space left on device", "/data/x"), "s")
    assert isinstance(full, DiskFull)
    assert "/data/x" in full.message
    assert failure_of(OddError(), "s").fields["kind"] == "OddError"
    own = failure_of(ZeroDivisionError("division by zero"), "write")
    assert isinstance(own, StageFailed)
    assert own.fields["kind"] == "ZeroDivisionError"

    class Mine(errors.JobFailed):
        """Made by a user."""

    assert type(failure_of(Mine(), "s")) is StageFailed, "no other process knows a class of the user's"


def test_the_socket_of_a_long_home_is_short_and_its_own(tmp_path):
    short, long_one = Home(Path("/h")), Home(tmp_path / ("x" * 120))
    assert short.agent_socket == Path("/h/run/agent.sock")
    assert len(os.fsencode(long_one.agent_socket)) <= 104
    assert long_one.agent_socket != Home(tmp_path / ("y" * 120)).agent_socket
    assert long_one.agent_socket == Home(tmp_path / ("x" * 120)).agent_socket


def test_a_long_message_is_cut_so_that_dask_keeps_the_class_of_the_error():
    told = failure_of(ValueError("z" * 100_000), "s")
    assert told.fields["kind"] == "ValueError"
    assert len(str(told)) < 10_000
    assert "100000 letters in all" in str(told)
