"""Routes about the models that users brought. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

from dataclasses import asdict

from dgpunet_dask.daemons.api.handler import Handler
from dgpunet_dask.daemons.api.index_routes import shared_of
from dgpunet_dask.jobs.threads import in_thread


class Models(Handler):
    """``GET /v1/models``."""

    async def get(self) -> None:
        """Send the models that the caller's jobs may use."""
        found = await in_thread(self.ctx.models.list, self.caller.rights)
        self.answer([asdict(info) for info in found])


class ShareModel(Handler):
    """``POST /v1/models/ID/share``."""

    async def post(self, model_id: str) -> None:
        """Let all jobs use the model, or its owner's alone; its owner's and the operators' to do."""
        shared, by = shared_of(self.body_json()), self.caller.rights
        self.answer(asdict(await in_thread(lambda: self.ctx.models.share(model_id, by, shared=shared))))
