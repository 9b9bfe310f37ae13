"""The jobs of a head whose agent and scheduler do not answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpunet_dask.config.home import Home
from dgpunet_dask.errors import DiskFull, StageHostLost
from dgpunet_dask.jobs.plan import HeadHost
from dgpunet_dask.jobs.service import JobService, ServicePorts
from dgpunet_dask.jobs.store import add_workload, digest_of, pack_workload
from dgpunet_dask.model.owner import User
from dgpunet_dask.stagehost.client import AgentClient


class FakeScheduler:
    """Tells placements, and what it was asked."""

    def __init__(self) -> None:
        self.since: list[int] = []
        self.fails = False
        self.scheduler = self

    async def dgpunet_placements(self, since: int) -> list[dict[str, Any]]:
        self.since.append(since)
        if self.fails:
            raise TimeoutError
        return [{"seq": 7, "key": "a task of somebody else"}] if since < 7 else []


async def no_fleet() -> Any:
    raise StageHostLost(stage="-", device="-", how="no fleet", attempts=1, log="-")


@pytest.fixture
def dask() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
def service(home: Home, dask: FakeScheduler) -> Callable[[], JobService]:
    """Make a service inside a running loop."""
    ports = ServicePorts(lambda: dask, lambda: AgentClient(home.run / "none.sock"), no_fleet, HeadHost("h/cpu", 1, home.root))
    return lambda: JobService(home, ports)


@pytest.fixture
def digest(home: Home, tmp_path: Path) -> str:
    (tmp_path / "job.yaml").write_text('version: 1\nname: one\nstages: {read: {run: "stages:Read"}}\n')
    (tmp_path / "stages.py").write_text("")
    digest = digest_of(tmp_path)
    add_workload(home.workloads, digest, pack_workload(tmp_path))
    return digest


def test_a_job_that_is_ended_before_its_first_step_is_ended(service: Callable[[], JobService], digest: str) -> None:
    async def main() -> None:
        jobs = service()
        job = await jobs.submit({"workload": digest})
        status = await jobs.cancel(job.job_id)
        assert (status.state, status.exit_code) == ("cancelled", 103)
        assert [e["state"] for e in await jobs.events(job.job_id, 0, 30)] == ["cancelled"]
        await jobs.close()

    asyncio.run(main())


def test_a_job_may_be_cancelled_by_several_at_once(service: Callable[[], JobService], digest: str) -> None:
    async def main() -> None:
        jobs = service()
        job = await jobs.submit({"workload": digest})
        found = await asyncio.gather(*(jobs.cancel(job.job_id) for _ in range(3)))
        assert [status.state for status in found] == ["cancelled"] * 3
        await jobs.close()

    asyncio.run(main())


def test_without_an_agent_a_job_fails_and_says_so(service: Callable[[], JobService], digest: str) -> None:
    async def main() -> None:
        jobs = service()
        job = await jobs.submit({"workload": digest})
        seen = 0
        while (status := await jobs.show(job.job_id)).state not in {"failed", "done"}:
            seen = max([seen, *(e["seq"] for e in await jobs.events(job.job_id, seen, 30))])
        assert status.exit_code == 100
        assert status.error is not None
        assert "agent" in status.error["message"]
        await jobs.close()

    asyncio.run(main())


def test_a_full_disk_keeps_no_job_from_ending(
    service: Callable[[], JobService], digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise DiskFull(path=path)

    monkeypatch.setattr("dgpunet_dask.jobs.service.commit_text", full)

    async def main() -> None:
        jobs = service()
        job = await jobs.submit({"workload": digest})
        assert (await jobs.cancel(job.job_id)).state == "cancelled"
        await jobs.close()

    asyncio.run(main())


def test_placements_are_read_once_and_from_the_beginning_of_a_new_scheduler(
    service: Callable[[], JobService], dask: FakeScheduler
) -> None:
    async def main() -> None:
        jobs = service()
        await jobs._copy_placements()
        dask.fails = True  # a slow answer is no new scheduler: what was read must not be read again
        await jobs._copy_placements()
        dask.fails = False
        await jobs._copy_placements()
        await jobs.scheduler_lost("the scheduler ended")
        await jobs._copy_placements()

    asyncio.run(main())
    assert dask.since == [0, 7, 7, 0]


def test_a_job_keeps_its_owner_over_a_restart_and_an_old_one_has_none(
    service: Callable[[], JobService], home: Home, digest: str
) -> None:
    async def check() -> None:
        jobs = service()
        mine = await jobs.submit({"workload": digest, "user": "ann", "shared": True})
        assert (mine.owner, mine.shared) == ("ann", True)
        assert (await jobs.submit({"workload": digest})).owner is None
        await jobs.close()
        file = home.jobs / mine.job_id / "job.json"
        old = json.loads(file.read_text())
        assert (old.pop("owner"), old.pop("shared")) == ("ann", True)
        (home.jobs / "old").mkdir()
        (home.jobs / "old" / "job.json").write_text(json.dumps({**old, "job_id": "old"}))
        later = service()
        later.load_past()
        found = {job.job_id: (job.owner, job.shared) for job in await later.list()}
        assert found[mine.job_id] == ("ann", True)
        assert found["old"] == (None, False)

    asyncio.run(check())


def test_a_job_is_refused_another_users_model_before_anything_else(
    service: Callable[[], JobService], home: Home, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    folder = tmp_path / "workload"
    folder.mkdir()
    (folder / "job.yaml").write_text('version: 1\nname: one\nparams: {model: {type: model}}\nstages: {read: {run: "stages:Read"}}\n')
    (folder / "stages.py").write_text("")
    digest = digest_of(folder)
    add_workload(home.workloads, digest, pack_workload(folder))

    async def ended(jobs: JobService, name: str | Path, **who: Any) -> str:
        job = await jobs.submit({"workload": digest, "params": {"model": str(name)}, **who})
        seen = 0
        while (status := await jobs.show(job.job_id)).state != "failed":
            seen = max([seen, *(e["seq"] for e in await jobs.events(job.job_id, seen, 30))])
        assert status.error is not None
        return f"{status.exit_code} {status.error['code']}"

    async def main() -> None:
        jobs = service()
        no_agent = await ended(jobs, "minilm", user="ann")
        assert no_agent.startswith("100 ")
        assert jobs.models.list(User(operates=True)) == []
        for who, end in (("ann", no_agent), ("bob", "2 not_allowed"), ("ann", no_agent)):
            assert await ended(jobs, model, user=who) == end
        assert await ended(jobs, model, user="root", operates=True) == no_agent
        (info,) = jobs.models.list(User(operates=True))
        assert (info.owner, info.shared, info.name) == ("ann", False, str(model))
        jobs.models.share(info.id, User("ann"), shared=True)
        assert await ended(jobs, model, user="bob") == no_agent
        await jobs.close()

    asyncio.run(main())
