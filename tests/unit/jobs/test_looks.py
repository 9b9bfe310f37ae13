"""What a request names is looked at once, for as long as somebody waits, and not for ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import BadValue, SlowPaths
from dgpunet_dask.jobs.accepting import VALUES_MOST, asked
from dgpunet_dask.jobs.looks import Abandoned, Looks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def request(root: Path, paths: int, sets: int = 1, **more: Any) -> dict[str, Any]:
    for number in range(paths):
        (root / f"d{number}").mkdir(exist_ok=True)
    params = {"path": [str(root / f"d{number}") for number in range(paths)]}
    return {"workload": "embed-codebase", "user": "ann", "params": params, "array": [{}] * sets, **more}


@pytest.mark.parametrize("operates", [False, True])
def test_sets_that_name_the_same_are_looked_at_once(home: Home, root: Path, monkeypatch: pytest.MonkeyPatch, operates: bool) -> None:
    looked: list[str] = []
    really, access = os.path.realpath, os.access

    def real(path: Any, **more: Any) -> Any:
        looked.append(str(path))
        return really(path, **more)

    def allowed_to(path: Any, *more: Any, **named: Any) -> bool:
        looked.append(str(path))
        return access(path, *more, **named)

    monkeypatch.setattr(os.path, "realpath", real)
    monkeypatch.setattr(os, "access", allowed_to)
    found = asked(home, request(root, 5, 200, operates=operates), [root])
    assert found.params == (found.params[0],) * 200
    own = [path for path in looked if path.startswith(str(root))]
    assert all(own.count(path) <= 2 for path in own), "by realpath and by access"


def test_a_request_has_so_many_values_at_most_in_all_its_sets(home: Home, root: Path) -> None:
    several = request(root, 2)["params"]["path"] * 500
    with pytest.raises(BadValue, match=f"may have {VALUES_MOST} in all"):
        asked(home, {**request(root, 0, VALUES_MOST // 1000 + 1), "params": {"path": several}}, [root])
    assert len(asked(home, {**request(root, 0, 2), "params": {"path": several}}, [root]).params) == 2


def test_nothing_is_looked_at_once_nobody_waits(home: Home, root: Path) -> None:
    for after in (0, 3):
        answers = iter([False] * after + [True] * 100)
        with pytest.raises(Abandoned):
            asked(home, request(root, 10), [root], Looks(lambda answers=answers: next(answers)))  # type: ignore[misc]
        assert len(list(answers)) == 99, "the first time that it is told, it counts"


def test_looks_that_are_stopped_end(home: Home, root: Path) -> None:
    looks = Looks()
    looks.stop()
    with pytest.raises(Abandoned):
        asked(home, request(root, 1), [root], looks)


def test_looks_have_an_end(home: Home, root: Path) -> None:
    times = iter(range(100))
    with pytest.raises(SlowPaths, match="within 5 s") as raised:
        asked(home, request(root, 10), [root], Looks(now=lambda: float(next(times)), most_s=5.0))
    assert raised.value.exit_code == 2
    assert next(times) == 7
