"""A stream of events, cut anywhere, is the same events."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpunet_dask.retrieval.sse import Chunk, Events, NotUnderstood, chunk_of, error_of

LINES = st.text(st.sampled_from("ab: é🙂\t"), max_size=6)


def cut(raw, places):
    ends = sorted({place % (len(raw) + 1) for place in places} | {0, len(raw)})
    return [raw[a:b] for a, b in itertools.pairwise(ends)]


@given(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=4), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 500), max_size=9))
def test_events_do_not_depend_on_where_the_stream_is_cut(wanted, end, places):
    texts = [f": comment{end}" + "".join(f"data: {line}{end}" for line in lines) + f"id: 1{end}{end}" for lines in wanted]
    raw = ("".join(texts) + f"retry: 1{end}:{end}").encode()
    events = Events()
    found = [data for part in cut(raw, places) for data in events.feed(part)]
    assert found == ["\n".join(lines) for lines in wanted]


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_whatever_comes_is_split_or_refused(parts):
    events = Events()
    try:
        for part in parts:
            assert all(isinstance(data, str) for data in events.feed(part))
    except NotUnderstood as error:
        assert "UTF-8" in str(error)  # noqa: PT017  # most of it is split


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["error", "choices", "delta", "message", "content", "finish_reason"]), inner, max_size=3), max_leaves=8)


@given(JSON)
def test_any_json_is_a_chunk_or_refused(value):
    text = json.dumps(value)
    if isinstance(value, dict):
        chunk = chunk_of(text)
        assert isinstance(chunk.text, str)
        assert (chunk.error is not None) is bool(value.get("error"))
    else:
        with pytest.raises(NotUnderstood, match="no object"):
            chunk_of(text)


@pytest.mark.parametrize(("value", "wanted"), [
    ({"error": {"message": "m", "code": 3}}, "m"), ({"error": "m"}, "m"), ({"detail": "m"}, "m"), ({"message": "m"}, "m"),
    ({"detail": [{"loc": ["a"], "msg": "m"}]}, '[{"loc": ["a"], "msg": "m"}]'), ({}, "{}"), ([], "[]"), ({"error": {"code": 3}}, '{"code": 3}'),
])  # fmt: skip
def test_what_an_error_says_is_found_where_servers_put_it(value, wanted):
    assert error_of(value) == wanted


def test_a_chunk_without_anything_adds_nothing():
    assert chunk_of("{}") == Chunk()
    assert chunk_of('{"choices": [{"delta": {"content": [1]}, "finish_reason": 3}]}') == Chunk()
