"""Routes about the models that users brought. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

from dataclasses import asdict

from starlette.responses import Response

from dgpunet_dask.daemons.api.answers import Json
from dgpunet_dask.daemons.api.asked import Ask
from dgpunet_dask.daemons.api.forms import Share
from dgpunet_dask.jobs.threads import in_thread


async def listed(asked: Ask) -> Response:
    """List the models that the caller's jobs may use."""
    found = await in_thread(asked.ctx.models.list, asked.caller.rights)
    return Json([asdict(info) for info in found])


async def shared(asked: Ask, model_id: str, body: Share) -> Response:
    """Let all jobs use a model, or its owner's alone; its owner's and the operators' to do."""
    by = asked.caller.rights
    return Json(asdict(await in_thread(lambda: asked.ctx.models.share(model_id, by, shared=body.shared))))
