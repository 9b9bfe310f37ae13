"""Routes about indexes. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

from typing import Any

from dgpunet_dask.daemons.api.handler import Handler
from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval.request import asked_for


class Indexes(Handler):
    """``GET /v1/indexes``."""

    async def get(self) -> None:
        """Send the indexes that the caller may read."""
        self.answer(list(await self.ctx.indexes.list(self.caller.rights)))


class Index(Handler):
    """``GET`` and ``DELETE /v1/indexes/NAME``."""

    async def get(self, name: str) -> None:
        """Send one index."""
        self.answer(await self.ctx.indexes.show(name, self.caller.rights))

    async def delete(self, name: str) -> None:
        """Remove the index; its owner's and the operators' to do."""
        await self.ctx.indexes.remove(name, self.caller.rights)
        self.answer({"index": name, "removed": True})


class Search(Handler):
    """``POST /v1/indexes/NAME/search``."""

    async def post(self, name: str) -> None:
        """Send the hits of each query."""
        asked = asked_for(self.body_json())
        self.write(await self.ctx.indexes.search(name, self.caller.rights, asked))


class Share(Handler):
    """``POST /v1/indexes/NAME/share``."""

    async def post(self, name: str) -> None:
        """Let all read the index, or its owner alone; its owner's and the operators' to do."""
        self.answer(await self.ctx.indexes.share(name, self.caller.rights, shared=shared_of(self.body_json())))


def shared_of(body: dict[str, Any]) -> bool:
    """Return what ``{"shared": bool}`` says.

    Raises
    ------
    BadValue
        If it says nothing.
    """
    shared = body.get("shared")
    if not isinstance(shared, bool):
        raise BadValue(what="shared", value=str(shared)[:80], why="send true or false")
    return shared
