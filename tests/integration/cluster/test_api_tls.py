"""The API under TLS: who is let in by key or certificate, who is trusted, and what is sent to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import ssl
import time

import pytest

from dgpunet_dask.cluster.agent_api import AgentApi, join_request, renew_expired
from dgpunet_dask.cluster.api_client import ApiClient
from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.cluster.tls import Trust
from dgpunet_dask.config.home import Home
from dgpunet_dask.daemons.api import listen, listen_tls
from dgpunet_dask.daemons.embedded import named_cluster
from dgpunet_dask.errors import BadValue, CertificateRefused, NoHead, NotAllowed, TokenRefused, UsageError
from dgpunet_dask.security.authority import Authority, request_digest
from dgpunet_dask.security.identity import Identity, install, install_crl, make_request
from dgpunet_dask.security.keys import KeyStore
from dgpunet_dask.security.pinning import trusting
from dgpunet_dask.security.tokens import TokenStore
from tests.unit.daemons.serving import KEY, FakeMembership, make_context

HERE = "127.0.0.1"
DAY_S = 86_400.0


class Enrolling(FakeMembership):
    """Signs for tokens, and for expired certificates, as a head does."""

    def __init__(self, authority, tokens):
        super().__init__()
        self.authority, self.tokens, self.ca = authority, tokens, authority.certificate_pem

    async def enrol(self, request, peer_address):
        await self._noted("enrol", request["host"], peer_address)
        if "certificate" in request:
            self.authority.recognise(request["certificate"], request["csr"], host=request["host"], now=time.time())
        else:
            self.tokens.redeem(request["token"], host=request["host"], now=time.time(), request_digest=request_digest(request["csr"]))
        return self._signed(request["host"], request["csr"])

    async def renew(self, host, body):
        await self._noted("renew", host)
        return self._signed(host, body["csr"])

    def _signed(self, host, csr):
        issued = self.authority.issue(csr, host=host, addresses=[HERE], role="node", now=time.time())
        return {"certificate": issued.certificate_pem, "ca": self.ca, "crl": self.authority.crl_pem(time.time())}


class Site:
    """A cluster's authority and its head's API under TLS."""

    def __init__(self, folder, **more):
        self.folder = folder
        self.authority = Authority.create(folder / "pki", folder.name, time.time())
        self.tokens, self.keys = TokenStore(folder / "tokens.json"), KeyStore(folder / "keys.json")
        self.member = Enrolling(self.authority, self.tokens)
        self.ctx = make_context(folder, [], keys=self.keys, membership=self.member, user="owner", **more)

    def identity(self, host, role="node", *, born_s=None, life_s=DAY_S):
        """Return the identity of a host with a certificate of this cluster; the contexts of a folder follow the process."""
        pki = self.folder / host
        now = time.time() if born_s is None else born_s
        issued = self.authority.issue(make_request(pki, host), host=host, addresses=[HERE], role=role, now=now, life_s=life_s)
        install(pki, issued.certificate_pem, self.authority.certificate_pem, self.authority.crl_pem(time.time()))
        return Identity(pki)

    def key(self, user="ann", scope="viewer"):
        return self.keys.create(user, scope, time.time(), fingerprint=self.authority.fingerprint)

    def token(self, host, *addresses):
        return self.tokens.create(host, addresses or [self.where], self.authority.fingerprint, ttl_s=60, now=time.time())

    @property
    def where(self):
        return f"{HERE}:{self.ctx.tls_port}"

    @property
    def api(self):
        return f"https://{self.where}"


@contextlib.asynccontextmanager
async def serving(site, addresses=(HERE,)):
    head = site.identity("head-host", "head")
    server = listen_tls(site.ctx, head, addresses)
    try:
        yield site
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.fixture
async def site(tmp_path):
    async with serving(Site(tmp_path / "home")) as made:
        yield made


@pytest.fixture
async def stranger(tmp_path):
    async with serving(Site(tmp_path / "foreign")) as made:
        yield made


def free_port():
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return probe.getsockname()[1]


async def test_a_key_alone_finds_and_trusts_its_head(site):
    client = ApiClient(site.api, site.key(scope="operator"))
    assert (await asyncio.to_thread(client.status))["head_pid"] == 1
    assert await asyncio.to_thread(client.nodes) == [{"host": "node-a"}]
    named = named_cluster(Home(site.folder / "nowhere"), site.api, {"DGPUNET_API_KEY": site.key()})
    assert (await asyncio.to_thread(named.status))["head_pid"] == 1


async def test_an_authority_on_disk_is_trusted_as_well(site, stranger):
    ca, foreign = (s.authority.folder for s in (site, stranger))
    key = site.key()
    for trust in (Trust(ca_file=ca / "ca.crt"), Trust(pki=ca), Trust(pki=foreign), Trust(pki=site.folder / "none")):
        assert (await asyncio.to_thread(ApiClient(site.api, key, trust=trust).status))["head_pid"] == 1
    with pytest.raises(CertificateRefused):
        await asyncio.to_thread(ApiClient(site.api, key, trust=Trust(ca_file=foreign / "ca.crt")).status)
    with pytest.raises(CertificateRefused, match=r"DGPUNET_CA_FILE"):
        await asyncio.to_thread(ApiClient(site.api, "some key").status)
    with pytest.raises(NotAllowed, match="DGPUNET_API_KEY"):
        await asyncio.to_thread(ApiClient(site.api, "some key", trust=Trust(pki=ca)).status)


async def test_a_key_is_never_shown_to_another_head(site, stranger):
    seen = []
    stranger.ctx.keys = type("Seeing", (), {"who": lambda _, text, now: seen.append(text)})()
    with pytest.raises(CertificateRefused) as refused:
        await asyncio.to_thread(ApiClient(stranger.api, site.key()).status)
    assert site.authority.fingerprint in str(refused.value)
    assert stranger.authority.fingerprint in str(refused.value)
    assert seen == []
    assert refused.value.exit_code == 2


async def test_a_certificate_for_another_address_is_refused(tmp_path):
    async with serving(Site(tmp_path / "home"), ("127.0.0.9",)) as site:
        where = f"127.0.0.9:{site.ctx.tls_port}"
        with pytest.raises(CertificateRefused, match=r"127\.0\.0\.9"):
            await asyncio.to_thread(ApiClient(f"https://{where}", site.key()).status)
        with pytest.raises(CertificateRefused, match=r"127\.0\.0\.9"):
            await asyncio.to_thread(join_request, site.token("node-a", where), {"host": "node-a", "csr": "x"})
        assert site.member.calls == []


async def test_the_local_key_counts_on_the_loopback_listener_alone(site):
    with pytest.raises(NotAllowed, match="DGPUNET_API_KEY"):
        await asyncio.to_thread(ApiClient(site.api, KEY, trust=Trust(pki=site.authority.folder)).status)
    plain = listen(site.ctx)
    assert (await asyncio.to_thread(ApiClient(f"http://{HERE}:{site.ctx.port}", KEY).status))["head_pid"] == 1
    plain.stop()


async def test_a_key_that_is_revoked_is_out_at_once(site):
    key = site.key()
    client = ApiClient(site.api, key)
    await asyncio.to_thread(client.status)
    site.keys.revoke(key.split("::")[1].partition(".")[0])
    with pytest.raises(NotAllowed, match="DGPUNET_API_KEY"):
        await asyncio.to_thread(client.status)


async def test_scopes_hold_under_tls(site):
    with pytest.raises(NotAllowed, match="viewer"):
        await asyncio.to_thread(ApiClient(site.api, site.key()).submit, {"workload": "w"})


async def test_agents_are_whom_their_certificate_names(site):
    api = AgentApi([site.where], site.identity("node-a"))
    assert await asyncio.to_thread(api.heartbeat, {"host": "node-b"}) == {"did": "heartbeat"}
    await asyncio.to_thread(api.leave)
    assert site.member.calls == [("heartbeat", "node-a", {"host": "node-b"}), ("leave", "node-a")]


async def test_an_agent_renews_and_goes_on(site):
    identity = site.identity("node-a")
    api, before = AgentApi([site.where], identity), identity.serial
    answer = await asyncio.to_thread(api.renew, make_request(identity.folder, "node-a"))
    install(identity.folder, answer["certificate"], answer["ca"], answer["crl"])
    assert identity.refresh()
    assert identity.serial != before
    await asyncio.to_thread(api.heartbeat, {})
    assert site.member.calls == [("renew", "node-a"), ("heartbeat", "node-a", {})]


def request_with(site, identity, method, path, **headers):
    """Ask with a certificate (``None``: without one); return status, headers and answer."""
    context = trusting(site.authority.certificate_pem) if identity is None else identity.client_context()
    with socket.create_connection((HERE, site.ctx.tls_port), timeout=10) as plain, context.wrap_socket(plain, server_hostname=HERE) as sock:
        head = {"Host": site.where, "Content-Type": "application/json", "Content-Length": "2", **headers}
        sock.sendall(f"{method} {path} HTTP/1.1\r\n{''.join(f'{k}: {v}' + chr(13) + chr(10) for k, v in head.items())}\r\n{{}}".encode())
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response.status, response.headers, json.loads(response.read() or b"null")


def two_requests(site, identity):
    """Send two heartbeats at once, though the head wants one a connection; return all that it answers until it ends the connection."""
    request = f"POST /v1/agents/heartbeat HTTP/1.1\r\nHost: {site.where}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    context, got = identity.client_context(), b""
    with socket.create_connection((HERE, site.ctx.tls_port), timeout=10) as plain, context.wrap_socket(plain, server_hostname=HERE) as sock:
        sock.sendall(request.encode() * 2)
        with contextlib.suppress(ConnectionResetError):  # what it has not read is lost with the connection
            while more := sock.recv(4096):
                got += more
    return got


def certificate_after_a_key(site, identity):
    """Ask with a key, then over the same connection with the certificate alone; return the second answer."""
    context = identity.client_context()
    with socket.create_connection((HERE, site.ctx.tls_port), timeout=10) as plain, context.wrap_socket(plain, server_hostname=HERE) as sock:
        for headers in (f"Authorization: Bearer {site.key()}\r\n", ""):
            sock.sendall(
                f"POST /v1/agents/heartbeat HTTP/1.1\r\nHost: {site.where}\r\n{headers}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            response = http.client.HTTPResponse(sock)
            response.begin()
            answer = response.status, response.read()
    return answer


async def test_certificates_open_no_route_of_users_and_keys_none_of_agents(site):
    node, threaded = site.identity("node-a"), asyncio.to_thread
    for method, path in (("GET", "/v1/status"), ("GET", "/v1/nodes"), ("POST", "/v1/tokens"), ("POST", "/v1/shutdown")):
        status, _, answer = await threaded(request_with, site, node, method, path)
        assert (status, answer["error"]["code"]) == (403, "not_allowed"), path
    key = f"Bearer {site.key(scope='operator')}"
    for identity, headers, wanted in ((None, {}, 401), (None, {"Authorization": key}, 403), (node, {"Authorization": key}, 403), (node, {"Authorization": "Bearer no"}, 401)):
        status, _, _ = await threaded(request_with, site, identity, "POST", "/v1/agents/heartbeat", **headers)
        assert status == wanted
    status, _, answer = await threaded(request_with, site, site.identity("dask-client", "client"), "POST", "/v1/agents/heartbeat")
    assert status == 403
    assert "client" in answer["error"]["message"]
    assert site.member.calls == []


async def test_an_agents_connection_serves_one_request(site):
    identity = site.identity("node-a")
    status, headers, _ = await asyncio.to_thread(request_with, site, identity, "POST", "/v1/agents/heartbeat")
    assert (status, headers["Connection"]) == (200, "close")  # so that each request meets the present revocation list
    both = await asyncio.to_thread(two_requests, site, identity)
    assert both.count(b"HTTP/1.1 ") == both.count(b"HTTP/1.1 200") == 1
    assert len(site.member.calls) == 2
    status, answer = await asyncio.to_thread(certificate_after_a_key, site, identity)
    assert status == 403
    assert b"connect anew" in answer
    assert len(site.member.calls) == 2


async def test_a_revoked_certificate_is_refused_with_the_reason(site):
    identity = site.identity("node-a")
    api = AgentApi([site.where], identity)
    await asyncio.to_thread(api.heartbeat, {})
    site.authority.revoke_host("node-a", time.time())
    head = Identity(site.folder / "head-host")
    assert install_crl(head.folder, site.authority.crl_pem(time.time()))
    head.refresh()
    with pytest.raises(CertificateRefused, match=r"REVOKED"):
        await asyncio.to_thread(api.heartbeat, {})


async def test_expired_and_foreign_certificates_are_refused(site, stranger):
    late = site.identity("node-a", born_s=time.time() - 2 * DAY_S)
    with pytest.raises(CertificateRefused, match=r"EXPIRED"):
        await asyncio.to_thread(AgentApi([site.where], late).heartbeat, {})
    with pytest.raises(CertificateRefused):  # a stranger's agent does not trust this head, nor would the head trust it
        await asyncio.to_thread(AgentApi([site.where], stranger.identity("node-a")).heartbeat, {})
    foreign = stranger.identity("node-b").client_context()
    foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
    current = getattr(foreign, "current", foreign)
    current.check_hostname, current.verify_mode = False, ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        await asyncio.to_thread(request_with, site, type("Blind", (), {"client_context": lambda _: current})(), "POST", "/v1/agents/heartbeat")
    assert site.member.calls == []


async def test_an_expired_host_comes_back_by_its_key(site):
    late = site.identity("node-a", born_s=time.time() - 2 * DAY_S)
    config = ClusterConfig(
        membership="node", cluster="home", host="node-a", address=HERE, api=(f"{HERE}:{free_port()}", site.where),
        fingerprint=site.authority.fingerprint,
    )  # fmt: skip
    answer = await asyncio.to_thread(renew_expired, config, late.folder)
    install(late.folder, answer["certificate"], answer["ca"], answer["crl"])
    late.refresh()
    await asyncio.to_thread(AgentApi([site.where], late).heartbeat, {})
    site.authority.revoke_host("node-a", time.time())
    with pytest.raises(CertificateRefused, match="removed"):
        await asyncio.to_thread(renew_expired, config, late.folder)


async def test_agents_try_each_address_and_name_each_failure(site):
    identity, dead = site.identity("node-a"), f"{HERE}:{free_port()}"
    api = AgentApi([dead, site.where], identity)
    for _ in range(2):
        assert await asyncio.to_thread(api.heartbeat, {}) == {"did": "heartbeat"}
    assert api._best == 1  # what answered is asked first the next time
    with pytest.raises(NoHead) as none:
        await asyncio.to_thread(AgentApi([dead, f"localhost:{free_port()}"], identity).heartbeat, {})
    assert dead in str(none.value)
    assert "localhost" in str(none.value)
    assert "refused" in str(none.value)


async def test_an_error_of_the_head_is_the_answer_and_no_reason_to_try_elsewhere(site):
    async def broken(host, body):
        raise UsageError(detail="not like that")

    site.member.heartbeat = broken
    with pytest.raises(UsageError, match="not like that"):
        await asyncio.to_thread(AgentApi([site.where, f"{HERE}:{free_port()}"], site.identity("node-a")).heartbeat, {})


async def test_a_token_takes_a_host_in_once(site, tmp_path):
    csr = make_request(tmp_path / "node", "node-a")
    token = site.token("node-a", f"{HERE}:{free_port()}", site.where)
    answer = await asyncio.to_thread(join_request, token, {"host": "node-a", "csr": csr})
    assert (answer["ca"], answer["via"]) == (site.authority.certificate_pem, site.where)
    install(tmp_path / "node", answer["certificate"], answer["ca"], answer["crl"])
    await asyncio.to_thread(AgentApi([site.where], Identity(tmp_path / "node")).heartbeat, {})
    other = make_request(tmp_path / "thief", "node-a")
    for host, text, why in (("node-a", token, "used before"), ("node-b", site.token("node-a"), "another host")):
        with pytest.raises(TokenRefused, match=why):
            await asyncio.to_thread(join_request, text, {"host": host, "csr": other})


async def test_a_token_is_never_shown_to_another_head(site, stranger, tmp_path):
    csr = make_request(tmp_path / "node", "node-a")
    with pytest.raises(CertificateRefused, match=site.authority.fingerprint):
        await asyncio.to_thread(join_request, site.token("node-a", stranger.where), {"host": "node-a", "csr": csr})
    assert stranger.member.calls == []
    # with another head in front, the right one further down the list is found all the same
    answer = await asyncio.to_thread(join_request, site.token("node-a", stranger.where, site.where), {"host": "node-a", "csr": csr})
    assert answer["via"] == site.where
    assert stranger.member.calls == []


async def test_joining_names_every_address_that_fails(site):
    dead = [f"{HERE}:{free_port()}" for _ in range(2)]
    with pytest.raises(NoHead) as none:
        await asyncio.to_thread(join_request, site.token("node-a", *dead), {"host": "node-a"})
    assert all(address in str(none.value) for address in dead)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.2:{port}", ""])
async def test_other_host_names_are_refused_under_tls(site, host):
    for path in ("/v1/ca", "/v1/status", "/login"):
        status, _, _ = await asyncio.to_thread(request_with, site, None, "GET", path, Host=host.format(port=site.ctx.tls_port))
        assert status in {400, 403}


async def test_own_names_are_accepted_and_plain_origins_are_foreign(site):
    key = f"Bearer {site.key()}"
    for host in (site.where, f"HEAD-HOST:{site.ctx.tls_port}"):
        asked = {"Host": host, "Origin": f"https://{host}", "Authorization": key}
        assert (await asyncio.to_thread(request_with, site, None, "GET", "/v1/status", **asked))[0] == 200
    status, _, _ = await asyncio.to_thread(request_with, site, None, "GET", "/v1/nodes", Origin=f"http://{site.where}")
    assert status == 403


async def test_plain_http_and_junk_do_not_end_the_server(site):
    def poke(junk):
        with socket.create_connection((HERE, site.ctx.tls_port), timeout=5) as raw:
            raw.sendall(junk)
            with contextlib.suppress(OSError):
                assert b"200 OK" not in raw.recv(1000)

    for junk in (b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(200), b"\x16\x03\x01\x00\x05"[:3] + b"\x00" * 60):
        await asyncio.to_thread(poke, junk)
    with pytest.raises(NoHead):
        await asyncio.to_thread(ApiClient(f"http://{site.where}", KEY).status)
    assert (await asyncio.to_thread(ApiClient(site.api, site.key()).status))["head_pid"] == 1


async def test_what_is_no_head_is_told_as_none():
    key = f"DGK1{'ab' * 32}::{'0' * 12}.{'x' * 43}"
    with pytest.raises(NoHead):
        await asyncio.to_thread(ApiClient(f"https://{HERE}:{free_port()}", key).status)
    with socket.create_server((HERE, 0)) as server:
        asking = asyncio.create_task(asyncio.to_thread(ApiClient(f"https://{HERE}:{server.getsockname()[1]}", key).status))
        for _ in range(2):
            (await asyncio.to_thread(server.accept))[0].close()
        with pytest.raises(NoHead):
            await asking


def test_a_key_is_not_sent_in_the_clear_to_another_machine(tmp_path):
    there = "10.0.0.1:8787"
    for named in (f"http://{there}", "http://head.example:8787"):
        with pytest.raises(UsageError, match="in the clear"):
            named_cluster(Home(tmp_path), named, {"DGPUNET_API_KEY": "k"})
    assert named_cluster(Home(tmp_path), there, {}).api == f"https://{there}"
    assert named_cluster(Home(tmp_path), "127.0.0.1:8787", {}).api == "http://127.0.0.1:8787"
    with pytest.raises(BadValue, match="no scheme before it"):
        named_cluster(Home(tmp_path), f"ftp://{there}", {})
