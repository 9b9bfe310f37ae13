"""Two hundred clients at once: everybody is served, and memory stays where it is."""

from __future__ import annotations

import asyncio
from collections import Counter

import psutil
import pytest

from dgpunet_dask.daemons.api import server as server_module
from dgpunet_dask.daemons.api.limits import WAITING_MAX, Open
from tests.integration.api.talk import Talk

CLIENTS = 200
MIB = 1 << 20


def key(n):
    return {"Authorization": f"Bearer user-{n}:submitter"}


async def work(talk, n, rounds):
    """Submit, look and list, over and over; return the statuses."""
    found = []
    for r in range(rounds):
        found.append((await talk.ask("POST", "/v1/jobs", b'{"workload": "w", "params": {"text": "%s"}}' % (b"x" * 2000), **key(n))).status)
        found.append((await talk.ask("GET", f"/v1/jobs?owner=user-{n}&limit=2", **key(n))).status)
        found.append((await talk.ask("GET", "/v1/status", **key(n))).status)
        if r % 2:
            found.append((await talk.ask("GET", "/v1/jobs/none", **key(n))).status)
    return found


async def stays(port, context, n, rounds):
    """Ask over one connection."""
    talk = await Talk.open(port, context)
    try:
        return await work(talk, n, rounds)
    finally:
        await talk.close()


async def comes_again(port, context, n, rounds):
    """Ask over a new connection each time."""
    found = []
    for _ in range(rounds):
        found += await stays(port, context, n, 1)
    return found


@pytest.mark.long
@pytest.mark.parametrize("how", [stays, comes_again])
async def test_two_hundred_clients_are_served(site, way, how):
    port, context = way
    await how(port, context, 0, 2)
    before = psutil.Process().memory_info().rss
    crowd = await asyncio.gather(*(how(port, context, n, 4) for n in range(CLIENTS)))
    statuses = Counter(status for found in crowd for status in found)
    assert set(statuses) <= {200, 201, 404}, statuses
    assert statuses[201] == CLIENTS * 4
    assert len(site.ctx.service.jobs) == CLIENTS * 4 + 2
    assert psutil.Process().memory_info().rss - before < 200 * MIB


async def test_two_hundred_wait_for_events_and_one_asks_meanwhile(site):
    """Waiting costs no thread: who asks is answered at once."""
    (job,) = (await site.ctx.service.submit({"workload": "w", "shared": True})).jobs
    port = site.ctx.port
    talks = [await Talk.open(port) for _ in range(CLIENTS)]
    for n, talk in enumerate(talks):
        talk.send("GET", f"/v1/jobs/{job.job_id}/events?since=1&wait=50", **key(n))
    while len(site.ctx.service.changed._waiters) < CLIENTS:  # noqa: ASYNC110  # until all questions have arrived
        await asyncio.sleep(0.01)
    asking = await Talk.open(port)
    assert (await asking.ask("GET", "/v1/status", **key(0))).status == 200
    site.ctx.service.tell(job.job_id, kind="progress", done=1)
    answers = await asyncio.gather(*(talk.answer() for talk in talks))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.json == [{"seq": 2, "kind": "progress", "done": 1}] for answer in answers)
    for talk in [*talks, asking]:
        await talk.close()


async def test_with_too_many_connections_the_oldest_idle_one_makes_room(site, monkeypatch):
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 5)
    (job,) = (await site.ctx.service.submit({"workload": "w", "shared": True})).jobs
    busy = await Talk.open(site.ctx.port)
    busy.send("GET", f"/v1/jobs/{job.job_id}/events?since=1&wait=50", **key(0))
    idle = []
    for n in range(6):
        talk = await Talk.open(site.ctx.port)
        assert (await talk.ask("GET", "/v1/status", **key(n))).status == 200
        idle.append(talk)
    assert [await talk.rest() for talk in idle[:2]] == [b"", b""]
    assert (await idle[-1].ask("GET", "/v1/status", **key(1))).status == 200
    site.ctx.service.tell(job.job_id, kind="progress")
    assert (await busy.answer()).status == 200
    for talk in [busy, *idle]:
        await talk.close()


async def test_who_waits_for_events_on_every_connection_locks_nobody_out(site, monkeypatch):
    """One user waits as often as the listener takes connections: beyond his bound he is refused, so that operators and hosts are answered."""
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 80)
    (job,) = (await site.ctx.service.submit({"workload": "w", "shared": True})).jobs
    port, tls = site.ctx.tls_port, site.client_context
    waiting, refused = [], []
    for _ in range(90):
        talk = await Talk.open(port, tls)
        talk.send("GET", f"/v1/jobs/{job.job_id}/events?since=99999999&wait=60", **key(0))
        waiting.append(talk)
        if len(waiting) > WAITING_MAX:
            refused.append(await talk.answer())
    assert {(answer.status, answer.headers["retry-after"]) for answer in refused} == {(429, "3")}
    user, operator = await Talk.open(port, tls), await Talk.open(port, tls)
    assert (await user.ask("GET", f"/v1/jobs/{job.job_id}", **key(0))).status == 200
    assert (await operator.ask("GET", "/v1/status", Authorization="Bearer op:operator")).status == 200
    host = await Talk.open(port, site.identity("node-a").client_context())
    assert (await host.ask("POST", "/v1/agents/heartbeat", b"{}")).status == 200
    for talk in [*waiting, user, operator, host]:
        await talk.close()


async def test_bodies_that_do_not_come_are_bounded_for_each_address_also_where_no_key_is_asked_for(site):
    site.ctx.open = Open(user=9, address=2, all=9)
    port, tls = site.ctx.tls_port, site.client_context
    slow = [await Talk.open(port, tls) for _ in range(2)]
    for talk in slow:
        talk.send("POST", "/v1/join", **{"Content-Length": "100"})
    await until_open(site, 2)
    other = await Talk.open(port, tls)
    assert (await other.ask("GET", "/v1/status", **key(0))).status == 429
    for talk in slow:
        await talk.close()
    await until_open(site, 0)
    assert (await other.ask("GET", "/v1/status", **key(0))).status == 200
    await other.close()


async def until_open(site, count):
    async with asyncio.timeout(20):
        while site.ctx.open._open.total() != 2 * count:  # noqa: ASYNC110  # each counts for its address and for all
            await asyncio.sleep(0.01)


async def test_a_host_is_let_in_where_no_connection_is_idle(site, monkeypatch):
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 3)
    (job,) = (await site.ctx.service.submit({"workload": "w", "shared": True})).jobs
    busy = [await Talk.open(site.ctx.tls_port, site.client_context) for _ in range(3)]
    for talk in busy:
        talk.send("GET", f"/v1/jobs/{job.job_id}/events?since=1&wait=50", **key(0))
    while len(site.ctx.service.changed._waiters) < len(busy):  # noqa: ASYNC110  # until all questions have arrived
        await asyncio.sleep(0.01)
    host = await Talk.open(site.ctx.tls_port, site.identity("node-a").client_context())
    assert (await host.ask("POST", "/v1/agents/heartbeat", b"{}")).status == 200
    for talk in [*busy, host]:
        await talk.close()


async def test_no_answer_is_held_back_until_the_one_before_is_acknowledged(site):
    """Head and body of an answer are two writes: without TCP_NODELAY the second waits some 40 ms for the client's delayed acknowledgement."""
    talk, took = await Talk.open(site.ctx.port), []
    loop = asyncio.get_running_loop()
    for _ in range(30):
        began = loop.time()
        assert (await talk.ask("GET", "/v1/status", **key(0))).status == 200
        took.append(loop.time() - began)
    assert sorted(took)[10] < 0.03
    await talk.close()
