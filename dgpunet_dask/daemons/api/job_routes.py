"""Routes about jobs. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

import tempfile
from typing import Any, BinaryIO, Final

from tornado.web import HTTPError, stream_request_body

from dgpunet_dask.cluster.wire import job_to_wire
from dgpunet_dask.daemons.api.context import WORKLOAD_BYTES_MAX
from dgpunet_dask.daemons.api.handler import Handler
from dgpunet_dask.errors import NoSuchJob, NotAllowed
from dgpunet_dask.model.job import JobStatus

WAIT_S_MAX: Final = 60.0


class JobHandler(Handler):
    """What the routes of jobs have in common."""

    async def readable(self, job_id: str) -> JobStatus:
        """Return the job if the caller may read it.

        Raises
        ------
        NoSuchJob
            If there is none, or it is another's: its id must not tell that it exists.
        """
        job = await self.ctx.service.show(job_id)
        if not self.caller.sees(job):
            raise NoSuchJob(job_id=job_id)
        return job

    def request_of_caller(self) -> dict[str, Any]:
        """Return the request's body with its ``user``, the caller unless an operator asks for somebody, and whether the caller operates."""
        request = self.body_json()
        request["operates"] = self.caller.operates
        if not (self.caller.operates and request.get("user")):
            request["user"] = self.caller.user
        return request


class Jobs(JobHandler):
    """``GET`` and ``POST /v1/jobs``."""

    async def get(self) -> None:
        """Send the jobs that the caller may read."""
        self.answer([job_to_wire(job) for job in await self.ctx.service.list() if self.caller.sees(job)])

    async def post(self) -> None:
        """Accept a job."""
        status = await self.ctx.service.submit(self.request_of_caller())
        self.set_status(201)
        self.answer(job_to_wire(status))


class Plan(JobHandler):
    """``POST /v1/plan``."""

    async def post(self) -> None:
        """Send where each stage of a job could go now."""
        self.answer(await self.ctx.service.plan(self.request_of_caller()))


class Job(JobHandler):
    """``GET /v1/jobs/ID``."""

    async def get(self, job_id: str) -> None:
        """Send one job."""
        self.answer(job_to_wire(await self.readable(job_id)))


class Events(JobHandler):
    """``GET /v1/jobs/ID/events?since=N&wait=S``."""

    async def get(self, job_id: str) -> None:
        """Send the events after `since`; wait up to `wait` seconds for the first."""
        await self.readable(job_id)
        since, wait_s = int(self.number("since", 0, 1e15)), self.number("wait", 0, WAIT_S_MAX)
        self.answer(list(await self.ctx.service.events(job_id, since, wait_s)))


class Cancel(JobHandler):
    """``POST /v1/jobs/ID/cancel``."""

    async def post(self, job_id: str) -> None:
        """Cancel the job."""
        self.body_json()
        if not self.caller.owns(await self.readable(job_id)):
            raise NotAllowed(what=f"cancelling job {job_id}", why="it is another user's")
        self.answer(job_to_wire(await self.ctx.service.cancel(job_id)))


class ExplainJob(JobHandler):
    """``GET /v1/jobs/ID/explain``."""

    async def get(self, job_id: str) -> None:
        """Send why the units of the job are where they are."""
        await self.readable(job_id)
        self.answer(await self.ctx.why.job(job_id))


class Explain(Handler):
    """``POST /v1/explain``."""

    async def post(self) -> None:
        """Send where a demand would go now, and why not elsewhere."""
        self.answer(await self.ctx.why.demand(self.body_json()))


@stream_request_body
class Workloads(Handler):
    """``HEAD`` and ``PUT /v1/workloads/DIGEST``: whether a workload is here, and its tar stream."""

    upload: BinaryIO | None = None

    def prepare(self) -> None:
        """Check the caller, then let the body in, up to its limit, into a file without a name."""
        super().prepare()
        if self.request.method == "PUT":
            length = self.request.headers.get("Content-Length", "0")
            if not (length.isascii() and length.isdigit()):
                raise HTTPError(400, reason="Content-Length is not a number")
            if int(length) > WORKLOAD_BYTES_MAX:
                raise HTTPError(413, reason=f"a workload may have {WORKLOAD_BYTES_MAX >> 20} MiB at most")
            self.request.connection.set_max_body_size(WORKLOAD_BYTES_MAX)  # type: ignore[union-attr]  # HTTP/1 always has it
            self.ctx.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.upload = tempfile.TemporaryFile(dir=self.ctx.uploads)  # noqa: SIM115  # closed in on_finish

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self.upload is not None:
            self.upload.write(chunk)

    async def head(self, digest: str) -> None:
        """Answer 200 or 404."""
        if not await self.ctx.service.has_workload(digest):
            raise HTTPError(404, reason="this workload is not here")

    async def put(self, digest: str) -> None:
        """Take the workload."""
        assert self.upload is not None
        self.upload.seek(0)
        await self.ctx.service.add_workload(digest, self.upload)
        self.set_status(201)
        self.answer({"digest": digest})

    def on_finish(self) -> None:
        """Let go of the file."""
        if self.upload is not None:
            self.upload.close()

    on_connection_close = on_finish
