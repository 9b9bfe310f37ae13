"""`policy replay` and `policy diff`: a log in, figures and differences out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgpunet_dask.cli.main import run
from dgpunet_dask.model.demand import Demand
from dgpunet_dask.placement.fleet_file import parse_fleet
from dgpunet_dask.placement.trace import EndRecord, FleetRecord, PolicyRecord, PolicySource, Record, SubmitRecord, to_line
from tests.helpers import ROOT

FLEET = ROOT / "policies" / "fleets" / "home5.yaml"
OPEN = "version: 1\nrules: []\n"
CLOSED = 'version: 1\nrules:\n- {name: no, match: {stage: embed}, deny: [{device: "5090"}]}\n- {name: big, match: {stage: chat}, require: {vram: 99GiB}}\n'


def records() -> list[Record]:
    fleet = parse_fleet(FLEET.read_text(encoding="utf-8"), str(FLEET))
    found: list[Record] = [FleetRecord.of(0.0, fleet), PolicyRecord(0.0, "x", (PolicySource("open.yaml", "human", OPEN),))]
    for number in range(6):
        stage = "chat" if number == 5 else "embed"
        found.append(SubmitRecord(0.0, f"{stage}-{number}", Demand(stage=stage, vram="4GiB", work=42.0)))
    return [*found, EndRecord(10.0, "embed-0", "done", ("5090",), 10.0)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(to_line(r) + "\n" for r in records()), encoding="utf-8")
    return path


def test_replay_prints_the_figures(trace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "replay", str(trace)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split() == ["finished", "6", "of", "6", "units"]
    assert "× the lower bound of" in lines[1]
    assert any(line.startswith("wait        batch: p50") for line in lines)
    assert next(line.split() for line in lines if line.startswith("5090"))[2] == "1", "as it was"


def test_replay_as_json_under_another_policy_and_fleet(trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "closed.yaml").write_text(CLOSED, encoding="utf-8")
    assert run(["policy", "replay", str(trace), "--policy", str(tmp_path / "closed.yaml"), "--fleet", str(FLEET), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["finished"] == 5
    assert "5090" not in told["counts"]
    assert "vram_total" in told["never"]["chat-5"]
    assert told["recorded"] == {"5090": 1}
    assert told["ratio"] >= 0.999
    assert told["error"] is None


def test_replay_of_a_rotated_log(trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    later = tmp_path / "later.jsonl"
    later.write_text(to_line(SubmitRecord(50.0, "late", Demand(vram="1GiB"))) + '\n{"v":1,', encoding="utf-8")
    assert run(["policy", "replay", str(later), str(trace)]) == 0
    out, err = capfd.readouterr()
    assert "finished    7 of 7 units" in out
    assert err == f"note: {later}:2: the last line was cut off; it is left out\n"


def test_diff_tells_what_moves_and_what_no_longer_runs(trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in (("open", OPEN), ("closed", CLOSED)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    before, after = str(tmp_path / "open.yaml"), str(tmp_path / "closed.yaml")
    assert run(["policy", "diff", before, after, "--trace", str(trace)]) == 0
    out = capfd.readouterr().out
    assert "embed: 5090 -> " in out
    assert "newly waiting        1  chat: " in out
    assert "makespan_s" in out
    assert run(["policy", "diff", after, before, "--trace", str(trace), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [row["id"] for row in told["newly_runnable"]] == ["chat-5"]
    assert told["metrics"]["finished"] == {"before": 5, "after": 6, "delta": 1}
    assert run(["policy", "diff", before, before, "--trace", str(trace)]) == 0
    assert capfd.readouterr().out == "no difference\n"


def test_what_is_wrong_with_a_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    assert run(["policy", "replay", str(path)]) == 2
    path.write_text('{"v":1,"t":0,"kind":"submit","id":"a","demand":{"vrma":1}}\n', encoding="utf-8")
    assert run(["policy", "replay", str(path)]) == 2
    assert f"{path}:1:39: " in capfd.readouterr().err
    path.write_text(to_line(SubmitRecord(0.0, "a", Demand(vram="1GiB"))) + "\n", encoding="utf-8")
    assert run(["policy", "replay", str(path)]) == 2
    assert "--fleet" in capfd.readouterr().err
    path.write_text('{"v":9,"t":0,"kind":"submit"}\n', encoding="utf-8")
    assert run(["policy", "replay", str(path)]) == 2
    path.write_bytes(b"\xff\n")
    assert run(["policy", "replay", str(path)]) == 2
    assert "UTF-8" in capfd.readouterr().err


def test_an_empty_trace_on_named_machines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("", encoding="utf-8")
    assert run(["policy", "replay", str(path), "--fleet", str(FLEET)]) == 0
    assert capfd.readouterr().out.startswith("finished    0 of 0 units\n")
