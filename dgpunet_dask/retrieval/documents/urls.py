"""A list of web addresses, and which of the hosts behind them may be asked. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from dgpunet_dask.errors import MalformedFile, Problem

#: Addresses of one list.
URLS_MAX: Final = 10_000
#: Bytes of the list itself.
LIST_BYTES_MAX: Final = 64 << 20
_URL_CHARS_MAX: Final = 4096
#: Signs that stay as they are when an address is written for a request.
_SAFE: Final = "%/:=&?~+!$,;'@()*[]"
#: IPv6 addresses whose last 32 bits are an IPv4 address that the network leads to.
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
#: Tunnels that may lead to any IPv4 address, and that nobody serves pages by.
_TUNNELS: Final = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))


class BadUrlError(ValueError):
    """What is wrong with an address."""


@dataclass(frozen=True)
class Target:
    """Where a request goes: `target` is its path and query."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.target.partition("?")[0]


def target_of(url: str) -> Target:
    """Return where `url` leads.

    Raises
    ------
    BadUrlError
        If it is not ``http`` or ``https``, carries a name and password, or is none.
    """
    if len(url) > _URL_CHARS_MAX or re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise BadUrlError("it is too long, or holds a space or a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if not _is_v6(parts.hostname) else parts.hostname or ""
    except (ValueError, UnicodeError) as error:
        raise BadUrlError(str(error)) from error
    if parts.scheme.lower() not in {"http", "https"}:
        raise BadUrlError("only http and https are fetched")
    if not host or parts.username is not None or parts.password is not None:
        raise BadUrlError("it names no host, or carries a name and password")
    secure = parts.scheme.lower() == "https"
    target = urlunsplit(("", "", quote(parts.path or "/", safe=_SAFE), quote(parts.query, safe=_SAFE), ""))
    return Target(secure, host, port or (443 if secure else 80), target)


def _is_v6(host: str | None) -> bool:
    return host is not None and ":" in host


def urls_in(text: str, file: str, urls_max: int = URLS_MAX) -> list[str]:
    """Return the addresses of a list, one a line, each once; lines that are blank or begin with ``#`` are passed over.

    Raises
    ------
    MalformedFile
        With every line that is no address to fetch, and the line from which on there are too many.
    """
    found: dict[str, None] = {}
    problems = []
    for number, url in _lines(text):
        try:
            target_of(url)
        except BadUrlError as error:
            problems.append(Problem(file, number, 1, f"{url[:80]!r} cannot be fetched: {error}"))
            continue
        found[url.partition("#")[0]] = None
        if len(found) > urls_max:
            problems.append(Problem(file, number, 1, f"a list may hold {urls_max} addresses; make several indexes"))
            break
    if problems:
        raise MalformedFile(problems)
    return list(found)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        url = line.strip()
        if url and not url.startswith("#"):
            yield number, url


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, and not to this host, its networks or a tunnel that may lead there."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        if any(found in tunnel for tunnel in _TUNNELS) or found.is_site_local:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved
