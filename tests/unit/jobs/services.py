"""Job services whose agent and scheduler do not answer, for tests of all that happens before and after a job's units."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgpunet_dask.config.home import Home
from dgpunet_dask.config.settings import Quota, Quotas, Settings
from dgpunet_dask.config.settings_file import DEFAULTS
from dgpunet_dask.errors import StageHostLost
from dgpunet_dask.jobs.plan import HeadHost
from dgpunet_dask.jobs.record import JobRecord
from dgpunet_dask.jobs.service import JobService, ServicePorts
from dgpunet_dask.jobs.store import add_workload, pack_workload
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.stagehost.client import AgentClient
from dgpunet_dask.stagehost.folders import workload_digest as digest_of

SMALL = 'version: 1\nname: one\nparams: {count: {type: int, default: 1}}\nstages: {read: {run: "stages:Read"}}\n'


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

    async def dgpunet_estimates(self, estimates: Any) -> None:
        pass


async def no_fleet(_: Any) -> Any:
    raise StageHostLost(stage="-", device="-", how="no fleet", attempts=1, log="-")


async def no_time(_: float) -> None:
    """Wait for nothing, but let others have their turn."""
    await asyncio.sleep(0)


def settings(*, roots: tuple[Path, ...] = (), **quota: int) -> Settings:
    """Return the settings with these roots, and a quota for everybody where one is given."""
    everybody = Quota(**{"jobs": 10**6, "units": 10**6, "submissions_per_minute": 10**6, **quota})
    return replace(DEFAULTS, roots=roots, quotas=Quotas(everybody=everybody, users={}))


def service(home: Home, dask: Any = None, *, embedded: bool = False, told: Settings = DEFAULTS, driven: bool = True) -> JobService:
    """Return a service whose jobs fail at once, since no agent answers; with `driven` false they run until they are cancelled."""
    scheduler = dask or FakeScheduler()
    ports = ServicePorts(
        lambda: scheduler, lambda: AgentClient(home.run / "none.sock"), no_fleet, HeadHost("h/cpu", 1, home.root), settings=lambda: told,
        sleep=no_time,
    )  # fmt: skip
    made = JobService(home, ports, embedded=lambda: embedded)
    if not driven:
        made.driver._run = _stand  # type: ignore[assignment, method-assign]  # nothing of a job but its states
    return made


async def _stand(_: JobRecord) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def begun(jobs: JobService) -> AsyncIterator[JobService]:
    """Begin a service and close it again."""
    await jobs.begin()
    try:
        yield jobs
    finally:
        await jobs.close()


async def one(jobs: JobService, workload: str, **more: Any) -> JobStatus:
    """Submit one job as an operator, unless `more` says otherwise."""
    return (await jobs.submit({"workload": workload, "operates": True, **more})).jobs[0]


async def reached(jobs: JobService, job_id: str, *states: str) -> JobStatus:
    """Return a job once it is in one of these states."""
    seen = 0
    while (status := await jobs.show(job_id)).state not in states:
        seen = max([seen, *(e["seq"] for e in await jobs.events(job_id, seen, 30))])
    return status


def stored(home: Home, folder: Path, text: str = SMALL) -> str:
    """Make a workload in `folder`, put it into the store and return its digest."""
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(text)
    (folder / "stages.py").write_text("")
    digest = digest_of(folder)
    add_workload(home.workloads, digest, pack_workload(folder))
    return digest
