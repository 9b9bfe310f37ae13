"""A bare asyncio client, so that many can ask at once and each byte is the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Talk:
    """One connection."""

    def __init__(self, reader, writer, host):
        self.reader, self.writer, self.host = reader, writer, host

    @classmethod
    async def open(cls, port, context=None, host=None):
        """Connect; `context` is for TLS."""
        named = {"server_hostname": "127.0.0.1"} if context else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, **named)
        return cls(reader, writer, host or f"127.0.0.1:{port}")

    def send(self, method, path, body=b"", **headers):
        """Write one request without waiting; a header of None is left out."""
        said = {"Host": self.host, "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items() if value is not None), "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def answer(self):
        """Read one answer."""
        first = (await self.reader.readuntil(b"\r\n")).decode()
        headers = {}
        while (line := (await self.reader.readuntil(b"\r\n")).decode().strip()):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, method, path, body=b"", **headers):
        """Send and read."""
        self.send(method, path, body, **headers)
        return await self.answer()

    async def rest(self, seconds=10.0):
        """Return all that comes until the server ends the connection."""
        got = b""
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionResetError):
                while piece := await self.reader.read(65536):
                    got += piece
        return got

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()
