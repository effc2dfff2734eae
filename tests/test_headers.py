"""Which headers go on, which go back, and what those of a reply say of its body."""

from __future__ import annotations

import pytest

from fingerpost.headers import ReplyHead, going_on, readable

ACCEPT, TRACE = (b"accept", b"*/*"), (b"traceparent", b"00-1")


def test_only_headers_that_are_listed_go_on_to_a_backend() -> None:
    headers = (ACCEPT, (b"authorization", b"Bearer sk-1"), (b"host", b"x"), (b"x-api-key", b"1"), (b"cookie", b"a"), TRACE)
    assert going_on(headers) == (ACCEPT, TRACE)


@pytest.mark.parametrize(
    ("connection", "goes_on"),
    [(b"keep-alive", True), (b"Close", True), (b"close, Traceparent", False), (b"traceparent", False)],
)
def test_what_connection_names_does_not_go_on(connection: bytes, goes_on: bool) -> None:
    assert going_on((ACCEPT, (b"connection", connection), TRACE)) == ((ACCEPT, TRACE) if goes_on else (ACCEPT,))


def test_a_readable_reply_is_asked_for_whatever_the_client_accepts() -> None:
    assert readable((ACCEPT, (b"accept-encoding", b"gzip"))) == (ACCEPT, (b"accept-encoding", b"identity"))


def test_headers_of_the_hop_and_those_that_are_ours_do_not_go_back() -> None:
    back = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"1"))
    head = ReplyHead([
        (b"x-fingerpost-route", b"forged"), (b"set-cookie", b"a"), (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"), (b"connection", b"X-Hop"), (b"x-hop", b"1"), *back,
    ])  # fmt: skip
    assert head.going_back == back
    assert (head.events, head.encoded) == (True, False)


def test_a_head_says_its_encoding_which_goes_back_and_the_length_is_written_anew() -> None:
    headers = ((b"content-length", b"12"), (b"content-encoding", b"gzip"), (b"content-type", b"application/json"))
    head = ReplyHead(headers)
    assert head.going_back == headers[1:]
    assert (head.events, head.encoded) == (False, True)
