"""How a command or an agent knows that it speaks with its own head: who is trusted, and connections that check it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgpunet_dask.errors import CertificateRefused
from dgpunet_dask.security.keys import PREFIX
from dgpunet_dask.security.pinning import pinned_context, trusting

#: How long the authority's certificate may take to arrive.
PIN_S: Final = 5.0
_KEY: Final = re.compile(rf"{PREFIX}([0-9a-f]{{64}})::")

Context = Callable[[str, int], ssl.SSLContext]


@dataclass(frozen=True)
class Trust:
    """What a user has to tell a true head by.

    Parameters
    ----------
    ca_file
        PEM file of the cluster's authority; counts before all else.
    pki
        ``$DGPUNET_HOME/pki``; its ``ca.crt`` counts where the key names no other authority.
    """

    ca_file: Path | None = None
    pki: Path | None = None

    def for_key(self, key: str) -> KeyTrust:
        """Return the same for a user with this API key, which carries the fingerprint of its cluster's authority."""
        found = _KEY.match(key)
        return KeyTrust(self, found[1] if found else None)


NO_TRUST: Final = Trust()


class KeyTrust:
    """Makes the context when it is first asked for, and keeps it."""

    def __init__(self, trust: Trust, fingerprint: str | None) -> None:
        self.trust = trust
        self.fingerprint = fingerprint
        self._context: ssl.SSLContext | None = None

    def context(self, host: str, port: int) -> ssl.SSLContext:
        """Return a context that trusts the cluster's authority alone, and checks the host's name.

        Raises
        ------
        CertificateRefused
            If nothing says which authority that is, or another one answers.
        """
        if self._context is None:
            self._context = self._make(host, port)
        return self._context

    def _make(self, host: str, port: int) -> ssl.SSLContext:
        if self.trust.ca_file is not None:
            return _trusting(self.trust.ca_file)
        known = None if self.trust.pki is None else self.trust.pki / "ca.crt"
        if known is not None and known.is_file() and self.fingerprint in {None, fingerprint_of(known)}:
            return _trusting(known)
        if self.fingerprint is None:
            raise CertificateRefused(why=_NO_TRUST)
        return pinned_context(self.fingerprint, (host, port), PIN_S)[0]


_NO_TRUST: Final = (
    "nothing here says which authority to trust; give $DGPUNET_API_KEY whole, as `dgpunet-dask key create` printed it, "
    "or name the cluster's ca.crt in $DGPUNET_CA_FILE"
)


def _trusting(file: Path) -> ssl.SSLContext:
    try:
        return trusting(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise CertificateRefused(why=f"{file} holds no certificate that can be read ({error})") from error


def fingerprint_of(file: Path) -> str | None:
    """Return the SHA-256 of the first certificate in a PEM file, in hex; ``None`` where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read_text(encoding="ascii"))).hexdigest()
    return None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: what is said to it reaches no network."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TlsConnection(http.client.HTTPConnection):
    """A connection that is encrypted, and verified before a byte of HTTP is sent.

    The context is asked for once something answers there, so that a head that is away is told as away.
    """

    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, port: int, *, timeout: float, context: Context) -> None:
        super().__init__(host, port, timeout=timeout)
        self._made = context

    def connect(self) -> None:
        """Connect and shake hands.

        Raises
        ------
        CertificateRefused
            If the peer's certificate is not the head's.
        """
        super().connect()
        plain: socket.socket = self.sock
        try:
            self.sock = self._made(self.host, self.port).wrap_socket(plain, server_hostname=self.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise CertificateRefused(why=f"{self.host}:{self.port} showed one that does not hold: {error.verify_message}") from error
        except BaseException:
            plain.close()
            raise


def refused_by_peer(error: ssl.SSLError) -> bool:
    """Whether the other side ended the connection because of our certificate."""
    return "ALERT" in str(error.reason)
