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
from http.cookies import Morsel
from typing import Any, Final

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.web import HTTPError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketHandler, websocket_connect

from dgpunet_dask.daemons.api.callers import Caller, Certificate, caller_of, refusal
from dgpunet_dask.daemons.api.handler import Handler

log = logging.getLogger(__name__)

#: The prefix binds it to this host, to https and to all paths: no other server can set it.
COOKIE: Final = "__Host-dgpunet"
BODY_BYTES_MAX: Final = 64 << 20
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


class Guarded(Handler):
    """What asks for a key in a header, or for the cookie of a session."""

    def credentials(self) -> tuple[str | None, Certificate | None]:
        """Return the header and the certificate; without a header, the key of the cookie's session."""
        given, certificate = super().credentials()
        if given is None and (session := self.session()):
            key = self.ctx.sessions.key(session, self.ctx.clock.monotonic())
            return (None, None) if key is None else (f"Bearer {key}", None)
        return given, certificate

    def session(self) -> str:
        """Return the cookie's text, empty without one."""
        found: Morsel[str] | None = self.cookies.get(COOKIE)
        return found.value if found is not None else ""

    def upstream(self) -> str:
        """Return the address of what is asked for on the dashboard's own server; 404 without one, or for a path that leaves it."""
        base = self.ctx.dashboard_upstream()
        path = self.request.path.removeprefix(_MOUNT)
        parts = urllib.parse.unquote(path).replace("\\", "/").split("/")[1:]
        if base is None or not parts or parts[0] in _CLOSED or {".", ".."}.intersection(parts):
            raise HTTPError(404, reason="there is no such page on the dashboard")
        query = f"?{self.request.query}" if self.request.query else ""
        return f"{base.rstrip('/')}{path}{query}"


class Dashboard(Guarded):
    """``GET`` and ``HEAD /dashboard/…``."""

    def prepare(self) -> None:
        """Check the caller; a browser without a session is sent to log in."""
        wanted = "text/html" in self.request.headers.get("Accept", "") and "Authorization" not in self.request.headers
        try:
            super().prepare()
        except HTTPError as error:
            if error.status_code != 401 or not wanted:
                raise
            self.redirect("/login", status=303)

    async def get(self, *_: str) -> None:
        """Send the page."""
        if self.request.path.rstrip("/") == _MOUNT:
            self.redirect(f"{_MOUNT}/status")
            return
        answer = await self._fetched()
        self.set_status(answer.code)
        for name in _SENT_BACK:
            if name in answer.headers:
                self.set_header(name, answer.headers[name])
        if "Location" in answer.headers:
            self.set_header("Location", self._here(answer.headers["Location"]))
        if self.request.path.startswith((f"{_MOUNT}/static/", f"{_MOUNT}/statics/")):
            self.set_header("Cache-Control", "private, max-age=3600")
        scheme = "wss" if self.request.protocol == "https" else "ws"
        self.set_header("Content-Security-Policy", _PAGES_CSP.format(socket=f"{scheme}://{self.request.host}"))
        self.set_header("Referrer-Policy", "no-referrer")
        if self.request.method != "HEAD":
            self.write(self._rewritten(answer))

    head = get

    async def _fetched(self) -> HTTPResponse:
        url = self.upstream()
        headers = {name: self.request.headers[name] for name in _SENT_ON if name in self.request.headers}
        request = HTTPRequest(url, self.request.method or "GET", headers, follow_redirects=False, request_timeout=ANSWER_S)
        try:
            return await _client(self.application.settings).fetch(request, raise_error=False)
        except (OSError, HTTPClientError) as error:
            log.info("the dashboard does not answer: %s", error)
            raise HTTPError(502, reason="the dashboard does not answer") from error

    def _rewritten(self, answer: HTTPResponse) -> bytes:
        """Return the body; a page's absolute paths, which name its own server's prefix, lead through here instead."""
        body = bytes(answer.body or b"")
        if not answer.headers.get("Content-Type", "").startswith("text/html"):
            return body
        prefix = urllib.parse.urlsplit(self.ctx.dashboard_upstream() or "").path.rstrip("/").encode()
        return re.sub(rb"""(["'])%s/(?=statics?/)""" % re.escape(prefix), rb"\1%s/" % _MOUNT.encode(), body)

    def _here(self, location: str) -> str:
        """Return where a redirection of the dashboard's server leads by way of this one."""
        base = urllib.parse.urlsplit(self.ctx.dashboard_upstream() or "")
        path = urllib.parse.urlsplit(urllib.parse.urljoin(self.upstream(), location)).path
        return _MOUNT + "/" + path.removeprefix(base.path.rstrip("/")).lstrip("/")


def _client(settings: dict[str, Any]) -> AsyncHTTPClient:
    """Return the client of this application, which keeps no cookies and asks loopback alone."""
    if "dashboard_client" not in settings:
        settings["dashboard_client"] = AsyncHTTPClient(force_instance=True, max_clients=64, max_body_size=BODY_BYTES_MAX)
    found = settings["dashboard_client"]
    assert isinstance(found, AsyncHTTPClient)
    return found


class DashboardSocket(WebSocketHandler, Guarded):
    """Bokeh's websocket, ``/dashboard/PAGE/ws``: messages both ways, until either side has ended or the user may no longer look."""

    far: WebSocketClientConnection | None = None
    pump: asyncio.Task[None] | None = None
    checked: float = 0.0

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Connect to the dashboard first: a page that is not there has no websocket."""
        url = "ws" + self.upstream().removeprefix("http")
        offered = [text.strip() for text in self.request.headers.get("Sec-WebSocket-Protocol", "").split(",") if text.strip()]
        try:
            self.far = await websocket_connect(
                HTTPRequest(url, connect_timeout=ANSWER_S, request_timeout=ANSWER_S), subprotocols=offered, max_message_size=BODY_BYTES_MAX
            )
        except (OSError, HTTPClientError) as error:
            raise HTTPError(502, reason="the dashboard does not answer") from error
        self.checked = self.ctx.clock.monotonic()
        await super().get(*args, **kwargs)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Return what the dashboard has chosen."""
        return None if self.far is None else self.far.selected_subprotocol

    def open(self, *_: str, **__: str) -> None:
        """Begin to pass on what the dashboard says."""
        self.pump = asyncio.create_task(self._pump(), name="dashboard")

    async def _pump(self) -> None:
        assert self.far is not None
        try:
            while (message := await self.far.read_message()) is not None and self._may():
                await self.write_message(message, binary=isinstance(message, bytes))
        except WebSocketClosedError:
            pass
        finally:
            self.close()

    async def on_message(self, message: str | bytes) -> None:
        """Pass on what the page says."""
        if self.far is None or not self._may():
            self.close()
            return
        try:
            await self.far.write_message(message, binary=isinstance(message, bytes))
        except WebSocketClosedError:
            self.close()

    def _may(self) -> bool:
        """Whether the user still may look: a key can be revoked, and a session ends."""
        now = self.ctx.clock.monotonic()
        if now - self.checked < RECHECK_S:
            return True
        self.checked = now
        found = caller_of(*self.credentials(), self.local_key(), self.ctx.keys, self.ctx.clock.wall())
        return found is not None and refusal(found, "viewer") is None

    def on_close(self) -> None:
        """Let go of the dashboard."""
        if self.far is not None:
            self.far.close()
        if self.pump is not None:
            self.pump.cancel()


class Login(Handler):
    """``GET /login``: a form; ``POST /login``: a key for a session's cookie. ``POST /logout`` ends the session."""

    def get(self) -> None:
        """Send the form."""
        self._form("The dashboard asks for an API key.")

    def post(self) -> None:
        """Begin a session, and go on to the dashboard."""
        self.check_attempts()
        key = self.get_body_argument("key", "").strip()
        found = self._caller(key)
        if found is None or refusal(found, "viewer") is not None:
            self.note_failure()
            self.set_status(401)
            self._form("That key is not known here, or no longer.")
            return
        session = self.ctx.sessions.begin(key, self.ctx.clock.monotonic())
        self.set_cookie(COOKIE, session, path="/", secure=True, httponly=True, samesite="Strict")
        self.redirect(f"{_MOUNT}/status", status=303)

    def _caller(self, key: str) -> Caller | None:
        found = caller_of(f"Bearer {key}", None, self.local_key(), self.ctx.keys, self.ctx.clock.wall())
        return found if isinstance(found, Caller) else None

    def _form(self, why: str) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", _LOGIN_CSP)
        self.set_header("Referrer-Policy", "same-origin")
        self.write(_LOGIN.format(why=html.escape(why)))


class Logout(Guarded):
    """``POST /logout``."""

    def post(self) -> None:
        """End the session."""
        self.ctx.sessions.end(self.session())
        self.set_cookie(COOKIE, "", path="/", secure=True, httponly=True, samesite="Strict", max_age=0)
        self.redirect("/login", status=303)

