"""Dask's dashboard behind a key: ``/dashboard/…`` passes on GET, HEAD and Bokeh's websocket to a server that listens on loopback alone.

A browser logs in once (``/login``) and holds a cookie that no page can read and no other site can send. Neither it nor a key is passed on.
The cookie counts here and nowhere else in the API: a fault in a page of the dashboard opens no other route.
"""

from __future__ import annotations

import asyncio
import html
import logging
import re
import urllib.parse
from typing import Final
from weakref import WeakKeyDictionary

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from dgpunet_dask.daemons.api.answers import Refused
from dgpunet_dask.daemons.api.asked import Asked
from dgpunet_dask.daemons.api.bodies import check_length, pieces
from dgpunet_dask.daemons.api.callers import Caller, caller_of, refusal

log = logging.getLogger(__name__)

#: The prefix binds it to this host, to https and to all paths: no other server can set it.
COOKIE: Final = "__Host-dgpunet"
BODY_BYTES_MAX: Final = 64 << 20
FORM_BYTES_MAX: Final = 16 << 10
ANSWER_S: Final = 30.0
#: How often an open websocket looks whether its user still may.
RECHECK_S: Final = 30.0
_MOUNT: Final = "/dashboard"
#: Bokeh's pages carry their scripts inline, and their hover texts are functions made from text.
_PAGES_CSP: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' {socket}; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'self'"
)
_LOGIN_CSP: Final = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_LOGIN: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>DGPUNET-Dask</title>
<style>body{{font:1rem sans-serif;margin:4rem auto;max-width:32rem}}input{{width:100%;margin:.5rem 0}}</style>
<h1>DGPUNET-Dask</h1><p>{why}</p>
<form method="post" action="/login"><label>API key<input type="password" name="key" autocomplete="off" autofocus required></label>
<button>Show the dashboard</button></form></html>
"""
_SENT_ON: Final = ("Accept", "Accept-Language")
_SENT_BACK: Final = ("Content-Type", "Last-Modified")
#: Dask's own proxy: it would fetch from any address that the head reaches.
_CLOSED: Final = frozenset({"proxy"})
_CLIENTS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncHTTPClient]] = WeakKeyDictionary()


# Pages


async def page(asked: Asked) -> Response:
    """Send a page of the dashboard."""
    if asked.path.rstrip("/") == _MOUNT:
        return RedirectResponse(f"{_MOUNT}/status", 302)
    found = await _fetched(asked)
    answer = Response(_rewritten(asked, found) if asked.method != "HEAD" else b"", found.code)
    for name in _SENT_BACK:
        if name in found.headers:
            answer.headers[name] = found.headers[name]
    if "Location" in found.headers:
        answer.headers["Location"] = _here(asked, found.headers["Location"])
    if asked.path.startswith((f"{_MOUNT}/static/", f"{_MOUNT}/statics/")):
        answer.headers["Cache-Control"] = "private, max-age=3600"
    scheme = "wss" if asked.scheme == "https" else "ws"
    answer.headers["Content-Security-Policy"] = _PAGES_CSP.format(socket=f"{scheme}://{asked.headers['host']}")
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def _upstream(asked: Asked) -> str:
    """Return the address of what is asked for on the dashboard's own server; 404 without one, or for a path that leaves it."""
    base = asked.ctx.dashboard_upstream()
    path = asked.path.removeprefix(_MOUNT)
    parts = urllib.parse.unquote(path).replace("\\", "/").split("/")[1:]
    if base is None or not parts or parts[0] in _CLOSED or {".", ".."}.intersection(parts):
        raise Refused(404, "there is no such page on the dashboard")
    query = asked.scope["query_string"].decode("latin-1")
    return f"{base.rstrip('/')}{path}{'?' if query else ''}{query}"


async def _fetched(asked: Asked) -> HTTPResponse:
    headers = {name: asked.headers[name] for name in _SENT_ON if name in asked.headers}
    request = HTTPRequest(_upstream(asked), asked.method, headers, follow_redirects=False, request_timeout=ANSWER_S)
    try:
        return await _client().fetch(request, raise_error=False)
    except (OSError, HTTPClientError) as error:
        log.info("the dashboard does not answer: %s", error)
        raise Refused(502, "the dashboard does not answer") from error


def _client() -> AsyncHTTPClient:
    """Return the client of this loop, which keeps no cookies and asks loopback alone."""
    loop = asyncio.get_running_loop()
    if loop not in _CLIENTS:
        _CLIENTS[loop] = AsyncHTTPClient(force_instance=True, max_clients=64, max_body_size=BODY_BYTES_MAX)
    return _CLIENTS[loop]


def _rewritten(asked: Asked, found: HTTPResponse) -> bytes:
    """Return the body; a page's absolute paths, which name its own server's prefix, lead through here instead."""
    body = bytes(found.body or b"")
    if not found.headers.get("Content-Type", "").startswith("text/html"):
        return body
    prefix = urllib.parse.urlsplit(asked.ctx.dashboard_upstream() or "").path.rstrip("/").encode()
    return re.sub(rb"""(["'])%s/(?=statics?/)""" % re.escape(prefix), rb"\1%s/" % _MOUNT.encode(), body)


def _here(asked: Asked, location: str) -> str:
    """Return where a redirection of the dashboard's server leads by way of this one."""
    base = urllib.parse.urlsplit(asked.ctx.dashboard_upstream() or "")
    path = urllib.parse.urlsplit(urllib.parse.urljoin(_upstream(asked), location)).path
    return _MOUNT + "/" + path.removeprefix(base.path.rstrip("/")).lstrip("/")


# Bokeh's websocket, ``/dashboard/PAGE/ws``


async def no_page(asked: Asked) -> Response:
    """Refuse a request for a websocket that is none."""
    raise Refused(400, f"{asked.path} can only be asked for as a websocket")


async def socket(asked: Asked, send: Send) -> None:
    """Pass on messages both ways, until either side has ended or the user may no longer look."""
    far = await _connected(asked)  # first: a page that is not there has no websocket
    near = WebSocket(asked.scope, asked.receive, send)
    watch = _Watch(asked)
    try:
        await near.accept(far.subprotocol)
        ways = [asyncio.create_task(_outward(near, far, watch)), asyncio.create_task(_inward(near, far, watch))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await near.close()
    except (OSError, RuntimeError, WebSocketDisconnect):
        pass  # the page is gone
    finally:
        await far.close()


async def _connected(asked: Asked) -> ClientConnection:
    url = "ws" + _upstream(asked).removeprefix("http")
    offered = [Subprotocol(text) for text in asked.scope.get("subprotocols", []) if text]
    try:
        # it is on this machine: no proxy leads there, and nothing is won by packing
        return await connect(url, subprotocols=offered or None, max_size=BODY_BYTES_MAX, open_timeout=ANSWER_S, proxy=None, compression=None)
    except (OSError, WebSocketException) as error:
        raise Refused(502, "the dashboard does not answer") from error


async def _inward(near: WebSocket, far: ClientConnection, watch: _Watch) -> None:
    """Pass on what the dashboard says."""
    async for message in far:
        if not watch.may():
            return
        await (near.send_bytes(message) if isinstance(message, bytes) else near.send_text(message))


async def _outward(near: WebSocket, far: ClientConnection, watch: _Watch) -> None:
    """Pass on what the page says."""
    while (message := await near.receive())["type"] == "websocket.receive" and watch.may():
        text = message.get("text")
        try:
            await far.send(message["bytes"] if text is None else text)
        except ConnectionClosed:
            return


class _Watch:
    """Whether the user still may look: a key can be revoked, and a session ends."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._checked = asked.ctx.clock.monotonic()

    def may(self) -> bool:
        """Look again, if the last time is a while ago."""
        asked, now = self._asked, self._asked.ctx.clock.monotonic()
        if now - self._checked < RECHECK_S:
            return True
        self._checked = now
        found = caller_of(*asked.credentials(COOKIE), asked.local_key(), asked.ctx.keys, asked.ctx.clock.wall())
        return found is not None and refusal(found, "viewer") is None


# Sessions


async def login(asked: Asked) -> Response:
    """``GET``: a form; ``POST``: a key for a session's cookie."""
    if asked.method == "GET":
        return _form("The dashboard asks for an API key.")
    asked.check_attempts()
    key = (await _fields(asked)).get("key", [""])[-1].strip()
    found = caller_of(f"Bearer {key}", None, asked.local_key(), asked.ctx.keys, asked.ctx.clock.wall())
    if not isinstance(found, Caller) or refusal(found, "viewer") is not None:
        asked.note_failure()
        return _form("That key is not known here, or no longer.", 401)
    session = asked.ctx.sessions.begin(key, asked.ctx.clock.monotonic())
    return RedirectResponse(f"{_MOUNT}/status", 303, {"Set-Cookie": _cookie(session)})


async def logout(asked: Asked) -> Response:
    """End the session."""
    asked.ctx.sessions.end(asked.cookie(COOKIE))
    return RedirectResponse("/login", 303, {"Set-Cookie": f"{_cookie('')}; Max-Age=0"})


async def _fields(asked: Asked) -> dict[str, list[str]]:
    """Return the fields of a form."""
    check_length(asked.headers, FORM_BYTES_MAX, "a form")
    body = b"".join([piece async for piece in pieces(asked.receive, FORM_BYTES_MAX, "a form")])
    try:
        return urllib.parse.parse_qs(body.decode("ascii", "replace"), max_num_fields=16)
    except ValueError:
        raise Refused(400, "the form has too many fields") from None


def _cookie(session: str) -> str:
    return f"{COOKIE}={session}; Path=/; Secure; HttpOnly; SameSite=Strict"


def _form(why: str, status: int = 200) -> Response:
    headers = {"Content-Security-Policy": _LOGIN_CSP, "Referrer-Policy": "same-origin"}
    return HTMLResponse(_LOGIN.format(why=html.escape(why)), status, headers)
