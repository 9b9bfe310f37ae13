from __future__ import annotations

import http.client
import http.server
import ssl
import threading
from contextlib import contextmanager

import pytest
from cryptography import x509

from dgpunet_dask.errors import CertificateRefused
from dgpunet_dask.security.authority import serial_text
from dgpunet_dask.security.pinning import pinned_context
from tests.unit.security.hosts import Cluster


@contextmanager
def head(context, body: bytes, status=200):
    """An HTTPS server on loopback that answers every path with `body`; gives its address and what was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[:2], asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def test_the_right_head_is_trusted_from_its_fingerprint_alone(cluster):
    context = cluster.identity("m18", role="head").server_context("optional")
    pem = cluster.authority.certificate_pem
    with head(context, pem.encode()) as (address, asked):
        trust, found = pinned_context(cluster.authority.fingerprint, address, 5)
        assert found == pem
        connection = http.client.HTTPSConnection(*address, timeout=5, context=trust)
        connection.request("GET", "/v1/nodes")
        assert connection.getresponse().read() == pem.encode()
        connection.close()
    assert [path for path, _ in asked] == ["/v1/ca", "/v1/nodes"]
    assert trust.check_hostname
    assert trust.verify_mode == ssl.CERT_REQUIRED


def test_another_authority_is_refused_with_both_fingerprints(cluster, tmp_path):
    other = Cluster(tmp_path, "other")
    context = other.identity("m18", role="head").server_context("optional")
    with head(context, other.authority.certificate_pem.encode()) as (address, _), pytest.raises(CertificateRefused) as caught:
        pinned_context(cluster.authority.fingerprint, address, 5)
    assert cluster.authority.fingerprint in str(caught.value)
    assert other.authority.fingerprint in str(caught.value)


def test_who_shows_the_right_authority_without_its_key_gets_nothing(cluster, tmp_path):
    impostor = Cluster(tmp_path, "other").identity("m18", role="head").server_context("optional")
    with head(impostor, cluster.authority.certificate_pem.encode()) as (address, asked):
        trust, _ = pinned_context(cluster.authority.fingerprint, address, 5)
        connection = http.client.HTTPSConnection(*address, timeout=5, context=trust)
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.request("POST", "/v1/join", b"secret")
    assert [path for path, _ in asked] == ["/v1/ca"]


def test_a_second_certificate_behind_the_right_one_is_not_trusted(cluster, tmp_path):
    other = Cluster(tmp_path, "other")
    both = cluster.authority.certificate_pem + other.authority.certificate_pem
    context = cluster.identity("m18", role="head").server_context("optional")
    with head(context, both.encode()) as (address, _):
        trust, pem = pinned_context(cluster.authority.fingerprint, address, 5)
    assert pem == cluster.authority.certificate_pem
    assert [found["serialNumber"] for found in trust.get_ca_certs()] == [serial_of(cluster.authority)]


def serial_of(authority) -> str:
    return serial_text(x509.load_pem_x509_certificate(authority.certificate_pem.encode()).serial_number)


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 200), (b"hello", 200), (b"x" * 100_000, 200), ("{pem}", 404), (b"\xff" * 10, 200)]
)
def test_what_is_no_certificate_is_an_answer_of_another_kind(cluster, body, status):
    context = cluster.identity("m18", role="head").server_context("optional")
    body = cluster.authority.certificate_pem.encode() if body == "{pem}" else body
    with head(context, body, status) as (address, _), pytest.raises(ConnectionError):
        pinned_context(cluster.authority.fingerprint, address, 5)


def test_a_server_without_tls_is_no_head(cluster):
    with head(None, b"") as (address, _), pytest.raises(OSError):
        pinned_context(cluster.authority.fingerprint, address, 5)


def test_nobody_there(cluster):
    with pytest.raises(OSError):
        pinned_context(cluster.authority.fingerprint, ("127.0.0.1", 1), 5)
