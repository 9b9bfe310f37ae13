"""Requests that mean two things, never end, or come from a page of another site."""

from __future__ import annotations

import asyncio
import json

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from dgpunet_dask.daemons.api import JSON_BYTES_MAX, bodies, listen
from dgpunet_dask.daemons.api import server as server_module
from tests.integration.api.talk import Talk
from tests.unit.daemons.serving import DIGEST, KEY

ANN = {"Authorization": "Bearer ann:submitter"}
ROOT = {"Authorization": "Bearer root:operator"}
#: What a smuggler wants to be read as a request of its own.
HIDDEN = b"POST /v1/shutdown HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer root:operator\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def framed(port, lines, body):
    head = ["POST /v1/jobs HTTP/1.1", f"Host: 127.0.0.1:{port}", "Authorization: Bearer ann:submitter", "Content-Type: application/json", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


SMUGGLED = {
    "length and chunks": (["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n"),
    "chunks and length": (["Transfer-Encoding: chunked", "Content-Length: 999"], b"0\r\n\r\n"),
    "two lengths": (["Content-Length: 0", "Content-Length: 300"], b""),
    "a list of lengths": (["Content-Length: 0, 300"], b""),
    "other chunks": (["Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
    "chunks twice": (["Transfer-Encoding: chunked, chunked"], b"0\r\n\r\n"),
    "identity": (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], b"0\r\n\r\n"),
    "a space before the colon": (["Content-Length : 0"], b""),
    "a sign": (["Content-Length: +0"], b""),
    "hexadecimal": (["Content-Length: 0x0"], b""),
    "a bad chunk": (["Transfer-Encoding: chunked"], b"zz\r\n\r\n"),
    "two hosts": (["Host: evil.example", "Content-Length: 0"], b""),
    "two keys": (["Authorization: Bearer root:operator", "Content-Length: 0"], b""),
    "a body of two types": (["Content-Type: text/plain", "Content-Length: 0"], b""),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(site, name):
    lines, body = SMUGGLED[name]
    talk = await Talk.open(site.ctx.port)
    talk.writer.write(framed(site.ctx.port, lines, body) + HIDDEN % site.ctx.port)
    got = await talk.rest()
    await talk.close()
    assert got.count(b"HTTP/1.1 ") == 1, got
    assert got.startswith(b"HTTP/1.1 400 "), got
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "http_400"
    assert not site.ctx.stopping
    assert site.ctx.service.jobs == {}


async def test_requests_one_behind_the_other_are_answered_in_order(site):
    talk = await Talk.open(site.ctx.port)
    for n in range(20):
        talk.send("GET", f"/v1/jobs/job-{n}", **ANN)
    answers = [await talk.answer() for _ in range(20)]
    assert [f"job-{n}'" in answer.json["error"]["message"] or f"job-{n} " in answer.json["error"]["message"] for n, answer in enumerate(answers)] == [True] * 20
    await talk.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_long_is_cut_off(site, chunked, monkeypatch):
    monkeypatch.setattr(server_module, "LINGER_S", 0.3)
    talk = await Talk.open(site.ctx.port)
    if chunked:
        talk.send("POST", "/v1/jobs", **{"Content-Length": None, "Transfer-Encoding": "chunked"}, **ANN)
        for _ in range(JSON_BYTES_MAX // 65536 + 2):
            talk.writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    else:
        talk.send("POST", "/v1/jobs", **{"Content-Length": str(1 << 40)}, **ANN)
    answer = await asyncio.wait_for(talk.answer(), 10)
    assert (answer.status, answer.json["error"]["code"]) == (413, "http_413")
    assert await talk.rest() == b""  # what goes on to come is let in for a moment only
    await talk.close()


async def test_a_long_head_is_refused(site):
    talk = await Talk.open(site.ctx.port)
    talk.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 20))
    got = await talk.rest()
    assert got.startswith(b"HTTP/1.1 400 ") or got == b""
    await talk.close()


async def drips(talk, text, ended):
    """Send a byte now and then, until the server has had enough."""
    try:
        for byte in text:
            talk.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
            if talk.reader.at_eof() or talk.writer.is_closing():
                break
    except OSError:
        pass
    ended.set()


async def test_who_drips_holds_nobody_and_is_let_go(site, way, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_S", 1.0)
    monkeypatch.setattr(bodies, "BODY_S", 1.0)
    monkeypatch.setattr(bodies, "SLOWEST_BYTES_PER_S", 1 << 40)
    port, context = way
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer ann:submitter\r\nContent-Type: application/json\r\n"
    slow, ended = [await Talk.open(port, context) for _ in range(40)], [asyncio.Event() for _ in range(40)]
    for talk in slow[20:]:
        talk.writer.write(head.encode() + b"Content-Length: 100000\r\n\r\n")
    dripping = [asyncio.create_task(drips(talk, b"x" * 1000, end)) for talk, end in zip(slow, ended, strict=True)]
    fast = await Talk.open(port, context)
    loop = asyncio.get_running_loop()
    for _ in range(20):
        began = loop.time()
        assert (await fast.ask("GET", "/v1/status", **ANN)).status == 200
        assert loop.time() - began < 1.0
    got = await asyncio.gather(*(talk.rest(20) for talk in slow))
    assert set(got[:20]) == {b""}
    assert all(text.startswith(b"HTTP/1.1 408 ") for text in got[20:])
    for task in dripping:
        task.cancel()
    assert site.ctx.service.jobs == {}
    for talk in [*slow, fast]:
        await talk.close()


async def test_a_connection_without_a_request_is_let_go(site, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_S", 0.2)
    monkeypatch.setattr(server_module, "IDLE_S", 0.4)
    silent, used = await Talk.open(site.ctx.port), await Talk.open(site.ctx.port)
    assert (await used.ask("GET", "/v1/status", **ANN)).status == 200
    assert await silent.rest() == await used.rest() == b""
    await silent.close()
    await used.close()


async def test_an_upload_that_breaks_off_leaves_nothing(site):
    talk = await Talk.open(site.ctx.port)
    talk.send("PUT", f"/v1/workloads/{DIGEST}", **{"Content-Length": "1000000"}, **ROOT)
    talk.writer.write(b"x" * 1000)
    await talk.writer.drain()
    while not site.ctx.uploads.exists():  # noqa: ASYNC110  # until it has begun
        await asyncio.sleep(0.01)
    await talk.close()
    other = await Talk.open(site.ctx.port)
    assert (await other.ask("GET", "/v1/status", **ANN)).status == 200
    assert site.ctx.service.workloads == {}
    assert [f for f in site.ctx.uploads.iterdir() if f.is_file() and f.stat().st_size] == []
    await other.close()


async def test_who_does_not_read_is_let_go(site, monkeypatch):
    monkeypatch.setattr(server_module, "UNREAD_S", 0.3)

    async def much():
        return {"text": "x" * (32 << 20)}

    site.ctx.status = much
    talk = await Talk.open(site.ctx.port)
    talk.send("GET", "/v1/status", **ANN)
    talk.writer.transport.pause_reading()
    await asyncio.sleep(1.0)  # longer than it may take not to read
    talk.writer.transport.resume_reading()
    assert len(await talk.rest()) < 32 << 20
    await talk.close()


# Pages of other sites

NAMES = ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1:1", "127.0.0.1", "127.0.0.1:{port}@evil.example", "[::1]:{port}", "2130706433:{port}", ""]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", ["/v1/status", "/v1/ca", "/login", "/openapi.json", "/dashboard/status", "/none"])
async def test_a_name_that_leads_here_by_rebinding_opens_nothing(site, way, name, path):
    port, context = way
    talk = await Talk.open(port, context)
    answer = await talk.ask("GET", path, Host=name.format(port=port), **ROOT)
    assert (answer.status, answer.json["error"]["message"]) == (403, "unknown Host header")
    await talk.close()


async def test_an_address_in_the_request_line_does_not_stand_for_the_host(site):
    talk = await Talk.open(site.ctx.port)
    for path in (f"http://127.0.0.1:{site.ctx.port}/v1/status", "http://evil.example/v1/status", "//evil.example/v1/status", "*"):
        assert (await talk.ask("GET", path, **ROOT)).status == 404
    await talk.close()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "file://", ""])
async def test_a_page_of_another_site_gets_no_websocket(site, origin):
    site.ctx.dashboard_upstream = lambda: "http://127.0.0.1:9/x"
    url = f"ws://127.0.0.1:{site.ctx.port}/dashboard/status/ws"
    with pytest.raises(HTTPClientError) as refused:
        await websocket_connect(HTTPRequest(url, headers={**ROOT, "Origin": origin.format(port=site.ctx.port)}))
    assert refused.value.code == 403
    with pytest.raises(HTTPClientError) as refused:
        await websocket_connect(HTTPRequest(url, headers={**ROOT, "Host": f"evil.example:{site.ctx.port}"}))
    assert refused.value.code == 403


async def test_only_the_dashboard_has_websockets(site):
    for path, code in (("/v1/status", 400), ("/v1/jobs", 400), ("/none", 404), ("/login", 400)):
        with pytest.raises(HTTPClientError) as refused:
            await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{site.ctx.port}{path}", headers=ROOT))
        assert refused.value.code == code
    with pytest.raises(HTTPClientError) as refused:
        await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{site.ctx.port}/v1/status"))
    assert refused.value.code == 401


async def test_the_end_of_the_server_ends_what_hangs_on_it(site):
    server = listen(site.ctx)
    lease, idle = await Talk.open(site.ctx.port), await Talk.open(site.ctx.port)
    lease.send("GET", "/v1/lease", Authorization=f"Bearer {KEY}")
    while not site.ctx.leases:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)
    server.stop()
    await server.close_all_connections()
    assert site.ctx.leases == set()
    assert b'{"lease"' in await lease.rest()
    assert await idle.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await Talk.open(site.ctx.port)
    await lease.close()
    await idle.close()
