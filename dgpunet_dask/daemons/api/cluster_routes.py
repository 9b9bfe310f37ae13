"""Routes about the head itself: its state, its policies, and how long it lives."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Query
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dgpunet_dask.daemons.api.answers import Json, Refused
from dgpunet_dask.daemons.api.asked import Ask
from dgpunet_dask.daemons.api.context import ApiContext


async def status(asked: Ask) -> Response:
    """Show the daemon, its addresses and its workers."""
    return Json(await asked.ctx.status())


async def placements(asked: Ask, since: Annotated[int, Query(ge=0, description="only placements with a higher number")] = 0) -> Response:
    """List placements."""
    return Json(list(await asked.ctx.placements(min(since, 10**15))))


async def fleet(asked: Ask) -> Response:
    """Show hosts, devices, charges and states."""
    return Json(await asked.ctx.why.fleet())


async def policy(asked: Ask) -> Response:
    """Show the policies in force, and what was wrong with later changes."""
    return Json(asked.ctx.policy())


async def policy_reloaded(asked: Ask) -> Response:
    """Have the policy files read at once, and show what is in force then."""
    return Json(await asked.ctx.reload())


async def leased(asked: Ask) -> Response:
    """Hold a cluster open for as long as a command uses it; the end of the connection, also by ``kill -9``, ends the lease."""
    check_running(asked.ctx)
    return Held(asked.ctx)


class Held(Json):
    """Sends the lease's number at once, then nothing until the caller is gone."""

    def __init__(self, ctx: ApiContext) -> None:
        super().__init__({"lease": id(self)})
        self._ctx = ctx
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, and wait."""
        self._ctx.leases.add(self)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": bytes(self.body) + b"\n", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self._ctx.end_lease(self)


async def lease_released(asked: Ask, number: str) -> Response:
    """End a lease in good order, and tell whether it was the last."""
    lease = next((x for x in asked.ctx.leases if id(x) == int(number)), None)
    return Json({"last": asked.ctx.end_lease(lease)})


async def kept(asked: Ask) -> Response:
    """Have an embedded head stay after its last lease, as ``up`` wants it."""
    check_running(asked.ctx)
    asked.ctx.embedded = False
    asked.ctx.keep()
    return Json({})


async def shut_down(asked: Ask) -> Response:
    """Stop the head, after this answer."""
    asked.ctx.stopping = True

    async def stop() -> None:
        asyncio.get_running_loop().call_soon(asked.ctx.shutdown, "asked to stop")

    return Json({}, background=BackgroundTask(stop))


def check_running(ctx: ApiContext) -> None:
    """Refuse what makes no sense once the head is stopping."""
    if ctx.stopping:
        raise Refused(503, "this head is stopping")
