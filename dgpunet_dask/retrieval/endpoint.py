"""Asking an OpenAI-compatible server over HTTP, and reading its answer as it comes. Standard library only.

The key goes to the address that was named and nowhere else: redirections are not followed, proxies of the environment not used, and what
the server says is shown without it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dgpunet_dask.errors import (
    AnswerBroken,
    BadValue,
    DgpunetError,
    EndpointBusy,
    EndpointFailed,
    EndpointKeyRefused,
    EndpointRefused,
    NoModelNamed,
)
from dgpunet_dask.retrieval.sse import DONE, Chunk, Events, NotUnderstood, chunk_of, error_of

CONNECT_S: Final = 10.0
#: How long the next part of an answer may take; the first comes once the model has read the context.
PATIENCE_S: Final = 120.0
#: Characters of what a server says about an error.
_SAID_MOST: Final = 300
#: Bytes of an answer that is read; no model writes so much.
ANSWER_MOST: Final = 16 << 20
#: Bytes that are read of what is no answer: an error's explanation, a list of models.
_BODY_MOST: Final = 1 << 20
_PART: Final = 1 << 16
_MODELS_NAMED: Final = 10
_CHAT: Final = "/chat/completions"


@dataclass(frozen=True)
class Endpoint:
    """Where to ask. Making the value connects to nothing.

    Parameters
    ----------
    base
        Address without ``/chat/completions``, as ``http://127.0.0.1:8000/v1``.
    key
        Sent as a bearer token where there is one; never shown.
    patience_s
        How long the next part of an answer may take.
    """

    base: urllib.parse.SplitResult
    key: str | None = field(default=None, repr=False)
    patience_s: float = PATIENCE_S

    @property
    def where(self) -> str:
        return self.base.geturl()

    def answer(self, model: str, messages: Sequence[Mapping[str, str]]) -> Iterator[Chunk]:
        """Yield the parts of an answer as they come; the last one says why it ends.

        Raises
        ------
        EndpointFailed, EndpointBusy, EndpointRefused, EndpointKeyRefused
            If none comes.
        AnswerBroken
            If it ends before its end.
        """
        body = {"model": model, "messages": list(messages), "stream": True}
        with self._asked("POST", _CHAT, body) as response:
            yield from _Reading(self, response).chunks()

    def only_model(self) -> str:
        """Return the name of the model, where the server has just one.

        Raises
        ------
        NoModelNamed
            Otherwise, with those it has.
        """
        with self._asked("GET", "/models", None) as response:
            names = _names(self._whole(response))
        if len(names) != 1:
            more = ", …" if len(names) > _MODELS_NAMED else ""
            raise NoModelNamed(where=self.where, known=", ".join(names[:_MODELS_NAMED]) + more or "none")
        return names[0]

    def said(self, text: str) -> str:
        """Return what a server says, short, in one line, and without the key."""
        line = " ".join((text.replace(self.key, "***") if self.key else text).split())
        return line if len(line) <= _SAID_MOST else f"{line[:_SAID_MOST]}…"

    @contextlib.contextmanager
    def _asked(self, method: str, path: str, body: Any) -> Iterator[http.client.HTTPResponse]:
        """Give the answer to a request, if it is one of success; close the connection in the end."""
        connection = self._connection()
        try:
            with self._failures("connecting"):
                connection.connect()
            assert connection.sock is not None  # connected above
            connection.sock.settimeout(self.patience_s)
            with self._failures("waiting for the answer"):
                connection.request(method, self.base.path + path, None if body is None else json.dumps(body), self._headers())
                response = connection.getresponse()
            if response.status != http.client.OK:
                raise self._refusal(response)
            yield response
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self.base.hostname or "", self.base.port
        if self.base.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=CONNECT_S)
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=ssl.create_default_context())

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", "Accept": "text/event-stream, application/json", **key}

    @contextlib.contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # a name may be none that can be looked up
            raise EndpointFailed(where=self.where, why=f"{doing}: {self.said(why_of(error))}") from error

    def _refusal(self, response: http.client.HTTPResponse) -> DgpunetError:
        """Return the error that an answer without success stands for."""
        status, wait = response.status, response.headers.get("Retry-After", "")
        why = self.said(_explanation(self._whole(response))) or response.reason
        if status in {401, 403}:
            return EndpointKeyRefused(where=self.where, status=status, why=why)
        if status == 429:
            return EndpointBusy(where=self.where, why=f"429: {why}", wait=f"{wait} s" if wait.isdecimal() else "a while")
        if 400 <= status < 500:
            return EndpointRefused(where=self.where, status=status, why=why)
        if 300 <= status < 400:
            why = f"it sends on to {self.said(response.headers.get('Location', 'another address'))}, and that is not followed"
        return EndpointFailed(where=self.where, why=f"{status}: {why}")

    def _whole(self, response: http.client.HTTPResponse) -> bytes:
        with self._failures("reading the answer"):
            return response.read(_BODY_MOST)


class _Reading:
    """Reads one answer."""

    def __init__(self, endpoint: Endpoint, response: http.client.HTTPResponse) -> None:
        self._endpoint, self._response = endpoint, response
        self._chars = self._bytes = 0
        self._finish: str | None = None

    def chunks(self) -> Iterator[Chunk]:
        streamed = self._response.headers.get_content_type() == "text/event-stream"
        for data in self._streamed() if streamed else self._at_once():
            if data == DONE:
                return
            try:
                chunk = chunk_of(data)
            except NotUnderstood as error:
                raise self._broken(str(error)) from error
            if chunk.error is not None:
                raise self._broken(f"the server says: {chunk.error}")
            self._chars += len(chunk.text)
            self._finish = chunk.finish or self._finish
            yield chunk
        if self._finish is None:
            raise self._broken("the server closed the connection before the end")

    def _streamed(self) -> Iterator[str]:
        events = Events()
        while part := self._part():
            try:
                yield from events.feed(part)
            except NotUnderstood as error:
                raise self._broken(str(error)) from error

    def _at_once(self) -> Iterator[str]:
        """An answer that is not streamed, although that was asked for."""
        body = b"".join(iter(self._part, b""))
        yield body.decode("utf-8", "replace")

    def _part(self) -> bytes:
        try:
            part = self._response.read1(_PART)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(why_of(error)) from error
        self._bytes += len(part)
        if self._bytes > ANSWER_MOST:
            raise self._broken(f"it has more than {ANSWER_MOST >> 20} MiB")
        return part

    def _broken(self, why: str) -> DgpunetError:
        return AnswerBroken(where=self._endpoint.where, why=self._endpoint.said(why), chars=self._chars)


def endpoint_at(url: str, key: str | None = None, patience_s: float = PATIENCE_S) -> Endpoint:
    """Return the endpoint at an address: of a server (then ``/v1`` is meant), of its API, or of its chat completions.

    Raises
    ------
    BadValue
        If it is none, or holds a key or a query.
    """
    try:
        found = urllib.parse.urlsplit(url)
        usable = found.scheme in {"http", "https"} and bool(found.hostname) and (found.port is None or found.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise BadValue(what="the endpoint", value=url, why="write the address of a server, such as http://127.0.0.1:8000/v1")
    if found.username is not None or found.password is not None or found.query or found.fragment:
        shown = f"{found.scheme}://{found.hostname}…"
        raise BadValue(what="the endpoint", value=shown, why="write the bare address; a key goes into $DGPUNET_ASK_KEY")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise BadValue(what="$DGPUNET_ASK_KEY", value="***", why="a key has visible ASCII characters only")
    path = found.path.rstrip("/").removesuffix(_CHAT) or "/v1"
    return Endpoint(found._replace(path=path), key or None, patience_s)


def why_of(error: Exception) -> str:
    """Return what broke a connection, for people."""
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended in the middle of a message"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _explanation(body: bytes) -> str:
    try:
        return error_of(json.loads(body))
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def _names(body: bytes) -> list[str]:
    """Return the names in a list of models; none where it is no such list."""
    try:
        rows = json.loads(body)["data"]
        return [row["id"] for row in rows if isinstance(row["id"], str)]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
