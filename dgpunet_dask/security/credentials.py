"""What join tokens and API keys have in common: an id that may be seen, a secret that is shown once, and a digest of it at rest.

A secret has 256 bits of chance, so a plain SHA-256 is enough (a slow hash is for what people think up).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dgpunet_dask.security.files import PrivateJson

#: Both as they are written: the id, a dot, the secret.
PAIR: Final = r"([0-9a-f]{12})\.([A-Za-z0-9_-]{43})"
#: How long one that no longer works is remembered, so that a list and a refusal can say why.
MEMORY_S: Final = 7 * 86_400.0

Row = dict[str, Any]


class Credential(NamedTuple):
    """A new id and its secret."""

    id: str
    secret: str


class CredentialFile:
    """Credentials of one kind as rows by their ids, in one private file that several threads and processes may use.

    Parameters
    ----------
    file
        It need not exist.
    kind
        Under which name the file holds the rows; what else it holds is its user's.
    chance
        Gives so many random bytes; another one is for tests only.

    Notes
    -----
    A row has at least ``digest`` (`digest`) and ``expires_s`` (seconds since 1970, ``None``: never).
    """

    def __init__(self, file: Path, kind: str, chance: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._file = PrivateJson(file)
        self._kind = kind
        self._chance = chance

    def new(self) -> Credential:
        """Make an id and a secret; nothing is written."""
        return Credential(self._chance(6).hex(), base64.urlsafe_b64encode(self._chance(32)).rstrip(b"=").decode())

    def read(self) -> Mapping[str, Any]:
        """Return what the file says, the rows among it; not to be changed. Raises as `PrivateJson.read` does."""
        return {self._kind: {}, **self._file.read()}

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Give the same to be changed in place, while nobody else changes it; an exception leaves the file as it was."""
        with self._file.change() as found:
            found.setdefault(self._kind, {})
            yield found


def digest(text: str) -> str:
    """Return what is kept in place of a secret: SHA-256, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_right(row: Row | None, text: str) -> bool:
    """Whether `text` is what the row keeps the digest of. It takes as long for a row that is none as for a wrong text."""
    return hmac.compare_digest(row["digest"] if row else "", digest(text))


def remembered(rows: Mapping[str, Row], now: float) -> dict[str, Row]:
    """Return the rows without those that ended more than `MEMORY_S` before `now`."""
    return {name: row for name, row in rows.items() if row["expires_s"] is None or now < row["expires_s"] + MEMORY_S}
