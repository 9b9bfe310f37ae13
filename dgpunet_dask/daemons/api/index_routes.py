"""Routes about indexes. Users see their own and those that are shared; to them, others' are not there."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from dgpunet_dask.daemons.api.answers import Json, JsonText
from dgpunet_dask.daemons.api.asked import Ask
from dgpunet_dask.daemons.api.forms import LinesRequest, Share
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
    return JsonText(await asked.ctx.indexes.search(name, asked.caller.rights, asked_for(_whole(body))))


async def lines(asked: Ask, name: str, body: LinesRequest) -> Response:
    """Read lines of an indexed file, as the index holds them."""
    return Json(await asked.ctx.indexes.lines(name, asked.caller.rights, body.path, body.start_line, body.end_line))


async def shared(asked: Ask, name: str, body: Share) -> Response:
    """Let all read an index, or its owner alone; its owner's and the operators' to do."""
    return Json(await asked.ctx.indexes.share(name, asked.caller.rights, shared=body.shared))


async def verified(asked: Ask, name: str) -> Response:
    """Compare an index with its digests, its counts and the files that it was made from; its owner's and the operators' to do."""
    return Json(await asked.ctx.indexes.verify(name, asked.caller.rights))


async def compacted(asked: Ask, name: str) -> Response:
    """Merge an index's segments, without what it no longer lists; its owner's and the operators' to do."""
    return Json(await asked.ctx.indexes.compact(name, asked.caller.rights))


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request whose `k` is an integer if it has no fraction: to JSON, 5.0 is one."""
    k = body.get("k")
    return {**body, "k": int(k)} if isinstance(k, float) and k.is_integer() else body
