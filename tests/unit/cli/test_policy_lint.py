"""`policy lint`: files and folders in, warnings out, and the exit code that tells which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgpunet_dask.cli.main import run
from tests.helpers import ROOT

HOME5, FLEET = ROOT / "policies" / "home5.yaml", ROOT / "policies" / "fleets" / "home5.yaml"
CLEAN = "version: 1\nrules:\n- {name: a, match: {stage: s}, deny: [{host: 'x*'}]}\n"
ODD = "version: 1\nrules:\n- {name: b, match: {priority: btch}, deny: [{host: y}]}\n"


def test_the_shipped_policy_is_clean(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "lint", str(HOME5), "--fleet", str(FLEET)]) == 0
    assert capfd.readouterr() == ("1 file, 14 rules, 0 warnings\n", "")


def test_warnings_are_code_3_and_the_count_comes_last(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(CLEAN, encoding="utf-8")
    (tmp_path / "b.yaml").write_text(ODD, encoding="utf-8")
    assert run(["policy", "lint", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--fleet", str(FLEET)]) == 3
    dead, nothing, count = capfd.readouterr().out.splitlines()
    assert dead.startswith(f"{tmp_path / 'b.yaml'}:3:21: rule 'b' is dead: no priority matches 'btch'; ")
    assert nothing.startswith(f"{tmp_path / 'b.yaml'}:3:45: deny: host y picks no device of this fleet; ")
    assert count == "2 files, 2 rules, 2 warnings"


def test_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.yaml").write_text(ODD, encoding="utf-8")
    assert run(["policy", "lint", str(tmp_path), "--json"]) == 3
    told = json.loads(capfd.readouterr().out)
    assert told["files"] == [str(tmp_path / "b.yaml")]
    assert told["rules"] == 1
    assert [(w["line"], w["col"], w["rule"], w["what"]) for w in told["warnings"]] == [
        (3, 21, "b", "rule 'b' is dead: no priority matches 'btch'")
    ]
    assert told["error"]["code"] == "check_failed"
    assert run(["policy", "lint", str(HOME5), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"files": [str(HOME5)], "rules": 14, "warnings": [], "error": None}


def test_a_folder_of_both_layers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for layer in ("generated", "human"):
        (tmp_path / layer).mkdir()
        (tmp_path / layer / "a.yaml").write_text(CLEAN, encoding="utf-8")
        (tmp_path / layer / "notes.txt").write_text("no policy", encoding="utf-8")
    assert run(["policy", "lint", str(tmp_path)]) == 0
    assert capfd.readouterr().out == "2 files, 1 rule, 0 warnings\n"
    (tmp_path / "c.yaml").write_text(CLEAN, encoding="utf-8")
    assert run(["policy", "lint", str(tmp_path)]) == 2
    assert f"{tmp_path / 'human' / 'a.yaml'}:3:10: rule 'a' is in {tmp_path / 'c.yaml'}:3 already" in capfd.readouterr().err


def test_a_file_that_is_named_twice_counts_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "lint", str(HOME5), str(HOME5.parent)]) == 0
    assert capfd.readouterr().out == "1 file, 14 rules, 0 warnings\n"


@pytest.mark.parametrize(
    "words", [[], ["nowhere.yaml"], ["."], ["loop"], [str(HOME5), "--fleet", "nowhere.yaml"], [str(HOME5), "--fleet", str(HOME5)]]
)
def test_what_cannot_be_read_is_code_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert run(["policy", "lint", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_all_files_are_read_before_any_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("version: one\n", encoding="utf-8")
    assert run(["policy", "lint", str(tmp_path)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line.removeprefix("dgpunet-dask: ").split(": ")[0] for line in lines] == [
        f"{tmp_path / name}.yaml:1:10" for name in "ab"
    ]
