"""A head from outside: reached or not, of which cluster, with which clock."""

from __future__ import annotations

import contextlib
import email.utils
import http.server
import json
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.observe.prejoin import SOFTWARE_HEADER, check_head, fingerprint_of, offset_of, software_of, try_port
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
def head(identity, pem, *, behind_s=0.0, software=None):
    """Answer as a head does, whose clock is behind."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/v1/ca"
            self.send_response(200)
            if software is not None:
                self.send_header(SOFTWARE_HEADER, json.dumps(software))
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
    with head(identity, authority.certificate_pem, software=FACTS["software"]) as port:
        found, offset = check_head([("127.0.0.1", port)], [(port, "Dask scheduler")], facts(), fingerprint=authority.fingerprint)
    assert wrong(found) == []
    assert {"port_reach", "head_api", "software"} == {finding.check for finding in found}
    assert abs(offset) <= 1.0


def test_a_clock_that_is_behind(identity, authority):
    with head(identity, authority.certificate_pem, behind_s=100.0) as port:
        _, offset = check_head([("127.0.0.1", port)], [], facts())
    assert 99.0 <= offset <= 101.0


def test_the_wrong_cluster_and_other_versions(identity, authority):
    with head(identity, authority.certificate_pem, software=FACTS["software"] | {"distributed": "2025.1.0"}) as port:
        found, _ = check_head([("127.0.0.1", port)], [], facts(), fingerprint="00" * 32)
    assert [(finding.check, finding.level) for finding in wrong(found)] == [("head_api", "fault"), ("software", "fault")]


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
    assert software_of(text) is None or isinstance(software_of(text), dict)
    assert fingerprint_of(text or "") is None
