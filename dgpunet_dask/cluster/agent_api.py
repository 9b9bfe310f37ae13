"""The head's HTTP API from an agent's side: what a host sends with its certificate, and the request by which it gets its first one."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from dgpunet_dask.cluster.api_client import API_PORT, reported
from dgpunet_dask.cluster.config import ClusterConfig, join_host_port, split_host_port
from dgpunet_dask.cluster.tls import Context, TlsConnection, refused_by_peer
from dgpunet_dask.errors import CertificateRefused, NoHead
from dgpunet_dask.security.identity import CA, make_return_request
from dgpunet_dask.security.pinning import pinned_context, trusting
from dgpunet_dask.security.tokens import parse_token

#: What to do on a host whose head does not answer where it did. A host keeps its name, its cards' names and its roles by that.
MOVED: Final = (
    "if the head has another address now, run `dgpunet-dask token create {host}` there, then `dgpunet-dask down` and `dgpunet-dask join TOKEN` here"
)
#: A head that takes longer is as good as away: the next heartbeat is due.
CONNECT_S: Final = 3.0
ANSWER_S: Final = 5.0
#: Taking a host in signs a certificate and writes to disk.
JOIN_ANSWER_S: Final = 30.0
#: How long a refused handshake may take to be told.
ALERT_S: Final = 1.0


class ClientIdentity(Protocol):
    """What an agent's connections ask of its certificate."""

    def client_context(self) -> ssl.SSLContext:
        """Return a context with the certificate, which trusts the cluster's authority alone."""


class AgentApi:
    """The head, as an agent reaches it. Making the value connects to nothing. Safe from any thread.

    Parameters
    ----------
    addresses
        ``HOST:PORT`` of the head, the best first. What answered last is tried first.
    identity
        This host's certificate.

    Notes
    -----
    Every method raises NoHead, with each address and what was wrong with it, where no head answers; CertificateRefused where it, or this
    host's certificate, is not accepted; and else the error that the head reports.
    """

    def __init__(self, addresses: Sequence[str], identity: ClientIdentity) -> None:
        self.addresses = tuple(addresses)
        self.identity = identity
        self._best = 0

    def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Report; return epoch, commands, peers and the revocation list."""
        return self._post("/v1/agents/heartbeat", body)

    def renew(self, csr_pem: str) -> dict[str, Any]:
        """Return a new certificate for a request: ``{"certificate", ...}``."""
        return self._post("/v1/agents/renew", {"csr": csr_pem})

    def me(self) -> dict[str, Any]:
        """Return this host as `nodes` has it."""
        return self._post("/v1/agents/me", {})

    def leave(self) -> None:
        """Say good-bye."""
        self._post("/v1/agents/leave", {})

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        turns = [(self._best + n) % len(self.addresses) for n in range(len(self.addresses))]
        failed = _Failures()
        for turn in turns:
            with failed.at(self.addresses[turn]):
                answer = post(self.addresses[turn], path, body, lambda *_: self.identity.client_context(), ANSWER_S)
                self._best = turn
                return answer
        raise failed.error()


def join_request(token: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the head that `token` names to take this host in.

    The authority's fingerprint is in the token: the token is sent only to a head whose certificate that authority signed.

    Returns
    -------
    What the head answers, with ``ca`` as it was verified by the token, and ``via``: the address that answered.

    Raises
    ------
    BadToken
        If the token is not whole.
    TokenRefused
        If the head refuses it.
    CertificateRefused
        If another authority answers.
    NoHead
        If nothing answers, with each address and what was wrong with it.
    """
    return _with_token(token, "/v1/join", body)


def check_request(token: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the head that `token` names what this host would find if it joined: ``head``, ``software``, ``seen_as`` and ``reach``.

    The token is sent to no other head than for `join_request`, and is not used up. Raises the same errors.
    """
    return _with_token(token, "/v1/join/check", body)


def _with_token(token: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    parsed = parse_token(token)
    failed = _Failures()
    for address in parsed.addresses:
        with failed.at(address):
            context, ca_pem = pinned_context(parsed.fingerprint, split_host_port(address, API_PORT), CONNECT_S)
            answer = post(address, path, {**body, "token": parsed.text}, lambda *_, made=context: made, JOIN_ANSWER_S)
            return {**answer, "ca": ca_pem, "via": address}
    raise failed.error()


def renew_expired(config: ClusterConfig, pki: Path) -> dict[str, Any]:
    """Ask for a new certificate by one that has expired, as a host does that slept for longer than it holds.

    A connection with an expired certificate would be refused: the request goes without one, and proves by its signature whose it is.

    Parameters
    ----------
    pki
        Folder with this host's certificate and its authority's.

    Raises
    ------
    CertificateRefused
        If the head refuses it: it is over for too long, or was revoked.
    NoHead
        If no head answers.
    """
    certificate, csr = make_return_request(pki)
    context = trusting((pki / CA).read_text(encoding="ascii"))
    body = {"host": config.host, "certificate": certificate, "csr": csr, "addresses": [config.address], "roles": list(config.roles)}
    failed = _Failures()
    for address in config.api:
        with failed.at(address):
            return post(address, "/v1/join", body, lambda *_: context, JOIN_ANSWER_S)
    raise failed.error()


def post(address: str, path: str, body: Mapping[str, Any], context: Context, answer_s: float) -> dict[str, Any]:
    """Send one request to ``HOST:PORT`` and return the answer, or raise the error that it carries.

    Raises
    ------
    CertificateRefused
        If either side refuses the other's certificate.
    """
    host, port = split_host_port(address, API_PORT)
    connection = TlsConnection(host, port, timeout=CONNECT_S, context=context)
    with contextlib.closing(connection):
        connection.connect()
        connection.sock.settimeout(answer_s)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what made the head close is in its answer
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
        except (ssl.SSLError, ConnectionError) as error:  # of the latter, RemoteDisconnected is one
            why = error.reason if isinstance(error, ssl.SSLError) and refused_by_peer(error) else _alert(host, port, context)
            if why is None:
                raise
            raise CertificateRefused(why=f"the head at {address} does not accept this host's ({why})") from error
        if response.status >= 400:
            raise reported(response, join_host_port(host, port))
        return dict(json.loads(response.read()))


def _alert(host: str, port: int, context: Context) -> str | None:
    """Return why the head ends a connection on which nothing is sent, ``None`` if it does not.

    With TLS 1.3 a client learns only after its handshake that its certificate was refused, and if it has sent something by then, the
    reason may be lost with the connection.
    """
    connection = TlsConnection(host, port, timeout=CONNECT_S, context=context)
    with contextlib.closing(connection), contextlib.suppress(OSError, CertificateRefused):
        connection.connect()
        connection.sock.settimeout(ALERT_S)
        try:
            connection.sock.recv(1)
        except ssl.SSLError as error:
            return error.reason if refused_by_peer(error) else None
    return None


class _Failures:
    """What was wrong with each address that was tried."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.refused: CertificateRefused | None = None

    @contextlib.contextmanager
    def at(self, address: str) -> Iterator[None]:
        """Keep what goes wrong with an address, so that the next one is tried; an error that a head reports is the answer."""
        try:
            yield
        except CertificateRefused as error:
            self.refused = self.refused or error
            self.told.append(f"{address}: {error}")
        except NoHead as error:
            self.told.append(f"{address}: {error.fields.get('where', error)}")
        except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
            self.told.append(f"{address}: {error or type(error).__name__}")

    def error(self) -> NoHead | CertificateRefused:
        """Return the error of all of them: a certificate that was refused needs another cure than a head that is away."""
        return self.refused or NoHead(where="; ".join(self.told) or "no address at all")
