"""How a response is framed, what ends it, and who is told that a client has left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fingerpost.server.request import ClientGone, Request

EVENTS = b"content-type: text/event-stream; charset=utf-8\r\n"


def request_on(line: Any, method: str = "POST", *, keep_alive: bool = True) -> Request:
    return Request(line, method, "/", [], keep_alive=keep_alive)


async def write_all(request: Request, *chunks: bytes, lines: bytes = b"", length: int | None = None, status: int = 200) -> None:
    request.begin(status, lines, length)
    for chunk in chunks:
        request.write(chunk)
        await request.drained()
    request.end()


def begun(line: Any) -> Request:
    request = request_on(line)
    request.begin(200, b"")
    return request


# Whole responses


def test_a_whole_response_goes_out_in_one_write(new_line: Any) -> None:
    line = new_line()
    request = request_on(line)
    request.send(200, b"content-length: 2\r\n", b"hi")
    assert line.transport.written == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    assert line.transport.writes == 1
    assert line.overs == [request]
    assert request.ended


def test_a_response_to_head_has_no_body_and_the_last_one_says_so(new_line: Any) -> None:
    line = new_line()
    request_on(line, "HEAD", keep_alive=False).send(404, b"content-length: 2\r\n", b"hi")
    assert line.transport.written == b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"


# Chunks


async def test_a_body_without_a_length_is_chunked_and_its_head_goes_with_the_first_chunk(new_line: Any) -> None:
    line = new_line()
    await write_all(request_on(line), b"one", b"seventeen letters")
    assert line.head == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked"
    assert line.body == b"3\r\none\r\n11\r\nseventeen letters\r\n0\r\n\r\n"
    assert line.transport.writes == 3


async def test_a_body_with_a_length_goes_out_as_it_is(new_line: Any) -> None:
    line = new_line()
    await write_all(request_on(line), b"one", b"two", lines=b"content-length: 6\r\n", length=6)
    assert line.transport.written == b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nonetwo"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("POST", 304)])
async def test_some_responses_have_no_body(new_line: Any, method: str, status: int) -> None:
    line = new_line()
    await write_all(request_on(line, method), lines=b"x-a: b\r\n", status=status)
    assert line.transport.written.endswith(b"\r\nx-a: b\r\n\r\n")


async def test_to_a_client_of_http_1_0_the_body_reaches_to_the_end_of_the_connection(new_line: Any) -> None:
    line = new_line()
    request = request_on(line)
    request.is_http10 = True
    await write_all(request, b"one", b"two")
    assert line.transport.written == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"


@pytest.mark.parametrize("chunks", [[b"one", b"four"], [b"one"]], ids=["longer", "shorter"])
async def test_a_body_of_another_length_than_was_stated_is_an_error(new_line: Any, chunks: list[bytes]) -> None:
    with pytest.raises(ConnectionAbortedError, match="than was stated"):
        await write_all(request_on(new_line()), *chunks, lines=b"content-length: 6\r\n", length=6)


async def test_a_slow_client_is_waited_for(new_line: Any) -> None:
    line = new_line()
    line.is_full = True
    await write_all(request_on(line), b"one", b"two")
    assert line.waits == 2
    assert not begun(line).write(b"three")
    line.is_full = False
    assert begun(line).write(b"three")


# Broken off


@pytest.mark.parametrize(("last", "gap"), [
    ([b"data: 1\n\n"], b""), ([b"data: 1\r\n\r\n"], b""), ([b"data: 1\n", b"\n"], b""), ([b"data: 1\n"], b"\n"),
    ([b"data: 1"], b"\n\n"), ([b"d", b"a"], b"\n\n"),
])  # fmt: skip
async def test_an_event_ends_a_stream_that_was_broken_off(new_line: Any, last: list[bytes], gap: bytes) -> None:
    line = new_line()
    request = request_on(line)
    request.begin(200, EVENTS, takes_events=True)
    for chunk in last:
        request.write(chunk)
    assert request.takes_events
    request.end_with_event(b"{}")
    event = gap + b"data: {}\n\n"
    assert line.body.endswith(b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
    assert line.overs == [request]


def test_events_of_a_stated_length_take_no_more(new_line: Any) -> None:
    request = request_on(new_line())
    request.begin(200, EVENTS, 9, takes_events=True)
    assert not request.takes_events


@pytest.mark.parametrize(("is_http10", "end"), [(False, "closed"), (True, "aborted")])
async def test_what_is_cut_cannot_pass_for_the_whole(new_line: Any, is_http10: bool, end: str) -> None:
    line = new_line()
    request = request_on(line)
    request.is_http10 = is_http10
    request.begin(200, b"")
    request.write(b"one")
    request.cut()
    assert line.transport.end == end
    assert not line.body.endswith(b"0\r\n\r\n")
    assert request.ended


# Bodies, and clients that leave


async def test_a_body_that_is_too_large_is_known_before_its_end(new_line: Any) -> None:
    line = new_line()
    request = request_on(line)
    waiting = asyncio.ensure_future(request.arrive(5))
    for _ in range(2):
        await asyncio.sleep(0)
        line.bring(request, b"four")
    await waiting
    assert (request.size, request.whole) == (8, False)


@pytest.mark.parametrize("early", [True, False])
async def test_nobody_waits_for_the_body_of_a_client_that_has_left(new_line: Any, early: bool) -> None:
    request = request_on(new_line())
    if early:
        request.leave()
    waiting = asyncio.ensure_future(request.arrive(5))
    await asyncio.sleep(0)
    if not early:
        request.leave()
    with pytest.raises(ClientGone):
        await waiting
    assert request.gone


async def test_what_is_done_for_a_client_ends_when_it_leaves_and_nothing_is_sent_to_it(new_line: Any) -> None:
    line = new_line()
    request = request_on(line)
    request.task = asyncio.ensure_future(asyncio.Event().wait())  # type: ignore[assignment]
    await asyncio.sleep(0)
    request.leave()
    with pytest.raises(asyncio.CancelledError):
        await request.task  # type: ignore[misc]
    request.send(200, b"", b"")
    assert not line.transport.written
