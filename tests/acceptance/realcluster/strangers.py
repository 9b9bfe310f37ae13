"""What somebody without a place in the cluster tries on its ports. All of it is to be called inside a namespace, by `inside`."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.helpers import until

WAIT_S = 5.0
#: A request for its name as Dask's comms frame it, and as the peer port does.
HELLO = bytes.fromhex("01000000000000000b00000000000000") + b"\x81\xa2op\xa8identity"
PING = b"\x00\x00\x00\x13" + b'{"request": "ping"}'
_ALERT = b"\x15\x03"


class Heard(NamedTuple):
    """What a listener answered: bytes that were said to us, and how the connection ended."""

    said: bytes
    end: str


def plain(address: str, port: int) -> Heard:
    """Speak without TLS."""
    with socket.create_connection((address, port), timeout=WAIT_S) as connection:
        return _say(connection, HELLO + PING)


def tls(address: str, port: int, certificate: Path | None = None, words: bytes = HELLO + PING) -> Heard:
    """Speak over TLS with a certificate, or without one, to whoever answers."""
    with socket.create_connection((address, port), timeout=WAIT_S) as raw:
        try:
            with _context(certificate).wrap_socket(raw, server_hostname=address) as connection:
                return _say(connection, words)
        except (ssl.SSLError, OSError) as error:
            return Heard(b"", f"{type(error).__name__}: {error}")


def _say(connection: socket.socket, words: bytes) -> Heard:
    said = b""
    try:
        connection.sendall(words)
        while piece := connection.recv(4096):
            said += piece
    except TimeoutError:
        return Heard(said, "silence")
    except OSError as error:
        return Heard(said, f"{type(error).__name__}: {error}")
    return Heard(said, "closed")


def is_open(address: str, port: int, certificate: Path) -> bool:
    """Whether an agent's peer port answers who comes with a certificate."""
    return b'"ok"' in tls(address, port, certificate, PING).said


def shown(address: str, port: int) -> int:
    """Return the serial number of the certificate that a listener shows, whether it lets us in or not."""
    with socket.create_connection((address, port), timeout=WAIT_S) as raw, _context(None).wrap_socket(raw, server_hostname=address) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"").serial_number


def refused(heard: Heard) -> bool:
    """Whether nothing was said but that TLS was expected, or that the certificate is no good, and the connection ended."""
    return heard.end != "silence" and (not heard.said or heard.said.startswith(_ALERT))


def _context(certificate: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def forged(file: Path, host: str, address: str, role: str = "node") -> Path:
    """Write a key and a certificate that says all that the cluster's authority says of a host, signed by nobody but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ip_address(address))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1)).add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file


class Answer(NamedTuple):
    """Status, headers and body of an answer by HTTP; status 0 with the reason where there was none."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    address: str,
    port: int,
    path: str,
    method: str = "GET",
    *,
    key: str | None = None,
    certificate: Path | None = None,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    secured: bool = True,
) -> Answer:
    """Ask an HTTP server once."""
    if secured:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(address, port, timeout=WAIT_S, context=_context(certificate))
    else:
        connection = http.client.HTTPConnection(address, port, timeout=WAIT_S)
    sent = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
    with contextlib.closing(connection):
        try:
            connection.request(method, path, json.dumps({} if body is None else body) if method == "POST" else None, sent)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, {}, f"{type(error).__name__}: {error}".encode())


_AS_DASK = """
import asyncio, json, sys
from distributed.comm import connect
from dgpunet_dask.cluster.dask_security import ClusterSecurity

async def one(address):
    comm = await connect(address, timeout=4, **ClusterSecurity(sys.argv[1]).get_connection_args("worker"))
    await comm.write({"op": "identity", "reply": True})
    answer = await asyncio.wait_for(comm.read(), 4)
    await comm.close()
    return answer["type"]

async def main():
    answers = await asyncio.gather(*map(one, sys.argv[2:]), return_exceptions=True)
    print(json.dumps([a if isinstance(a, str) else None for a in answers]))

asyncio.run(main())
"""


def as_dask(host: Any, environment: Mapping[str, str], pki: Path, addresses: Sequence[str]) -> list[str | None]:
    """Ask Dask's servers for what they are, with the certificate in `pki`, from a host; ``None`` for each that does not answer."""
    done = host.run([sys.executable, "-c", _AS_DASK, str(pki), *addresses], timeout_s=60, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[str | None] = json.loads(done.stdout)
    return found


_HELD = """
import asyncio, json, sys
from pathlib import Path
from distributed.comm import connect
from dgpunet_dask.cluster.dask_security import ClusterSecurity

async def one(address):
    comm = await connect(address, timeout=4, **ClusterSecurity(sys.argv[1]).get_connection_args("worker"))
    await comm.write({"op": "identity", "reply": True})
    await comm.read()
    return comm

async def ended(comm):
    try:
        await asyncio.wait_for(comm.read(), 60)
    except OSError as error:  # a TimeoutError is one
        return not isinstance(error, TimeoutError)
    return False

async def main():
    comms = await asyncio.gather(*map(one, sys.argv[3:]))
    Path(sys.argv[2]).touch()
    print(json.dumps(await asyncio.gather(*map(ended, comms))))

asyncio.run(main())
"""


@contextlib.contextmanager
def held(host: Any, environment: Mapping[str, str], pki: Path, addresses: Sequence[str]) -> Iterator[Callable[[], list[bool]]]:
    """Hold a connection open to each of Dask's servers; the function waits for their end and tells which the other side has ended."""
    up = pki.parent / f"{pki.name}-held"
    started = host.popen([sys.executable, "-c", _HELD, str(pki), str(up), *addresses], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ends() -> list[bool]:
        out, err = started.communicate(timeout=90)
        assert started.returncode == 0, err
        found: list[bool] = json.loads(out)
        return found

    try:
        until(lambda: up.exists() or started.poll() is not None, 30, "connections that are held open")
        yield ends
    finally:
        started.kill()
        started.communicate()
        up.unlink(missing_ok=True)


def listeners(host: Any) -> dict[tuple[str, int], str]:
    """Return what listens on a host: address and port, with the process's name and id as `ss` tells them."""
    rows = [line.split(maxsplit=5) for line in host.run(["ss", "-Htlnp"], check=True).stdout.splitlines()]
    return {_end(row[3]): row[5] if len(row) > 5 else "" for row in rows}


def datagrams(host: Any) -> set[tuple[str, int]]:
    """Return where datagrams are waited for on a host."""
    return {_end(line.split()[3]) for line in host.run(["ss", "-Huln"], check=True).stdout.splitlines()}


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]").partition("%")[0], int(port)


def pid_of(shown: str) -> int:
    """Return the process id in what `ss` tells."""
    return int(shown.partition("pid=")[2].partition(",")[0])

