"""The HTTP API against friends and enemies, over real sockets, with a fake job service behind it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.daemons.api import JSON_BYTES_MAX, WORKLOAD_BYTES_MAX, listen
from dgpunet_dask.errors import BadValue, DgpunetError, NoHead, NoSuchJob, NotAllowed
from tests.unit.daemons.serving import DIGEST, KEY, Served, make_context


@pytest.fixture
async def served(tmp_path):
    stopped = []
    ctx = make_context(tmp_path, stopped)
    server = listen(ctx)
    made = Served(ctx)
    made.stopped = stopped
    yield made
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": None},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEY}x"},
    ],
)
async def test_without_the_key_nothing_is_answered(served, headers):
    for method, path in (("GET", "/v1/status"), ("GET", "/v1/none"), ("POST", "/v1/shutdown"), ("PUT", f"/v1/workloads/{DIGEST}")):
        status, answer = await served.ask(method, path, b"{}", **headers)
        assert status == 401
        assert answer["error"]["code"] == "http_401"
    assert served.stopped == []
    assert served.ctx.service.workloads == {}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}", "[::1]:{port}", ""])
async def test_requests_for_another_host_are_refused(served, host):
    status, _ = await served.ask("GET", "/v1/status", Host=host.format(port=served.ctx.port))
    assert status in {400, 403}


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "file://"])
async def test_requests_from_another_site_are_refused(served, origin):
    status, _ = await served.ask("POST", "/v1/shutdown", b"{}", Origin=origin.format(port=served.ctx.port))
    assert status == 403
    assert served.stopped == []


async def test_own_host_names_and_origin_are_accepted(served):
    for host in ("127.0.0.1", "localhost", "LOCALHOST"):
        own = f"{host}:{served.ctx.port}"
        assert (await served.ask("GET", "/v1/status", Host=own, Origin=f"http://{own}"))[0] == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_body_must_say_that_it_is_json(served, kind):
    assert (await served.ask("POST", "/v1/shutdown", b"{}", **{"Content-Type": kind}))[0] in {400, 415}
    assert served.stopped == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(served, body):
    status, answer = await served.ask("POST", "/v1/jobs", body)
    assert status == 400
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"workload": "w", "user": "a", "user": "b"}', "'user'"),
        (b'{"workload": "w", "params": {"x": [{"y": {"z": 1, "\\u007a": 1}}]}}', "'z'"),
        (b'{"workload": "w", "params": {"\\ud800": 1, "\\ud800": 1}}', r"'\ud800'"),
        (b'{"%(k)s": 1, "%(k)s": 2}' % {b"k": b"k" * 9000}, "'kkk"),
    ],
)
async def test_a_key_that_an_object_has_twice_is_refused_by_its_name(served, body, named):
    status, answer = await served.ask("POST", "/v1/jobs", body)
    assert (status, answer["error"]["code"]) == (400, "bad_value")
    assert named in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 400
    assert served.ctx.service.requests == []


async def test_objects_of_one_body_may_have_the_same_keys(served):
    status, job = await served.ask("POST", "/v1/jobs", b'{"workload": "w", "params": {"workload": [{"a": 1}, {"a": 2}], "a": {"a": 3}}}')
    assert (status, job["params"]) == (201, {"workload": [{"a": 1}, {"a": 2}], "a": {"a": 3}})


async def test_long_bodies_are_refused_before_they_are_read(served):
    status, _ = await served.ask("POST", "/v1/jobs", b"", **{"Content-Length": str(JSON_BYTES_MAX + 1)})
    assert status == 413
    status, _ = await served.ask("PUT", f"/v1/workloads/{DIGEST}", b"", **{"Content-Length": str(WORKLOAD_BYTES_MAX + 1)})
    assert status == 413
    assert served.ctx.service.workloads == {}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/workloads/../../etc/passwd",
        "/v1/workloads/..%2F..%2Fetc%2Fpasswd",
        f"/v1/workloads/{DIGEST}/../x",
        f"/v1/workloads/{DIGEST.upper()}",
        f"/v1/workloads/{DIGEST[:-1]}",
        "/v1/jobs/..%2Fx",
        "/v1/jobs/a%00b",
        "/v1/jobs/" + "x" * 101,
        "/v2/status",
        "/",
    ],
)
async def test_odd_paths_find_nothing(served, path):
    for method in ("GET", "PUT"):
        status, _ = await served.ask(method, path, b"")
        assert status in {404, 405}


@pytest.mark.parametrize("query", ["since=-1", "since=x", "since=nan", "wait=-1", "wait=inf"])
async def test_odd_numbers_are_usage_errors(served, query):
    (job,) = (await served.ctx.service.submit({"workload": "w"})).jobs
    status, answer = await served.ask("GET", f"/v1/jobs/{job.job_id}/events?{query}")
    assert status == 400
    assert answer["error"]["exit_code"] == 2


async def test_broken_bytes_do_not_end_the_server(served):
    for junk in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/jobs HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"\r\n" * 50):
        with socket.create_connection(("127.0.0.1", served.ctx.port)) as raw:
            raw.sendall(junk)
    assert (await served.ask("GET", "/v1/status"))[0] == 200


async def test_jobs_and_workloads_round_trip(served):
    client, threaded = served.client, asyncio.to_thread
    assert not await threaded(client.has_workload, DIGEST)
    await threaded(client.add_workload, DIGEST, b"tar" * 500_000)  # longer than a JSON body may be
    assert await threaded(client.has_workload, DIGEST)
    assert served.ctx.service.workloads[DIGEST] == b"tar" * 500_000
    job = await threaded(client.submit, {"workload": DIGEST})
    assert await threaded(client.show, job.job_id) == job
    assert [j.job_id for j in await threaded(client.jobs)] == [job.job_id]
    assert (await threaded(client.cancel, job.job_id)).state == "cancelled"
    assert await threaded(client.placements, 4) == [{"seq": 5}]
    assert (await threaded(client.plan, {"workload": "w"}))["workload"] == "w"


async def test_events_are_waited_for(served):
    (job,) = (await served.ctx.service.submit({"workload": "w"})).jobs
    waiting = asyncio.create_task(asyncio.to_thread(served.client.events, job.job_id, 1, 30.0))
    while not served.ctx.service.changed._waiters:  # noqa: ASYNC110  # until the question has arrived
        await asyncio.sleep(0.01)
    served.ctx.service.tell(job.job_id, kind="progress", done=1)
    assert await waiting == [{"seq": 2, "kind": "progress", "done": 1}]
    assert await asyncio.to_thread(served.client.events, job.job_id, 2, 0.05) == []


async def test_errors_arrive_as_what_they_are(served):
    with pytest.raises(NoSuchJob) as missing:
        await asyncio.to_thread(served.client.show, "none")
    assert missing.value.exit_code == 102
    assert str(missing.value) == str(NoSuchJob(job_id="none"))
    with pytest.raises(BadValue):
        await asyncio.to_thread(served.client.submit, {})
    with pytest.raises(NotAllowed, match="DGPUNET_API_KEY"):
        await asyncio.to_thread(ApiClient(served.client.api, "wrong").status)


async def test_what_nobody_expected_is_told_and_logged(served, caplog):
    async def broken():
        raise RuntimeError("wires crossed")

    served.ctx.status = broken
    with pytest.raises(DgpunetError, match="wires crossed"):
        await asyncio.to_thread(served.client.status)
    assert "wires crossed" in caplog.text


async def test_the_last_lease_stops_an_embedded_head(served):
    first, second = [await asyncio.to_thread(served.client.lease) for _ in range(2)]
    assert not await asyncio.to_thread(first.close)
    assert served.stopped == []
    assert await asyncio.to_thread(second.close)
    assert len(served.stopped) == 1
    with pytest.raises(DgpunetError):
        await asyncio.to_thread(served.client.lease)
    with pytest.raises(DgpunetError):
        await asyncio.to_thread(served.client.keep)


async def test_a_cut_connection_ends_its_lease(served):
    lease = await asyncio.to_thread(served.client.lease)
    lease._response.close()
    lease._connection.__exit__(None, None, None)
    while not served.stopped:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)
    assert served.ctx.leases == set()


async def test_a_kept_head_outlives_its_leases(served):
    lease = await asyncio.to_thread(served.client.lease)
    await asyncio.to_thread(served.client.keep)
    assert not await asyncio.to_thread(lease.close)
    assert served.stopped == []


async def test_shutdown_answers_first(served):
    await asyncio.to_thread(served.client.shutdown)
    assert served.stopped == ["asked to stop"]


async def test_a_length_that_is_no_number_is_refused(served):
    for length in ("many", "-1", "+1", "1e3"):
        status, _ = await served.ask("PUT", f"/v1/workloads/{DIGEST}", b"", **{"Content-Length": length})
        assert status == 400, length


@pytest.mark.parametrize("answer", [b"HTTP/1.0 200 OK\r\n\r\n<html>", b"HTTP/1.0 404 Not Found\r\n\r\nnothing here"])
async def test_a_server_that_is_no_head_is_told_as_none(answer):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = ApiClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY)
        with pytest.raises(NoHead):
            await asyncio.to_thread(client.status)


def test_nothing_answers():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NoHead):
            ApiClient(f"http://127.0.0.1:{taken.getsockname()[1]}", KEY).status()


def test_a_server_that_speaks_no_http():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = ApiClient(f"http://127.0.0.1:{server.getsockname()[1]}", KEY)
        with pytest.raises(NoHead), socket.create_connection(server.getsockname()):
            import threading

            threading.Thread(target=lambda: [server.accept()[0].close() for _ in range(2)], daemon=True).start()
            client.status()


async def test_the_policy_is_told_and_read_at_once_when_asked(served):
    assert await asyncio.to_thread(served.client.policy) == {"digest": "old"}
    assert await asyncio.to_thread(served.client.reload_policy) == {"digest": "new"}


async def test_why_is_answered_for_the_fleet_a_demand_and_a_job(served):
    assert await asyncio.to_thread(served.client.fleet) == {"devices": []}
    assert await asyncio.to_thread(served.client.explain, {"vram": "1GiB"}) == {"demand": {"vram": "1GiB"}}
    (job,) = (await served.ctx.service.submit({"workload": "w"})).jobs
    assert await asyncio.to_thread(served.client.explain_job, job.job_id) == {"job_id": job.job_id}
