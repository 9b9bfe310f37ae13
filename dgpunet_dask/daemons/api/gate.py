"""What every request passes before a route sees it: the table of routes decides who may, and what nobody expected becomes an answer."""

from __future__ import annotations

import asyncio
import logging
import re
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgpunet_dask.daemons.api.answers import SHOWN_CHARS, Refused, error_answer
from dgpunet_dask.daemons.api.asked import Asked
from dgpunet_dask.daemons.api.bodies import again, json_object
from dgpunet_dask.daemons.api.callers import Need, Peer
from dgpunet_dask.daemons.api.context import JSON_BYTES_MAX, ApiContext
from dgpunet_dask.errors import BadValue, DgpunetError

log = logging.getLogger(__name__)

DIGEST: Final = r"[0-9a-f]{64}"
#: The id of a job, a token, a key or a model, or a host's name.
ID: Final = r"[A-Za-z0-9._-]{1,100}"
#: The name of an index.
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
#: What the parts of a path may be.
PARTS: Final[Mapping[str, str]] = {
    "digest": f"({DIGEST})", "job_id": f"({ID})", "model_id": f"({ID})", "token_id": f"({ID})", "key_id": f"({ID})", "host": f"({ID})",
    "name": f"({NAME})", "number": r"(\d{1,20})", "action": "(cordon|uncordon|drain|remove)", "page": "(?:/.*)?",
}  # fmt: skip

Page = Callable[[Asked], Awaitable[Response]]
Socket = Callable[[Asked, Send], Awaitable[None]]


@dataclass(frozen=True)
class Does:
    """What answers one method of a route.

    Parameters
    ----------
    need
        What it asks for.
    endpoint
        A function of FastAPI's.
    gives
        The form of the answer, for the document; ``None`` for one that is not JSON.
    takes
        The form of the body, for the document, where the endpoint's parameters do not say it.
    status
        Of the answer.
    again
        Its status where the same was asked before.
    fails
        Statuses beyond those that follow from need, path and body.
    told
        Whether the document tells of it.
    json
        Whether it takes a JSON object as its body.
    """

    need: Need
    endpoint: Callable[..., Any]
    gives: Any = None
    takes: Any = None
    status: int = 200
    again: int | None = None
    fails: tuple[int, ...] = ()
    told: bool = True
    json: bool = False


@dataclass(frozen=True)
class Route:
    """One path and what its methods do. A method that is not listed is refused.

    Parameters
    ----------
    template
        The path; parts in braces are named in `PARTS`.
    page
        Answers instead of FastAPI: what browsers see.
    socket
        Answers a request for a websocket.
    cookie
        The name of the cookie that stands for a key here; ``None``: a key is asked for.
    """

    template: str
    does: Mapping[str, Does]
    page: Page | None = None
    socket: Socket | None = None
    cookie: str | None = None

    @property
    def path(self) -> str:
        """A regular expression for the whole path, before anything in it is decoded."""
        return re.sub(r"\{(\w+)\}", lambda found: PARTS[found[1]], self.template)

    @property
    def needs(self) -> Mapping[str, Need]:
        """What each method asks for."""
        return {method: does.need for method, does in self.does.items()}


class Gate:
    """An ASGI application in front of another.

    Parameters
    ----------
    ctx
        What all requests share.
    routes
        What there is; the first that fits counts.
    app
        Answers what has no page or websocket.
    """

    def __init__(self, ctx: ApiContext, routes: Sequence[Route], app: ASGIApp) -> None:
        self.ctx, self.app = ctx, app
        self._routes = [(re.compile(route.path), route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked = Asked(self.ctx, scope, receive)
        reply = _Reply(asked, send)
        try:
            await self._answer(asked, reply)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            log.info("%s %s was given up", asked.method, asked.path)  # this head is stopping
        except Exception as error:
            if not isinstance(error, DgpunetError | Refused):
                log.error("%s %s failed", asked.method, asked.path, exc_info=error)
            await reply.error(error)
        log.debug("%s %s %s", reply.status, asked.method, asked.path)

    async def _answer(self, asked: Asked, reply: _Reply) -> None:
        asked.check_site()
        route = next((route for path, route in self._routes if path.fullmatch(asked.path)), None)
        needs = {} if route is None else route.needs
        if needs.get(asked.method) != "public":
            try:
                asked.identify(cookie=None if route is None else route.cookie)
            except Refused as refused:
                if refused.status != 401 or route is None or route.cookie is None or not _reads_pages(asked):
                    raise
                raise Refused(303, "log in first", headers={"Location": "/login"}) from refused
        if route is None:
            raise Refused(404, "no such route")
        asked.check_need(needs)
        asked.scope["asked"] = asked
        with asked.opened():
            await self._routed(route, asked, reply)

    async def _routed(self, route: Route, asked: Asked, reply: _Reply) -> None:
        if asked.scope["type"] == "websocket":
            await _socket(route, asked, reply)
        elif route.page is not None:
            response = await route.page(asked)
            await response(asked.scope, asked.receive, reply)
        else:
            _check_query(asked)
            receive = asked.receive
            if route.does[asked.method].json:
                receive = again(await json_object(asked.headers, receive, JSON_BYTES_MAX), receive)
            await self.app(asked.scope, receive, reply)


async def _socket(route: Route, asked: Asked, reply: _Reply) -> None:
    if route.socket is None:
        raise Refused(400, "there is no websocket here")
    await route.socket(asked, reply)


def _check_query(asked: Asked) -> None:
    """Refuse what is asked twice in one question: only one of the two would count."""
    query = asked.scope["query_string"].decode("latin-1")
    names = Counter(name for name, _ in urllib.parse.parse_qsl(query, keep_blank_values=True))
    if twice := next((name for name, times in names.items() if times > 1), None):
        raise BadValue(what=twice[:SHOWN_CHARS], value=query[:SHOWN_CHARS], why="it is there more than once; give it once")


def _reads_pages(asked: Asked) -> bool:
    """Whether a person sees the answer, who can log in."""
    wanted = "text/html" in asked.headers.get("accept", "") and "authorization" not in asked.headers
    return wanted and asked.scope["type"] == "http"


class _Reply:
    """Sends an answer with what holds for all of them."""

    def __init__(self, asked: Asked, send: Send) -> None:
        self._asked, self._send = asked, send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.http.response.start"}:
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
            if isinstance(self._asked.asker, Peer):
                headers["Connection"] = "close"
            # as they have always been written; uvicorn looks for its own spelling of this one
            message["headers"] = [(name if name == b"connection" else name.title(), value) for name, value in message["headers"]]
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self._send(message)

    async def error(self, error: Exception) -> None:
        """Tell what was raised, unless an answer has begun."""
        if self.status is not None:
            return
        answer = error_answer(error)
        prefix = "websocket." if self._asked.scope["type"] == "websocket" else ""
        await self({"type": f"{prefix}http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
        await self({"type": f"{prefix}http.response.body", "body": bytes(answer.body)})
