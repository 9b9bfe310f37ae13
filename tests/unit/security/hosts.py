"""Clusters of certificates in folders, and TLS handshakes in memory, for the tests of security."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

from dgpunet_dask.security.authority import LIFE_S, Authority, Issued
from dgpunet_dask.security.identity import Identity, install, install_crl, make_request


class Cluster:
    """An authority with hosts that have enrolled, each in a folder of its own."""

    def __init__(self, root: Path, name: str = "home") -> None:
        self.root = root / name
        self.authority = Authority.create(self.root / "head", name, time.time())

    def folder(self, host: str) -> Path:
        return self.root / host

    def enrol(
        self, host: str, role: str = "node", addresses: tuple[str, ...] = (), ago_s: float = 0.0, life_s: float = LIFE_S
    ) -> Issued:
        """Give a host a (new) certificate, made `ago_s` seconds ago."""
        now = time.time() - ago_s
        request = make_request(self.folder(host), host)
        issued = self.authority.issue(request, host=host, addresses=addresses, role=role, now=now, life_s=life_s)
        install(self.folder(host), issued.certificate_pem, self.authority.certificate_pem, self.authority.crl_pem(now))
        return issued

    def identity(self, host: str, **how) -> Identity:
        """Return the identity of a host that is enrolled by this."""
        self.enrol(host, **how)
        return Identity(self.folder(host))

    def publish(self, *hosts: str) -> None:
        """Bring the revocation list to hosts, as the answer to a heartbeat does."""
        for host in hosts:
            install_crl(self.folder(host), self.authority.crl_pem(time.time()))
            Identity(self.folder(host)).refresh()


class Connection:
    """Both ends of a TLS connection in memory."""

    def __init__(
        self, server: ssl.SSLContext, client: ssl.SSLContext, name: str = "127.0.0.1", session: ssl.SSLSession | None = None
    ) -> None:
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(there, back, server_side=True)
        self.client = client.wrap_bio(back, there, server_hostname=name, session=session)
        done = set()
        while len(done) < 2:
            for end in (self.client, self.server):
                try:
                    end.do_handshake()
                    done.add(end)
                except ssl.SSLWantReadError:
                    pass
        # Under TLS 1.3 the client is done before the server has judged it; a word in each direction tells.
        assert self.say(self.server, self.client) == b"word"
        assert self.say(self.client, self.server) == b"word"

    def say(self, speaker: ssl.SSLObject, hearer: ssl.SSLObject) -> bytes:
        speaker.write(b"word")
        return hearer.read(100)

    @property
    def server_serial(self) -> str:
        return str(self.client.getpeercert()["serialNumber"])


def refused(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "127.0.0.1") -> str:
    """Return why the handshake fails; an assertion fails if it does not."""
    try:
        Connection(server, client, name)
    except ssl.SSLError as error:
        return getattr(error, "verify_message", "") or str(error.reason)
    raise AssertionError("they connected")
