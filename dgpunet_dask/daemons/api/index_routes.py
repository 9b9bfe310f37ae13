"""Routes about indexes. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dgpunet_dask.daemons.api.answers import Json, JsonText
from dgpunet_dask.daemons.api.asked import Ask
from dgpunet_dask.errors import BadValue
from dgpunet_dask.retrieval.request import asked_for


async def listed(asked: Ask) -> Response:
    """List the indexes that the caller may read."""
    return Json(list(await asked.ctx.indexes.list(asked.caller.rights)))


async def shown(asked: Ask, name: str) -> Response:
    """Show one index."""
    return Json(await asked.ctx.indexes.show(name, asked.caller.rights))


async def removed(asked: Ask, name: str) -> Response:
    """Remove an index; its owner's and the operators' to do."""
    await asked.ctx.indexes.remove(name, asked.caller.rights)
    return Json({"index": name, "removed": True})


async def searched(asked: Ask, name: str, body: dict[str, Any]) -> Response:
    """Search an index: the hits of each query."""
    return JsonText(await asked.ctx.indexes.search(name, asked.caller.rights, asked_for(body)))


async def shared(asked: Ask, name: str, body: dict[str, Any]) -> Response:
    """Let all read an index, or its owner alone; its owner's and the operators' to do."""
    return Json(await asked.ctx.indexes.share(name, asked.caller.rights, shared=shared_of(body)))


def shared_of(body: dict[str, Any]) -> bool:
    """Return what ``{"shared": bool}`` says.

    Raises
    ------
    BadValue
        If it says nothing.
    """
    found = body.get("shared")
    if not isinstance(found, bool):
        raise BadValue(what="shared", value=str(found)[:80], why="send true or false")
    return found
