"""What a request for jobs must look like, and who may ask for what."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import (
    BadValue,
    BadWorkload,
    CodeNotAllowed,
    NoSuchWorkload,
    PathNotAllowed,
    UnknownParameter,
    UsageError,
)
from dgpunet_dask.jobs.accepting import ARRAY_MOST, asked, ids, shipped_digests
from tests.unit.jobs.services import stored

MODEL = 'version: 1\nname: one\nparams: {model: {type: model}, data: {type: path}, more: {type: path, list: true}}\nstages: {read: {run: "stages:Read"}}\n'


@pytest.fixture
def digest(home: Home, tmp_path: Path) -> str:
    return stored(home, tmp_path / "workload")


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """Make a folder that jobs of submitters may read, beside one that they may not."""
    for name in ("open", "open/in", "closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    return tmp_path / "open"


def operators(digest: str, **more: Any) -> dict[str, Any]:
    return {"workload": digest, "operates": True, **more}


def submitters(**more: Any) -> dict[str, Any]:
    return {"workload": "embed-codebase", "user": "ann", **more}


def test_a_request_becomes_jobs_with_all_that_was_asked(home: Home, digest: str) -> None:
    request = operators(digest, user="ann", key="k", after=["x"], allow_failed=2, retry=1, shared=True, params={"count": 4})
    (job,) = asked(home, request, ()).jobs(["j"], None, 5.0)
    assert (job.job_id, job.owner, job.operates, job.shared, job.key) == ("j", "ann", True, True, "k")
    assert (job.after, job.allow_failed, job.retry, job.submitted_s) == (("x",), 2, 1, 5.0)
    assert (dict(job.params), job.digest, job.workload) == ({"count": 4}, digest, "one")


def test_the_parameters_of_an_array_are_set_over_those_of_all(home: Home, digest: str) -> None:
    found = asked(home, operators(digest, params={"count": 4}, array=[{}, {"count": 5}]), ())
    assert [job.params["count"] for job in found.jobs(["a", "b"], "a", 0.0)] == [4, 5]
    assert found.array


@pytest.mark.parametrize(
    "bad",
    [
        {"allow_failed": -1}, {"allow_failed": True}, {"allow_failed": "2"}, {"retry": 1.5}, {"key": ""}, {"key": 7}, {"key": "k" * 201},
        {"after": "job"}, {"after": [1]}, {"array": []}, {"array": {}}, {"array": [3]}, {"array": [{}] * (ARRAY_MOST + 1)}, {"params": [1]},
        {"params": {"count": "many"}}, {"params": {"unknown": 1}}, {"array": [{"unknown": 1}]}, {"workload": None}, {"workload": 7},
    ],
    ids=lambda bad: str(bad)[:40],
)  # fmt: skip
def test_a_bad_request_is_refused(home: Home, digest: str, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        asked(home, operators(digest, **bad), ())


@pytest.mark.parametrize("where", [{"params": {"rate": "nan"}}, {"array": [{}, {"rate": math.inf}]}])
def test_a_number_that_json_has_none_for_is_refused(home: Home, tmp_path: Path, where: dict[str, Any]) -> None:
    text = 'version: 1\nname: one\nparams: {rate: {type: float}}\nstages: {read: {run: "stages:Read"}}\n'
    with pytest.raises(BadValue, match=r"rate .* is not valid"):
        asked(home, operators(stored(home, tmp_path / "rated", text), **where), ())


def test_a_workload_whose_files_have_not_come_is_named(home: Home) -> None:
    with pytest.raises(BadWorkload, match="send them first"):
        asked(home, operators("a" * 64), ())


@pytest.mark.parametrize("name", ["nothing-of-that-name", "../embed_codebase/nothing", "/etc", "", ".", ".."])
def test_a_name_that_is_no_shipped_workload_s_is_refused(home: Home, name: str) -> None:
    with pytest.raises(NoSuchWorkload):
        asked(home, operators(name), ())


def test_a_name_is_never_a_path(home: Home, tmp_path: Path, digest: str) -> None:
    del digest  # it lies there
    with pytest.raises(NoSuchWorkload):
        asked(home, operators(str(tmp_path / "workload")), ())


# Submitters


def test_a_submitter_runs_shipped_workloads_by_name_or_digest(home: Home, roots: Path) -> None:
    by_name = asked(home, submitters(params={"path": [str(roots / "in")]}), [roots])
    digest = by_name.workload.digest
    assert digest in shipped_digests()
    by_digest = asked(home, submitters(workload=digest, params={"path": [str(roots / "in")]}), [roots])
    assert by_digest.workload.digest == digest
    assert (home.workloads / digest).is_dir(), "stage hosts look for it there"


def test_a_submitter_s_own_code_is_refused_although_an_operator_has_sent_the_same(home: Home, digest: str) -> None:
    asked(home, operators(digest), ())
    with pytest.raises(CodeNotAllowed):
        asked(home, submitters(workload=digest), ())


@pytest.mark.parametrize("path", ["closed", "open/link", "open/../closed", "open/in/../../closed", "open/link/../open/link", "", "open/nothing/../../closed"])
def test_a_submitter_reads_below_the_roots_alone(home: Home, tmp_path: Path, roots: Path, path: str) -> None:
    with pytest.raises(PathNotAllowed):
        asked(home, submitters(params={"path": [str(roots / "in"), f"{tmp_path}/{path}"]}), [roots])


@pytest.mark.parametrize("path", ["relative", "~/x", "open\0/etc"])
def test_a_submitter_s_path_is_whole(home: Home, roots: Path, path: str) -> None:
    with pytest.raises(BadValue):
        asked(home, submitters(params={"path": [path]}), [roots])


def test_a_submitter_s_paths_in_an_array_are_looked_at_too(home: Home, tmp_path: Path, roots: Path) -> None:
    with pytest.raises(PathNotAllowed):
        asked(home, submitters(params={"path": [str(roots / "in")]}, array=[{}, {"path": [str(tmp_path / "closed")]}]), [roots])


def test_without_roots_a_submitter_reads_nothing(home: Home, roots: Path) -> None:
    with pytest.raises(PathNotAllowed):
        asked(home, submitters(params={"path": [str(roots / "in")]}), ())


@pytest.mark.parametrize(("model", "refused"), [("closed", PathNotAllowed), ("open/link", PathNotAllowed), ("in", None)])
def test_a_submitter_s_model_folder_is_a_path_too(
    home: Home, tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch, model: str, refused: type[Exception] | None
) -> None:
    digest = stored(home, tmp_path / "workload", MODEL)
    monkeypatch.setattr("dgpunet_dask.jobs.accepting.shipped_digests", lambda: {digest: tmp_path / "workload"})
    folder = roots / "in" if refused is None else tmp_path / model
    request = submitters(workload=digest, params={"model": str(folder)})
    if refused is None:
        assert asked(home, request, [roots]).params[0]["model"] == str(folder)
        return
    with pytest.raises(refused):
        asked(home, request, [roots])


def test_a_submitter_does_not_learn_from_a_refusal_whether_there_is_such_a_file(home: Home, tmp_path: Path, roots: Path) -> None:
    told = []
    for name in ("closed", "nothing"):
        with pytest.raises(PathNotAllowed) as refused:
            asked(home, submitters(params={"path": [str(tmp_path / name)]}), [roots])
        told.append(str(refused.value).replace(name, "-"))
    assert told[0] == told[1]


def test_an_operator_is_told_of_an_unknown_parameter_by_name(home: Home, digest: str) -> None:
    with pytest.raises(UnknownParameter, match="cuont"):
        asked(home, operators(digest, params={"cuont": 1}), ())


def test_ids_are_all_different() -> None:
    made = iter("aabbcc")
    assert ids(lambda: next(made), 3) == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["/" + "x" * 5000, "/".join(["", *["x"] * 3000]), "/\ud800", "/chain0", "/loop/x"], ids=lambda path: path[:8])
def test_a_path_that_the_system_does_not_take_is_refused_and_breaks_nothing(home: Home, roots: Path, path: str) -> None:
    (roots / "loop").symlink_to("loop")
    for n in range(1200):
        (roots / f"chain{n}").symlink_to(f"chain{n + 1}")
    for who in (submitters, lambda **more: submitters(**more, operates=True)):
        with pytest.raises(UsageError):
            asked(home, who(params={"path": [f"{roots}{path}"]}), [roots])


@pytest.mark.parametrize("model", ["m" * 300, "org/" + "m" * 5000])
def test_a_model_s_name_has_an_end(home: Home, tmp_path: Path, model: str) -> None:
    folder = tmp_path / "embed"
    folder.mkdir()
    with pytest.raises(UsageError):
        asked(home, submitters(params={"path": [str(folder)], "model": model}), [tmp_path])
