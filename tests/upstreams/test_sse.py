"""Reading usage out of passing bytes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerpost.records import Usage
from fingerpost.upstreams.sse import MAX_BUFFERED, UsageReader

CHUNK = b'data: {"choices":[{"delta":{"content":"usage \xc3\xbc \\"usage\\":"}}],"usage":null}'
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}'


def usage_of(*chunks: bytes, stream: bool) -> Usage | None:
    reader = UsageReader(stream=stream)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close()


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("tail", [b"data: [DONE]", b": bye", b""])
def test_the_last_event_of_a_stream_tells_the_usage(end: bytes, tail: bytes) -> None:
    assert usage_of(CHUNK + end + LAST + end + tail + end, stream=True) == Usage(7, 5)


def test_a_stream_that_ends_without_a_line_end_tells_it_too() -> None:
    assert usage_of(CHUNK + b"\n\n", LAST, stream=True) == Usage(7, 5)


def test_a_data_field_without_a_space_after_the_colon_is_read() -> None:
    assert usage_of(LAST.replace(b"data: ", b"data:") + b"\n\n", stream=True) == Usage(7, 5)


def test_of_several_usages_the_last_one_counts() -> None:
    early = b'data: {"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'
    assert usage_of(early, LAST + b"\n\n", stream=True) == Usage(7, 5)


@given(st.lists(st.integers(0, 400), max_size=8), st.sampled_from([b"\n\n", b"\r\n\r\n"]))
@settings(max_examples=100)
def test_where_a_stream_is_cut_into_chunks_makes_no_difference(cuts: list[int], end: bytes) -> None:
    whole = end.join([b": hello", CHUNK, b"event: x\nid: 7", LAST, b"data: [DONE]", b""])
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    chunks = [whole[start:stop] for start, stop in pairwise(places)]
    assert usage_of(*chunks, stream=True) == Usage(7, 5)


def test_a_json_body_in_pieces_tells_the_usage() -> None:
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    assert usage_of(body[:20], body[20:], stream=False) == Usage(3, 4)


def test_counts_that_are_missing_are_zero() -> None:
    assert usage_of(b'{"usage":{"total_tokens":9}}', stream=False) == Usage(0, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"not json",
        b'{"usage":null}',
        b'{"usage":[]}',
        b'{"usage":{"prompt_tokens":"7"}}',
        b'{"usage":{"prompt_tokens":null}}',
        b'{"usage":{"prompt_tokens":-7}}',
        b'{"usage":{"prompt_tokens":7.5}}',
        b'{"usage":{"prompt_tokens":99999999999999999999999}}',
        b'{"x":' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_nonsense_is_no_usage_and_no_error(body: bytes, stream: bool) -> None:
    assert usage_of(b"data: " + body + b"\n\n" if stream else body, stream=stream) is None


def test_a_json_body_beyond_the_limit_is_given_up_and_not_kept() -> None:
    body = b'{"usage":{"prompt_tokens":7},"x":"' + b"x" * MAX_BUFFERED
    reader = UsageReader(stream=False)
    reader.feed(body)
    reader.feed(b'"}')
    assert reader.close() is None
    assert not reader._buffer


def test_a_stream_finds_its_usage_after_an_event_beyond_the_limit() -> None:
    assert usage_of(b"data: " + b"x" * (MAX_BUFFERED + 1), b"x\n\n", LAST + b"\n\n", stream=True) == Usage(7, 5)
