"""Asking an OpenAI-compatible server: the answer as it comes, each failure by its name, and the key in no one's sight."""

from __future__ import annotations

import json
import socket
import traceback

import pytest

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
from dgpunet_dask.retrieval import endpoint as module
from dgpunet_dask.retrieval.endpoint import endpoint_at
from tests.unit.retrieval.talking import GOOD, KEY, delta, event, hanging_after, refused, serving, stopping_after, streamed

ASKED = [{"role": "user", "content": "wie groß? 🙂"}]


@pytest.fixture
def server():
    with serving() as made:
        yield made


def answer(server, **more):
    chunks = list(endpoint_at(server.url, KEY, **more).answer("m", ASKED))
    return "".join(chunk.text for chunk in chunks), [chunk.finish for chunk in chunks if chunk.finish]


def test_an_answer_comes_in_parts(server):
    parts = [chunk.text for chunk in endpoint_at(server.url).answer("m", ASKED)]
    assert parts == ["The ans", "wer is 4", "2.\n"]
    (path, headers, body) = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "m", "messages": ASKED, "stream": True}
    assert "Authorization" not in headers


def test_each_part_is_there_before_the_next_is_sent(server):
    server.answer = hanging_after(delta("first"))
    stream = endpoint_at(server.url, patience_s=0.2).answer("m", ASKED)
    assert next(stream).text == "first"
    with pytest.raises(AnswerBroken, match="nothing came in time"):
        next(stream)


GOOD_ONES = {
    "whole lines cut anywhere": streamed(*(bytes([byte]) for byte in delta("The answer é ") + delta("is 42.\n", "stop"))),
    "CR LF and comments": streamed(b": hello\r\n\r\nevent: x\r\nid: 3\r\n" + delta("The answer é is 42.\n", "stop").replace(b"\n", b"\r\n")),
    "no [DONE]": streamed(delta("The answer é is 42.\n"), delta(None, "stop")),
    "[DONE] alone": streamed(delta("The answer é is 42.\n"), event("[DONE]")),
    "no space after the colon": streamed(delta("The answer é is 42.\n", "stop").replace(b"data: ", b"data:")),
    "empty choices and thoughts": streamed(
        event({"choices": []}), event({"choices": [{"delta": {"reasoning_content": "hm", "role": "assistant"}}]}),
        event({"usage": {}, "choices": None}), delta("The answer é is 42.\n", "stop"), event("[DONE]"),
    ),
    "in one piece": streamed(json.dumps({"choices": [{"message": {"content": "The answer é is 42.\n"}, "finish_reason": "stop"}]}).encode(), kind="application/json"),
}  # fmt: skip


@pytest.mark.parametrize("how", GOOD_ONES)
def test_what_servers_do_differently_is_understood(server, how):
    server.answer = GOOD_ONES[how]
    assert answer(server)[0] == "The answer é is 42.\n"


def test_the_reason_of_the_end_is_told(server):
    server.answer = streamed(delta("half"), delta("", "length"), event("[DONE]"))
    assert answer(server) == ("half", ["length"])


FAILURES = {
    "wrong key": (refused(401), EndpointKeyRefused, 2, "401: no"),
    "forbidden": (refused(403), EndpointKeyRefused, 2, "403: no"),
    "no such model": (refused(404, b'{"detail": "Not Found"}'), EndpointRefused, 2, "404: Not Found"),
    "too long": (refused(400, b'{"object": "error", "message": "context too long"}'), EndpointRefused, 2, "--budget"),
    "busy": (refused(429, Retry_After="7"), EndpointBusy, 1, "Wait 7 s"),
    "busy without a word": (refused(429, b""), EndpointBusy, 1, "Wait a while"),
    "busy until a date": (refused(429, Retry_After="Fri, 27 Nov 2026 15:00:00 GMT"), EndpointBusy, 1, "Wait a while"),
    "broken": (refused(500, b"<html>\nsorry</html>"), EndpointFailed, 1, "500: <html> sorry</html>"),
    "not ready": (refused(503), EndpointFailed, 1, "503: no"),
    "elsewhere": (refused(302, Location="http://elsewhere.example/"), EndpointFailed, 1, "not followed"),
    "a page": (streamed(b"<html></html>", kind="text/html"), AnswerBroken, 1, "not JSON"),
    "no answer": (streamed(), AnswerBroken, 1, "before the end"),
    "closed": (stopping_after(delta("The ans")), AnswerBroken, 1, "7 characters"),
    "ended early": (streamed(delta("The ans")), AnswerBroken, 1, "before the end"),
    "an error in the stream": (streamed(delta("The ans"), event({"error": {"message": "out of memory"}})), AnswerBroken, 1, "out of memory"),
    "an error that is a text": (streamed(event({"error": "out of memory"})), AnswerBroken, 1, "out of memory"),
    "garbage": (streamed(delta("The ans"), event("{]")), AnswerBroken, 1, "not JSON"),
    "no object": (streamed(event("[1]")), AnswerBroken, 1, "no object"),
    "deep": (streamed(event("[" * 100_000)), AnswerBroken, 1, "not JSON"),
    "not UTF-8": (streamed(b"data: \xff\n\n"), AnswerBroken, 1, "not UTF-8"),
    "endless event": (streamed(b"data: " + b"x" * (2 << 20)), AnswerBroken, 1, "has more than"),
    "many lines of one event": (streamed(*[b"data: " + b"x" * (300 << 10) + b"\n"] * 4), AnswerBroken, 1, "has more than"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_each_failure_is_one_line_with_its_exit_code(server, how):
    server.answer, kind, code, told = FAILURES[how]
    with pytest.raises(DgpunetError) as raised:
        answer(server)
    assert type(raised.value) is kind
    assert raised.value.exit_code == code
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 800


def test_an_answer_without_end_is_ended(server, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_MOST", 1 << 20)
    server.answer = streamed(*[delta("x" * 100_000)] * 20)
    with pytest.raises(AnswerBroken, match="more than 1 MiB"):
        answer(server)


def test_nobody_listens_and_nobody_answers(server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EndpointFailed, match="connecting: Connection refused"):
        list(endpoint_at(f"http://127.0.0.1:{port}").answer("m", ASKED))
    server.answer = lambda talker: talker.server.over.wait(60)
    with pytest.raises(EndpointFailed, match="waiting for the answer: nothing came in time"):
        list(endpoint_at(server.url, patience_s=0.2).answer("m", ASKED))
    server.answer = lambda talker: setattr(talker, "close_connection", True)
    with pytest.raises(EndpointFailed, match="waiting for the answer"):
        list(endpoint_at(server.url).answer("m", ASKED))


@pytest.mark.parametrize("name", ["nowhere.invalid", "x" * 70 + ".invalid"])
def test_a_name_that_nobody_has(name):
    with pytest.raises(EndpointFailed, match="connecting"):
        list(endpoint_at(f"http://{name}/v1").answer("m", ASKED))


def test_what_speaks_another_protocol():
    with serving() as server, pytest.raises(EndpointFailed, match="connecting"):
        list(endpoint_at(server.url.replace("http:", "https:")).answer("m", ASKED))


@pytest.mark.parametrize("how", ["key in an error", "key in a stream", "key in a reason"])
def test_the_key_is_sent_and_never_shown(server, how):
    said = json.dumps({"error": {"message": f"bad key {KEY}!"}}).encode()
    server.answer = {
        "key in an error": refused(401, said),
        "key in a stream": streamed(b"data: " + said + b"\n\n"),
        "key in a reason": refused(302, Location=f"http://x.example/?key={KEY}"),
    }[how]
    with pytest.raises(DgpunetError) as raised:
        answer(server)
    assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert "***" in str(raised.value)
    assert KEY not in repr(endpoint_at(server.url, KEY))


@pytest.mark.parametrize(("url", "path"), [
    ("http://h.example", "/v1"), ("http://h.example/", "/v1"), ("https://h.example:8000/v1/", "/v1"), ("http://h.example/api/v3", "/api/v3"),
    ("http://h.example/v1/chat/completions", "/v1"), ("http://[::1]:1/chat/completions", "/v1"),
])  # fmt: skip
def test_an_address_may_be_that_of_the_server_or_of_its_api(url, path):
    assert endpoint_at(url).base.path == path


@pytest.mark.parametrize("url", [
    "", "h.example", "ftp://h.example", "http://", "http://:80", "http://h.example:0", "http://h.example:x", "http://h.example:99999", "http://[::1",
    "http://h.example /v1", "http://h.example/\n", "http://größe.example", "http://" + "u:p@h.example", "http://h.example/?key=1", "http://h.example/#x", "//h.example",
])  # fmt: skip
def test_an_address_that_is_none(url):
    with pytest.raises(BadValue) as raised:
        endpoint_at(url)
    assert "u:p" not in str(raised.value)


@pytest.mark.parametrize("key", ["a\nb", "schlüssel", "a\r\nX-Evil: 1"])
def test_a_key_that_is_none_is_refused_and_not_shown(key):
    with pytest.raises(BadValue, match="visible ASCII") as raised:
        endpoint_at("http://h.example", key)
    assert key not in str(raised.value)


def test_the_only_model_needs_no_name(server):
    assert endpoint_at(server.url).only_model() == "only-one"
    assert server.asked[0][0] == "/v1/models"
    for models, told in ((["b", "a"], "b, a"), ([], "none"), ([f"m{n}" for n in range(99)], "m9, …")):
        server.models = models
        with pytest.raises(NoModelNamed, match=told):
            endpoint_at(server.url).only_model()


def test_connections_are_closed_also_when_nobody_reads_on(server):
    server.answer = GOOD
    stream = endpoint_at(server.url).answer("m", ASKED)
    next(stream)
    stream.close()  # a warning about an open socket would fail the test
