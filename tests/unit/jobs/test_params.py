"""Parameters: cast to the types of job.yaml, or refused with the parameter's name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.errors import BadName, BadValue, DgpunetError, MissingParameter, MissingPath, UnknownParameter
from dgpunet_dask.jobs.params import cast_params, complete_params, split_settings
from dgpunet_dask.model.pipeline import Param, StageSpec, Workload

WORKLOAD = Workload(
    name="w",
    digest="",
    folder="",
    params={
        p.name: p
        for p in (
            Param(name="path", type="path", list=True, required=True),
            Param(name="index", type="name"),
            Param(name="n", type="int", default=3),
            Param(name="rate", type="float"),
            Param(name="deep", type="bool", default=False),
            Param(name="model", type="model", default="minilm"),
        )
    },
    stages=(StageSpec(name="read", run="stages:Read"),),
)


def cast(cwd: Path, *settings: str) -> dict[str, object]:
    return cast_params(WORKLOAD, split_settings(settings), cwd=cwd)


def test_values_are_cast_and_defaults_filled_in(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    (tmp_path / "c").mkdir()
    found = cast(tmp_path, "path=a=b", "path=./c/../c", "n=-4", "rate=0.5", "deep=yes")
    assert found == {"path": [f"{tmp_path}/a=b", f"{tmp_path}/c"], "index": None, "n": -4, "rate": 0.5, "deep": True, "model": "minilm"}


def test_a_model_is_a_hub_name_unless_it_is_a_folder_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "org" / "local").mkdir(parents=True)
    assert cast(tmp_path, "path=.", "model=org/local")["model"] == f"{tmp_path}/org/local"
    assert cast(tmp_path, "path=.", "model=./org/local")["model"] == f"{tmp_path}/org/local"
    assert cast(tmp_path, "path=.", "model=org/remote")["model"] == "org/remote"
    with pytest.raises(MissingPath):
        cast(tmp_path, "path=.", "model=./gone")


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (["path"], BadValue, "KEY=VALUE"),
        (["=x"], BadValue, "KEY=VALUE"),
        ([], MissingParameter, "path"),
        (["path=.", "pth=."], UnknownParameter, "did you mean 'path'"),
        (["path=.", "n=x"], BadValue, "whole number"),
        (["path=.", f"n={2**63}"], BadValue, "whole number"),
        (["path=.", "n=" + "9" * 4000], BadValue, "whole number"),
        (["path=.", "rate=fast"], BadValue, "a number"),
        *((["path=.", f"rate={text}"], BadValue, "not infinite") for text in ("nan", "NaN", "inf", "-Infinity", "1e999")),
        (["path=.", "deep=maybe"], BadValue, "true or false"),
        (["path=.", "n=1", "n=2"], BadValue, "set twice"),
        (["path=.", "index=../x"], BadName, "../x"),
        (["path=nowhere"], MissingPath, "nowhere"),
        (["path="], BadValue, "names no path"),
    ],
)
def test_bad_settings_are_usage_errors(tmp_path: Path, settings: list[str], error: type[DgpunetError], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        cast(tmp_path, *settings)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("path", "told"), [([[1]], "a list of these"), ({"a": 1}, "a list of these"), (1, "whole path"), ("x/y", "whole path"), ("", "no path")])
def test_where_nobody_calls_from_somewhere_a_path_is_whole(path: Any, told: str) -> None:
    with pytest.raises(BadValue, match=told):
        complete_params(WORKLOAD, {"path": path}, cwd=None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "1e999"])
def test_what_json_has_no_number_for_is_no_value(value: Any) -> None:
    with pytest.raises(BadValue, match="not infinite"):
        complete_params(WORKLOAD, {"path": "/", "rate": value}, cwd=None)


def test_plain_values_are_checked_like_settings(tmp_path: Path) -> None:
    assert complete_params(WORKLOAD, {"path": [str(tmp_path)], "n": 5}, cwd=Path("/"))["n"] == 5
    with pytest.raises(MissingPath):
        complete_params(WORKLOAD, {"path": str(tmp_path / "gone")}, cwd=Path("/"))


@pytest.mark.parametrize("text", ["x" * 5000, "~nobody-of-that-name/x", "closed/x"])
def test_what_the_system_does_not_take_for_a_path_is_the_caller_s_mistake(tmp_path: Path, text: str) -> None:
    (tmp_path / "closed").symlink_to("closed")
    with pytest.raises(DgpunetError) as raised:
        cast(tmp_path, f"path={text}")
    assert raised.value.exit_code == 2
    assert cast(tmp_path, "path=.", f"model=org/{'m' * 5000}")["model"].startswith("org/"), "that is no folder, and a hub may say so"
