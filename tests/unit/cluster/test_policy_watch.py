"""Which files count, when a change is read, and which cases belong to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpunet_dask.cluster.policy_watch import Places, Rest, check_cases, stamp
from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import MissingPath, PolicyCasesFailed

RULE = "version: 1\nrules:\n- {name: off, deny: [{device: b}]}\n"
FLEET = 'version: 1\nhosts: {h: {gpus: {a: {vram: 8GiB, compute_capability: "8.9"}, b: {vram: 8GiB, compute_capability: "8.9"}}}}\n'
CASES = "version: 1\nfleet: fleet.yaml\npolicies: [../mine.yaml]\ncases:\n- {name: off b, submit: {vram: 1GiB}, want: {on: a}}\n"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_given_files_count_alone_else_those_of_the_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    generated = written(home.policy / "generated" / "h.yaml", RULE)
    human = written(home.policy / "human" / "mine.yaml", RULE)
    written(home.policy / "human" / "notes.txt", "")
    written(home.policy / "human" / "._mine.yaml", "what a copier leaves beside a file")
    other = written(tmp_path / "other.yaml", RULE)
    assert Places(home).files() == [generated, human]
    assert Places(home, (other,)).files() == [other]
    assert Places(home, (home.policy,)).files() == [generated, human]
    assert Places(Home(tmp_path / "none")).files() == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingPath):
        Places(home, (tmp_path / "empty",)).files()


def test_a_change_is_due_once_two_looks_agree() -> None:
    """An editor that truncates a file and then writes it is not read in between."""
    old, empty, new = (("f", 1, 9, 7),), (("f", 2, 0, 7),), (("f", 3, 9, 7),)
    rest = Rest(old)
    assert [rest.due(now) for now in (old, empty, new, new)] == [False, False, False, True]
    rest.took(new)
    assert not rest.due(new)
    assert [rest.due(old), rest.due(old)] == [False, True]


def test_a_replaced_file_of_the_same_size_and_a_missing_one_show_in_the_stamp(tmp_path: Path) -> None:
    file = written(tmp_path / "p.yaml", "a")
    before = stamp([file])
    written(tmp_path / "q.yaml", "b").replace(file)
    assert stamp([file]) != before
    file.unlink()
    assert stamp([file]) == ((str(file), -1, -1, -1),)


def test_cases_beside_the_files_count_where_they_name_one_of_them(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.yaml", RULE)
    written(tmp_path / "tests" / "fleet.yaml", FLEET)
    cases = written(tmp_path / "tests" / "mine.yaml", CASES)
    written(tmp_path / "tests" / "others.yaml", CASES.replace("mine", "others"))
    written(tmp_path / "tests" / "broken.yaml", "[")
    places = Places(Home(tmp_path / "h"), (mine,))
    assert places.cases(places.files()) == [cases]
    check_cases([cases])
    written(mine, RULE.replace("device: b", "device: a"))
    with pytest.raises(PolicyCasesFailed) as failed:
        check_cases([cases])
    assert f"'off b' ({cases}:5)" in failed.value.message
    assert failed.value.exit_code == 3
