"""API keys of users: ``DGK1<CA fingerprint>::<id>.<secret>``, with a scope.

The fingerprint lets a client check that it speaks to the right head before it shows the key. At rest there is a digest of the whole
text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from dgpunet_dask.errors import BadToken, BadValue
from dgpunet_dask.security.credentials import PAIR, CredentialFile, digest, is_right, remembered

#: What a key allows, each with all before it: look; submit and cancel one's own jobs; run the cluster.
Scope = Literal["viewer", "submitter", "operator"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
PREFIX: Final = "DGK1"
_KEY: Final = re.compile(rf"{PREFIX}([0-9a-f]{{64}})::{PAIR}")
_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls: a user's name, what the key allows, and which key it was."""

    user: str
    scope: Scope
    key_id: str


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What a key says: the authority's fingerprint, and its id. `text` is all of it."""

    fingerprint: str
    id: str
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class KeyInfo:
    """A key as it is listed; times in seconds since 1970, `expires_s` is ``None`` where it has no end."""

    id: str
    user: str
    scope: Scope
    created_s: float
    expires_s: float | None


def allows(scope: Scope, needed: Scope) -> bool:
    """Tell whether a key of this scope may do what needs that one."""
    return SCOPES.index(scope) >= SCOPES.index(needed)


def parse_key(text: str) -> ApiKey:
    """Return what a key says.

    Raises
    ------
    BadToken
        If it is none. The message does not repeat it.
    """
    text = text.strip()
    found = _KEY.fullmatch(text)
    if found is None:
        raise BadToken(kind="key", why=f"a key is {PREFIX}, 64 hexadecimal digits, `::`, an id, a dot and a secret")
    return ApiKey(fingerprint=found[1], id=found[2], text=text)


class KeyStore:
    """The keys of one cluster, in one private file that several threads and processes may use.

    Parameters
    ----------
    file
        ``keys.json``; it need not exist.
    chance
        Gives so many random bytes; another one is for tests only.
    """

    def __init__(self, file: Path, *, chance: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._file = CredentialFile(file, "keys", chance)

    def create(self, user: str, scope: Scope, now: float, *, fingerprint: str, expires_s: float | None = None) -> str:
        """Make a key for `user` and return its text: it cannot be had again.

        Parameters
        ----------
        now, expires_s
            Seconds since 1970; ``None``: the key has no end.
        fingerprint
            That of the cluster's authority.

        Raises
        ------
        BadValue
            If the user's name or the scope is none.
        """
        if not _USER.fullmatch(user):
            raise BadValue(what="user", value=user, why="use letters, digits, dot, underscore, @ and hyphen, at most 200 of them")
        if scope not in SCOPES:
            raise BadValue(what="scope", value=scope, why=f"it is one of {', '.join(SCOPES)}")
        made = self._file.new()
        key = parse_key(f"{PREFIX}{fingerprint}::{made.id}.{made.secret}")
        row = {"user": user, "scope": scope, "created_s": now, "expires_s": expires_s, "digest": digest(key.text)}
        with self._file.change() as found:
            found["keys"] = {**remembered(found["keys"], now), key.id: row}
        return key.text

    def who(self, text: str, now: float) -> Caller | None:
        """Return whose key this is; ``None`` for one that is unknown, revoked, over or malformed."""
        found = _KEY.fullmatch(text)
        row = self._file.read()["keys"].get(found[2]) if found else None
        if not is_right(row, text) or found is None or row is None:
            return None
        over = row["expires_s"] is not None and now >= row["expires_s"]
        return None if over else Caller(user=row["user"], scope=row["scope"], key_id=found[2])

    def revoke(self, key_id: str) -> bool:
        """Forget a key, which ends it at once; return whether it was there."""
        with self._file.change() as found:
            return found["keys"].pop(key_id, None) is not None

    def list(self) -> list[KeyInfo]:
        """Return all keys, by user and age; those that have ended among them, for a week."""
        rows = [KeyInfo(id=i, **{k: v for k, v in row.items() if k != "digest"}) for i, row in self._file.read()["keys"].items()]
        return sorted(rows, key=lambda info: (info.user, info.created_s, info.id))
