"""Two hosts with homes, certificates of one throw-away authority, and peer ports on 127.0.0.1."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dgpunet_dask.clock import SystemClock
from dgpunet_dask.cluster.backups import KIND, OfferedShelf
from dgpunet_dask.cluster.blobs import Blobs
from dgpunet_dask.cluster.peer import PeerServer
from dgpunet_dask.cluster.peer_client import Peer, PeerClient
from dgpunet_dask.config.home import Home


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self._now = 1_800_000_000.0

    def monotonic(self) -> float:
        return self._now

    wall = monotonic

    def advance(self, seconds: float) -> None:
        self._now += seconds


class Authority:
    """Signs certificates for an hour; the product's own is tested elsewhere."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {folder.name}")])
        made = self._builder(self.name, self.key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        (folder / "ca.crt").write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(hours=1))
        )  # fmt: skip

    def contexts(self, host: str, role: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """Return TLS of a server and of a client with a certificate for `host`."""
        file = self.folder / f"{host}-{role}.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [(NameOID.COMMON_NAME, host), (NameOID.ORGANIZATIONAL_UNIT_NAME, role)]
        subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in attributes])
        builder = self._builder(subject, key).add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        signed = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        plain = serialization.NoEncryption()
        file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain) + signed)
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server, client):
            context.load_verify_locations(self.folder / "ca.crt")
            context.load_cert_chain(file)
        server.verify_mode = ssl.CERT_REQUIRED
        return server, client


@dataclass
class Node:
    """One host: its home, its folders, its peer port and how others see that."""

    host: str
    authority: Authority
    home: Home
    server: PeerServer
    client: PeerClient
    blobs: Blobs
    peer: Peer = field(default_factory=lambda: Peer("", "127.0.0.1", 0))


@asynccontextmanager
async def nodes(folder: Path, names: Sequence[str], **options: Any) -> AsyncIterator[list[Node]]:
    """Serve the peer ports of the hosts `names`; the first is the head's. `options` go to the servers."""
    authority, made = Authority(folder / "ca"), []
    async with AsyncExitStack() as stack:
        for name in names:
            role = "node" if made else "head"
            home = Home(folder / name).ensure()
            server_context, client_context = authority.contexts(name, role)
            measuring = asyncio.Lock()
            client = PeerClient(client_context, measuring=measuring)
            blobs = Blobs(home, client, clock=options.get("clock", SystemClock()))
            server = PeerServer(name, server_context, blobs, measuring=measuring, private={KIND: partial(OfferedShelf, home)}, **options)
            port = await server.start("127.0.0.1", 0)
            stack.push_async_callback(server.stop)
            made.append(Node(name, authority, home, server, client, blobs, Peer(name, "127.0.0.1", port, is_head=not made)))
        yield made
