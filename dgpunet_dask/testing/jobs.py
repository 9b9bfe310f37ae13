"""A job service without a cluster: jobs end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from dgpunet_dask.errors import BadValue, NoSuchJob
from dgpunet_dask.model.job import JobStatus


class FakeJobs:
    """Keeps jobs in memory; satisfies `daemons.api.JobService`."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobStatus] = {}
        self.told: dict[str, list[dict[str, Any]]] = {}
        self.workloads: dict[str, bytes] = {}
        self.lost: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.changed = asyncio.Event()

    async def submit(self, request: dict[str, Any]) -> JobStatus:
        """Accept a job for any known workload."""
        if "workload" not in request:
            raise BadValue(what="request", value=sorted(request), why="name a workload")
        self.requests.append(dict(request))
        job = JobStatus(
            job_id=f"job-{len(self.jobs) + 1}", workload=str(request["workload"]), state="running",
            owner=request.get("user"), shared=request.get("shared") is True,
        )  # fmt: skip
        self.jobs[job.job_id] = job
        self.told[job.job_id] = []
        self.tell(job.job_id, kind="state", state="running")
        return job

    def tell(self, job_id: str, **event: Any) -> None:
        """Add an event."""
        self.told[job_id].append({"seq": len(self.told[job_id]) + 1, **event})
        self.changed.set()
        self.changed = asyncio.Event()

    async def plan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return an empty plan."""
        return {"workload": request.get("workload"), "stages": []}

    async def list(self) -> Sequence[JobStatus]:
        """Return all jobs."""
        return list(self.jobs.values())

    async def show(self, job_id: str) -> JobStatus:
        """Return one job."""
        if job_id not in self.jobs:
            raise NoSuchJob(job_id=job_id)
        return self.jobs[job_id]

    async def events(self, job_id: str, since: int, wait_s: float) -> Sequence[dict[str, Any]]:
        """Return the events after `since`, waiting for the first."""
        await self.show(job_id)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while len(self.told[job_id]) <= since and (left := until - loop.time()) > 0:
            await asyncio.wait([asyncio.ensure_future(self.changed.wait())], timeout=left)
        return self.told[job_id][since:]

    async def cancel(self, job_id: str) -> JobStatus:
        """Cancel a job."""
        self.jobs[job_id] = replace(await self.show(job_id), state="cancelled", exit_code=103)
        self.tell(job_id, kind="state", state="cancelled")
        return self.jobs[job_id]

    async def has_workload(self, digest: str) -> bool:
        """Whether it was added."""
        return digest in self.workloads

    async def add_workload(self, digest: str, stream: BinaryIO) -> None:
        """Keep its bytes."""
        self.workloads[digest] = stream.read()

    async def scheduler_lost(self, why: str) -> None:
        """Note the cause."""
        self.lost.append(why)

    async def close(self) -> None:
        """Do nothing."""
