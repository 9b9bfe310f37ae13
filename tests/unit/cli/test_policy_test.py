"""`policy test`: what it prints, what it exits with, and mistakes of all files at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgpunet_dask.cli.main import run
from dgpunet_dask.model.decision import Decision
from dgpunet_dask.placement.cases import properties
from tests.helpers import ROOT

FLEET = "version: 1\nhosts: {a: {gpus: {big: {vram: 24GiB, speed: 2}, small: {vram: 8GiB}}}}\n"
POLICY = "version: 1\nrules:\n- {name: r, match: {stage: s}, deny: [{device: big}]}\n"
GOOD = "- {name: denied there, submit: {stage: s, vram: 1GiB}, want: {on: small}, reasons: {big: denied}}\n"
OTHER = "- {name: free, submit: {stage: t, vram: 1GiB}, want: {on: big, then: small}}\n"
BAD = "- {name: wrong, submit: {stage: s, vram: 1GiB}, want: {on: big}}\n"


def lay(folder: Path, cases: str, policy: str = POLICY, fleet: str = FLEET) -> Path:
    """Write a fleet, a policy and a test file beside them; return the test file."""
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "fleet.yaml").write_text(fleet, encoding="utf-8")
    (folder / "policy.yaml").write_text(policy, encoding="utf-8")
    file = folder / "tests" / "cases.yaml"
    file.write_text(f"version: 1\nfleet: ../fleet.yaml\npolicies: [../policy.yaml]\ncases:\n{cases}", encoding="utf-8")
    return file


def test_a_line_a_case_and_the_count_last(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lay(tmp_path, GOOD + OTHER)
    assert run(["policy", "test", str(file)]) == 0
    out = capfd.readouterr()
    assert out.out.splitlines() == [
        f"ok    denied there  {file}:5",
        f"ok    free  {file}:6",
        "ok    properties, 50 generated fleets for each policy, seed 0",
        "2 passed, 0 failed",
    ]
    assert out.err == ""


def test_a_failure_is_code_3_with_the_whole_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lay(tmp_path, GOOD + BAD)
    assert run(["policy", "test", str(file), "--no-properties"]) == 3
    lines = capfd.readouterr().out.splitlines()
    assert lines[:3] == [f"ok    denied there  {file}:5", f"FAIL  wrong  {file}:6", "      wanted on big, but it goes on small"]
    assert any("big  denied: needs not device big, has device big" in line and "policy.yaml:3 (r)" in line for line in lines)
    assert lines[-1] == "1 passed, 1 failed"


def test_a_file_counts_as_of_the_layer_that_its_folder_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "generated").mkdir()
    written = "version: 1\nrules:\n- {name: r, match: {stage: s, model: m}, prefer: [{device: small, weight: 900}]}\n"
    (tmp_path / "generated" / "a.yaml").write_text(written, encoding="utf-8")
    human = written.replace("small", "big").replace(", model: m", "")
    cases = "- {name: people win, submit: {stage: s, model: m, vram: 1GiB}, want: {on: big}}\n"
    file = lay(tmp_path, cases, human)
    text = file.read_text(encoding="utf-8").replace("[../policy.yaml]", "[../generated/a.yaml, ../policy.yaml]")
    file.write_text(text, encoding="utf-8")
    assert run(["policy", "test", str(file)]) == 0, capfd.readouterr().out
    file.write_text(text.replace("../generated/a.yaml", "{file: ../generated/a.yaml, layer: human}"), encoding="utf-8")
    assert run(["policy", "test", str(file)]) in {2, 3}, capfd.readouterr().out


def test_quiet_leaves_out_what_passed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "policy", "test", str(lay(tmp_path, GOOD))]) == 0
    assert capfd.readouterr().out == "1 passed, 0 failed\n"


def test_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    burst = (
        "- {name: burst, submit_all: {count: 3, demand: {vram: 6GiB, work: 1s}}, want: {placed: {big: 2}, makespan_at_most: 9s}}\n"
    )
    file = lay(tmp_path, GOOD + BAD + burst)
    assert run(["policy", "test", str(file), "--json", "--coverage", "--examples", "3", "--seed", "9"]) == 3
    told = json.loads(capfd.readouterr().out)
    assert (told["passed"], told["failed"], told["error"]["code"]) == (2, 1, "check_failed")
    good, bad, many = told["cases"]
    assert (good["name"], good["file"], good["line"], good["passed"], good["faults"]) == ("denied there", str(file), 5, True, [])
    assert (good["outcome"], good["on"], good["ranking"][0]["device"]) == ("placed", ["small"], "small")
    assert [v["code"] for v in good["verdicts"] if v["device"] == "big"] == ["denied"]
    assert bad["faults"] == ["wanted on big, but it goes on small"]
    assert (many["counts"], many["left"]) == ({"big": 2, "small": 1}, {})
    assert told["properties"] == {"seed": 9, "examples": 3, "failures": []}
    assert {(c["name"], c["gap"]) for c in told["coverage"]} == {("match", None), ("deny.0", None)}


def test_a_word_picks_cases(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lay(tmp_path, GOOD + BAD)
    assert run(["policy", "test", str(file), "-k", "DENIED"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    assert run(["policy", "test", str(file), "-k", "nothing"]) == 2
    assert "'nothing' in their names" in capfd.readouterr().err


def test_coverage_names_the_gaps_and_fails_only_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lay(tmp_path, GOOD)
    assert run(["policy", "test", str(file), "--coverage"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert f"{tmp_path / 'policy.yaml'}:3  r match  true 1 false 0  NEVER FALSE" in out
    assert "1 of 2 clauses seen both ways, or to decide" in out
    assert run(["policy", "test", str(file), "--require-coverage"]) == 3
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    lay(tmp_path, GOOD + OTHER)
    assert run(["policy", "test", str(file), "--require-coverage"]) == 0


def test_a_broken_property_is_told_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(properties, "place", lambda *_: Decision("wait"))
    assert run(["policy", "test", str(lay(tmp_path, GOOD))]) == 3
    lines = capfd.readouterr().out.splitlines()
    assert "FAIL  property: every device will do or is refused, with its reasons" in lines
    assert any(line.startswith("      seed 0, example ") for line in lines)
    assert lines[-1] == "1 passed, 1 failed"


def test_in_a_folder_only_test_files_are_meant(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lay(tmp_path, GOOD)
    (tmp_path / "notes.txt").write_text("cases: none", encoding="utf-8")
    assert run(["policy", "test", str(tmp_path)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"


@pytest.mark.parametrize("what", ["empty folder", "no cases"])
def test_where_there_is_nothing_to_test(tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str) -> None:
    path = tmp_path if what == "empty folder" else lay(tmp_path, " []\n")
    assert run(["policy", "test", str(path)]) == 2
    assert "No test case was found" in capfd.readouterr().err


def test_mistakes_of_all_files_are_told_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lay(
        tmp_path, "- {name: a, submit: {vram: 3}, want: wait}\n", policy="version: 1\nruls: []\n", fleet="version: 1\nhost: {}\n"
    )
    assert run(["policy", "test", str(file)]) == 2
    err = capfd.readouterr().err
    assert f"{file}:5:28: vram: 3 is not valid" in err
    assert f"{tmp_path / 'policy.yaml'}:2:1: unknown key 'ruls'; did you mean 'rules'?" in err
    assert f"{tmp_path / 'fleet.yaml'}:2:1: unknown key 'host'; did you mean 'hosts'?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["nowhere.yaml", ".", "x\\0y", "bytes.yaml"])
def test_a_named_file_that_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"version: 1\n\xff")
    file = tmp_path / "cases.yaml"
    file.write_text(f'version: 1\nfleet: "{name}"\ncases: [{{name: a, submit: {{}}, want: wait}}]\n', encoding="utf-8")
    assert run(["policy", "test", str(file)]) == 2
    err = capfd.readouterr().err
    expected = "not valid UTF-8" if name == "bytes.yaml" else f"{file}:2:8: there is no file"
    assert expected in err


def test_a_missing_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "test", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capfd.readouterr().err


def test_the_shipped_tests_pass(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "test", str(ROOT / "policies")]) == 0
    assert capfd.readouterr().out.splitlines()[-1].endswith(" passed, 0 failed")


def test_the_example_of_the_documentation_passes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "howto" / "test-a-policy.md").read_text(encoding="utf-8")
    example = text.partition("```yaml\n")[2].partition("```")[0]
    file = tmp_path / "cases.yaml"
    file.write_text(example.replace("../", f"{ROOT / 'policies'}/"), encoding="utf-8")
    assert run(["policy", "test", str(file)]) == 0, capfd.readouterr().out
