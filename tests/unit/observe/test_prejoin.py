"""A head from outside: reached or not, of which cluster, with which clock."""

from __future__ import annotations

import contextlib
import email.utils
import http.server
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.errors import TokenRefused, TooManyAttempts
from dgpunet_dask.observe.prejoin import check_admission, check_head, check_refusal, fingerprint_of, offset_of, try_port
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.identity import Identity, install, make_request
from tests.unit.observe.facts import FACTS, facts
from tests.unit.observe.test_local import wrong


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority.create(tmp_path_factory.mktemp("ca"), "home", time.time())


@pytest.fixture(scope="module")
def identity(authority, tmp_path_factory):
    folder, now = tmp_path_factory.mktemp("pki"), time.time()
    issued = authority.issue(make_request(folder, "head"), host="head", addresses=["127.0.0.1"], role="head", now=now)
    install(folder, issued.certificate_pem, authority.certificate_pem, authority.crl_pem(now))
    return Identity(folder)


@contextlib.contextmanager
def head(identity, pem, *, behind_s=0.0):
    """Answer as a head does, whose clock is behind."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/ca"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pem.encode())

        def date_time_string(self, timestamp=None):
            return email.utils.formatdate(time.time() - behind_s, usegmt=True)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = identity.server_context("optional").wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_head_that_is_right(identity, authority):
    with head(identity, authority.certificate_pem) as port:
        found, offset = check_head([("127.0.0.1", port)], [(port, "Dask scheduler")], facts(), fingerprint=authority.fingerprint)
    assert wrong(found) == []
    assert {"port_reach", "head_api"} == {finding.check for finding in found}
    assert abs(offset) <= 1.0


def test_a_clock_that_is_behind(identity, authority):
    with head(identity, authority.certificate_pem, behind_s=100.0) as port:
        _, offset = check_head([("127.0.0.1", port)], [], facts())
    assert 99.0 <= offset <= 101.0


def test_the_wrong_cluster(identity, authority):
    with head(identity, authority.certificate_pem) as port:
        found, _ = check_head([("127.0.0.1", port)], [], facts(), fingerprint="00" * 32)
    assert [(finding.check, finding.level) for finding in wrong(found)] == [("head_api", "fault")]


def row(port, why=None):
    return {"src": "head-1", "dst": "pc", "port": port, "what": "agent", "ok": why is None, "why": why}


def told(**changed):
    """Return what a head tells for a token that is good, to a machine that is as it should be."""
    return {"head": "head-1", "software": FACTS["software"], "seen_as": "10.0.0.2", "reach": [row(8788), row(8800)], **changed}


def test_a_machine_that_may_join():
    found = check_admission(told(), facts())
    assert [(f.check, f.level) for f in found] == [("join_token", "ok"), ("software", "ok"), ("port_reach", "ok")]


@pytest.mark.parametrize(
    ("software", "level"),
    [({"distributed": "2025.1.0"}, "fault"), ({"python": "3.12.1"}, "fault"), ({"python": "3.11.2"}, "warn"), ({"torch": "2.1.0"}, "warn"), ({}, "ok")],
)
def test_versions_are_compared_in_three_levels(software, level):
    found = [f for f in check_admission(told(software=FACTS["software"] | software), facts()) if f.check == "software"]
    assert [f.level for f in found] == [level]
    assert all("head-1" in f.what for f in found)


def test_a_firewall_here_and_translated_addresses_are_found():
    found = wrong(check_admission(told(reach=[row(8788, "timeout"), row(8800)], seen_as="192.0.2.7"), facts()))
    assert [(f.check, f.subject) for f in found] == [("port_reach", "head-1 -> pc"), ("address", "head-1 -> pc")]
    assert "on pc" in found[0].cure
    assert "192.0.2.7" in found[1].what


def test_an_answer_of_any_shape_breaks_nothing():
    for answer in ({}, {"software": 7, "reach": "x", "seen_as": 5}, {"software": {"python": 3}, "reach": [1, {}]}):
        assert check_admission(answer, facts())[0].check == "join_token"


def test_a_token_that_is_refused_names_its_cure():
    found = check_refusal(TokenRefused(reason="used", why="it was used before"), facts())
    assert (found.check, found.level) == ("join_token", "fault")
    assert "used before" in found.what
    assert "token create pc" in found.cure
    assert "token create" not in check_refusal(TooManyAttempts(wait_s=5.0), facts()).cure


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_second_address_counts_where_the_first_is_silent_and_shut_ports_are_told(identity, authority):
    shut = free_port()
    with head(identity, authority.certificate_pem) as port:
        found, _ = check_head([("127.0.0.1", shut), ("127.0.0.1", port)], [(shut, "agent")], facts())
    assert [(finding.check, finding.evidence["port"]) for finding in wrong(found)] == [("port_reach", shut)]
    assert "refused" in wrong(found)[0].what


def test_no_head_at_all():
    found, offset = check_head([("127.0.0.1", free_port())], [], facts())
    assert [(finding.check, finding.level, finding.cause) for finding in found] == [("head_reach", "fault", "network")]
    assert offset is None


def test_something_else_that_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=_rude, args=(server, 2))
        thread.start()
        found, offset = check_head([("127.0.0.1", port)], [], facts(), timeout_s=2.0)
        thread.join()
    assert [(finding.check, finding.level) for finding in wrong(found)] == [("head_api", "fault")]
    assert offset is None


def _rude(server, times):
    for _ in range(times):
        connection, _ = server.accept()
        connection.sendall(b"SSH-2.0-x\r\n")
        connection.close()


def test_why_a_port_is_not_reached():
    assert try_port("127.0.0.1", free_port()) == "refused"
    assert try_port("no-such-host.invalid", 1) == "no_route"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert try_port("127.0.0.1", server.getsockname()[1]) is None


@given(st.none() | st.text(max_size=40))
def test_headers_of_any_shape(text):
    assert offset_of(text, 0.0) is None or isinstance(offset_of(text, 0.0), float)
    assert fingerprint_of(text or "") is None
