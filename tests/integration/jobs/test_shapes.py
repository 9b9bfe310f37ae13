"""Every shape that a workload's graph may have, on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpunet_dask.client import Client
from dgpunet_dask.jobs import lease_steps
from dgpunet_dask.jobs.ledger import read_copy
from tests.integration.jobs.conftest import Graph, Run

SOURCE = {"run": "stages:Numbers", "unit": {"items": 2}}
GATHER = {"run": "stages:Total", "gather": True}
TREE = {
    "read": SOURCE,
    "plain": {"run": "stages:Plain", "after": "read"},
    "left": {"run": "stages:Double", "after": "plain"},
    "right": {"run": "stages:Heavy", "after": "plain"},
}


def test_a_source_alone(run: Run) -> None:
    status, results = run({"read": SOURCE})
    assert status.state == "done", status.error
    assert results == [0, 1, 2, 3, 4]
    assert status.units.to_json() == {"total": 3, "done": 3, "reused": 0, "failed": 0, "attempts": 3}
    assert status.metrics["read"] == 5


def test_a_source_and_a_gather_stage(run: Run) -> None:
    status, results = run({"read": SOURCE, "total": {**GATHER, "after": "read"}})
    assert status.state == "done", status.error
    assert results == [10]


@pytest.mark.parametrize(
    "stages",
    [
        {"read": SOURCE},
        {"read": SOURCE, "total": {**GATHER, "after": "read"}},
        {"read": SOURCE, "plain": {"run": "stages:Plain", "after": "read"}, "total": {**GATHER, "after": "plain"}},
    ],
    ids=["source", "gather", "stage and gather"],
)
def test_no_units(run: Run, stages: Graph) -> None:
    status, results = run(stages, count=0)
    assert status.state == "done", status.error
    assert results == ([0] if "total" in stages else [])
    assert status.units.to_json() == {"total": 0, "done": 0, "reused": 0, "failed": 0, "attempts": 0}


def test_one_stage(run: Run) -> None:
    status, results = run({"read": SOURCE, "heavy": {"run": "stages:Heavy", "after": "read"}})
    assert status.state == "done", status.error
    assert results == [0, 10, 20, 30, 40]


def test_two_stages_after_one_give_the_results_of_both(run: Run) -> None:
    status, results = run(TREE)
    assert status.state == "done", status.error
    assert results == [2, 4, 6, 8, 10, 10, 20, 30, 40, 50]
    assert {name: status.metrics[name] for name in ("read", "plain", "doubled", "heavy")} == dict.fromkeys(
        ("read", "plain", "doubled", "heavy"), 5
    )


def test_a_branch_beside_the_gather_stage_runs_and_is_counted(run: Run) -> None:
    status, results = run({**TREE, "total": {**GATHER, "after": "left"}})
    assert status.state == "done", status.error
    assert results == [30]
    assert status.metrics["heavy"] == 5
    assert status.metrics["plain"] == 5


def test_a_branch_beside_the_gather_stage_that_fails_fails_the_job(run: Run) -> None:
    stages = {**TREE, "right": {"run": "stages:Broken", "after": "plain"}, "total": {**GATHER, "after": "left"}}
    status, _ = run(stages)
    assert status.state == "failed"
    assert status.error is not None
    assert "broken on purpose" in status.error["message"]


def test_a_gather_stage_after_a_stage_in_the_middle(run: Run) -> None:
    status, results = run({**TREE, "total": {**GATHER, "after": "plain"}})
    assert status.state == "done", status.error
    assert results == [15]
    assert status.metrics["doubled"] == 5


def test_a_stage_that_always_dies_fails_the_job_and_its_attempts_are_told(run: Run) -> None:
    status, _ = run({"read": SOURCE, "dying": {"run": "stages:Dying", "after": "read"}}, count=1)
    assert status.state == "failed"
    assert status.error is not None
    assert status.error["code"] == "stage_host_lost"
    assert "(exit status 3) during 3 attempt(s)" in status.error["message"]
    assert status.units.to_json() == {"total": 1, "done": 0, "reused": 0, "failed": 1, "attempts": 3}


def test_a_unit_that_kills_its_process_each_time_while_others_pass_is_to_blame_itself(client: Client, run: Run, tmp_path: Path) -> None:
    graph = {"read": {**SOURCE, "unit": {"items": 1}}, "picky": {"run": "stages:Picky", "after": "read"}}
    status, _ = run(graph, count=4, file=str(tmp_path / "passed"))
    assert (status.state, status.units.done, status.units.failed) == ("failed", 3, 1)
    assert status.error is not None
    assert "during 3 attempt(s)" in status.error["message"]
    with read_copy(client.home.ledger) as db:
        rows = [row for row in lease_steps.attempts(db, status.job_id, None, 100) if row.state == "failed"]
    assert len(rows) == 3
    assert rows[-1].cause == "data"
    assert "was killed by SIGKILL each of 3 times" in (rows[-1].evidence or {})["why"]
