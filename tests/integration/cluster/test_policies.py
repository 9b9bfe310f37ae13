"""Policies of a running head: in force from the start, read again when they change, and asked why."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from distributed import Client

from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.policy_file import parse_policies
from dgpunet_dask.placement.trace import PlaceRecord, PolicyRecord, parse_trace
from tests.helpers import until

JOB_YAML = """
version: 1
name: gated
params: {gate: {type: string}}
stages:
  numbers: {run: "stages:Numbers", unit: {items: 1}}
  work: {run: "stages:Work", after: numbers}
"""
#: Each unit tells that it has begun, and ends once the gate is there.
JOB_STAGES = """
import pathlib, time
from dgpunet_dask import Demand, Stage
class Numbers(Stage):
    def __call__(self):
        return iter(range(4))
class Work(Stage):
    demand = Demand(vram="6GiB")
    def load(self, *, gate: str) -> None:
        self.gate = pathlib.Path(gate)
    def __call__(self, batch):
        while not self.gate.exists():
            time.sleep(0.02)
        return batch
"""
OFF_B = "version: 1\nrules:\n- {name: off-b, match: {stage: work}, deny: [{device: b}]}\n"
OFF_BOTH = OFF_B.replace("{device: b}", "{device: b}, {device: a}")


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    folder = tmp_path / "gated"
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB_YAML)
    (folder / "stages.py").write_text(JOB_STAGES)
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(OFF_B)
    return file


def told(site, *args):
    """Run a command with --json and return what it told."""
    code, out, err = site.run(*args, "--json")
    assert code == 0, err
    return json.loads(out)


def submitted(site, folder, gate) -> str:
    return str(told(site, "submit", folder, "--set", f"gate={gate}", "--detach")["job_id"])


@pytest.mark.long
def test_a_policy_is_in_force_is_explained_and_is_in_the_log(site, two_cards, gated, policy, tmp_path):
    status = site.up("--simulate", two_cards, "--policy", policy)
    assert status["policy"]["files"] == [str(policy)]
    assert status["policy"]["error"] is None
    plan = told(site, "submit", gated, "--set", "gate=x", "--dry-run")
    work = next(stage for stage in plan["stages"] if stage["stage"] == "work")
    assert (work["outcome"], work["ranking"]) == ("placed", ["a"])
    assert work["effective"]["user"]
    job = submitted(site, gated, tmp_path / "gate")
    found = until(lambda: (f := told(site, "jobs", "explain", job))["waiting"] and f["running"] and f, 30, "a unit that waits")
    assert found["running"] == [{"stage": "work", "device": "a", "units": 1}]
    (group,) = found["waiting"]
    verdicts = {v["device"]: v for v in group["verdicts"] if v["code"] in {"denied", "vram_free", "busy"}}
    assert verdicts["b"]["rule"] == f"{policy}:3 (off-b)"
    assert group["fix"]["text"] == f"remove deny (device b) at {policy}:3 would fit b"
    assert {"release", "join", "policy"} <= {wake["event"] for wake in group["wakes"]}
    code, out, _ = site.run("jobs", "explain", job)
    assert code == 0
    assert f"by rule: b  denied: needs not device b, has device b [{policy}:3 (off-b)]" in out
    (tmp_path / "gate").touch()
    assert site.run("jobs", "wait", job)[0] == 0
    assert told(site, "jobs", "explain", job)["state"] == "done"
    assert site.run("jobs", "explain", "none")[0] == 102
    log = until(lambda: (t := _log(site, tmp_path)) and sum(r.kind == "end" for r in t.records) >= 4 and t, 10, "the log")
    placed = [r for r in log.records if isinstance(r, PlaceRecord) and r.outcome == "placed"]
    assert [r.devices for r in placed] == [("a",)] * 4
    assert {r.policy for r in placed} == {status["policy"]["digest"]}
    assert [r.policy for r in log.records if isinstance(r, PolicyRecord)] == [status["policy"]["digest"]]


def _log(site, tmp_path):
    trace = tmp_path / "trace.jsonl"
    code, _, err = site.run("fleet", "record", "--trace", trace)
    assert code in {0, 2}, err
    return parse_trace(trace.read_text(), "trace") if code == 0 else None


@pytest.mark.long
def test_a_changed_file_is_taken_and_a_bad_one_is_not(site, two_cards, gated, policy, tmp_path):
    before = site.up("--simulate", two_cards, "--policy", policy)["policy"]
    assert site.run("up", "--policy", policy)[0] == 0
    code, _, err = site.run("up", "--policy", two_cards)
    assert code == 2
    other = tmp_path / "other.yaml"
    other.write_text(OFF_BOTH)
    code, _, err = site.run("up", "--policy", other)
    assert code == 2
    assert "other policies" in err

    job = submitted(site, gated, tmp_path / "gate")
    until(lambda: told(site, "jobs", "explain", job)["running"], 30)
    policy.write_text("version: 1\nrules:\n- {name: off-b, match: {stage: work}, dny: [{device: b}]}\n")
    bad = until(lambda: (p := site.status()["policy"])["error"] and p, 10)
    assert bad["digest"] == before["digest"]
    assert bad["error"]["reasons"][0]["line"] == 3
    code, out, err = site.run("status")
    assert code == 0
    assert before["digest"] in out
    assert f"{policy}:3:" in err

    policy.write_text("version: 1\nrules: []\n")
    good = until(lambda: (p := site.status()["policy"])["digest"] != before["digest"] and p, 10)
    assert good["error"] is None
    found = until(lambda: len((f := told(site, "jobs", "explain", job))["running"]) == 2 and f, 10, "the other card")
    assert [row["device"] for row in found["running"]] == ["a", "b"]
    (tmp_path / "gate").touch()
    assert site.run("jobs", "wait", job)[0] == 0


def test_a_change_that_fails_its_cases_is_not_taken(site, two_cards):
    human = site.home.policy / "human"
    (site.home.policy / "tests").mkdir(parents=True)
    human.mkdir()
    (human / "mine.yaml").write_text(OFF_B)
    case = "- {name: off b, submit: {stage: work, vram: 6GiB}, want: {on: a}, reasons: {b: denied}}"
    head = f"version: 1\nfleet: {two_cards}\npolicies: [../human/mine.yaml]\ncases:\n"
    (site.home.policy / "tests" / "mine.yaml").write_text(f"{head}{case}\n")
    before = site.up("--simulate", two_cards)["policy"]
    assert before["files"][-1] == str(human / "mine.yaml")
    (human / "mine.yaml").write_text(OFF_BOTH)
    refused = until(lambda: (p := site.status()["policy"])["error"] and p, 10)
    assert refused["digest"] == before["digest"]
    assert refused["error"]["code"] == "policy_cases"
    assert "'off b'" in refused["error"]["message"]


@pytest.mark.long
def test_a_job_that_the_policy_forbids_everywhere_fails_with_line_and_fix(site, two_cards, gated, policy):
    policy.write_text(OFF_BOTH)
    site.up("--simulate", two_cards, "--policy", policy)
    code, out, err = site.run("submit", gated, "--set", "gate=x", "--json")
    assert code == 105
    error = json.loads(out)["error"]
    assert {r["rule"] for r in error["reasons"] if r["code"] == "denied"} == {f"{policy}:3 (off-b)"}
    assert f"Nearest: remove deny (device a) at {policy}:3 would fit a." in error["message"]
    assert f"rule={policy}:3 (off-b)" in err


def test_the_live_fleet_is_shown_and_recorded(site, two_cards, tmp_path):
    site.up("--simulate", two_cards)
    shown = told(site, "fleet", "show")
    assert [d["name"] for d in shown["devices"] if d["kind"] == "gpu"] == ["a", "b"]
    file = tmp_path / "recorded.yaml"
    assert site.run("fleet", "record", "-o", file)[0] == 0
    recorded, stated = parse_fleet(file.read_text(), "r"), parse_fleet(two_cards.read_text(), "t")
    assert (recorded.host_by_name, recorded.devices) == (stated.host_by_name, stated.devices)
    live = told(site, "policy", "explain", "stage=work", "vram=10GiB")
    offline = told(site, "policy", "explain", "--fleet", file, "--demand", '{"stage": "work", "vram": "10GiB"}')
    assert (live["on"], live["verdicts"]) == (offline["on"], offline["verdicts"]) == (["b"], offline["verdicts"])


def test_the_head_command_runs_until_it_is_stopped(site, two_cards, policy):
    head = site.start("head", "--simulate", two_cards, "--policy", policy)
    site.until(lambda: site.home.head_file.exists() and site.run("status")[0] == 0)
    assert site.status()["policy"]["files"] == [str(policy)]
    assert site.run("head")[0] == 2
    assert site.run("down")[0] == 0
    assert head.wait(30) == 0
    assert site.left() == []


def test_a_terminated_head_command_takes_all_along(site, two_cards):
    head = site.start("head", "--simulate", two_cards)
    site.until(site.home.head_file.exists)
    head.terminate()
    assert head.wait(30) == 0
    assert site.left() == []


@pytest.mark.long
def test_a_scheduler_that_starts_again_applies_the_same_policy(site, two_cards, gated, policy, tmp_path):
    site.up("--simulate", two_cards, "--policy", policy)
    (old,) = site.pids("dask_scheduler")
    os.kill(old, signal.SIGKILL)
    (tmp_path / "gate").touch()
    code, out, err = site.run("submit", gated, "--set", f"gate={tmp_path / 'gate'}", "--json")
    assert code == 0, err
    placed = [e for e in _events(site, json.loads(out)["job_id"]) if e["kind"] == "placement"]
    assert {e["device"] for e in placed} == {"a"}


@pytest.mark.long
def test_whoever_comes_first_to_a_new_scheduler_finds_the_policy_in_force(site, two_cards, policy):
    site.up("--simulate", two_cards, "--policy", policy)
    address = json.loads(site.home.head_file.read_text())["scheduler"]
    (old,) = site.pids("dask_scheduler")
    os.kill(old, signal.SIGKILL)
    until(lambda: old not in site.pids("dask_scheduler"), what="the end of the scheduler")

    def first() -> dict | None:
        try:
            with Client(address, timeout=0.5) as client:
                return client.sync(client.scheduler.dgpunet_policy)
        except OSError:
            return None

    found = until(first, what="a scheduler that answers")
    assert [source[0] for source in found["sources"]] == [OFF_B], "before its head has found it again"


def _events(site, job):
    code, out, err = site.run("jobs", "logs", job, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_a_command_without_a_head_follows_the_policies_of_its_home(site, gated, tmp_path):
    human = site.home.policy / "human"
    human.mkdir(parents=True)
    (human / "p.yaml").write_text("version: 1\nrules:\n- {name: none, match: {stage: work}, allow: [], require: {vrm: 1GiB}}\n")
    code, _, err = site.run("submit", gated, "--set", "gate=x")
    assert code == 2
    assert f"{human / 'p.yaml'}:3:" in err
    (human / "p.yaml").write_text("version: 1\nrules:\n- {name: none, match: {stage: numbers}, deny: [{device: '*'}]}\n")
    plan = told(site, "submit", gated, "--set", "gate=x", "--dry-run")
    assert plan["policy"] == parse_policies([((human / "p.yaml").read_text(), "p", "human")]).digest
    assert site.left() == []
