"""Many units, many jobs at once, and jobs that are ended in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dgpunet_dask.client import Client
from tests.helpers import until
from tests.integration.jobs.conftest import Graph, Run

SOURCE = {"run": "stages:Numbers", "unit": {"items": 2}}
QUICK: Graph = {"read": SOURCE, "plain": {"run": "stages:Plain", "after": "read"}}
BLOCKED: Graph = {"read": {"run": "stages:Blocked", "unit": {"items": 1}}, "plain": {"run": "stages:Plain", "after": "read"}}


def test_a_unit_that_fails_ends_the_job_although_the_source_has_nothing_yet(run: Run, tmp_path: Path) -> None:
    stages = {**BLOCKED, "plain": {"run": "stages:Broken", "after": "read"}}
    status, _ = run(stages, file=str(tmp_path / "go"))
    assert status.state == "failed"
    assert status.error is not None
    assert "broken on purpose" in status.error["message"]
    assert status.seconds < 30


def test_jobs_whose_sources_wait_do_not_keep_others_from_running(
    client: Client, workload: Callable[[Graph], Path], run: Run, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    blocked = workload(BLOCKED)
    jobs = [client.submit(blocked, {"file": str(go)}).job_id for _ in range(8)]
    for job in jobs:
        until(lambda job=job: client.api.show(job).units.done == 1, 60, "the first unit of each job")
    status, results = run(QUICK, count=4)
    assert status.state == "done", status.error
    assert results == [1, 2, 3, 4]
    assert client.api.cancel(jobs[0]).state == "cancelled"
    go.touch()
    assert [client.wait(job, 60).state for job in jobs[1:]] == ["done"] * 7


def test_a_job_that_hangs_while_its_code_is_imported_can_be_cancelled(client: Client, workload: Callable[[Graph], Path]) -> None:
    folder = workload(QUICK)
    (folder / "stages.py").write_text("import time\ntime.sleep(600)\n")
    job = client.submit(folder)
    status = client.api.cancel(job.job_id)
    assert status.state == "cancelled"
    assert status.seconds < 20


def test_many_units_stay_within_the_bound_and_leave_nothing(client: Client, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "read"
    stages = {
        "read": {"run": "stages:Watched", "unit": {"items": 1}},
        "lag": {"run": "stages:Lag", "after": "read"},
        "total": {"run": "stages:Total", "after": "lag", "gather": True},
    }
    status, results = run(stages, count=500, file=str(file))
    assert status.state == "done", status.error
    assert results == [500 * 499 // 2]
    assert status.units.to_json() == {"total": 500, "done": 500, "reused": 0, "failed": 0, "attempts": 500}
    read = sorted(int(line) for line in file.with_suffix(".lag").read_text().splitlines())
    bound = 2 + 2 * len(client.api.status()["workers"])
    ahead = [seen - number for number, seen in enumerate(read, 1)]
    assert max(ahead) <= bound + 4, "units between the source and the disk, and what the source may be ahead"
    until(lambda: not (client.home.jobs / status.job_id / "results").exists(), what="the units' results to be cleared away")
