"""Dask's own dashboard through the API's proxy: pages, Bokeh's websocket, sessions, and what stays shut."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urljoin

import pytest
from distributed import Scheduler
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.daemons.api import listen
from tests.unit.daemons.serving import FakeKeys, Served, make_context

PREFIX = "a-long-secret"
VIEWER = {"Authorization": "Bearer ann:viewer"}
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": None}


class MovedClock(SystemClock):
    """The system's time, and what a test adds."""

    added = 0.0

    def monotonic(self):
        return SystemClock.monotonic() + self.added


@pytest.fixture(params=[PREFIX, ""], ids=["prefix", "no-prefix"])
async def served(request, tmp_path):
    prefix = request.param
    async with Scheduler(host="127.0.0.1", port=0, dashboard=True, dashboard_address="127.0.0.1:0", http_prefix=prefix) as scheduler:
        base = f"http://127.0.0.1:{scheduler.http_server.port}/{prefix}"
        ctx = make_context(tmp_path, [], keys=FakeKeys(), dashboard_upstream=lambda: base, clock=MovedClock())
        server = listen(ctx)
        made = Served(ctx)
        made.prefix, made.base = prefix, base
        yield made
        server.stop()
        await server.close_all_connections()


async def page(served, **headers):
    status, got, text = await served.fetch("GET", "/dashboard/status", **(headers or VIEWER))
    assert status == 200
    return got, text.decode()


def socket_of(served, text, **headers):
    """Connect to the websocket of a page as Bokeh does: the session's token travels as a subprotocol."""
    token = re.search(r'"token":"([^"]+)"', text)[1]
    url = f"ws://127.0.0.1:{served.ctx.port}/dashboard/status/ws"
    return websocket_connect(HTTPRequest(url, headers=headers or VIEWER), subprotocols=["bokeh", token])


async def test_a_page_and_what_it_loads_come_through(served):
    headers, text = await page(served)
    assert "Dask" in text
    scripts = [urljoin("/dashboard/status", found) for found in re.findall(r'<script[^>]* src="([^"]+)"', text)]
    assert scripts
    assert all(script.startswith("/dashboard/static/") for script in scripts)
    for path in [*scripts[:1], "/dashboard/statics/images/favicon.ico", "/dashboard/info/main/workers.html", "/dashboard/health"]:
        status, _, content = await served.fetch("GET", path, **VIEWER)
        assert status == 200, path
        assert content, path
    assert PREFIX not in text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert f"connect-src 'self' ws://127.0.0.1:{served.ctx.port}" in policy
    assert "http:" not in policy
    status, _, content = await served.fetch("HEAD", scripts[0], **VIEWER)
    assert (status, content) == (200, b"")


async def test_bokehs_websocket_comes_through(served):
    _, text = await page(served)
    socket = await socket_of(served, text)
    assert socket.selected_subprotocol == "bokeh"
    header = await asyncio.wait_for(socket.read_message(), 10)
    assert '"ACK"' in header
    [await asyncio.wait_for(socket.read_message(), 10) for _ in range(2)]  # metadata and content of the same message
    for part in ('{"msgid":"1","msgtype":"PULL-DOC-REQ"}', "{}", "{}"):
        await socket.write_message(part)
    while "PULL-DOC-REPLY" not in (await asyncio.wait_for(socket.read_message(), 10)):
        pass
    socket.close()


async def test_nothing_without_a_key(served):
    _, text = await page(served)
    for path in ("/dashboard/status", "/dashboard", "/dashboard/static/js/bokeh.min.js", "/dashboard/status/ws"):
        for headers in ({"Authorization": None}, {"Authorization": "Bearer wrong"}, {"Authorization": None, "Cookie": "__Host-dgpunet=x"}):
            assert (await served.fetch("GET", path, **headers))[0] == 401
    for headers in ({"Authorization": "Bearer wrong"}, {"Cookie": "__Host-dgpunet=x"}, {"X": "y"}, {**VIEWER, "Origin": "http://evil.example"}):
        with pytest.raises(HTTPClientError) as refused:
            await socket_of(served, text, **headers)
        assert refused.value.code in {401, 403}


async def test_a_browser_logs_in_and_holds_a_cookie_that_opens_the_dashboard_alone(served):
    status, headers, _ = await served.fetch("GET", "/dashboard/status", Authorization=None, Accept="text/html,*/*")
    assert (status, headers["Location"]) == (303, "/login")
    status, headers, text = await served.fetch("GET", "/login", Authorization=None)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<form" in text
    status, headers, _ = await served.fetch("POST", "/login", b"key=ann%3Aviewer", **FORM)
    assert (status, headers["Location"]) == (303, "/dashboard/status")
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} <= {part.strip() for part in headers["Set-Cookie"].split(";")}
    assert "ann" not in headers["Set-Cookie"]
    cookie = {"Authorization": None, "Cookie": headers["Set-Cookie"].split(";")[0]}
    _, text = await page(served, **cookie)
    socket = await socket_of(served, text, Cookie=cookie["Cookie"])
    assert '"ACK"' in await asyncio.wait_for(socket.read_message(), 10)
    socket.close()
    for path in ("/v1/status", "/v1/jobs", "/v1/nodes"):
        assert (await served.fetch("GET", path, **cookie))[0] == 401
    assert (await served.fetch("POST", "/logout", b"", **cookie))[0] == 303
    assert (await served.fetch("GET", "/dashboard/status", **cookie))[0] == 401


async def test_a_wrong_key_begins_no_session(served):
    status, headers, text = await served.fetch("POST", "/login", b"key=<script>", **FORM)
    assert status == 401
    assert "Set-Cookie" not in headers
    assert b"<script>" not in text
    assert (await served.fetch("POST", "/login", b"key=ann%3Aviewer", **{**FORM, "Origin": "http://evil.example"}))[0] == 403


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_an_open_page_ends_with_its_key_or_its_session(served, end):
    _, headers, _ = await served.fetch("POST", "/login", b"key=ann%3Aviewer", **FORM)
    cookie = headers["Set-Cookie"].split(";")[0]
    _, text = await page(served, Authorization=None, Cookie=cookie)
    socket = await socket_of(served, text, Cookie=cookie)
    if end == "revoked":
        served.ctx.keys.revoked.add("ann:viewer")
        served.ctx.clock.added = 60.0
    else:
        served.ctx.clock.added = 13 * 3600.0
    await socket.write_message('{"msgid":"1","msgtype":"PULL-DOC-REQ"}')

    async def closed():
        while await socket.read_message() is not None:
            pass

    await asyncio.wait_for(closed(), 10)
    assert (await served.fetch("GET", "/dashboard/status", Authorization=None, Cookie=cookie))[0] == 401


@pytest.mark.parametrize(
    "path", ["/dashboard/../v1/status", "/dashboard/%2e%2e/status", "/dashboard/x/..%2f..%2fstatus", "/dashboard/proxy/1/127.0.0.1/x", "/dashboard/%70roxy/1/h/x"],
)
async def test_paths_that_leave_the_dashboard_are_not_passed_on(served, path):
    assert (await served.fetch("GET", path, **VIEWER))[0] == 404


async def test_only_reading_is_passed_on(served):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await served.fetch(method, "/dashboard/api/v1/retire_workers", b"{}", **VIEWER))[0] == 405


async def test_redirections_stay_here(served):
    status, headers, _ = await served.fetch("GET", "/dashboard", **VIEWER)
    assert (status, headers["Location"]) == (302, "/dashboard/status")


async def test_without_a_dashboard_there_is_none(served):
    served.ctx.dashboard_upstream = lambda: None
    assert (await served.fetch("GET", "/dashboard/status", **VIEWER))[0] == 404
    served.ctx.dashboard_upstream = lambda: "http://127.0.0.1:9/x"
    assert (await served.fetch("GET", "/dashboard/status", **VIEWER))[0] == 502
