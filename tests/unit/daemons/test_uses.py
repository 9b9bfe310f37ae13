"""What is in use is known by kind and digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.uses import used_by_jobs, used_by_stages
from dgpunet_dask.stagehost.environments import environment_digest
from dgpunet_dask.stagehost.spec import StageCallSpec

W, M = "a" * 64, "b" * 64


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "h").ensure()
    (made.workloads / W).mkdir()
    (made.workloads / W / "embed.lock").write_text("numpy==2.3.0\n")
    return made


def test_stages_use_code_models_and_environments(home: Home) -> None:
    env = environment_digest(home.workloads / W / "embed.lock")
    plain = StageCallSpec(stage="s", run="s:S", digest=W)
    rich = StageCallSpec(stage="t", run="s:T", digest=W, env="embed.lock", models={"model": M})
    assert used_by_stages([plain], home) == {("workload", W)}
    assert used_by_stages([plain, rich], home) == {("workload", W), ("model", M), ("env", env)}


def test_a_lock_file_that_is_not_there_uses_nothing(home: Home) -> None:
    assert used_by_stages([StageCallSpec(stage="s", run="s:S", digest=W, env="none.lock")], home) == {("workload", W)}


def test_jobs_use_the_same(home: Home) -> None:
    env = environment_digest(home.workloads / W / "embed.lock")
    assert used_by_jobs(home, [(W, [M], ["embed.lock"]), (W, [], [])]) == {("workload", W), ("model", M), ("env", env)}
