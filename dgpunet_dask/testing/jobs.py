"""A job service without a cluster: jobs end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from dgpunet_dask.errors import KeyReused, NoSuchJob, TooManyJobs
from dgpunet_dask.model.job import FINAL_STATES, JobStatus
from dgpunet_dask.model.submitted import Submitted


class FakeJobs:
    """Keeps jobs in memory; satisfies `daemons.api.JobService`."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobStatus] = {}
        self.told: dict[str, list[dict[str, Any]]] = {}
        self.tried: dict[str, list[dict[str, Any]]] = {}
        self.workloads: dict[str, bytes] = {}
        self.lost: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.most: int | None = None
        self.changed = asyncio.Event()
        self._keys: dict[tuple[str | None, str], tuple[dict[str, Any], Submitted]] = {}

    async def submit(self, request: dict[str, Any], gone: Callable[[], bool] = lambda: False) -> Submitted:
        """Accept a job for any workload, or as many as the request's array asks for."""
        self.requests.append(dict(request))
        user, key = request.get("user"), request.get("key")
        if key is not None and (user, key) in self._keys:
            before, made = self._keys[user, key]
            if before != request:
                raise KeyReused(key=key, job_id=made.jobs[0].job_id)
            return replace(made, jobs=tuple(self.jobs[job.job_id] for job in made.jobs), created=False)
        for job_id in request.get("after", []):
            await self.show(job_id)
        rows = request.get("array") or [{}]
        if self.most is not None and len(self.jobs) + len(rows) > self.most:
            raise TooManyJobs(user=user, most=self.most, wait_s=7.2)
        array_id = None if request.get("array") is None else f"array-{len(self.jobs) + 1}"
        made = Submitted(tuple(self._begun(request, row) for row in rows), array_id=array_id)
        if key is not None:
            self._keys[user, key] = (dict(request), made)
        return made

    def _begun(self, request: dict[str, Any], row: dict[str, Any]) -> JobStatus:
        job = JobStatus(
            job_id=f"job-{len(self.jobs) + 1}", workload=str(request["workload"]), state="running", params={**request.get("params", {}), **row},
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

    async def plan(self, request: dict[str, Any], gone: Callable[[], bool] = lambda: False) -> dict[str, Any]:
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
        """Cancel a job; a finished one stays as it is."""
        if (await self.show(job_id)).state not in FINAL_STATES:
            self.jobs[job_id] = replace(self.jobs[job_id], state="cancelled", exit_code=103)
            self.tell(job_id, kind="state", state="cancelled")
        return self.jobs[job_id]

    async def retry(self, job_id: str) -> JobStatus:
        """Take a job that has not ended well back to the queue."""
        if (await self.show(job_id)).state in {"failed", "cancelled", "lost"}:
            self.jobs[job_id] = replace(self.jobs[job_id], state="queued", exit_code=0, error=None)
            self.tell(job_id, kind="retry")
        return self.jobs[job_id]

    async def progress(self, job_id: str) -> dict[str, Any]:
        """Return that nothing has run."""
        return {"units": (await self.show(job_id)).units.to_json(), "rate_per_s": None, "eta_s": None, "stages": [], "devices": []}

    async def attempts(self, job_id: str) -> Sequence[dict[str, Any]]:
        """Return what the test put into `tried`."""
        await self.show(job_id)
        return self.tried.get(job_id, [])

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
