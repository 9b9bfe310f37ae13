"""Routes about the head itself: its state, its policies, and how long it lives."""

from __future__ import annotations

import asyncio
import json

from tornado.web import HTTPError

from dgpunet_dask.daemons.api.handler import Handler


class Status(Handler):
    """``GET /v1/status``."""

    async def get(self) -> None:
        """Send the daemon, its addresses and its workers."""
        self.answer(await self.ctx.status())


class Placements(Handler):
    """``GET /v1/placements?since=N``."""

    async def get(self) -> None:
        """Send the placements after number `since`."""
        self.answer(list(await self.ctx.placements(int(self.number("since", 0, 1e15)))))


class Fleet(Handler):
    """``GET /v1/fleet``."""

    async def get(self) -> None:
        """Send hosts, devices, charges and states."""
        self.answer(await self.ctx.why.fleet())


class Policy(Handler):
    """``GET /v1/policy`` and, to have the files read at once, ``POST /v1/policy/reload``."""

    async def get(self) -> None:
        """Send what is in force, and what was wrong with later changes."""
        self.answer(self.ctx.policy())

    async def post(self) -> None:
        """Read the files, then send the same."""
        self.body_json()
        self.answer(await self.ctx.reload())


class Lease(Handler):
    """``GET /v1/lease``: held open for as long as a command uses the cluster; its end, also by ``kill -9``, ends the lease."""

    async def get(self) -> None:
        """Send the lease's number at once, then nothing until the caller is gone."""
        if self.ctx.stopping:
            raise HTTPError(503, reason="this head is stopping")
        self.gone = asyncio.Event()
        self.ctx.leases.add(self)
        try:
            self.write(json.dumps({"lease": id(self)}) + "\n")
            await self.flush()
            await self.gone.wait()
        finally:
            self.ctx.end_lease(self)

    def on_connection_close(self) -> None:
        """The caller is gone."""
        self.gone.set()


class ReleaseLease(Handler):
    """``POST /v1/lease/N/release``: ends a lease in good order, and tells whether it was the last."""

    def post(self, number: str) -> None:
        """Send ``{"last": bool}``."""
        self.body_json()
        lease = next((x for x in self.ctx.leases if id(x) == int(number)), None)
        self.answer({"last": self.ctx.end_lease(lease)})


class Keep(Handler):
    """``POST /v1/keep``: an embedded head stays after its last lease, as ``up`` wants it."""

    def post(self) -> None:
        """Keep running."""
        self.body_json()
        if self.ctx.stopping:
            raise HTTPError(503, reason="this head is stopping")
        self.ctx.embedded = False
        self.ctx.keep()
        self.answer({})


class Shutdown(Handler):
    """``POST /v1/shutdown``."""

    def post(self) -> None:
        """Stop the head, after this answer."""
        self.body_json()
        self.ctx.stopping = True
        self.answer({})
        asyncio.get_running_loop().call_soon(self.ctx.shutdown, "asked to stop")
