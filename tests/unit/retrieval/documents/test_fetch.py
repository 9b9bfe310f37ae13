from __future__ import annotations

import datetime as dt
import io
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dgpunet_dask.retrieval.documents.fetch import Fetched, Fetcher, Limits, anywhere
from dgpunet_dask.retrieval.documents.kinds import HTML, MARKDOWN, PDF
from dgpunet_dask.retrieval.documents.texts import SkippedError
from tests.unit.retrieval.documents.conftest import gives, redirects

ROOMY = Limits(bytes_max=1 << 20, seconds=60)
HASTY = Limits(bytes_max=1 << 20, seconds=0.3)


def fetch(url: str, limits: Limits = ROOMY, **given) -> tuple[Fetched, bytes]:
    into = io.BytesIO()
    return Fetcher(limits, **({"permits": anywhere} | given)).fetch(url, into), into.getvalue()


def refused(url: str, limits: Limits = ROOMY, **given) -> SkippedError:
    with pytest.raises(SkippedError) as caught:
        fetch(url, limits, **given)
    return caught.value


def test_what_a_server_gives_is_written_down(web):
    web.routes = {
        "/a.html": gives("<p>Größe</p>".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        "/raw/README.md?x=1": gives(b"# T", "text/plain"),
        "/p": gives(b"%PDF", "application/pdf", Content_Length=""),
    }
    assert fetch(web.url("/a.html#part")) == (Fetched(HTML, "iso-8859-1"), "<p>Größe</p>".encode("latin-1"))
    assert fetch(web.url("/raw/README.md?x=1")) == (Fetched(MARKDOWN, None), b"# T")
    assert fetch(web.url("/p")) == (Fetched(PDF, None), b"%PDF")
    assert web.asked[0] == ("/a.html", f"127.0.0.1:{web.port}")


def test_a_path_that_is_not_ascii_is_written_as_servers_expect_it(web):
    web.routes = {"/Gr%C3%B6%C3%9Fe%20a?q=%C3%BC": gives(b"x")}
    assert fetch(web.url("/Größe%20a?q=ü"))[1] == b"x"


def test_redirects_are_followed_and_relative_ones_understood(web):
    web.routes = {"/a": redirects("b/c?x"), "/b/c?x": redirects(web.url("/d"), 308), "/d": gives(b"there")}
    assert fetch(web.url("/a"))[1] == b"there"


def test_redirects_without_end_are_given_up(web):
    web.routes = {"/a": redirects("/b"), "/b": redirects("/a")}
    skip = refused(web.url("/a"))
    assert skip.code == "fetch_failed"
    assert "redirects" in skip.reason
    assert len(web.asked) == 6


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1/", "//user:secret@127.0.0.1/", "//[::1"])
def test_a_redirect_to_what_is_not_fetched_is_refused(web, to):
    web.routes = {"/a": redirects(to)}
    assert refused(web.url("/a")).code == "fetch_failed"
    assert len(web.asked) == 1


def test_hosts_that_are_not_public_are_not_asked(web):
    assert refused(web.url("/a"), permits=Fetcher.__init__.__kwdefaults__["permits"]).code == "private_address"
    assert refused(web.url("/a", host="localhost"), permits=Fetcher.__init__.__kwdefaults__["permits"]).code == "private_address"
    assert web.asked == []


def test_a_redirect_to_a_host_that_is_not_public_is_refused(web):
    web.routes = {"/a": redirects(web.url("/secret", host="127.0.0.2"))}
    skip = refused(web.url("/a"), permits=lambda address: address == "127.0.0.1")
    assert (skip.code, len(web.asked)) == ("private_address", 1)
    assert "127.0.0.2" in skip.reason


def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_looked_at(web):
    web.routes = {"/a": gives(b"x")}
    looked_up = []

    def resolve(host, port, **_):
        looked_up.append(host)
        address = "127.0.0.1" if len(looked_up) == 1 else "127.0.0.2"  # as a name that is bound anew
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    fetch(web.url("/a", host="rebound.example"), resolve=resolve, permits=lambda address: address == "127.0.0.1")
    assert looked_up == ["rebound.example"]
    assert web.asked == [("/a", f"rebound.example:{web.port}")]


def test_a_host_with_one_address_that_is_not_public_is_refused(web):
    def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2")]

    assert refused(web.url("/a", host="mixed.example"), resolve=resolve, permits=lambda a: a == "127.0.0.1").code == "private_address"


def test_the_next_address_is_asked_where_the_first_does_not_answer(web):
    web.routes = {"/a": gives(b"x")}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        dead = unused.getsockname()

        def resolve(host, port, **_):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (dead, ("127.0.0.1", port))]

        assert fetch(web.url("/a", host="two.example"), resolve=resolve)[1] == b"x"


def unknown(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


@pytest.mark.parametrize("resolve", [unknown, lambda *_, **__: []])
def test_a_host_that_is_not_known_is_told(resolve):
    assert refused("http://nowhere.example/", resolve=resolve).code == "fetch_failed"


def test_a_port_where_nobody_listens_is_told():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        skip = refused(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert skip.code == "fetch_failed"
    assert "refused" in skip.reason


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (gives(b"no", status=404), "fetch_failed"), (gives(b"no", status=500), "fetch_failed"), (gives(b"", status=304), "fetch_failed"),
        (gives(b"\x89PNG", "image/png"), "not_a_document"), (gives(b"x", None), "not_a_document"), (gives(b"MZ", "application/octet-stream"), "not_a_document"),
        (gives(b"\x1f\x8b", Content_Encoding="gzip"), "fetch_failed"), (gives(b"x" * 10, Content_Length="20"), "fetch_failed"),
        (gives(b"x", Content_Length=str(2 << 20)), "too_large"), (gives(b"x" * ((1 << 20) + 1), Content_Length=""), "too_large"),
        (gives(b"zz\r\nnonsense", Content_Length="", Transfer_Encoding="chunked"), "fetch_failed"), (redirects(""), "fetch_failed"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_has_its_code(web, route, code):
    web.routes = {"/a": route}
    assert refused(web.url("/a")).code == code


def test_the_reason_is_one_short_line_whatever_a_server_says(web):
    def rude(request):
        request.wfile.write(b"HTTP/1.1 418 I\x1b[31m am a teapot" + b"!" * 5000 + b"\r\n\r\n")

    web.routes = {"/a": rude}
    reason = refused(web.url("/a")).reason
    assert reason.isprintable()
    assert len(reason) < 300


def endless_body(request):
    request.send_response(200)
    request.send_header("Content-Type", "text/plain")
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 65536)


def test_an_endless_body_is_cut_at_the_limit(web):
    web.routes = {"/a": endless_body}
    assert refused(web.url("/a")).code == "too_large"


def stalled(before: bytes):
    """Say something, and then nothing more."""

    def until(over):
        def route(request):
            request.wfile.write(before)
            over.wait()

        return route

    return until


def dripping(before: bytes, drop: bytes):
    """Say one thing after another for ever, each long before any single wait would end."""

    def until(over):
        def route(request):
            request.wfile.write(before)
            while not over.wait(0.01):
                request.wfile.write(drop)

        return route

    return until


@pytest.mark.parametrize(
    "route",
    [
        stalled(b""), stalled(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf"), dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"x"), dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n", b"x"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "half", "headers", "body", "continue", "length", "chunks"],
)  # fmt: skip
def test_a_slow_server_is_given_up_at_the_deadline(web, route):
    web.routes = {"/a": route(web.over)}
    assert refused(web.url("/a"), HASTY).code == "timeout"


def test_the_deadline_holds_for_all_redirects_together(web):
    class Running:
        """A clock that is ten seconds on at each look."""

        now = 0.0

        def monotonic(self):
            self.now += 10
            return self.now

        def wall(self):
            return self.now

    web.routes = {"/a": redirects("/b"), "/b": redirects("/c"), "/c": redirects("/d"), "/d": gives(b"late")}
    assert refused(web.url("/a"), clock=Running()).code == "timeout"


def test_tls_is_checked_against_the_name_while_connecting_to_the_address(tmp_path):
    certificate = self_signed(tmp_path, "secure.example")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate)
        thread = threading.Thread(target=serve_tls, args=(listener, server, 3), daemon=True)
        thread.start()

        def resolve(host, port, **_):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        def trust():
            return ssl.create_default_context(cafile=str(certificate))

        assert fetch(f"https://secure.example:{port}/", resolve=resolve, trust=trust)[1] == b"over tls"
        assert "certificate" in refused(f"https://other.example:{port}/", resolve=resolve, trust=trust).reason.lower()
        assert "certificate" in refused(f"https://secure.example:{port}/", resolve=resolve).reason.lower()
        thread.join()


def self_signed(folder, name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    signed = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False).sign(key, hashes.SHA256())
    file = folder / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


def serve_tls(listener, context, times):
    for _ in range(times):
        accepted, _ = listener.accept()
        try:
            with context.wrap_socket(accepted, server_side=True) as talk:
                talk.recv(4096)
                talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\nover tls")
        except OSError:
            pass  # the client did not trust it
