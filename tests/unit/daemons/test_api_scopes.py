"""Who may what on the API: scopes, owners, hosts, and those who guess."""

from __future__ import annotations

import asyncio
import re

import pytest

from dgpunet_dask.daemons.api import listen
from dgpunet_dask.daemons.api.callers import Caller, Peer, caller_of, refusal
from dgpunet_dask.daemons.api.limits import FAILURES_MAX, WINDOW_S, Attempts, Open
from dgpunet_dask.daemons.api.routes import ROUTES
from dgpunet_dask.daemons.api.sessions import Sessions
from dgpunet_dask.errors import BadValue, LoopbackOnly, NoSuchJob, NotAllowed, OtherUser, TokenRefused
from dgpunet_dask.model.job import JobStatus
from dgpunet_dask.security.keys import SCOPES
from tests.unit.daemons.serving import KEY, FakeKeys, FakeMembership, Served, make_context

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: What the table must say, written a second time: a route that changes its scope has to change it here as well.
WANTED = {
    "GET /v1/status": "viewer", "GET /v1/placements": "operator", "GET /v1/fleet": "viewer", "GET /v1/policy": "viewer",
    "POST /v1/policy/reload": "operator", "GET /v1/lease": "operator", "POST /v1/lease/1/release": "operator", "POST /v1/keep": "operator",
    "POST /v1/shutdown": "operator", "GET /v1/jobs": "viewer", "POST /v1/jobs": "submitter", "POST /v1/plan": "submitter",
    "POST /v1/explain": "viewer", "GET /v1/jobs/j": "viewer", "GET /v1/jobs/j/events": "viewer", "GET /v1/jobs/j/explain": "viewer",
    "POST /v1/jobs/j/cancel": "submitter", "HEAD /v1/workloads/D": "submitter", "PUT /v1/workloads/D": "operator", "POST /v1/jobs/j/retry": "submitter",
    "GET /v1/jobs/j/progress": "viewer", "GET /v1/jobs/j/attempts": "viewer", "GET /openapi.json": "viewer",
    "GET /v1/indexes": "viewer", "GET /v1/indexes/i": "viewer", "DELETE /v1/indexes/i": "submitter", "POST /v1/indexes/i/search": "viewer",
    "POST /v1/indexes/i/lines": "viewer", "POST /v1/indexes/i/verify": "submitter", "POST /v1/indexes/i/compact": "submitter", "POST /v1/indexes/i/share": "submitter", "GET /v1/models": "viewer", "POST /v1/models/m/share": "submitter",
    "GET /v1/ca": "public", "POST /v1/join": "public", "POST /v1/join/check": "public", "POST /v1/agents/heartbeat": "agent", "POST /v1/agents/renew": "agent",
    "POST /v1/agents/me": "agent",
    "POST /v1/agents/leave": "agent", "GET /v1/nodes": "viewer", "POST /v1/nodes/n/cordon": "operator",
    "POST /v1/nodes/n/uncordon": "operator", "POST /v1/nodes/n/drain": "operator", "POST /v1/nodes/n/remove": "operator",
    "GET /v1/doctor": "operator", "GET /v1/tokens": "operator", "POST /v1/tokens": "operator", "POST /v1/tokens/t/revoke": "operator",
    "GET /v1/keys": "operator", "POST /v1/keys": "operator", "POST /v1/keys/k/revoke": "operator",
    "GET /login": "public", "POST /login": "public", "POST /logout": "public", "GET /dashboard/status": "viewer",
    "HEAD /dashboard/status": "viewer", "GET /dashboard/status/ws": "viewer",
}  # fmt: skip


def path_of(wanted):
    return wanted.partition(" ")[2].replace("/D", "/" + "ab" * 32)


@pytest.fixture
async def served(tmp_path):
    stopped = []
    ctx = make_context(tmp_path, stopped, keys=FakeKeys(), membership=FakeMembership(), user="owner")
    server = listen(ctx)
    made = Served(ctx)
    made.stopped = stopped
    yield made
    server.stop()
    await server.close_all_connections()


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_every_route_says_what_each_method_asks_for():
    known = {"public", "agent", *SCOPES}
    for route in ROUTES:
        assert route.needs, route.path
        assert set(route.needs.values()) <= known, route.path
        assert any(re.fullmatch(route.path, path_of(wanted)) for wanted in WANTED), f"{route.path} is not in WANTED"


def test_the_table_is_as_wanted():
    found = {}
    for wanted in WANTED:
        route = next(r for r in ROUTES if re.fullmatch(r.path, path_of(wanted)))
        found[wanted] = route.needs.get(wanted.partition(" ")[0])
    assert found == WANTED
    listed = [(r.path, m) for r in ROUTES for m in r.needs]
    covered = {(r.path, m) for r in ROUTES for m in r.needs for w in WANTED if w.startswith(m + " ") and re.fullmatch(r.path, path_of(w))}
    assert sorted(listed) == sorted(covered)


@pytest.mark.parametrize("wanted", sorted({w.partition(" ")[2] for w in WANTED}))
async def test_methods_that_are_not_listed_are_refused(served, wanted):
    path = path_of(" " + wanted)
    for method in (*METHODS, "TRACE", "PROPFIND"):
        if f"{method} {wanted}" not in WANTED:
            status, _, _ = await served.fetch(method, path, b"{}")
            assert status == 405, (method, path)
            status, _, _ = await served.fetch(method, path, b"{}", Authorization=None)
            assert status in {401, 405}, (method, path)
    assert served.stopped == []
    assert served.ctx.membership.calls == []


@pytest.mark.parametrize("scope", [None, "viewer", "submitter", "unheard-of"])
async def test_too_small_a_scope_is_refused_with_the_reason(served, scope):
    may = SCOPES[: SCOPES.index(scope) + 1] if scope in SCOPES else ()
    for wanted, need in WANTED.items():
        if need == "public" or need in may:
            continue
        method, _, _ = wanted.partition(" ")
        status, _, text = await served.fetch(method, path_of(wanted), b"{}", **bearer(f"ann:{scope}" if scope else "nobody"))
        assert status == (403 if scope else 401), wanted
        if scope and method != "HEAD":
            assert b"not_allowed" in text
            assert f"scope is {scope}".encode() in text or b"certificate" in text
        served.ctx.attempts = Attempts()
    assert served.stopped == []
    assert served.ctx.membership.calls == []
    assert served.ctx.service.jobs == {}


async def test_no_key_of_any_scope_opens_the_routes_of_agents(served):
    for key in (KEY, "ann:operator"):
        for path in ("heartbeat", "me", "renew", "leave"):
            status, answer = await served.ask("POST", f"/v1/agents/{path}", b"{}", **bearer(key))
            assert (status, answer["error"]["code"]) == (403, "not_allowed")
    assert served.ctx.membership.calls == []


async def test_jobs_belong_to_who_submits_them(served):
    ann, bob, root = (served.as_user(key) for key in ("ann:submitter", "bob:submitter", "root:operator"))
    threaded = asyncio.to_thread
    with pytest.raises(OtherUser, match="bob"):  # said, and not passed over
        await threaded(ann.submit, {"workload": "w", "user": "bob"})
    job = await threaded(ann.submit, {"workload": "w", "user": "ann"})
    assert job.owner == "ann"
    assert [j.job_id for j in await threaded(ann.jobs)] == [job.job_id]
    assert await threaded(bob.jobs) == []
    for ask in (bob.show, bob.events, bob.cancel, bob.explain_job):
        with pytest.raises(NoSuchJob) as hidden:
            await threaded(ask, job.job_id)
        with pytest.raises(NoSuchJob) as missing:
            await threaded(ask, "job-9")
        assert str(hidden.value).replace(job.job_id, "job-9") == str(missing.value)
    assert (await threaded(root.show, job.job_id)).owner == "ann"
    assert (await threaded(ann.cancel, job.job_id)).state == "cancelled"


async def test_an_operator_submits_for_others_and_is_the_owner_otherwise(served):
    assert (await asyncio.to_thread(served.client.submit, {"workload": "w", "user": "bob"})).owner == "bob"
    assert (await asyncio.to_thread(served.client.submit, {"workload": "w"})).owner == "owner"
    assert (await asyncio.to_thread(served.as_user("root:operator").submit, {"workload": "w"})).owner == "root"


async def test_who_operates_is_said_by_the_key_and_not_by_the_request(served):
    for key, operates in (("ann:submitter", False), ("root:operator", True), (KEY, True)):
        await asyncio.to_thread(served.as_user(key).submit, {"workload": "w"})
        assert served.ctx.service.requests.pop()["operates"] is operates
        for said in (True, False, None):
            with pytest.raises(BadValue, match="operates"):
                await asyncio.to_thread(served.as_user(key).submit, {"workload": "w", "operates": said})
    assert served.ctx.service.requests == []


async def test_a_shared_job_is_read_by_all_and_cancelled_by_its_owner(served):
    ann, bob = served.as_user("ann:submitter"), served.as_user("bob:submitter")
    job = await asyncio.to_thread(ann.submit, {"workload": "w", "shared": True})
    assert [j.job_id for j in await asyncio.to_thread(served.as_user("eve:viewer").jobs)] == [job.job_id]
    assert await asyncio.to_thread(bob.events, job.job_id)
    with pytest.raises(NotAllowed, match="another user's"):
        await asyncio.to_thread(bob.cancel, job.job_id)
    assert (await asyncio.to_thread(ann.show, job.job_id)).state == "running"
    with pytest.raises(BadValue, match="shared"):
        await asyncio.to_thread(ann.submit, {"workload": "w", "shared": "yes"})


def test_a_job_without_an_owner_is_the_operators():
    job = JobStatus(job_id="j", workload="w", state="done")
    assert not Caller("ann", "submitter").sees(job)
    assert not Caller(None, "viewer").sees(job)
    assert Caller(None, "operator").sees(job)


async def test_operators_act_on_the_cluster(served):
    root, calls = served.as_user("root:operator"), served.ctx.membership.calls
    threaded = asyncio.to_thread
    assert await threaded(root.nodes) == [{"host": "node-a"}]
    assert await threaded(root.node_action, "node-a", "drain", {"deadline_s": 5}) == {"did": "drain"}
    assert await threaded(root.doctor, {"hosts": ["a&b", "c"], "bandwidth": True}) == {"did": "doctor"}
    assert await threaded(root.token_create, {"host": "node-b", "ttl_s": 60}) == {"did": "token_create"}
    assert await threaded(root.tokens) == [{"id": "t1"}]
    assert await threaded(root.token_revoke, "t1") == {"did": "token_revoke"}
    assert await threaded(root.key_create, {"user": "ann", "scope": "viewer"}) == {"did": "key_create"}
    assert await threaded(root.keys) == [{"id": "k1"}]
    assert await threaded(root.key_revoke, "k1") == {"did": "key_revoke"}
    assert calls == [
        ("drain", "node-a", {"deadline_s": 5}), ("doctor", {"hosts": ["a&b", "c"], "bandwidth": True}),
        ("token_create", {"host": "node-b", "ttl_s": 60}), ("token_revoke", "t1"), ("key_create", {"user": "ann", "scope": "viewer"}),
        ("key_revoke", "k1"),
    ]  # fmt: skip
    assert (await served.ask("POST", "/v1/nodes/node-a/destroy", b"{}"))[0] == 404
    assert (await served.ask("GET", "/v1/doctor?hosts=[1"))[0] == 400


async def test_without_other_machines_their_routes_name_the_cure(served):
    served.ctx.membership = None
    for method, path in (("GET", "/v1/nodes"), ("POST", "/v1/tokens"), ("GET", "/v1/keys"), ("GET", "/v1/ca"), ("POST", "/v1/join")):
        status, answer = await served.ask(method, path, b'{"host": "node-a"}')
        assert status == 409
        assert "dgpunet-dask head" in answer["error"]["message"]
    with pytest.raises(LoopbackOnly) as told:
        await asyncio.to_thread(served.client.token_create, {"host": "a"})
    assert told.value.exit_code == 2


async def test_the_authority_is_public_and_joining_takes_a_token(served):
    status, headers, text = await served.fetch("GET", "/v1/ca", Authorization=None)
    assert (status, text.decode()) == (200, served.ctx.membership.ca)
    assert headers["Content-Type"].startswith("text/plain")
    status, answer = await served.ask("POST", "/v1/join", b'{"token": "good"}', Authorization=None)
    assert (status, answer) == (200, {"did": "enrol"})
    status, answer = await served.ask("POST", "/v1/join/check", b'{"token": "good"}', Authorization=None)
    assert (status, answer) == (200, {"did": "join_check"})
    assert served.ctx.membership.calls == [(did, {"token": "good"}, "127.0.0.1") for did in ("enrol", "join_check")]


async def test_guessing_is_stopped_for_the_address_and_not_for_this_machines_own_commands(served):
    for n in range(FAILURES_MAX):
        status, _ = await served.ask("GET", "/v1/status", **bearer(f"guess-{n}"))
        assert status == 401
    for key in ("guess", "ann:viewer"):
        status, headers, _ = await served.fetch("GET", "/v1/status", **bearer(key))
        assert status == 429
        assert 0 < int(headers["Retry-After"]) <= WINDOW_S + 1
    assert (await served.ask("POST", "/v1/join", b'{"token": "good"}', Authorization=None))[0] == 429
    assert (await served.ask("POST", "/login", b"key=ann:viewer", **{"Content-Type": "application/x-www-form-urlencoded"}))[0] == 429
    assert (await served.ask("GET", "/v1/status"))[0] == 200
    assert served.ctx.membership.calls == []


@pytest.mark.parametrize("path", ["/v1/join", "/v1/join/check"])
async def test_refused_tokens_count_as_guesses(served, path):
    with pytest.raises(TokenRefused, match="used already"):
        await asyncio.to_thread(served.client._json, "POST", path, {"token": "bad"})
    for _ in range(FAILURES_MAX - 1):
        assert (await served.ask("POST", path, b"{}", Authorization=None))[0] == 403
    for either in ("/v1/join", "/v1/join/check"):
        assert (await served.ask("POST", either, b'{"token": "good"}', Authorization=None))[0] == 429


def test_attempts_are_forgotten_in_time_and_never_fill_the_memory():
    attempts = Attempts(most=3, window_s=10, peers=5)
    for at in (0.0, 1.0, 2.0):
        assert attempts.wait_s("a", at) == 0
        attempts.failed("a", at)
    assert attempts.wait_s("a", 4.0) == 6.0
    assert attempts.wait_s("a", 10.5) == 0
    for n in range(1000):
        attempts.failed(f"peer-{n}", 20.0)
    assert len(attempts._failed) == 5
    assert attempts.wait_s("a", 3.0) == 0


def test_sessions_end_in_time_and_never_fill_the_memory():
    numbers = iter(range(100))
    sessions = Sessions(lambda: f"session-{next(numbers)}", life_s=10, most=3)
    first = sessions.begin("key", 0.0)
    assert sessions.key(first, 9.9) == "key"
    assert sessions.key(first, 10.0) is None
    assert sessions.key("", 0.0) is None
    others = [sessions.begin(f"key-{n}", 20.0) for n in range(4)]
    assert [sessions.key(session, 21.0) for session in others] == [None, "key-1", "key-2", "key-3"]
    sessions.end(others[3])
    assert sessions.key(others[3], 21.0) is None


def certificate(host="node-a", role="node", until="Jan  1 00:00:00 2030 GMT"):
    subject = tuple(((name, value),) for name, value in (("commonName", host), ("organizationalUnitName", role)) if value)
    return {"subject": subject, "notAfter": until}


NOW = 1.8e9  # in 2027


def test_who_asks():
    keys, local = FakeKeys(), (KEY, "me")
    assert caller_of(f"Bearer {KEY}", None, local, keys, NOW) == Caller("me", "operator")
    assert caller_of(f"Bearer {KEY}", None, None, keys, NOW) is None
    assert caller_of("Bearer ann:viewer", None, local, keys, NOW) == Caller("ann", "viewer")
    assert caller_of("Bearer ann:viewer", None, local, None, NOW) is None
    assert caller_of("bearer ann:viewer", None, local, keys, NOW) is None
    assert caller_of("", None, local, keys, NOW) is None
    assert caller_of(None, None, local, keys, NOW) is None
    assert caller_of(None, certificate(), local, keys, NOW) == Peer("node-a", "node")
    assert caller_of("Bearer wrong", certificate(), local, keys, NOW) is None  # a certificate makes no wrong key good
    assert caller_of("Bearer ann:viewer", certificate(), local, keys, NOW) == Caller("ann", "viewer")


@pytest.mark.parametrize("bad", [certificate(host=""), certificate(role=""), certificate(until="Jan  1 00:00:00 2020 GMT"), {"notAfter": "Jan  1 00:00:00 2030 GMT"}])
def test_a_certificate_without_a_host_or_out_of_date_is_nobodys(bad):
    assert caller_of(None, bad, None, None, NOW) is None


@pytest.mark.parametrize(("asker", "need", "allowed"), [
    (Peer("a", "node"), "agent", True), (Peer("a", "head"), "agent", True), (Peer("a", "client"), "agent", False),
    (Peer("a", "node"), "viewer", False), (Peer("a", "head"), "operator", False), (Caller("a", "operator"), "agent", False),
    (Caller("a", "operator"), "viewer", True), (Caller("a", "viewer"), "submitter", False), (Caller("a", "admin"), "viewer", False),
    (Caller("a", ""), "viewer", False), (Caller("a", "viewer"), "public", True),
])  # fmt: skip
def test_what_they_may(asker, need, allowed):
    assert (refusal(asker, need) is None) is allowed


def test_open_requests_are_counted_by_what_they_have_in_common():
    bound = Open(user=2, all=3)
    with bound.held(user="ann", all=""), bound.held(user="ann", all=""):
        assert bound.full(user="ann", all="") == "user"
        assert bound.full(user="bob", all="") is None
        with bound.held(user="bob", all=""):
            assert bound.full(user="bob", all="") == "all"
            assert bound.full(user="root") is None
        assert bound.full(user="bob", all="") is None
    assert not bound._open, "nothing is kept of what has ended"
