"""The head's HTTP API from asyncio: a connection for each request, closed when its waiter is cancelled. Standard library only."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Final, TypeVar, cast

from dgpunet_dask.cluster.api_client import CONNECT_S, ApiClient, answer_of
from dgpunet_dask.cluster.calls import Answer, Call
from dgpunet_dask.errors import CertificateRefused, NoHead

T = TypeVar("T")

_GONE: Final = (OSError, EOFError, http.client.HTTPException)


class AsyncApi:
    """One head, which `client` reaches too. Making the value connects to nothing.

    Errors are those of `ApiClient.do`. A question that is cancelled leaves no connection behind.
    """

    def __init__(self, client: ApiClient) -> None:
        self.client = client

    async def do(self, call: Call[T]) -> T:
        """Ask, and return what the answer says."""
        if isinstance(call.body, bytes):  # a server that refuses a long body closes while it is sent; the blocking side reads its answer then
            return await asyncio.to_thread(self.client.do, call)
        return call.read(await self._answer(call))

    async def _answer(self, call: Call[T]) -> Answer:
        body = b"" if call.body is None else json.dumps(call.body).encode()
        try:
            async with self._connected() as (reader, writer):
                writer.write(self._head(call, len(body)) + body)
                await writer.drain()
                async with asyncio.timeout(call.answer_s):
                    received = await reader.read()  # to the end: the head was told to close
            return _parsed(received, call.method, self.client.api)
        except _GONE as error:  # a TimeoutError is an OSError
            raise NoHead(where=self.client.api) from error

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        context = self.client.tls()  # made when the cluster was found, so that nothing blocks here
        host, port = self.client.where
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=context)
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(why=f"{host}:{port} showed one that does not hold: {error.verify_message}") from error
        try:
            yield reader, writer
        finally:
            writer.transport.abort()  # all was read, or nobody waits for it any more

    def _head(self, call: Call[T], length: int) -> bytes:
        host, port = self.client.where
        named = f"[{host}]" if ":" in host else host
        more: Mapping[str, str] = {"Content-Length": str(length)} if call.body is not None else {}
        headers = {"Host": f"{named}:{port}", "Connection": "close", **self.client.headers, **more}
        lines = [f"{call.method} {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")


class _Received:
    """Bytes where `http.client` expects a socket."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._received)


def _parsed(received: bytes, method: str, api: str) -> Answer:
    """Return the answer in all that came over a connection.

    Raises
    ------
    http.client.HTTPException
        If it is none, or ends too soon.
    """
    response = http.client.HTTPResponse(cast("socket.socket", _Received(received)), method=method)
    response.begin()
    return answer_of(response, response.read(), api)
