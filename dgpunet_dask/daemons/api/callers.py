"""Who asks, and what that lets them do. Pure."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from dgpunet_dask.model.owner import Owned, User
from dgpunet_dask.security.keys import SCOPES, Scope, allows

#: What a route asks for: nothing, a user's scope, or a host's certificate.
Need = Literal["public", "viewer", "submitter", "operator", "agent"]
AGENT_ROLES: Final = frozenset({"head", "node"})
#: A peer's certificate as `ssl.SSLSocket.getpeercert` gives it.
Certificate = Mapping[str, Any]


class Known(Protocol):
    """What a key store says of a key."""

    @property
    def user(self) -> str:
        """Whose it is."""

    @property
    def scope(self) -> Scope:
        """What it may."""


class Keys(Protocol):
    """What the API asks of a key store."""

    def who(self, text: str, now: float) -> Known | None:
        """Return whose key `text` is at `now` (seconds since 1970), ``None`` for one that is unknown, expired or revoked."""


@dataclass(frozen=True)
class Caller:
    """A user with a key. `user` is ``None`` only where the system has no name for who runs the head."""

    user: str | None
    scope: Scope

    @property
    def operates(self) -> bool:
        """Whether everything is theirs to see and to do."""
        return self.scope == "operator"

    @property
    def rights(self) -> User:
        """What decides whose things are theirs."""
        return User(self.user, self.operates)

    def sees(self, thing: Owned) -> bool:
        """Whether a job, an index or a model is theirs to read."""
        return self.rights.sees(thing)

    def owns(self, thing: Owned) -> bool:
        """Whether it is theirs to change. What has no owner is the operators'."""
        return self.rights.owns(thing)


@dataclass(frozen=True)
class Peer:
    """A host with a certificate that this cluster's authority signed."""

    host: str
    role: str


def caller_of(
    authorization: str | None, certificate: Certificate | None, local: tuple[str, str | None] | None, keys: Keys | None, now: float
) -> Caller | Peer | None:
    """Return who asks, ``None`` if nobody that is known.

    Whoever sends a key asks as its user, with a certificate or without one; a key that is wrong is never made good by a certificate.

    Parameters
    ----------
    authorization
        The header's text.
    certificate
        The peer's, which the listener has verified.
    local
        The key of this machine's own commands and their user; ``None`` where that key does not count.
    keys
        The users' keys.
    now
        Seconds since 1970.
    """
    if authorization is not None:
        return _user(authorization, local, keys, now)
    return None if certificate is None else _host(certificate, now)


def _user(authorization: str, local: tuple[str, str | None] | None, keys: Keys | None, now: float) -> Caller | None:
    kind, _, text = authorization.partition(" ")
    if kind != "Bearer" or not text:
        return None
    if local is not None and hmac.compare_digest(text.encode(), local[0].encode()):
        return Caller(local[1], "operator")
    found = None if keys is None else keys.who(text, now)
    return None if found is None else Caller(found.user, found.scope)


def _host(certificate: Certificate, now: float) -> Peer | None:
    """Return the host that a verified certificate names; one may have expired while its connection was open."""
    subject = dict(pair for name in certificate.get("subject", ()) for pair in name)
    host, role = subject.get("commonName"), subject.get("organizationalUnitName")
    if not host or not role or ssl.cert_time_to_seconds(certificate["notAfter"]) <= now:
        return None
    return Peer(str(host), str(role))


def refusal(asker: Caller | Peer, need: Need) -> str | None:
    """Return why `asker` may not use a route that asks for `need`, ``None`` if they may."""
    if need == "public":
        return None
    if isinstance(asker, Peer):
        if need != "agent":
            return "a host's certificate opens only the routes of agents"
        return None if asker.role in AGENT_ROLES else f"a certificate for the role {asker.role!r} is no host's"
    if need == "agent":
        return "only a host of the cluster may ask this, by its certificate"
    if asker.scope not in SCOPES or not allows(asker.scope, need):
        return f"the key's scope is {asker.scope}, and this asks for {need}"
    return None
