"""Our own HTTP/2 client on real connections: to a backend that follows a script, frame by frame."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from h2.errors import ErrorCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.routes import Backend as Target
from fingerpost.routes import Timeouts
from fingerpost.upstreams import Call, Reply, multiplexed
from fingerpost.upstreams.http2 import Http2Upstream
from fingerpost.upstreams.stream import STREAM_WINDOW

from .conftest import Peer, backend, failure, happens, pour
from .http2_backend import Exchange, Http2Backend, frame, http2_backend

BODY = b'{"messages": [{"role": "user", "content": "caf\\u00e9 \xc3\xa9"}], "temperature": 1.0}'
BROKE, INVALID, LATE, REFUSED = "the connection broke", "spoke no valid HTTP", "no answer in time", "refused the request"
LARGE = 10_000_000


@asynccontextmanager
async def upstream_to(url: str, idle: float = 15, **target: Any) -> AsyncIterator[Http2Upstream]:
    upstream = Http2Upstream(Target("small", "m", url, **target), idle=idle)
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def send(upstream: Http2Upstream, body: bytes = BODY, *headers: tuple[bytes, bytes]) -> Reply:
    return await upstream.send(Call(upstream.backend, body, headers))


async def ask(upstream: Http2Upstream, body: bytes = BODY, *headers: tuple[bytes, bytes]) -> bytes:
    return await (await send(upstream, body, *headers)).read(1 << 30)


async def ok(exchange: Exchange) -> None:
    await exchange.ok()


async def silent(exchange: Exchange) -> None:
    await exchange.whole.wait()


async def half(exchange: Exchange) -> None:
    """Begins an answer and leaves it at that."""
    await exchange.whole.wait()
    exchange.head()
    exchange.data(b"ok")


async def endless(exchange: Exchange) -> None:
    """Sends as much as the windows allow, until it is told to stop."""
    exchange.head()
    while exchange.reset is None and not exchange.peer.closed:
        await exchange.stream(bytes(65_536))


async def late(upstream: Http2Upstream) -> bytes:
    """Asks, and reads the answer only after a while."""
    reply = await send(upstream)
    await asyncio.sleep(0.1)
    return await reply.read(1 << 30)


def streams(upstream: Http2Upstream) -> int:
    """Streams that the client still knows of, on all its connections."""
    return sum(len(connection._streams) for pool in upstream._pools.values() for connection in pool.connections)


# What is sent


async def test_the_request_is_the_body_byte_for_byte_with_fields_of_our_own() -> None:
    async with http2_backend(ok) as one, upstream_to(one.url + "/", key="k1") as upstream:
        assert await ask(upstream, BODY, (b"traceparent", b"00-1-2-3"), (b"authorization", b"Bearer theirs")) == b"ok"
    assert bytes(one.seen[0].body) == BODY
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", one.url[7:-3].encode())]
    assert one.seen[0].headers[:4] == [*pseudo, (b":path", b"/v1/chat/completions")]
    assert sorted(one.seen[0].headers[4:]) == [
        (b"authorization", b"Bearer k1"), (b"content-length", b"%d" % len(BODY)), (b"content-type", b"application/json"),
        (b"traceparent", b"00-1-2-3"),
    ]  # fmt: skip


async def test_configured_headers_replace_those_of_the_client_and_ours() -> None:
    own = {"X-Team": "own", "Content-Type": "text/x", "Host": "elsewhere.example", "Connection": "close", "TE": "gzip"}
    theirs = ((b"x-team", b"theirs"), (b"host", b"theirs"), (b"connection", b"x"), (b"transfer-encoding", b"chunked"))
    async with http2_backend(ok) as one, upstream_to(one.url, headers=own, auth="api-key", key="k") as upstream:
        assert await ask(upstream, BODY, *theirs, (b"content-length", b"1"), (b"x-a", b" padded\t")) == b"ok"
    assert one.seen[0].fields[b":authority"] == b"elsewhere.example"
    assert sorted(one.seen[0].headers[4:]) == [
        (b"api-key", b"k"), (b"content-length", b"%d" % len(BODY)), (b"content-type", b"text/x"), (b"x-a", b"padded"),
        (b"x-team", b"own"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "field", [(b"x-a", b"a\r\ny: z"), (b"x-a", b"a\0b"), (b"X-A", b"b"), (b"a b", b"c"), (b":path", b"/"), (b"", b"")]
)
async def test_a_header_that_http2_does_not_allow_is_not_sent(field: tuple[bytes, bytes]) -> None:
    async with http2_backend(ok) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError, match="cannot be sent"):
            await send(upstream, BODY, field)
        for path in ("/a b", "/a\r\nx: y", "/é"):
            with pytest.raises(UpstreamError, match="cannot be sent"):
                await upstream.send(Call(upstream.backend, BODY, path=path))
        assert await ask(upstream) == b"ok"
    assert len(one.seen) == 1


def test_a_configured_header_that_http2_does_not_allow_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        Http2Upstream(Target("small", "m", "http://localhost/v1", headers={"a b": "c"}))


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_536, LARGE])
async def test_bodies_of_any_size_arrive_whole(size: int) -> None:
    content = random.Random(1).randbytes(size)
    async with http2_backend(ok) as one, upstream_to(one.url) as upstream:
        assert [await ask(upstream, content) for _ in range(2)] == [b"ok", b"ok"]
        assert len(one.peers) == 1
    assert [bytes(exchange.body) for exchange in one.seen] == [content, content]


async def test_bodies_wait_for_their_windows_and_a_short_one_passes_them() -> None:
    async with http2_backend(silent, silent, ok, credits=False, initial_window_size=30_000) as one:  # noqa: SIM117
        async with upstream_to(one.url) as upstream:
            waiting = [asyncio.ensure_future(ask(upstream, bytes(LARGE))) for _ in range(2)]
            await happens(lambda: [len(exchange.body) for exchange in one.seen] == [30_000, 30_000])
            assert await ask(upstream, b"x" * 1000) == b"ok"
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await happens(lambda: [exchange.reset for exchange in one.seen[:2]] == [ErrorCodes.CANCEL] * 2)
            assert await ask(upstream, b"x" * 1000) == b"ok"
            assert len(one.peers) == 1


async def test_a_large_body_leaves_the_loop_free_for_others() -> None:
    async with http2_backend(ok, initial_window_size=2**31 - 1) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"ok"
        one.peers[0].h2.increment_flow_control_window(2**30)
        one.peers[0].flush()
        await asyncio.sleep(0.01)
        large = asyncio.ensure_future(ask(upstream, bytes(50_000_000)))
        await happens(lambda: len(one.seen) == 2)
        assert await ask(upstream) == b"ok"
        assert not large.done()
        assert await large == b"ok"
        assert len(one.peers) == 1


async def test_a_body_waits_for_a_backend_that_does_not_read_and_little_of_it_is_copied() -> None:
    content = random.Random(3).randbytes(30_000_000)
    async with http2_backend(ok, initial_window_size=2**31 - 1) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"ok"
        (peer,), (pool,) = one.peers, upstream._pools.values()
        peer.h2.increment_flow_control_window(2**30)
        peer.flush()
        await asyncio.sleep(0.01)
        peer.transport.pause_reading()
        waiting = asyncio.ensure_future(ask(upstream, content))
        await happens(lambda: pool.connections[0]._blocked)
        assert 0 < pool.connections[0].transport.get_write_buffer_size() < 300_000
        peer.transport.resume_reading()
        assert await waiting == b"ok"
        assert bytes(one.seen[1].body) == content


# What comes back


async def test_fields_of_a_reply_come_without_pseudo_fields_interim_replies_and_trailers() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.head((b"link", b"</a>"), status=b"103")
        exchange.head((b"x-one", b"1"), (b"x-one", b"\xe9"), (b"set-cookie", b"a=b"), status=b"429")
        exchange.data(b"busy")
        exchange.peer.h2.send_headers(exchange.number, [(b"x-trailer", b"1")], end_stream=True)
        exchange.peer.flush()

    async with http2_backend(script) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert (reply.status, await reply.read(100)) == (429, b"busy")
        assert reply.headers == ((b"x-one", b"1"), (b"x-one", b"\xe9"), (b"set-cookie", b"a=b"))
        assert {type(part) for field in reply.headers for part in field} == {bytes}


@pytest.mark.parametrize("status", [b"204", b"304", b"307", b"500"])
async def test_a_reply_may_have_no_body(status: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.head((b"content-length", b"0"), status=status, end=True)

    async with http2_backend(script) as one, upstream_to(one.url) as upstream:
        for _ in range(2):
            reply = await send(upstream)
            assert (reply.status, await reply.read(100)) == (int(status), b"")
        assert len(one.peers) == 1


async def test_chunks_come_as_they_arrive_and_what_came_together_comes_in_one_piece() -> None:
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.peer.h2.send_data(exchange.number, b"one")
        exchange.data(b" two")
        await go.wait()
        exchange.data(b" three")
        exchange.data(b"", end=True)

    async with http2_backend(script) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) in (b"one two", b"one")
        go.set()
        assert (b"one two three").endswith(await reply.read(100))


async def test_frames_may_arrive_cut_anywhere() -> None:
    async def drip(exchange: Exchange) -> None:
        frames = frame(1, 4, 1, STATUS + header(b"a", b"b")) + frame(0, 0, 1, b"one ") + frame(0, 1, 1, b"two")
        for place in range(len(frames)):
            exchange.peer.say(frames[place : place + 1])
            await asyncio.sleep(0.002)

    async with http2_backend(drip) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert (reply.headers, await reply.read(100)) == (((b"a", b"b"),), b"one two")


async def test_an_answer_before_the_request_is_over_is_delivered_and_the_rest_is_not_sent() -> None:
    async def early(exchange: Exchange) -> None:
        exchange.head(status=b"413")
        exchange.data(b"too large", end=True)

    async with http2_backend(early, ok, credits=False) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream, bytes(LARGE))
        assert (reply.status, await reply.read(100)) == (413, b"too large")
        await happens(lambda: one.seen[0].reset is not None)
        one.peers[0].h2.increment_flow_control_window(70_000)
        assert await ask(upstream) == b"ok"
        assert (len(one.peers), one.peers[0].error) == (1, None)


# Many at once


async def test_many_calls_share_one_connection() -> None:
    go = asyncio.Event()

    async def together(exchange: Exchange) -> None:
        await go.wait()
        await exchange.ok()

    async with http2_backend(together) as one, upstream_to(one.url) as upstream:
        calls = [asyncio.ensure_future(ask(upstream, b"%d" % number)) for number in range(50)]
        await happens(lambda: len(one.seen) == 50)
        go.set()
        assert await asyncio.gather(*calls) == [b"ok"] * 50
        assert len(one.peers) == 1
        assert streams(upstream) == 0
    assert {bytes(exchange.body) for exchange in one.seen} == {b"%d" % number for number in range(50)}


async def test_a_further_connection_opens_where_one_has_as_many_calls_as_it_may() -> None:
    go = asyncio.Event()

    async def together(exchange: Exchange) -> None:
        await go.wait()
        await exchange.ok()

    async with http2_backend(together, max_concurrent_streams=3) as one, upstream_to(one.url) as upstream:
        calls = [asyncio.ensure_future(ask(upstream)) for _ in range(7)]
        await happens(lambda: len(one.seen) == 7)
        assert [len(peer.exchanges) for peer in one.peers] == [3, 3, 1]
        go.set()
        assert await asyncio.gather(*calls) == [b"ok"] * 7
        assert [peer.error for peer in one.peers] == [None] * 3


async def test_a_backend_that_allows_no_call_at_all_refuses() -> None:
    async with http2_backend(ok, max_concurrent_streams=0) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await send(upstream)
        assert failure(raised.value) == REFUSED


async def test_a_connection_whose_stream_numbers_come_to_an_end_is_replaced() -> None:
    async with http2_backend(ok) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"ok"
        (pool,) = upstream._pools.values()
        pool.connections[0]._h2.highest_outbound_stream_id = multiplexed.LAST_STREAM
        assert [await ask(upstream), await ask(upstream)] == [b"ok", b"ok"]
        assert len(one.peers) == 2
        await happens(lambda: one.peers[0].closed)


# Pouring


def in_steps(*pieces: bytes, end: bool = True) -> Any:
    async def script(exchange: Exchange) -> None:
        exchange.head()
        for piece in pieces:
            exchange.data(piece)
            await asyncio.sleep(0.05)
        if end:
            exchange.data(b"", end=True)
        else:
            exchange.refuse(ErrorCodes.INTERNAL_ERROR)

    return script


async def test_what_is_poured_comes_as_it_arrives_and_who_has_had_enough_goes_on_iterating() -> None:
    async with http2_backend(in_steps(b"1", b"2", b"3", b"4", b"5")) as one, upstream_to(one.url) as upstream:
        assert await pour(await send(upstream), []) == [b"1", b"P2", b"P3", b"P4", b"P5"]
        assert await pour(await send(upstream), [], enough=2) == [b"1", b"P2", b"P3", b"4", b"P5"]


async def test_a_large_reply_is_poured_whole_and_its_window_opens_again() -> None:
    content = random.Random(1).randbytes(3 * STREAM_WINDOW)

    async def script(exchange: Exchange) -> None:
        exchange.head()
        await exchange.stream(content)
        exchange.data(b"", end=True)

    async with http2_backend(script) as one, upstream_to(one.url) as upstream:
        chunks = await pour(await send(upstream), [], enough=1_000_000)
        assert chunks[0] + b"".join(chunk.removeprefix(b"P") for chunk in chunks[1:]) == content


async def test_what_is_reset_while_it_is_poured_is_an_error_after_what_had_come() -> None:
    chunks: list[bytes] = []
    async with http2_backend(in_steps(b"1", b"2", end=False)) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        with pytest.raises(UpstreamError, match=BROKE):
            await pour(reply, chunks)
    assert chunks == [b"1", b"P2"]


async def test_what_goes_wrong_where_it_is_poured_to_is_told_to_who_pours() -> None:
    def take(chunk: bytes) -> bool:
        raise ConnectionAbortedError(chunk.decode())

    async with http2_backend(in_steps(b"1", b"2", b"3")) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"1"
        assert reply.pour is not None
        with pytest.raises(ConnectionAbortedError, match="2"):
            await reply.pour(take)
        assert await anext(reply.chunks) == b"3"


# Letting go


async def test_a_reply_that_is_closed_is_reset_at_once_and_its_connection_goes_on() -> None:
    async with http2_backend(half, ok) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"ok"
        reply.close()
        reply.close()
        await happens(lambda: one.seen[0].reset == ErrorCodes.CANCEL)
        with pytest.raises(UpstreamError, match=BROKE):
            await anext(reply.chunks)
        assert await ask(upstream) == b"ok"
        assert (len(one.peers), streams(upstream)) == (1, 0)


async def test_closing_a_complete_reply_unread_resets_nothing() -> None:
    async with http2_backend(ok) as one, upstream_to(one.url) as upstream:
        for _ in range(3):
            reply = await send(upstream)
            await happens(lambda: streams(upstream) == 0)
            reply.close()
        assert len(one.peers) == 1
    assert [exchange.reset for exchange in one.seen] == [None] * 3


async def test_hundreds_of_cancelled_calls_are_reset_and_leave_the_connection_sound() -> None:
    async with http2_backend(*[silent] * 300, ok) as one, upstream_to(one.url) as upstream:
        for number in range(300):
            call = asyncio.ensure_future(send(upstream))
            await happens(lambda number=number: len(one.seen) == number + 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 1
    assert [exchange.reset for exchange in one.seen[:300]] == [ErrorCodes.CANCEL] * 300


async def test_bytes_of_replies_that_were_cut_are_credited_to_the_connection() -> None:
    size = 2 * multiplexed.CONNECTION_WINDOW // STREAM_WINDOW

    async def full(exchange: Exchange) -> None:
        exchange.head()
        await exchange.stream(bytes(STREAM_WINDOW))

    async with http2_backend(*[full] * size, ok) as one, upstream_to(one.url) as upstream:
        for _ in range(size):
            reply = await send(upstream)
            await happens(lambda: one.tasks and all(task.done() for task in one.tasks))
            reply.close()
        assert await ask(upstream) == b"ok"
        assert one.peers[0].h2.outbound_flow_control_window > multiplexed.CONNECTION_WINDOW // 4


async def test_a_reply_that_nobody_reads_stays_with_the_backend_and_holds_up_no_other() -> None:
    async def long(exchange: Exchange) -> None:
        exchange.head()
        await exchange.stream(bytes(LARGE))
        exchange.data(b"", end=True)

    async with http2_backend(long) as one, upstream_to(one.url) as upstream:
        unread = await send(upstream)
        await happens(lambda: one.peers[0].h2.local_flow_control_window(1) == 0)
        assert [len(await ask(upstream)) for _ in range(3)] == [LARGE] * 3
        assert one.peers[0].h2.local_flow_control_window(1) == 0
        assert len(await unread.read(1 << 30)) == LARGE
        assert len(one.peers) == 1


async def test_padding_is_credited_though_nobody_takes_it() -> None:
    async def padded(exchange: Exchange) -> None:
        exchange.head()
        for number in range(3000):
            while exchange.peer.h2.local_flow_control_window(exchange.number) < 300:
                exchange.peer.opened.clear()
                await exchange.peer.opened.wait()
            exchange.data(b"x" if number % 1000 == 0 else b"", pad=255)
        exchange.data(b"", end=True)

    async with http2_backend(padded) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"xxx"


# Time


@pytest.mark.parametrize("limits", [Timeouts(read=0.2), Timeouts(total=0.2)])
@pytest.mark.parametrize("script", [silent, half])
async def test_no_more_of_an_answer_within_the_limits_is_a_timeout(limits: Timeouts, script: Any) -> None:
    async with http2_backend(script) as one, upstream_to(one.url, timeouts=limits) as upstream:
        with pytest.raises(UpstreamTimeout, match=LATE):
            await ask(upstream)
        await happens(lambda: one.seen[0].reset == ErrorCodes.CANCEL)


async def test_a_silent_call_beside_one_that_speaks_is_timed_out_alone() -> None:
    over = asyncio.Event()

    async def speak(exchange: Exchange) -> None:
        exchange.head()
        while not over.is_set():
            exchange.data(b"x")
            await asyncio.sleep(0.02)
        exchange.data(b"", end=True)

    async with http2_backend(speak, silent, ok) as one, upstream_to(one.url, timeouts=Timeouts(read=0.5)) as upstream:
        speaking = asyncio.ensure_future(ask(upstream))
        await happens(lambda: one.seen)
        with pytest.raises(UpstreamTimeout, match=LATE):
            await send(upstream)
        assert not speaking.done()
        assert await ask(upstream) == b"ok"
        over.set()
        assert set(await speaking) == {ord("x")}
        assert len(one.peers) == 1


async def test_a_connection_on_which_nothing_is_heard_any_more_gets_no_further_calls() -> None:
    async with http2_backend(ok, silent, ok) as one, upstream_to(one.url, timeouts=Timeouts(read=0.2)) as upstream:
        assert await ask(upstream) == b"ok"
        with pytest.raises(UpstreamTimeout):
            await ask(upstream)
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 2
        await happens(lambda: one.peers[0].closed)


async def test_a_body_that_the_backend_does_not_take_is_a_timeout() -> None:
    async with http2_backend(silent, credits=False) as one, upstream_to(one.url, timeouts=Timeouts(read=0.2)) as upstream:
        with pytest.raises(UpstreamTimeout, match=LATE):
            await send(upstream, bytes(LARGE))


async def test_a_client_that_reads_slowly_is_no_reason_for_a_timeout() -> None:
    async def long(exchange: Exchange) -> None:
        exchange.head()
        await exchange.stream(bytes(1_000_000))
        exchange.data(b"", end=True)

    async with http2_backend(long) as one, upstream_to(one.url, timeouts=Timeouts(read=0.2)) as upstream:
        reply = await send(upstream)
        await happens(lambda: one.peers[0].h2.local_flow_control_window(1) == 0)
        await asyncio.sleep(0.5)
        assert len(await reply.read(1 << 30)) == 1_000_000


async def test_a_backend_that_never_says_what_it_allows_gives_no_connection_in_time() -> None:
    async with http2_backend(ok, greets=False) as one, upstream_to(one.url, timeouts=Timeouts(connect=0.2)) as upstream:
        results = await asyncio.gather(*[send(upstream) for _ in range(3)], return_exceptions=True)
        assert {failure(error) for error in results} == {"no connection in time"}
        await happens(lambda: all(peer.closed for peer in one.peers))


# Goodbyes and refusals


async def test_a_request_that_was_refused_is_sent_once_more() -> None:
    async def refuse(exchange: Exchange) -> None:
        exchange.refuse()

    async with http2_backend(refuse, ok) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"ok"
        assert [len(one.seen), len(one.peers)] == [2, 1]
    async with http2_backend(refuse) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await ask(upstream)
        assert (failure(raised.value), len(one.seen)) == (REFUSED, 2)


@pytest.mark.parametrize("code", [ErrorCodes.INTERNAL_ERROR, ErrorCodes.CANCEL, ErrorCodes.NO_ERROR, 4711])
async def test_any_other_reset_is_an_error_of_that_call_alone(code: Any) -> None:
    async def reset(exchange: Exchange) -> None:
        exchange.refuse(code)

    async def late(exchange: Exchange) -> None:
        exchange.head()
        exchange.data(b"ok")
        await asyncio.sleep(0.05)
        exchange.refuse()

    async with http2_backend(half, reset, late, ok) as one, upstream_to(one.url) as upstream:
        other = await send(upstream)
        for _ in range(2):
            with pytest.raises(UpstreamError) as raised:
                await ask(upstream)
            assert failure(raised.value) == BROKE
        assert await anext(other.chunks) == b"ok"
        assert await ask(upstream) == b"ok"
        assert [len(one.seen), len(one.peers), streams(upstream)] == [4, 1, 1]


async def test_rapid_resets_leave_nothing_behind() -> None:
    async def reset(exchange: Exchange) -> None:
        exchange.refuse(ErrorCodes.INTERNAL_ERROR)

    async with http2_backend(reset, max_concurrent_streams=100) as one, upstream_to(one.url) as upstream:
        for _ in range(10):
            results = await asyncio.gather(*[send(upstream) for _ in range(50)], return_exceptions=True)
            assert {failure(error) for error in results} == {BROKE}
        (pool,) = upstream._pools.values()
        (connection,) = pool.connections
        assert (streams(upstream), len(connection._sending), len(one.seen)) == (0, 0, 500)


async def test_calls_that_a_goodbye_leaves_out_go_to_a_new_connection_and_the_others_end_in_order() -> None:
    go = asyncio.Event()

    async def last(exchange: Exchange) -> None:
        exchange.head()
        exchange.data(b"one ")
        await go.wait()
        exchange.data(b"two", end=True)

    async def goodbye(exchange: Exchange) -> None:
        exchange.peer.goodbye(exchange.number - 2)

    async with http2_backend(last, goodbye, ok) as one, upstream_to(one.url) as upstream:
        under_way = await send(upstream)
        assert await ask(upstream) == b"ok"
        assert [len(peer.exchanges) for peer in one.peers] == [2, 1]
        assert not one.peers[0].closed
        go.set()
        assert await under_way.read(100) == b"one two"
        await happens(lambda: one.peers[0].closed)
        assert not one.peers[1].closed


async def test_a_goodbye_between_calls_is_no_error() -> None:
    async with http2_backend(ok) as one, upstream_to(one.url) as upstream:
        for number in range(3):
            assert await ask(upstream) == b"ok"
            one.peers[number].goodbye(2**31 - 1)
            await happens(lambda number=number: one.peers[number].closed)
        assert len(one.peers) == 3


async def test_a_connection_that_breaks_ends_the_replies_on_it() -> None:
    async def die(exchange: Exchange) -> None:
        await exchange.whole.wait()
        exchange.head()
        await asyncio.sleep(0.02)
        exchange.peer.transport.abort()

    async with http2_backend(half, die, ok) as one, upstream_to(one.url) as upstream:
        first = await send(upstream)
        with pytest.raises(UpstreamError, match=BROKE):
            await ask(upstream)
        assert await anext(first.chunks) == b"ok"
        with pytest.raises(UpstreamError, match=BROKE):
            await anext(first.chunks)
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 2


async def test_a_worn_connection_that_closes_without_a_byte_is_replaced_once() -> None:
    async def die(exchange: Exchange) -> None:
        exchange.peer.transport.abort()

    async with http2_backend(ok, die, ok) as one, upstream_to(one.url) as upstream:
        assert [await ask(upstream), await ask(upstream)] == [b"ok", b"ok"]
        assert len(one.peers) == 2
    async with http2_backend(die, ok) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError, match=BROKE):
            await ask(upstream)
        assert len(one.seen) == 1


async def test_an_idle_connection_is_closed_with_a_goodbye() -> None:
    async with http2_backend(ok) as one, upstream_to(one.url, idle=0.1) as upstream:
        assert await ask(upstream) == b"ok"
        await happens(lambda: one.peers[0].closed)
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 2


async def test_closing_ends_what_is_under_way_waiting_or_connecting() -> None:
    async with http2_backend(silent) as one, upstream_to(one.url) as upstream:
        calls = [asyncio.ensure_future(send(upstream)) for _ in range(3)]
        await happens(lambda: len(one.seen) == 3)
        await upstream.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {failure(error) for error in results} == {BROKE}
        await happens(lambda: one.peers[0].closed)
    async with http2_backend(silent, greets=False) as one, upstream_to(one.url) as upstream:
        calls = [asyncio.ensure_future(send(upstream)) for _ in range(3)]
        await happens(lambda: one.peers)
        await upstream.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {failure(error) for error in results} == {BROKE}


async def test_a_call_cancelled_while_it_connects_leaves_the_place_to_the_next() -> None:
    async with http2_backend(ok, greets=False) as one, upstream_to(one.url) as upstream:
        first, second = (asyncio.ensure_future(ask(upstream)) for _ in range(2))
        await happens(lambda: one.peers)
        one.greets = True
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == b"ok"
        assert len(one.peers) == 2
        await happens(lambda: one.peers[0].closed)


# What is no reply


def header(name: bytes, value: bytes) -> bytes:
    """A field as HPACK writes it without a table."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


STATUS = b"\x88"  # 200

BAD = {
    "no HTTP/2": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "upper case": [frame(1, 4, 1, STATUS + header(b"X-A", b"b"))],
    "connection header": [frame(1, 4, 1, STATUS + header(b"connection", b"close"))],
    "no status": [frame(1, 4, 1, header(b"a", b"b"))],
    "status": [frame(1, 4, 1, header(b":status", b"2x0"))],
    "status of one digit": [frame(1, 4, 1, header(b":status", b"2"))],
    "body first": [frame(0, 0, 1, b"x")],
    "broken compression": [frame(1, 4, 1, b"\xff\xff\xff\xff\xff")],
    "large headers": [frame(1, 0, 1, STATUS), *[frame(9, 0, 1, header(b"a", b"x" * 100) * 100)] * 7, frame(9, 4, 1)],
    "many headers": [frame(1, 4, 1, STATUS + header(b"a", b"b") * 300)],
    "continuations": [frame(1, 0, 1, STATUS), *[frame(9, 0, 1, b"")] * 100],
    "interim replies": [frame(1, 4, 1, header(b":status", b"103") + header(b"l", b"x" * 100) * 10)] * 100,
    "push": [frame(5, 4, 1, b"\0\0\0\2" + STATUS)],
    "a stream of the backend's": [frame(1, 4, 2, STATUS)],
    "too long a frame": [frame(0, 0, 1, bytes(20_000))],
    "too much data": [frame(1, 4, 1, STATUS), *[frame(0, 0, 1, bytes(16_384))] * 40],
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
async def test_what_is_no_valid_reply_is_an_error(answer: list[bytes]) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.peer.say(*answer)

    async with http2_backend(script, ok) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await late(upstream)
        assert failure(raised.value) == INVALID
        assert await ask(upstream) == b"ok"
        await happens(lambda: one.peers[0].closed or one.seen[0].reset == ErrorCodes.CANCEL)


async def test_too_many_fields_are_an_error_of_that_call_alone() -> None:
    async def many(exchange: Exchange) -> None:
        exchange.head(*[(b"a", b"b")] * 300)

    async with http2_backend(half, many) as one, upstream_to(one.url) as upstream:
        other = await send(upstream)
        with pytest.raises(UpstreamError, match=INVALID):
            await send(upstream)
        assert await anext(other.chunks) == b"ok"
        assert (streams(upstream), one.peers[0].closed) == (1, False)


async def test_a_backend_that_asks_and_asks_and_does_not_read_is_cut() -> None:
    async def ping(exchange: Exchange) -> None:
        exchange.peer.transport.pause_reading()
        exchange.peer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        (pool,) = upstream._pools.values()
        pool.connections[0].transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        while not exchange.peer.closed:
            exchange.peer.say(frame(6, 0, 0, bytes(8)) * 10_000)
            await asyncio.sleep(0.001)

    async with http2_backend(ping) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError, match=BROKE):
            await send(upstream)
        await happens(lambda: one.peers[0].closed)


async def test_a_server_that_speaks_http1_is_told_apart() -> None:
    async def old(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.say(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    async with backend(old) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await send(upstream)
        assert failure(raised.value) == INVALID


@given(st.data())
@settings(max_examples=100)
async def test_a_damaged_reply_is_a_reply_or_an_upstream_error_in_time(data: st.DataObject) -> None:
    valid = frame(1, 4, 1, STATUS + header(b"a", b"b")) + frame(0, 8, 1, b"\2ok\0\0") + frame(8, 0, 0, b"\0\0\1\0")
    valid += frame(4, 0, 0, b"\0\4\0\1\0\0") + frame(6, 0, 0, bytes(8)) + frame(0, 1, 1, b"!") + frame(7, 0, 0, bytes(8))
    place = data.draw(st.integers(0, len(valid)))
    damaged = valid[:place] + data.draw(st.binary(max_size=3)) + valid[place + data.draw(st.integers(0, 3)) :]

    async def script(exchange: Exchange) -> None:
        exchange.peer.say(damaged)

    async with http2_backend(script) as one, upstream_to(one.url, timeouts=Timeouts(read=0.1)) as upstream, asyncio.timeout(20):
        with suppress(UpstreamError):
            reply = await send(upstream)
            assert 200 <= reply.status <= 999
            await reply.read(1 << 20)
        assert streams(upstream) == 0
    assert isinstance(one, Http2Backend)


@given(st.lists(st.floats(0, 0.004), min_size=6, max_size=6))
@settings(max_examples=30)
async def test_calls_cancelled_at_random_moments_harm_no_other(delays: list[float]) -> None:
    async with http2_backend(ok, max_concurrent_streams=4) as one, upstream_to(one.url) as upstream:
        calls = [asyncio.ensure_future(ask(upstream)) for _ in range(12)]
        for call, delay in zip(calls[::2], delays, strict=True):
            await asyncio.sleep(delay)
            call.cancel()
        assert set(await asyncio.gather(*calls[1::2])) == {b"ok"}
        await asyncio.gather(*calls, return_exceptions=True)
        assert await ask(upstream) == b"ok"
        assert streams(upstream) == 0
        assert [peer.error for peer in one.peers] == [None] * len(one.peers)


# Where it connects


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def test_tls_with_an_authority_of_ones_own(authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    content = random.Random(2).randbytes(3_000_000)
    async with http2_backend(ok, tls=certified(authority, "h2", "http/1.1")) as one:  # noqa: SIM117
        async with upstream_to(one.url, ca=str(tmp_path / "ca.pem")) as upstream:
            assert await asyncio.gather(*[ask(upstream, content) for _ in range(3)]) == [b"ok"] * 3
            assert len(one.peers) == 1
    assert [bytes(exchange.body) for exchange in one.seen] == [content] * 3
    assert one.seen[0].fields[b":scheme"] == b"https"


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
async def test_a_server_that_does_not_choose_http2_is_told_apart(
    authority: trustme.CA, tmp_path: Path, protocols: tuple[str, ...]
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with http2_backend(ok, tls=certified(authority, *protocols)) as one:  # noqa: SIM117
        async with upstream_to(one.url, ca=str(tmp_path / "ca.pem")) as upstream:
            with pytest.raises(UpstreamError) as raised:
                await send(upstream)
            assert failure(raised.value) == "does not offer HTTP/2"
            await happens(lambda: all(peer.closed for peer in one.peers))


async def test_a_certificate_that_proves_nothing_is_refused(authority: trustme.CA) -> None:
    async with http2_backend(ok, tls=certified(authority, "h2")) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError, match=r"cannot connect \(.*Cert.*\)"):
            await send(upstream)


async def test_a_refused_connection_is_told_by_its_kind(unused_tcp_port: int) -> None:
    async with upstream_to(f"http://127.0.0.1:{unused_tcp_port}/v1") as upstream:
        results = await asyncio.gather(*[send(upstream) for _ in range(5)], return_exceptions=True)
    assert {failure(error) for error in results} == {"cannot connect (ConnectionRefusedError)"}


async def test_a_host_that_does_not_exist_cannot_be_connected_to() -> None:
    for host in ("nowhere", "a" * 70):
        async with upstream_to(f"http://{host}.invalid/v1") as upstream:
            with pytest.raises(UpstreamError, match=r"cannot connect"):
                await send(upstream)
