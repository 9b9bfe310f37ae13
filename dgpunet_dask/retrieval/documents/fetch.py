"""A document from the web: one request, at most a few redirects, under a limit of bytes and a deadline for all of it together.

Whose list it is may not know what lies in the head's network, so that nothing in it is asked (server-side request forgery): only http and
https; a host's name is looked up once, every address that it has must be public, and the connection goes to an address that was looked
at, never to the name again; each redirect is looked at in the same way. No proxy, no cookies, no credentials.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final
from urllib.parse import urljoin

from dgpunet_dask.clock import Clock, SystemClock
from dgpunet_dask.retrieval.documents.kinds import Kind, kind_of_type
from dgpunet_dask.retrieval.documents.texts import SkippedError
from dgpunet_dask.retrieval.documents.urls import BadUrlError, Target, is_public, target_of

REDIRECTS_MAX: Final = 5
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_PIECE: Final = 64 << 10
_HEADERS: Final = {
    "User-Agent": "dgpunet-dask",
    "Accept": "text/html, application/pdf, text/plain, */*;q=0.5",
    "Accept-Encoding": "identity",  # what is compressed may unpack to anything
    "Connection": "close",
}

#: Looks a host up: `socket.getaddrinfo`.
Resolve = Callable[..., Sequence[tuple[Any, ...]]]


@dataclass(frozen=True)
class Limits:
    """What one address may cost, redirects included."""

    bytes_max: int = 16 << 20
    seconds: float = 30.0


@dataclass(frozen=True)
class Fetched:
    """What a server gave: its kind, and the charset that it stated."""

    kind: Kind
    charset: str | None


class Fetcher:
    """Fetches addresses.

    Parameters
    ----------
    permits
        Which addresses may be asked.
    resolve, clock, trust
        Given by tests: looks names up, tells the time, checks certificates.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        permits: Callable[[str], bool] = is_public,
        resolve: Resolve = socket.getaddrinfo,
        clock: Clock | None = None,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._limits = limits
        self._permits = permits
        self._resolve = resolve
        self._clock = clock or SystemClock()
        self._trust = trust

    def fetch(self, url: str, into: IO[bytes]) -> Fetched:
        """Write what `url` gives into an empty file, and return what it is.

        Raises
        ------
        SkippedError
            `fetch_failed`, `private_address`, `timeout`, `too_large`, `not_a_document`.
        """
        ends = self._clock.monotonic() + self._limits.seconds
        for _ in range(REDIRECTS_MAX + 1):
            found = self._hop(url, into, ends)
            if isinstance(found, Fetched):
                return found
            url = _joined(url, found)
        raise SkippedError("fetch_failed", f"more than {REDIRECTS_MAX} redirects")

    def _hop(self, url: str, into: IO[bytes], ends: float) -> Fetched | str:
        """One request: what it gave, or where it redirects to."""
        try:
            target = target_of(url)
        except BadUrlError as error:
            raise SkippedError("fetch_failed", _plain(f"it leads to what cannot be fetched: {error}")) from error
        late = threading.Event()
        try:
            with self._connected(target, ends, late) as connection:
                connection.request("GET", target.target, headers=_HEADERS)
                return self._taken(connection.getresponse(), target, into)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise self._too_late() from error
            raise SkippedError("fetch_failed", _plain(f"{type(error).__name__}: {error}")) from error
        except SkippedError:
            if late.is_set():  # what was cut off looks as if the server had ended it
                raise self._too_late() from None
            raise

    def _too_late(self) -> SkippedError:
        return SkippedError("timeout", f"it took longer than {self._limits.seconds:g} s to fetch")

    @contextmanager
    def _connected(self, target: Target, ends: float, late: threading.Event) -> Iterator[http.client.HTTPConnection]:
        """A connection to an address that was looked at; it is shut down at the deadline, whatever it waits for then."""
        with self._dialled(target, ends) as plain, plain.dup() as guard:
            left = max(0.0, ends - self._clock.monotonic())
            timer = threading.Timer(left, _shut_down, (guard, late))
            timer.daemon = True
            timer.start()
            try:
                connection = http.client.HTTPConnection(target.host, target.port)
                connection.default_port = 443 if target.secure else 80  # the Host header leaves it out
                connection.sock = self._trust().wrap_socket(plain, server_hostname=target.host) if target.secure else plain
                try:
                    yield connection
                finally:
                    connection.close()
            finally:
                timer.cancel()
                timer.join()  # it must not meet a descriptor that is another file by then
            if late.is_set():  # nothing tells a body without a length from one that was cut off
                raise self._too_late()

    def _dialled(self, target: Target, ends: float) -> socket.socket:
        """Connect to the first of the host's addresses that answers."""
        addresses = self._addresses(target)
        failed: OSError = TimeoutError()
        for tried, (family, address) in enumerate(addresses):
            left = ends - self._clock.monotonic()
            if left <= 0:
                raise self._too_late()
            plain = socket.socket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(left / (len(addresses) - tried))
                plain.connect(address)
            except OSError as error:
                plain.close()
                failed = error
            else:
                plain.settimeout(left)
                return plain
        raise failed

    def _addresses(self, target: Target) -> list[tuple[int, Any]]:
        try:
            found = self._resolve(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SkippedError("fetch_failed", _plain(f"{target.host} is not known: {error}")) from error
        if not found:
            raise SkippedError("fetch_failed", _plain(f"{target.host} has no address"))
        private = [sockaddr[0] for *_, sockaddr in found if not self._permits(sockaddr[0])]
        if private:
            raise SkippedError("private_address", _plain(f"{target.host} is {private[0]}"))
        return [(family, sockaddr) for family, *_, sockaddr in found]

    def _taken(self, response: http.client.HTTPResponse, target: Target, into: IO[bytes]) -> Fetched | str:
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location is not None:
            return location
        if not 200 <= response.status < 300:
            raise SkippedError("fetch_failed", _plain(f"{response.status} {response.reason}"))
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SkippedError("fetch_failed", "it came compressed, which was not asked for")
        kind = kind_of_type(response.headers.get_content_type() if "Content-Type" in response.headers else "", target.path)
        if kind is None:
            raise SkippedError("not_a_document", _plain(response.headers.get("Content-Type") or "it has no content type"))
        self._body(response, into, min(self._limits.bytes_max, kind.bytes_max))
        return Fetched(kind, response.headers.get_content_charset())

    def _body(self, response: http.client.HTTPResponse, into: IO[bytes], most: int) -> None:
        told = response.length
        taken = 0
        while told is None or told <= most:
            piece = response.read1(_PIECE)
            if not piece:
                break
            taken += len(piece)
            if taken > most:
                break
            into.write(piece)
        if taken > most or (told is not None and told > most):
            raise SkippedError("too_large", f"more than {most} bytes")
        if told is not None and taken < told:
            raise SkippedError("fetch_failed", f"it ended after {taken} of {told} bytes")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise SkippedError("fetch_failed", _plain(f"it redirects to what cannot be fetched: {error}")) from error


def anywhere(_address: str) -> bool:
    """Permit every address."""
    return True


def _shut_down(guard: socket.socket, late: threading.Event) -> None:
    late.set()
    try:
        guard.shutdown(socket.SHUT_RDWR)
    except OSError:  # not connected yet, or no more
        pass


def _plain(text: str) -> str:
    """What a server said, for people: one short line."""
    return "".join(c if c.isprintable() else " " for c in text)[:200]
