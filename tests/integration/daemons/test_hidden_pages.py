"""Dask's own pages on live servers: found under the secret path, and nowhere else."""

from __future__ import annotations

from distributed import Scheduler, Worker
from tornado.httpclient import AsyncHTTPClient

from dgpunet_dask.daemons.hidden_pages import hide_prefix

SECRET = "ab" * 16
LOUD = ["/", "/sitemap.json", "/health", "/info/main/workers.html", "/status", "/json/counts.json", "/metrics", "//", "/index.html"]


async def told(port, path):
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}{path}", raise_error=False, follow_redirects=False)
    return answer.code, answer.headers.get("Location", ""), answer.body.decode(errors="replace")


async def check(server):
    port = server.http_server.port
    for path in LOUD:
        code, location, body = await told(port, path)
        assert code in {404, 400}, (path, code, location)
        assert SECRET not in location + body, path
    code, _, _ = await told(port, f"/{SECRET}/health")
    assert code == 200


async def test_a_scheduler_tells_nobody_where_its_pages_are():
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", dashboard=True, http_prefix=SECRET) as scheduler:
        assert SECRET in (await told(scheduler.http_server.port, "/"))[1]  # else there is nothing to hide, and the module can go
        hide_prefix(scheduler)
        await check(scheduler)


async def test_a_worker_tells_nobody_where_its_pages_are():
    where = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    async with Scheduler(port=0, dashboard=False, **where) as scheduler, Worker(scheduler.address, dashboard=True, http_prefix=SECRET, **where) as worker:
        hide_prefix(worker)
        await check(worker)
