"""Join tokens: ``DG10<CA fingerprint>::<id>.<secret>::<address:port>[,…]`` (the form is k3s's).

A token names the one host that it is for, works once and for a while, pins the cluster's authority, so that the joining host cannot
be led to another, and says where the head answers. Only a digest of the secret is kept.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from dgpunet_dask.errors import BadToken, BadValue, TokenRefused
from dgpunet_dask.security.credentials import PAIR, CredentialFile, Row, digest, is_right, remembered
from dgpunet_dask.security.names import checked_host

Reason = Literal["unknown", "expired", "used", "other_host", "other_cluster", "revoked"]
State = Literal["open", "used", "expired", "revoked"]
PREFIX: Final = "DG10"
#: How long the same request may redeem a token again: its answer was lost on the way.
REPEAT_S: Final = 60.0
_LONGEST: Final = 4096
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_CREDENTIAL: Final = re.compile(PAIR)
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_WHY: Final[dict[Reason, str]] = {
    "unknown": "this cluster has made no such token",
    "expired": "its time is over",
    "used": "it was used before",
    "other_host": "it was made for another host",
    "other_cluster": "it was made by another cluster",
    "revoked": "it was revoked",
}

Address = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """What a token says: the authority's fingerprint, its id and secret, and ``host:port`` of the head's API, the best first."""

    fingerprint: str
    id: str
    secret: str = field(repr=False)
    addresses: tuple[str, ...]

    @property
    def text(self) -> str:
        """The token as it is handed over."""
        return f"{PREFIX}{self.fingerprint}::{self.id}.{self.secret}::{','.join(self.addresses)}"


@dataclass(frozen=True, kw_only=True)
class TokenInfo:
    """A token as it is listed: for whom, in which state, and when it was made, ends and was used (seconds since 1970)."""

    id: str
    host: str
    state: State
    created_s: float
    expires_s: float
    used_s: float | None = None


def parse_token(text: str) -> JoinToken:
    """Return what a token says.

    Raises
    ------
    BadToken
        If it is none. The message says which part is wrong and never repeats the secret.
    """
    text = text.strip()
    if len(text) > _LONGEST or not text.isascii():
        raise _bad("it is longer than any token" if len(text) > _LONGEST else "it has signs that no token has")
    if not text.startswith(PREFIX):
        raise _bad(f"it does not begin with {PREFIX}")
    parts = text.removeprefix(PREFIX).split("::", 2)
    if len(parts) != 3:  # an IPv6 address may hold more of the sign, hence the bound on the split
        raise _bad(f"it has {len(parts)} of 3 parts, which `::` parts")
    fingerprint, credential, addresses = parts
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise _bad("its first part is not the fingerprint of an authority, 64 hexadecimal digits")
    found = _CREDENTIAL.fullmatch(credential)
    if found is None:
        raise _bad("its second part is not an id and a secret")
    checked = tuple(address_text(parse_address(address)) for address in addresses.split(","))
    return JoinToken(fingerprint=fingerprint, id=found[1], secret=found[2], addresses=checked)


def parse_address(text: str) -> Address:
    """Return host and port of ``host:port``; an IPv6 address stands in brackets.

    Raises
    ------
    BadToken
        If it is no address with a port between 1 and 65535.
    """
    host, colon, port = text.rpartition(":")
    in_brackets = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if in_brackets else host
    valid = _is_address(host, 6) if in_brackets else (_HOST.fullmatch(host) and ".." not in host)
    if not colon or not valid or not _PORT.fullmatch(port) or not 0 < int(port) < 65_536:
        raise _bad(f"{text[:80]!r} is no address of the form host:port")
    return host, int(port)


def address_text(address: Address) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _good(record: Mapping[str, Any], given: JoinToken, host: str, now: float, request_digest: str) -> Row:
    """Return the row of a token that may be used now. Raises TokenRefused."""
    row: Row | None = record["tokens"].get(given.id)
    right = is_right(row, given.secret)
    if record.get("fingerprint", given.fingerprint) != given.fingerprint:
        raise _refused("other_cluster")
    if row is None or not right:
        raise _refused("unknown")
    if (reason := _reason(row, host, now, request_digest)) is not None:
        raise _refused(reason)
    return row


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version and "%" not in text
    except ValueError:
        return False


def _bad(why: str) -> BadToken:
    return BadToken(kind="token", why=why)


def _refused(reason: Reason) -> TokenRefused:
    return TokenRefused(reason=reason, why=_WHY[reason])


class TokenStore:
    """The tokens of one cluster, in one private file that several threads and processes may use.

    Parameters
    ----------
    file
        ``tokens.json``; it need not exist.
    chance
        Gives so many random bytes; another one is for tests only.
    """

    def __init__(self, file: Path, *, chance: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._file = CredentialFile(file, "tokens", chance)

    def create(self, host: str, addresses: Sequence[str | Address], fingerprint: str, *, ttl_s: float, now: float) -> str:
        """Make a token for `host` that works for `ttl_s` seconds, and return its text: it cannot be had again.

        Parameters
        ----------
        host
            The name of the machine that may use it.
        addresses
            Where the head's API answers: ``host:port`` or pairs, at least one.
        fingerprint
            That of the cluster's authority.

        Raises
        ------
        BadValue, BadToken
            If the host's name is none (`names.checked_host`), or no address is given; if an address is malformed.
        """
        if not addresses:
            raise BadValue(what="token for", value=host, why="name at least one address of the head")
        checked_host(host)  # as the certificate will: a token that is used up for a name that cannot be had is lost
        texts = tuple(address_text(parse_address(a if isinstance(a, str) else address_text(a))) for a in addresses)
        made = self._file.new()
        token = JoinToken(fingerprint=fingerprint, id=made.id, secret=made.secret, addresses=texts)
        row = {
            "host": host, "digest": digest(token.secret), "created_s": now, "expires_s": now + ttl_s,
            "used_s": None, "request": None, "revoked": False,
        }  # fmt: skip
        with self._file.change() as found:
            found.update(fingerprint=fingerprint, tokens={**remembered(found["tokens"], now), token.id: row})
        return parse_token(token.text).text

    def redeem(self, token: str | JoinToken, *, host: str, now: float, request_digest: str = "") -> TokenInfo:
        """Use a token up; when this returns, the use is on the disk.

        Parameters
        ----------
        host
            The host that asks.
        request_digest
            What its request is known by (`authority.request_digest`): the same host may repeat the same request for `REPEAT_S`
            seconds. Empty: no repetition.

        Raises
        ------
        TokenRefused
            With the `reason` in its fields. Only who has the secret learns more than ``unknown`` and ``other_cluster``.
        BadToken
            If it is none.
        """
        given = parse_token(token) if isinstance(token, str) else token
        with self._file.change() as found:
            row = _good(found, given, host, now, request_digest)
            if row["used_s"] is None:
                row.update(used_s=now, request=request_digest)
        return _info(given.id, row, now)

    def check(self, token: str | JoinToken, *, host: str, now: float, request_digest: str = "") -> None:
        """Raise what `redeem` would, and use nothing up: who asks may be told more only once the token is good."""
        given = parse_token(token) if isinstance(token, str) else token
        _good(self._file.read(), given, host, now, request_digest)

    def revoke(self, token_id: str) -> bool:
        """Make a token useless; return whether it was there and not used."""
        return self._revoke(lambda info: info.id == token_id) > 0

    def revoke_host(self, host: str) -> int:
        """Make every unused token of a host useless; return how many there were."""
        return self._revoke(lambda info: _same_host(info.host, host))

    def list(self, now: float) -> list[TokenInfo]:
        """Return the tokens that are remembered, the newest first."""
        rows = [_info(name, row, now) for name, row in self._file.read()["tokens"].items()]
        return sorted(rows, key=lambda info: (-info.created_s, info.id))

    def _revoke(self, wanted: Callable[[TokenInfo], bool]) -> int:
        with self._file.change() as found:
            unused = [(name, row) for name, row in found["tokens"].items() if row["used_s"] is None and not row["revoked"]]
            rows = [row for name, row in unused if wanted(_info(name, row, row["created_s"]))]
            for row in rows:
                row["revoked"] = True
        return len(rows)


def _reason(row: Row, host: str, now: float, request_digest: str) -> Reason | None:
    """Return why the holder of the secret may not use the token; ``None`` if it may."""
    if row["revoked"]:
        return "revoked"
    if not _same_host(row["host"], host):
        return "other_host"
    if row["used_s"] is not None:
        repeated = bool(request_digest) and hmac.compare_digest(row["request"] or "", request_digest)
        return None if repeated and now < row["used_s"] + REPEAT_S else "used"
    return "expired" if now >= row["expires_s"] else None


def _same_host(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _info(name: str, row: Row, now: float) -> TokenInfo:
    state: State = "expired" if now >= row["expires_s"] else "open"
    state = "revoked" if row["revoked"] else "used" if row["used_s"] is not None else state
    times = {key: row[key] for key in ("created_s", "expires_s", "used_s")}
    return TokenInfo(id=name, host=row["host"], state=state, **times)
