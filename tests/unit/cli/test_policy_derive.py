"""`policy derive`: files, diffs, exit codes."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.cli import main as cli_main
from dgpunet_dask.placement.policy_file import parse_policy

FLEET = """\
version: 1
hosts:
  lap: {power: battery, gpus: {l: {vram: 8GiB, compute_capability: "8.9"}}}
  tower: {gpus: {t: {vram: 24GiB, compute_capability: "8.9"}}}
"""
JOINED = FLEET + '  late: {gpus: {"5090": {vram: 16GiB, compute_capability: "8.9"}}}\n'


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "joined.yaml").write_text(JOINED)
    return tmp_path


def derive(capfd, *words):
    code = cli_main.run(["policy", "derive", *words])
    out, err = capfd.readouterr()
    return code, out, err


def test_files_are_written_once(at, capfd):
    code, out, err = derive(capfd, "--fleet", "fleet.yaml")
    folder = at / "home" / "policy" / "generated"
    assert (code, out) == (0, "")
    assert f"{folder / 'lap.yaml'}: written" in err
    for file in (folder / "lap.yaml", folder / "tower.yaml"):
        parse_policy(file.read_text(), str(file), "generated")
        assert file.stat().st_mode & 0o777 == 0o600
    _, _, err = derive(capfd, "--fleet", "fleet.yaml")
    assert err.count("unchanged") == 2


def test_a_dry_run_shows_a_diff_and_writes_nothing(at, capfd):
    code, out, _ = derive(capfd, "--fleet", "fleet.yaml", "--dry-run")
    assert code == 0
    assert out.startswith("--- /dev/null\n+++ ")
    assert '+- {match: {host: "lap"}, when: {power: mains}, otherwise: [interactive]}\n' in out
    assert not (at / "home").exists()
    derive(capfd, "--fleet", "fleet.yaml")
    _, out, err = derive(capfd, "--fleet", "joined.yaml", "--dry-run", "-q")
    assert "+- name: probation-5090\n" in out
    assert "lap" not in out
    assert err == ""


def test_json_and_another_folder(at, capfd):
    out_folder = at / "deep" / "out"
    code, out, _ = derive(capfd, "--fleet", "fleet.yaml", "--out", str(out_folder), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["error"] is None
    assert [(f["host"], f["changed"], f["written"]) for f in found["files"]] == [("lap", True, True), ("tower", True, True)]
    assert (out_folder / "lap.yaml").read_text() == found["files"][0]["text"]
    assert not (at / "home").exists()
    code, out, _ = derive(capfd, "--fleet", "joined.yaml", "--out", str(out_folder), "--json", "--dry-run")
    late = json.loads(out)["files"][1]
    assert (late["host"], late["changed"], late["written"], late["diff"][:3]) == ("late", True, False, "---")


def test_without_a_file_and_a_head_it_is_this_machine(at, capfd):
    code, out, _ = derive(capfd, "--json")
    assert code == 0
    assert len(json.loads(out)["files"]) == 1


def test_a_broken_file_is_written_anew(at, capfd):
    folder = at / "home" / "policy" / "generated"
    folder.mkdir(parents=True)
    (folder / "lap.yaml").write_bytes(b"\xff\xfe")
    code, _, err = derive(capfd, "--fleet", "fleet.yaml")
    assert (code, err.count(": written")) == (0, 2)


@pytest.mark.parametrize("words", [["--fleet", "nope.yaml"], ["--fleet", "bad.yaml"], ["--out", "fleet.yaml", "--fleet", "fleet.yaml"]])
def test_mistakes_are_code_2(at, capfd, words):
    (at / "bad.yaml").write_text("version: 1\nhosts: {a: {gpus: {3090: {}}}}\n")
    code, out, err = derive(capfd, *words, "--json")
    assert code == 2
    assert json.loads(out)["error"]["code"] in {"missing_path", "malformed_file", "unreadable_path"}
    assert "Traceback" not in err
