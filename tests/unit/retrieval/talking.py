"""A server that speaks OpenAI's protocol for chat completions, or fails at it in every way that one can."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"


def event(value: Any) -> bytes:
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def delta(text: str | None, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def streamed(*parts: bytes, kind: str = "text/event-stream") -> Callable[[Talker], None]:
    """Send parts of an answer, each by itself, as chunks of HTTP."""

    def answer(talker: Talker) -> None:
        talker.send_response(200)
        talker.send_header("Content-Type", kind)
        talker.send_header("Transfer-Encoding", "chunked")
        talker.end_headers()
        for part in parts:
            talker.chunk(part)
        talker.chunk(b"")

    return answer


def stopping_after(*parts: bytes) -> Callable[[Talker], None]:
    """Break the connection in the middle of an answer."""

    def answer(talker: Talker) -> None:
        talker.send_response(200)
        talker.send_header("Content-Type", "text/event-stream")
        talker.send_header("Transfer-Encoding", "chunked")
        talker.end_headers()
        for part in parts:
            talker.chunk(part)
        talker.close_connection = True

    return answer


def hanging_after(*parts: bytes) -> Callable[[Talker], None]:
    """Say nothing more, until the test is over."""

    def answer(talker: Talker) -> None:
        stopping_after(*parts)(talker)
        talker.server.reached.set()
        talker.server.over.wait(60)

    return answer


def refused(status: int, body: bytes = b'{"error": {"message": "no", "type": "x"}}', **headers: str) -> Callable[[Talker], None]:
    def answer(talker: Talker) -> None:
        talker.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            talker.send_header(name.replace("_", "-"), value)
        talker.send_header("Content-Length", str(len(body)))
        talker.end_headers()
        talker.wfile.write(body)

    return answer


GOOD = streamed(delta("The ans"), delta("wer is 4"), delta("2.\n", "stop"), event("[DONE]"))


class Talker(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        self.server.answer(self)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers), None))
        body = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]}).encode()
        refused(200, body)(self)

    def chunk(self, part: bytes) -> None:
        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Answers every question in the way that is set, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Talker)
        self.answer: Callable[[Talker], None] = GOOD
        self.models = ["only-one"]
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.reached, self.over = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is not of interest."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
