"""Routes about jobs. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from typing import Annotated, Any, Final

from fastapi import Header, Query
from starlette.requests import Request
from starlette.responses import Response

from dgpunet_dask.cluster.wire import JobArray, array_to_wire, job_to_wire
from dgpunet_dask.daemons.api.answers import Json, Refused
from dgpunet_dask.daemons.api.asked import Ask, Asked
from dgpunet_dask.daemons.api.bodies import check_length, leaving, pieces
from dgpunet_dask.daemons.api.context import WORKLOAD_BYTES_MAX
from dgpunet_dask.daemons.api.forms import DemandRequest, JobId, JobRequest, Key, PlanRequest
from dgpunet_dask.errors import NoSuchJob, NotAllowed, OtherUser
from dgpunet_dask.model.job import JobState, JobStatus

WAIT_S_MAX: Final = 60.0
JOBS_MAX: Final = 10_000
_WORKLOAD: Final = "a workload"


async def listed(
    asked: Ask,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
    owner: Annotated[str | None, Query(max_length=200, description="only this user's jobs")] = None,
    limit: Annotated[int | None, Query(ge=1, le=JOBS_MAX, description="no more than so many")] = None,
    after_id: Annotated[JobId | None, Query(description="only jobs that were submitted after this one")] = None,
) -> Response:
    """List the jobs that the caller may read, oldest first."""
    found = [job for job in await asked.ctx.service.list() if asked.caller.sees(job)]
    if after_id is not None:
        place = next((n for n, job in enumerate(found) if job.job_id == after_id), None)
        if place is None:
            raise NoSuchJob(job_id=after_id)
        found = found[place + 1 :]
    wanted = [job for job in found if state in (None, job.state) and owner in (None, job.owner)]
    return Json([job_to_wire(job) for job in wanted[:limit]])


async def submitted(
    asked: Ask,
    body: JobRequest,
    idempotency_key: Annotated[Key | None, Header(description="the same as `key` in the body")] = None,
) -> Response:
    """Submit a job, or with `array` many. The same key again answers 200 with what it stands for."""
    request = _of_caller(asked, body.model_dump(exclude_unset=True))
    if idempotency_key is not None:
        if body.key not in {None, idempotency_key}:
            raise Refused(409, "the body has another key than the header Idempotency-Key")
        request["key"] = idempotency_key
    async with leaving(asked.receive) as gone:
        made = await asked.ctx.service.submit(request, gone)
    told = job_to_wire(made.jobs[0]) if made.array_id is None else array_to_wire(JobArray(made.array_id, made.jobs))
    return Json(told, 201 if made.created else 200)


async def planned(asked: Ask, body: PlanRequest) -> Response:
    """Tell where each stage of a job could go now, without running it."""
    request = _of_caller(asked, body.model_dump(exclude_unset=True))
    async with leaving(asked.receive) as gone:
        return Json(await asked.ctx.service.plan(request, gone))


async def shown(asked: Ask, job_id: str) -> Response:
    """Show one job."""
    return Json(job_to_wire(await _readable(asked, job_id)))


async def events(
    asked: Ask,
    job_id: str,
    since: Annotated[int, Query(ge=0, description="only events with a higher number")] = 0,
    wait: Annotated[float, Query(ge=0, allow_inf_nan=False, description=f"seconds to wait for the first, {WAIT_S_MAX:g} at most")] = 0.0,
) -> Response:
    """Tell what has happened to a job."""
    await _readable(asked, job_id)
    with asked.waits() if wait > 0 else nullcontext():
        found = list(await asked.ctx.service.events(job_id, min(since, 10**15), min(wait, WAIT_S_MAX)))
    asked.check_still_known()
    return Json(found)


async def explained(asked: Ask, job_id: str) -> Response:
    """Tell why the units of a job are where they are."""
    await _readable(asked, job_id)
    return Json(await asked.ctx.why.job(job_id))


async def progress(asked: Ask, job_id: str) -> Response:
    """Tell how far a job is."""
    await _readable(asked, job_id)
    return Json(await asked.ctx.service.progress(job_id))


async def attempts(asked: Ask, job_id: str) -> Response:
    """List the attempts at a job's units, oldest first."""
    await _readable(asked, job_id)
    return Json(list(await asked.ctx.service.attempts(job_id)))


async def cancelled(asked: Ask, job_id: str) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    await _owned(asked, job_id, "cancelling")
    return Json(job_to_wire(await asked.ctx.service.cancel(job_id)))


async def retried(asked: Ask, job_id: str) -> Response:
    """Take a job that has not ended well back to the queue, under its id and with its committed units."""
    await _owned(asked, job_id, "retrying")
    return Json(job_to_wire(await asked.ctx.service.retry(job_id)))


async def demand_explained(asked: Ask, body: DemandRequest) -> Response:
    """Tell where a demand would go now, and why not elsewhere."""
    return Json(await asked.ctx.why.demand(body.model_dump()))


async def workload_looked_for(asked: Ask, digest: str) -> Response:
    """Tell whether a workload's files are here."""
    if not await asked.ctx.service.has_workload(digest):
        raise Refused(404, "this workload is not here")
    return Json(None)


async def workload_taken(asked: Ask, digest: str, request: Request) -> Response:
    """Take a workload's files as a tar stream, whose digest is checked."""
    check_length(asked.headers, WORKLOAD_BYTES_MAX, _WORKLOAD)
    asked.ctx.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=asked.ctx.uploads) as upload:  # a file without a name: whatever happens, it is gone
        async for piece in pieces(request.receive, WORKLOAD_BYTES_MAX, _WORKLOAD):
            upload.write(piece)
        if upload.tell() == 0:
            raise Refused(400, "send the workload's files as a tar stream")
        upload.seek(0)
        await asked.ctx.service.add_workload(digest, upload)
    return Json({"digest": digest}, 201)


async def _readable(asked: Asked, job_id: str) -> JobStatus:
    """Return the job if the caller may read it.

    Raises
    ------
    NoSuchJob
        If there is none, or it is another's: its id must not tell that it exists.
    """
    job = await asked.ctx.service.show(job_id)
    if not asked.caller.sees(job):
        raise NoSuchJob(job_id=job_id)
    return job


async def _owned(asked: Asked, job_id: str, doing: str) -> None:
    if not asked.caller.owns(await _readable(asked, job_id)):
        raise NotAllowed(what=f"{doing} job {job_id}", why="it is another user's")


def _of_caller(asked: Asked, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request with its ``user``, the caller unless an operator asks for somebody, and whether the caller operates.

    Raises
    ------
    OtherUser
        If somebody else names another user: that must not look as if it had counted.
    """
    request["operates"] = asked.caller.operates
    if not asked.caller.operates and request.get("user") not in {None, "", asked.caller.user}:
        raise OtherUser(user=request["user"])
    if not (asked.caller.operates and request.get("user")):
        request["user"] = asked.caller.user
    return request
