"""What lets others in: join tokens for machines, API keys for users. Thin rows over the stores of `security`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from dgpunet_dask.clock import Clock
from dgpunet_dask.cluster.config import ClusterConfig
from dgpunet_dask.errors import BadValue, NotFound
from dgpunet_dask.hardware.cpu import checked_name
from dgpunet_dask.security.authority import Authority
from dgpunet_dask.security.keys import SCOPES, KeyStore
from dgpunet_dask.security.tokens import TokenStore

TOKEN_S: Final = 3600.0
#: No token works for longer: it is a secret that lies in a shell's history.
TOKEN_MOST_S: Final = 7 * 86_400.0
#: Three centuries: what ends later has no date that can be written.
_LONGEST_S: Final = 1e10


class Invitations:
    """Tokens and keys of one cluster.

    Parameters
    ----------
    folder
        ``pki`` of the head's home.
    config
        Where the head answers.
    authority
        Whose fingerprint tokens and keys carry.
    """

    def __init__(self, folder: Path, config: ClusterConfig, authority: Authority, clock: Clock) -> None:
        self.config, self.authority, self.clock = config, authority, clock
        self.store = KeyStore(folder / "keys.json")
        self._tokens = TokenStore(folder / "tokens.json")

    def check(self, token: str, host: str, request: str) -> None:
        """Raise what `redeem` would, and use nothing up."""
        self._tokens.check(token, host=host, now=self.clock.wall(), request_digest=request)

    def redeem(self, token: str, host: str, request: str) -> None:
        """Use a token up for `host`. Raises TokenRefused or BadToken."""
        self._tokens.redeem(token, host=host, now=self.clock.wall(), request_digest=request)

    def token_create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a token: ``{"host", "ttl_s"}``.

        Raises
        ------
        BadValue
            If a part is none, or no host can join by that name; if it is to work for too long.
        """
        host, ttl_s = checked_name(text_of(body, "host")), number_of(body, "ttl_s", TOKEN_S)
        if ttl_s > TOKEN_MOST_S:
            raise BadValue(what="ttl", value=ttl_s, why=f"a token may work for {TOKEN_MOST_S / 86_400:.0f} days at most")
        now = self.clock.wall()
        text = self._tokens.create(host, self.config.api, self.authority.fingerprint, ttl_s=ttl_s, now=now)
        return {"token": text, "host": host, "expires_s": now + ttl_s, "addresses": list(self.config.api)}

    def tokens(self) -> list[dict[str, Any]]:
        """Return the tokens without their secrets."""
        return [asdict(info) for info in self._tokens.list(self.clock.wall())]

    def token_revoke(self, token_id: str) -> dict[str, Any]:
        """Make a token worthless."""
        if not self._tokens.revoke(token_id):
            raise NotFound(what=f"Token {token_id}")
        return {"id": token_id, "revoked": True}

    def revoke_host(self, host: str) -> None:
        """Make all unused tokens of a host worthless: it was removed, and comes back only by a new one."""
        self._tokens.revoke_host(host)

    def key_create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a key: ``{"user", "scope", "ttl_s"}``."""
        user, scope = text_of(body, "user"), text_of(body, "scope")
        if scope not in SCOPES:
            raise BadValue(what="scope", value=scope, why=f"it is one of {', '.join(SCOPES)}")
        now = self.clock.wall()
        expires_s = None if body.get("ttl_s") is None else now + number_of(body, "ttl_s", 0.0)
        text = self.store.create(user, scope, now, fingerprint=self.authority.fingerprint, expires_s=expires_s)
        return {"key": text, "user": user, "scope": scope, "expires_s": expires_s, "api": f"https://{self.config.api[0]}"}

    def keys(self) -> list[dict[str, Any]]:
        """Return the keys without their secrets."""
        return [asdict(info) for info in self.store.list()]

    def key_revoke(self, key_id: str) -> dict[str, Any]:
        """Make a key worthless."""
        if not self.store.revoke(key_id):
            raise NotFound(what=f"Key {key_id}")
        return {"id": key_id, "revoked": True}


class Inviting:
    """What the API asks of the invitations, as part of what it asks of the membership."""

    invitations: Invitations

    async def token_create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a join token."""
        return self.invitations.token_create(body)

    async def tokens(self) -> list[dict[str, Any]]:
        """Return the tokens."""
        return self.invitations.tokens()

    async def token_revoke(self, token_id: str) -> dict[str, Any]:
        """Make a token worthless."""
        return self.invitations.token_revoke(token_id)

    async def key_create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make an API key."""
        return self.invitations.key_create(body)

    async def keys(self) -> list[dict[str, Any]]:
        """Return the keys."""
        return self.invitations.keys()

    async def key_revoke(self, key_id: str) -> dict[str, Any]:
        """Make a key worthless."""
        return self.invitations.key_revoke(key_id)


def text_of(body: Mapping[str, Any], name: str) -> str:
    """Return a text of a request's body.

    Raises
    ------
    BadValue
        If it is missing, empty or no text.
    """
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadValue(what=name, value=value, why="it must be a text")
    return value


def number_of(body: Mapping[str, Any], name: str, default: float) -> float:
    """Return a positive number of seconds of a request's body.

    Raises
    ------
    BadValue
        If it is something else.
    """
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST_S:
        raise BadValue(what=name, value=value, why=f"it must be a positive number of seconds, {_LONGEST_S:g} at most")
    return float(value)
