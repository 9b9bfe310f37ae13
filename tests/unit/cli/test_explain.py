"""`policy explain` and `fleet show` without a cluster: how a demand is written, what is told, exit codes."""

from __future__ import annotations

import json

import pytest

from dgpunet_dask.cli import main as cli_main

FLEET = """\
version: 1
hosts:
  lap: {roles: [chat], power: battery, gpus: {l: {vram: 8GiB, compute_capability: "8.9", reserve: 512MiB}}}
  tower: {ram: 64GiB, cpus: 8, gpus: {"3090": {model: RTX 3090, vram: 24GiB, compute_capability: "8.6", speed: 2}}}
"""
POLICY = "version: 1\nrules:\n- {name: off-chat, match: {stage: embed}, deny: [{role: chat}]}\n"


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.setenv("DGPUNET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DGPUNET_CLUSTER", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


@pytest.fixture
def run(at, capfd):
    def call(*words):
        code = cli_main.run(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return call


def explained(run, *words):
    code, out, err = run("policy", "explain", "--fleet", "fleet.yaml", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_demand_may_be_written_in_three_ways(at, run):
    (at / "demand.yaml").write_text("{stage: embed, vram: 4GiB, features: [bf16], cpus: 2, cpu_ok: true}")
    words = ("stage=embed", "vram=4GiB", "features=bf16", "cpus=2", "cpu_ok=true")
    found = [
        explained(run, "--policy", "policy.yaml", *how)
        for how in (words, ("--demand", '{"stage": "embed", "vram": "4GiB", "features": ["bf16"], "cpus": 2, "cpu_ok": true}'), ("@demand.yaml",))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["demand"] == {"stage": "embed", "vram": "4GiB", "features": ["bf16"], "cpus": 2, "cpu_ok": True}
    assert found[0]["on"] == ["3090"]
    assert [(v["device"], v["code"], v["rule"]) for v in found[0]["verdicts"] if v["device"] == "l"] == [
        ("l", "denied", "policy.yaml:3 (off-chat)")
    ]
    assert found[0]["effective"]["rules"] == [{"name": "off-chat", "layer": "human", "at": "policy.yaml:3"}]
    assert found[0]["error"] is None


def test_words_count_over_the_demand_option(run):
    assert explained(run, "--demand", "{vram: 4GiB}", "vram=30GiB")["outcome"] == "never"


def test_running_work_is_in_the_way(run):
    found = explained(run, "vram=10GiB", "--running", '{"vram": "20GiB", "work": "40s"}@3090')
    assert (found["outcome"], found["waits_for"]) == ("wait", "3090")
    assert found["wakes"][0]["in_s"] == pytest.approx(20.0)
    assert found["fix"]["changes"] == ["vram 10GiB -> 7680MiB"]


def test_the_text_has_the_three_kinds_the_wakes_and_the_fix(run):
    code, out, _ = run(
        "policy", "explain", "--fleet", "fleet.yaml", "--policy", "policy.yaml", "stage=embed", "vram=10GiB", "--running", "{vram: 20GiB}@3090"
    )
    assert code == 0
    titles = [line.split(":")[0].strip() for line in out.splitlines()]
    assert [t for t in titles if t in {"never", "by rule", "not now", "wakes", "fix"}] == ["by rule", "not now", "wakes", "fix"]
    assert "[policy.yaml:3 (off-chat)]" in out


def test_the_policies_of_the_home_count_where_none_are_named(at, run):
    (at / "home" / "policy" / "human").mkdir(parents=True)
    (at / "home" / "policy" / "human" / "p.yaml").write_text(POLICY)
    found = explained(run, "stage=embed", "vram=4GiB")
    assert [v["code"] for v in found["verdicts"] if v["device"] == "l"] == ["denied"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("vram",), "KEY=VALUE"),
        (("vrm=4GiB",), "did you mean 'vram'"),
        (("vram=4",), "unit"),
        (("cpus=two",), "whole number"),
        (("--demand", "[1]"), "no KEY=VALUE"),
        (("--demand", "{"), "--demand:1:2: not valid YAML"),
        (("--demand", "{stage: a, stage: b}"), "--demand:1:12: 'stage' is given twice"),
        (("--demand", "[" * 5000), "no KEY=VALUE"),
        (("--demand", '{"a": ' + "[" * 5000), "nested deeper"),
        (("@deep.yaml",), "deep.yaml:1:51: not valid YAML: nested deeper"),
        (("vram=" + "9" * 5000 + "GiB",), "write a number with its unit"),
        (("driver=" + "9" * 5000,), "write it quoted"),
        (("cpus=" + "9" * 5000,), "whole number"),
        (("exclusive=maybe",), "true or false"),
        (("vram=1GiB", "--running", "[]@l"), "--running is no mapping"),
        (("vram=1GiB", "--policy", "/dev/zero"), "/dev/zero:1:1: the file is longer than 16 MiB"),
        (("vram=1GiB", "--policy", "loop.yaml"), "loop.yaml: cannot be read"),
        (("@none.yaml",), "no such file"),
        (("vram=1GiB", "--running", "{vram: 1GiB}@5090"), "names no device"),
        (("vram=1GiB", "--policy", "fleet.yaml"), "fleet.yaml:2:1"),
    ],
)
def test_mistakes_are_usage_errors(at, run, words, told):
    (at / "deep.yaml").write_text("[" * 5000)
    (at / "loop.yaml").symlink_to("loop.yaml")
    code, out, err = run("policy", "explain", "--fleet", "fleet.yaml", *words)
    assert (code, out) == (2, "")
    assert told in err


def test_a_word_may_be_longer_than_a_file_name(run):
    inputs = ",".join(f"tower{n}:1GiB" for n in range(100))
    assert len(explained(run, "vram=1GiB", f"inputs={inputs}")["demand"]["inputs"]) == 100


def test_a_fleet_file_that_is_no_text_is_told_by_its_place(at, run):
    (at / "fleet.yaml").write_bytes(b"version: 1\nhosts: {h\xff: {}}\n")
    assert run("fleet", "show", "--fleet", "fleet.yaml") == (2, "", "dgpunet-dask: fleet.yaml:2:10: not valid UTF-8; save the file as UTF-8\n")


def test_without_a_head_a_fleet_must_be_named(run):
    for words in (("policy", "explain", "vram=1GiB"), ("fleet", "show"), ("fleet", "record"), ("jobs", "explain", "x")):
        code, _, err = run(*words)
        assert code == 102
        assert "dgpunet-dask up" in err
    assert run("fleet", "record", "--trace", "t.jsonl")[0] == 2


def test_a_fleet_file_is_shown(run):
    code, out, _ = run("fleet", "show", "--fleet", "fleet.yaml")
    assert code == 0
    assert out.splitlines()[:3] == [
        "lap: roles chat, on battery",
        "  l  running  cc 8.9; speed 1; bf16, flash-attention-2, fp8",
        "    VRAM 8GiB: reserve 512MiB, resident 0MiB, activation 0MiB, foreign 0MiB, free 7680MiB",
    ]
    code, out, _ = run("fleet", "show", "--fleet", "fleet.yaml", "--json")
    row = next(d for d in json.loads(out)["devices"] if d["name"] == "3090")
    assert (row["vram_mib"], row["free_mib"], row["speed"], row["measured_speed"]) == (24 << 10, 24 << 10, 2.0, None)
