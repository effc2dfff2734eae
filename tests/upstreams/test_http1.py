"""What every client must do on a real connection: each test runs against ours and against the library's."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.routes import Backend as Target
from fingerpost.routes import Timeouts
from fingerpost.testing import FakeBackend
from fingerpost.upstreams import Call, Reply
from fingerpost.upstreams.http1 import Http1Upstream
from fingerpost.upstreams.library import LibraryUpstream

from .conftest import LOOPS, Backend, Peer, backend, failure, happens, pour

Client = Http1Upstream | LibraryUpstream

BODY = b'{"messages": [{"role": "user", "content": "caf\\u00e9 \xc3\xa9"}], "temperature": 1.0}'
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = OK + b"content-length: 2\r\n\r\nok"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
BROKE, INVALID, LATE = "the connection broke", "spoke no valid HTTP", "no answer in time"
LARGE = 12_000_000


@pytest.fixture(params=[Http1Upstream, LibraryUpstream])
def kind(request: pytest.FixtureRequest) -> type[Client]:
    return request.param


@asynccontextmanager
async def upstream_to(
    url: str, kind: type[Client] = Http1Upstream, pool_size: int = 1024, **target: Any
) -> AsyncIterator[Client]:
    upstream = kind(Target("small", "m", url, **target), pool_size=pool_size)
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def send(upstream: Client, body: bytes = BODY, *headers: tuple[bytes, bytes]) -> Reply:
    return await upstream.send(Call(upstream.backend, body, headers))


async def ask(upstream: Client, body: bytes = BODY, *headers: tuple[bytes, bytes]) -> bytes:
    return await (await send(upstream, body, *headers)).read(1 << 30)


async def collect(reply: Reply, into: list[bytes]) -> None:
    async for chunk in reply.chunks:
        into.append(chunk)


async def serve(peer: Peer, *replies: bytes) -> None:
    """Answers one request after another, the last reply again and again."""
    for number in range(1000):
        await peer.answer(replies[min(number, len(replies) - 1)])


def serving(*replies: bytes) -> Callable[[Peer], Any]:
    return partial(_serving, replies)


async def _serving(replies: tuple[bytes, ...], peer: Peer) -> None:
    await serve(peer, *replies)


def once(*pieces: bytes, close: bool = False) -> Callable[[Peer], Any]:
    async def script(peer: Peer) -> None:
        await peer.answer(*pieces)
        if close:
            peer.close()

    return script


# What is sent


async def test_the_request_is_the_body_byte_for_byte_with_a_head_of_our_own(kind: type[Client]) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.answer(SHORT))

    async with backend(script) as one, upstream_to(one.url + "/", kind, key="k1") as upstream:
        assert await ask(upstream, BODY, (b"traceparent", b"00-1-2-3"), (b"authorization", b"Bearer theirs")) == b"ok"
    head, _, body = requests[0].partition(b"\r\n\r\n")
    line, *fields = head.lower().split(b"\r\n")
    assert (line, body) == (b"post /v1/chat/completions http/1.1", BODY)
    expected = {b"host: " + one.url[7:-3].encode(), b"content-type: application/json", b"authorization: bearer k1"}
    expected |= {b"traceparent: 00-1-2-3", b"content-length: %d" % len(BODY)}
    assert set(fields) - {b"accept: */*"} == expected
    assert len(fields) == len(set(fields))


@pytest.mark.parametrize(
    ("target", "path", "first"),
    [
        ({"auth": "api-key", "api_version": "2024-10-21"}, "/chat/completions", b"/v1/chat/completions?api-version=2024-10-21"),
        ({"api_version": "a&b c"}, "/embeddings", b"/v1/embeddings?api-version=a%26b%20c"),
        ({}, "/embeddings", b"/v1/embeddings"),
    ],
)
async def test_paths_and_the_api_version_go_into_the_target(
    kind: type[Client], target: dict[str, Any], path: str, first: bytes
) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.answer(SHORT))

    async with backend(script) as one, upstream_to(one.url, kind, key="k", **target) as upstream:
        await (await upstream.send(Call(upstream.backend, BODY, path=path))).read(10)
    assert requests[0].startswith(b"POST " + first + b" HTTP/1.1\r\n")
    assert (b"\r\napi-key: k\r\n" in requests[0].lower()) == ("auth" in target)


async def test_configured_headers_replace_those_of_the_client_and_ours(kind: type[Client]) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append((await peer.answer(SHORT)).lower())

    own = {"X-Team": "own", "Content-Type": "text/x", "Host": "elsewhere.example", "USER-AGENT": "ours"}
    theirs = ((b"x-team", b"theirs"), (b"user-agent", b"theirs"), (b"content-type", b"text/plain"), (b"host", b"theirs"))
    async with backend(script) as one, upstream_to(one.url, kind, headers=own) as upstream:
        await ask(upstream, BODY, *theirs)
    for line in (b"x-team: own", b"content-type: text/x", b"host: elsewhere.example", b"user-agent: ours"):
        assert requests[0].count(b"\r\n" + line + b"\r\n") == 1
    assert b"theirs" not in requests[0]
    assert b"text/plain" not in requests[0]


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\ny: z", b"a\rb", b"a\0b"])
async def test_a_header_that_would_break_out_of_its_line_is_not_sent(kind: type[Client], value: bytes) -> None:
    async with backend(serving(SHORT)) as one, upstream_to(one.url, kind) as upstream:
        with pytest.raises(UpstreamError, match="cannot be sent"):
            await send(upstream, BODY, (b"x-a", value))
        assert await ask(upstream) == b"ok"


async def test_a_path_that_is_none_is_not_sent() -> None:
    async with backend(serving(SHORT)) as one, upstream_to(one.url) as upstream:
        for path in ("/a b", "/a\r\nx: y", "/é"):
            with pytest.raises(UpstreamError, match="cannot be sent"):
                await upstream.send(Call(upstream.backend, BODY, path=path))


async def test_a_header_value_outside_ascii_arrives_as_it_was_sent(kind: type[Client]) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.answer(SHORT))

    async with backend(script) as one, upstream_to(one.url, kind, headers={"x-own": "Käse"}) as upstream:
        await ask(upstream, BODY, (b"user-agent", "Käse 你".encode()))
    assert "Käse 你".encode() in requests[0]
    assert "x-own: Käse\r\n".encode() in requests[0].replace(b"X-Own", b"x-own")


async def test_framing_headers_of_a_client_never_reach_the_backend() -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.answer(SHORT))

    theirs = ((b"content-length", b"1"), (b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"expect", b"100"))
    async with backend(script) as one, upstream_to(one.url, headers={"Connection": "close", "Content-Length": "3"}) as upstream:
        await ask(upstream, BODY, *theirs)
    names = [line.partition(b":")[0] for line in requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
    assert sorted(names) == [b"content-length", b"content-type", b"host"]
    assert b"content-length: %d\r\n" % len(BODY) in requests[0]


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, LARGE])
async def test_bodies_of_any_size_arrive_whole(kind: type[Client], size: int) -> None:
    content = random.Random(1).randbytes(size)
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        for _ in range(2):
            got.append((await peer.answer(SHORT)).partition(b"\r\n\r\n")[2])

    async with backend(script) as one, upstream_to(one.url, kind) as upstream:
        assert [await ask(upstream, content) for _ in range(2)] == [b"ok", b"ok"]
        assert len(one.peers) == 1
    assert got == [content, content]


async def test_a_large_body_is_not_copied_while_it_waits_for_a_slow_backend(eventually: Callable[..., None]) -> None:
    content = bytes(LARGE)

    async def slow(peer: Peer) -> None:
        left = LARGE
        await peer.reader.readuntil(b"\r\n\r\n")
        while left > 0:
            await asyncio.sleep(0.001)
            left -= len(await peer.reader.read(1 << 18))
        await peer.say(SHORT)

    async with backend(slow) as one, upstream_to(one.url) as upstream:
        tracemalloc.start()
        try:
            assert await ask(upstream, content) == b"ok"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 3_000_000


# What comes back


@pytest.mark.parametrize(
    ("pieces", "status", "content"),
    [
        ((SHORT,), 200, b"ok"),
        ((b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok",), 200, b"ok"),
        ((OK + b"content-length: 0\r\n\r\n",), 200, b""),
        ((OK, b"content-length: 4\r\n\r\n", b"fo", b"ur"), 200, b"four"),
        ((CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",), 200, b"hello"),
        ((CHUNKED, b"5\r", b"\nhel", b"lo\r\n3;a=b;c\r\n", b"...\r\n0", b"\r\n\r\n"), 200, b"hello..."),
        ((CHUNKED + b"2\r\nok\r\n0\r\nx-trailer: 1\r\nset-cookie: a\r\n\r\n",), 200, b"ok"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" + SHORT,), 200, b"ok"),
        ((b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", SHORT), 200, b"ok"),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, b""),
        ((b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n",), 304, b""),
        ((b"HTTP/1.1 429 Busy\r\ncontent-length: 4\r\nretry-after: 7\r\n\r\nbusy",), 429, b"busy"),
        ((b"HTTP/1.1 307 Away\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n",), 307, b""),
    ],
)
async def test_every_framing_is_read(kind: type[Client], pieces: tuple[bytes, ...], status: int, content: bytes) -> None:
    async def script(peer: Peer) -> None:
        for _ in range(2):
            await peer.answer(*pieces)

    async with backend(script) as one, upstream_to(one.url, kind) as upstream:
        for _ in range(2):
            reply = await send(upstream)
            assert (reply.status, await reply.read(1000)) == (status, content)
            assert not {name for name, _ in reply.headers} & {b"link", b"x-trailer", b"set-cookie"}
        assert len(one.peers) == 1


@pytest.mark.parametrize("head", [OK + b"\r\n", b"HTTP/1.0 200 OK\r\n\r\n", OK + b"connection: keep-alive\r\n\r\n"])
async def test_a_body_without_a_length_reaches_to_the_end_of_the_connection(kind: type[Client], head: bytes) -> None:
    async with backend(once(head + b"one ", b"two", close=True)) as one, upstream_to(one.url, kind) as upstream:
        assert [await ask(upstream) for _ in range(2)] == [b"one two", b"one two"]
        assert len(one.peers) == 2


async def test_headers_come_in_lower_case_and_in_order(kind: type[Client]) -> None:
    head = OK + b"X-One: 1\r\nx-TWO:2  \r\nX-One:\t3\r\nempty:\r\nlatin: \xe9\r\nContent-Length: 2\r\n\r\nok"
    async with backend(serving(head)) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream)
        assert await reply.read(10) == b"ok"
    expected = ((b"x-one", b"1"), (b"x-two", b"2"), (b"x-one", b"3"), (b"empty", b""), (b"latin", b"\xe9"))
    assert (reply.headers, reply.length) == (expected, 2)


async def test_a_compressed_body_stays_compressed(kind: type[Client]) -> None:
    packed = gzip.compress(b'{"choices": []}')
    reply = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed
    async with backend(serving(reply)) as one, upstream_to(one.url, kind) as upstream:
        assert await ask(upstream) == packed


async def test_a_cookie_of_one_reply_is_not_sent_with_the_next_request(kind: type[Client]) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(OK + b"set-cookie: session=1; Path=/\r\ncontent-length: 0\r\n\r\n")
        assert b"cookie" not in (await peer.answer(SHORT)).lower()

    async with backend(script) as one, upstream_to(one.url, kind) as upstream:
        assert [await ask(upstream), await ask(upstream)] == [b"", b"ok"]


async def test_chunks_come_as_they_arrive_and_what_came_together_comes_in_one_piece() -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"3\r\none\r\n4\r\n two\r\n")
        await go.wait()
        await peer.say(b"6\r\n three\r\n")
        await peer.say(b"0\r\n\r\n")

    async with backend(script) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"one two"
        go.set()
        assert await anext(reply.chunks) == b" three"
        assert [chunk async for chunk in reply.chunks] == []


async def test_the_first_events_arrive_while_the_backend_is_still_speaking(kind: type[Client]) -> None:
    async with backend(once(CHUNKED + b"3\r\none\r\n")) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"one"
        reply.close()
        await happens(lambda: one.ended == 1)


# What is no reply


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", INVALID),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", INVALID),
        (b"HTTP/1.1 20 OK\r\n\r\n", INVALID),
        (b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n", INVALID),
        (b"HTTP/3.7 200 OK\r\n\r\n", INVALID),
        (b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", INVALID),
        (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", INVALID),
        (OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx", INVALID),
        (OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok", INVALID),
        (OK + b"content-length: 2, 2\r\n\r\nok", INVALID),
        (OK + b"content-length: +2\r\n\r\nok", INVALID),
        (OK + b"content-length: 99999999999999999999999\r\n\r\nok", INVALID),
        (OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID),
        (OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID),
        (OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID),
        (OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", INVALID),
        (OK + b"transfer-encoding: chunked, gzip\r\n\r\nok", INVALID),
        (OK + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n", INVALID),
        (OK + b"a: b\rc\r\ncontent-length: 0\r\n\r\n", INVALID),
        (OK + b"a: b\0\r\ncontent-length: 0\r\n\r\n", INVALID),
        (OK + b"a : b\r\ncontent-length: 0\r\n\r\n", INVALID),
        (OK + b"bad header: 1\r\n\r\n", INVALID),
        (OK + b"a: " + b"x" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n", INVALID),
        (OK + b"a: b\r\n" * 300 + b"content-length: 0\r\n\r\n", INVALID),
        (OK + b"a: " + b"x" * 200_000, INVALID),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000, INVALID),
        (b"HTTP/1.1 103 Hints\r\nlink: " + b"x" * 1000 + b"\r\n\r\n" + b"HTTP/1.1 103 Hints\r\nl: x\r\n\r\n" * 10_000, INVALID),
        (b"", BROKE),
        (b"HTTP/1.1 200 OK\r\ncontent-le", BROKE),
        (b"HTTP/1.1 100 Continue\r\n\r\n", BROKE),
    ],
    ids=lambda value: repr(value[:60]),
)
async def test_what_is_no_proper_head_is_an_error_and_ends_the_connection(answer: bytes, why: str) -> None:
    async with backend(once(answer, close=True)) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await send(upstream)
        assert failure(raised.value) == why
        await happens(lambda: one.ended == 1)
        assert len(one.peers) == 1


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", OK + b"bad header: 1\r\n\r\n",
     OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx"],
)  # fmt: skip
async def test_no_head_is_an_upstream_error_from_either_client(kind: type[Client], answer: bytes) -> None:
    async with backend(once(answer, close=True)) as one, upstream_to(one.url, kind) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await send(upstream)
        assert failure(raised.value) in (BROKE, INVALID)


@pytest.mark.parametrize(
    ("answer", "content", "why"),
    [
        (OK + b"content-length: 100\r\n\r\ntwenty bytes of them", b"twenty bytes of them", BROKE),
        (CHUNKED + b"5\r\nhello\r\n", b"hello", BROKE),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello", BROKE),
        (CHUNKED + b"5\r\nhello\r\nZZ\r\nhello\r\n0\r\n\r\n", b"hello", INVALID),
        (CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n", b"hello", INVALID),
    ],
)
async def test_a_body_that_breaks_off_is_an_error_after_what_had_come(
    kind: type[Client], answer: bytes, content: bytes, why: str
) -> None:
    if kind is LibraryUpstream and why == INVALID:
        answer = answer[: answer.index(b"\r\n\r\n") + 4]  # aiohttp looks at head and body in one go; that case is below
    async with backend(once(answer, close=True)) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream)
        parts: list[bytes] = []
        with pytest.raises(UpstreamError) as raised:
            await collect(reply, parts)
        reply.close()
        assert failure(raised.value) == (why if kind is Http1Upstream else BROKE)
        assert b"".join(parts) == content or kind is LibraryUpstream


async def test_a_body_that_is_no_valid_chunk_is_an_error_from_the_library_too() -> None:
    async with (
        backend(once(CHUNKED + b"ZZ\r\nhello\r\n", close=True)) as one,
        upstream_to(one.url, LibraryUpstream) as upstream,
    ):
        with pytest.raises(UpstreamError):
            await ask(upstream)


@pytest.mark.parametrize(
    "endless", [b"5;" + b"x" * 200_000, b"0\r\nx-trailer: " + b"x" * 200_000, b"0\r\n" + b"x-trailer: x\r\n" * 10_000]
)
async def test_endless_framing_is_an_error_before_it_fills_the_memory(endless: bytes) -> None:
    async with backend(once(CHUNKED + b"2\r\nok\r\n", endless)) as one, upstream_to(one.url) as upstream:
        with pytest.raises(UpstreamError, match=INVALID):
            await ask(upstream)


async def test_a_reset_is_an_error(kind: type[Client]) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED, b"2\r\nok\r\n")
        await asyncio.sleep(0.02)
        peer.reset()

    async with backend(script) as one, upstream_to(one.url, kind) as upstream:
        with pytest.raises(UpstreamError, match=BROKE):
            await ask(upstream)


async def test_a_reply_that_is_complete_when_the_reset_comes_is_a_reply(kind: type[Client]) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(SHORT)
        peer.reset()

    async with backend(script) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream)
        await happens(lambda: one.ended == 1)
        assert await reply.read(10) == b"ok"


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
async def test_a_reply_that_comes_before_the_request_is_over_is_delivered(kind: type[Client], connection: bytes) -> None:
    reply_ = b"HTTP/1.1 413 Too Large\r\nconnection: %b\r\ncontent-length: 9\r\n\r\ntoo large" % connection

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(reply_)
        await asyncio.sleep(0.05)
        peer.close()

    async with backend(script, serving(SHORT)) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream, bytes(LARGE))
        assert (reply.status, await reply.read(100)) == (413, b"too large")
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 2


async def test_switching_protocols_was_not_asked_for_and_ends_the_connection() -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n\0\1\2"
    async with backend(once(switch), serving(SHORT)) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert (reply.status, await reply.read(10)) == (101, b"")
        assert await ask(upstream) == b"ok"


# Keeping connections


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        (SHORT, True),
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok", False),
        (OK + b"connection: x, Close\r\ncontent-length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", True),
        (SHORT + b"surplus", False),
        (SHORT + SHORT, False),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + SHORT, False),
    ],
)
async def test_a_connection_is_kept_only_where_http_allows_it(reply: bytes, kept: bool) -> None:
    async with backend(serving(reply), serving(SHORT)) as one, upstream_to(one.url) as upstream:
        assert [await ask(upstream), await ask(upstream)] == [b"ok", b"ok"]
        assert len(one.peers) == (1 if kept else 2)
        await happens(lambda: one.ended == (0 if kept else 1))


async def test_the_rest_of_a_reply_that_is_not_read_is_not_read_as_the_next_reply(kind: type[Client]) -> None:
    script = once(OK + b"content-length: 100\r\n\r\nHTTP/1.1 200 OK")
    async with backend(script, serving(SHORT)) as one, upstream_to(one.url, kind) as upstream:
        (await send(upstream)).close()
        assert await ask(upstream) == b"ok"
        await happens(lambda: one.ended == 1)


@pytest.mark.parametrize(
    ("kind", "last_word"),
    [
        (Http1Upstream, b"HTTP/1.1 408 Idle\r\ncontent-length: 0\r\n\r\n"),
        (Http1Upstream, b"x"),
        (Http1Upstream, b""),
        (LibraryUpstream, b""),
    ],
)
async def test_an_idle_connection_that_speaks_or_ends_is_not_used_again(kind: type[Client], last_word: bytes) -> None:
    async def speak(peer: Peer) -> None:
        await peer.answer(SHORT)
        await asyncio.sleep(0.02)
        if last_word:
            await peer.say(last_word)
        else:
            peer.close()

    async with backend(speak, serving(SHORT)) as one, upstream_to(one.url, kind) as upstream:
        assert await ask(upstream) == b"ok"
        await happens(lambda: one.ended == 1)
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 2


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    async with backend(serving(SHORT)) as one:
        upstream = Http1Upstream(Target("small", "m", one.url), idle=0.05)
        assert await ask(upstream) == b"ok"
        await happens(lambda: one.ended == 1)
        assert await ask(upstream) == b"ok"
        await upstream.aclose()


def dying(how: Callable[[Peer], object], *heard: bytes) -> Callable[[Peer], Any]:
    """Answers a first request; says `heard` to the second and dies."""

    async def script(peer: Peer) -> None:
        await peer.answer(SHORT)
        await peer.answer(*heard)
        await asyncio.sleep(0.01 if heard else 0)
        how(peer)

    return script


@pytest.mark.parametrize("how", [Peer.close, Peer.reset])
@pytest.mark.parametrize("body", [BODY, bytes(200_000)])
async def test_a_kept_connection_that_dies_without_a_byte_is_replaced_once(how: Callable[[Peer], object], body: bytes) -> None:
    async with backend(dying(how), serving(SHORT)) as one, upstream_to(one.url) as upstream:
        assert [await ask(upstream, body), await ask(upstream, body)] == [b"ok", b"ok"]
        assert len(one.peers) == 2


@pytest.mark.parametrize("heard", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n"])
async def test_a_kept_connection_that_said_something_is_not_replaced(heard: bytes) -> None:
    async with backend(dying(Peer.close, heard), serving(SHORT)) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"ok"
        with pytest.raises(UpstreamError, match=BROKE):
            await ask(upstream)
        assert len(one.peers) == 1


async def test_a_replacement_that_dies_too_is_an_error() -> None:
    async with backend(dying(Peer.close), once(close=True)) as one, upstream_to(one.url) as upstream:
        assert await ask(upstream) == b"ok"
        with pytest.raises(UpstreamError, match=BROKE):
            await ask(upstream)
        assert len(one.peers) == 2


async def test_a_backend_that_is_slow_is_not_asked_twice() -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(SHORT)
        await peer.answer()

    async with backend(script) as one, upstream_to(one.url, timeouts=Timeouts(read=0.1)) as upstream:
        assert await ask(upstream) == b"ok"
        with pytest.raises(UpstreamTimeout):
            await ask(upstream)
        assert len(one.peers) == 1


# Limits of time


@pytest.mark.parametrize("limits", [Timeouts(read=0.1), Timeouts(total=0.1)])
@pytest.mark.parametrize("said", [(), (b"HTTP/1.1 200",), (b"HTTP/1.1 100 Continue\r\n\r\n",)])
async def test_no_answer_within_the_limits_is_a_timeout(kind: type[Client], limits: Timeouts, said: tuple[bytes, ...]) -> None:
    if kind is LibraryUpstream and b" 100 " in b"".join(said):
        limits = Timeouts(total=0.1)  # aiohttp does not time the wait after an interim reply by itself
    async with backend(once(*said)) as one, upstream_to(one.url, kind, timeouts=limits) as upstream:
        with pytest.raises(UpstreamTimeout) as raised:
            await send(upstream)
        assert failure(raised.value) == LATE
        await happens(lambda: one.ended == 1)


@pytest.mark.parametrize("limits", [Timeouts(read=0.1), Timeouts(total=0.1)])
async def test_a_pause_in_the_body_beyond_the_limits_is_a_timeout(kind: type[Client], limits: Timeouts) -> None:
    async with backend(once(CHUNKED + b"2\r\nok\r\n")) as one, upstream_to(one.url, kind, timeouts=limits) as upstream:
        with pytest.raises(UpstreamTimeout, match=LATE):
            await ask(upstream)
        await happens(lambda: one.ended == 1)


async def test_the_time_between_reads_starts_again_with_every_read(kind: type[Client]) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer(OK + b"content-length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.1)
            await peer.say(b"x")

    async with backend(script) as one, upstream_to(one.url, kind, timeouts=Timeouts(read=0.6)) as upstream:
        assert await ask(upstream) == b"x" * 8


async def test_a_request_that_the_backend_does_not_take_is_a_timeout() -> None:
    async def script(peer: Peer) -> None:
        await asyncio.sleep(20)

    async with backend(script) as one, upstream_to(one.url, timeouts=Timeouts(read=0.2)) as upstream:
        with pytest.raises(UpstreamTimeout, match=LATE):
            await send(upstream, bytes(50_000_000))


async def test_a_client_that_reads_slowly_is_no_reason_for_a_timeout() -> None:
    reply = OK + b"content-length: 5000000\r\n\r\n" + bytes(5_000_000)
    async with backend(once(reply)) as one, upstream_to(one.url, timeouts=Timeouts(read=0.2)) as upstream:
        answer = await send(upstream)
        first = await anext(answer.chunks)
        await asyncio.sleep(0.5)
        assert len(first) + len(await answer.read(1 << 30)) == 5_000_000


async def test_no_connection_in_time_is_told_apart(kind: type[Client]) -> None:
    async def silent(peer: Peer) -> None:
        await peer.reader.read()

    async with backend(silent) as one:
        url = one.url.replace("http:", "https:")
        async with upstream_to(url, kind, timeouts=Timeouts(connect=0.2)) as upstream:
            with pytest.raises(UpstreamTimeout) as raised:
                await send(upstream)
        assert failure(raised.value) == "no connection in time"


# Pouring


def in_steps(*pieces: bytes, step: float = 0.05, close: bool = False) -> Callable[[Peer], Any]:
    async def script(peer: Peer) -> None:
        for _ in range(2):
            await peer.answer(pieces[0])
            for piece in pieces[1:]:
                await asyncio.sleep(step)
                await peer.say(piece)
            if close:
                peer.close()

    return script


async def test_what_is_poured_comes_as_it_arrives_to_the_end_and_the_connection_is_kept() -> None:
    script = in_steps(CHUNKED + b"3\r\none\r\n", b"4\r\n two\r\n", b"6\r\n three\r\n2\r\n 4\r\n", b"0\r\n\r\n")
    async with backend(script) as one, upstream_to(one.url) as upstream:
        for _ in range(2):
            reply = await send(upstream)
            assert await pour(reply, []) == [b"one", b"P two", b"P three 4"]
            reply.close()
        assert len(one.peers) == 1


async def test_who_has_had_enough_goes_on_iterating() -> None:
    script = in_steps(CHUNKED + b"1\r\n1\r\n", *(b"1\r\n%d\r\n" % number for number in range(2, 8)), b"0\r\n\r\n")
    async with backend(script) as one, upstream_to(one.url) as upstream:
        assert await pour(await send(upstream), [], enough=2) == [b"1", b"P2", b"P3", b"4", b"P5", b"P6", b"7"]


@pytest.mark.parametrize(("last", "why"), [(b"3\r\nth", BROKE), (b"ZZ\r\n", INVALID)])
async def test_what_breaks_off_while_it_is_poured_is_an_error_after_what_had_come(last: bytes, why: str) -> None:
    script = in_steps(CHUNKED + b"3\r\none\r\n", b"4\r\n two\r\n", last, close=True)
    chunks: list[bytes] = []
    async with backend(script) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        with pytest.raises(UpstreamError) as raised:
            await pour(reply, chunks)
    assert failure(raised.value) == why
    assert b"".join(chunks) in (b"oneP two", b"oneP twoPth")


async def test_what_goes_wrong_where_it_is_poured_to_is_told_to_who_pours() -> None:
    def take(chunk: bytes) -> bool:
        raise ConnectionAbortedError(chunk.decode())

    script = in_steps(OK + b"content-length: 9\r\n\r\n1", b"23", b"456789")
    async with backend(script) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"1"
        assert reply.pour is not None
        with pytest.raises(ConnectionAbortedError, match="23"):
            await reply.pour(take)
        assert await anext(reply.chunks) == b"456789"


async def test_who_stops_pouring_gets_no_more() -> None:
    taken: list[bytes] = []
    script = in_steps(CHUNKED + b"1\r\n1\r\n", *[b"1\r\n2\r\n"] * 20)
    async with backend(script) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"1"
        assert reply.pour is not None
        pouring = asyncio.ensure_future(reply.pour(lambda chunk: not taken.append(chunk)))
        await happens(lambda: len(taken) > 1)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        got = len(taken)
        assert await anext(reply.chunks) == b"2"
        reply.close()
        assert len(taken) == got
        await happens(lambda: one.ended == 1)


async def test_a_pause_beyond_the_limits_ends_what_is_poured_and_shorter_ones_do_not() -> None:
    pieces = [b"1\r\nx\r\n"] * 8
    script = in_steps(CHUNKED + pieces[0], *pieces, step=0.1)
    chunks: list[bytes] = []
    async with backend(script) as one, upstream_to(one.url, timeouts=Timeouts(read=0.6)) as upstream:
        reply = await send(upstream)
        with pytest.raises(UpstreamTimeout, match=LATE):
            await pour(reply, chunks)
    assert chunks == [b"x", *[b"Px"] * 8]


# Back-pressure and letting go


async def test_a_reply_that_nobody_reads_stays_with_the_backend(kind: type[Client]) -> None:
    size, sent = 64_000_000, 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.answer(OK + b"content-length: %d\r\n\r\n" % size)
        while sent < size:
            await peer.say(bytes(64_000))
            sent += 64_000

    async with backend(script) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        assert 0 < sent < size / 2
        got = 0
        async for chunk in reply.chunks:
            got += len(chunk)
            assert len(chunk) < 2_000_000
        assert got == size


async def test_a_reply_that_is_closed_stops_the_backend_at_once(kind: type[Client]) -> None:
    async with backend(once(CHUNKED + b"2\r\nok\r\n")) as one, upstream_to(one.url, kind) as upstream:
        reply = await send(upstream)
        assert await anext(reply.chunks) == b"ok"
        reply.close()
        reply.close()
        await happens(lambda: one.ended == 1)


async def test_a_closed_reply_does_not_look_complete() -> None:
    async with backend(once(CHUNKED + b"2\r\nok\r\n")) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        reply.close()
        with pytest.raises(UpstreamError, match=BROKE):
            [chunk async for chunk in reply.chunks]


async def test_closing_a_complete_reply_unread_keeps_its_connection(kind: type[Client]) -> None:
    async with backend(serving(SHORT)) as one, upstream_to(one.url, kind) as upstream:
        for _ in range(3):
            reply = await send(upstream)
            await asyncio.sleep(0.01)
            reply.close()
        assert len(one.peers) == 1


async def test_a_call_cancelled_at_any_moment_leaves_no_connection_behind(kind: type[Client]) -> None:
    async def hang(peer: Peer) -> None:
        await peer.reader.read()

    async def half(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"2\r\nok\r\n")

    async def stuck(peer: Peer) -> None:
        await asyncio.sleep(30)

    for script, body in ((hang, BODY), (half, BODY), (stuck, bytes(50_000_000))):
        async with backend(script, serving(SHORT)) as one, upstream_to(one.url, kind, pool_size=1) as upstream:
            calling = asyncio.ensure_future(ask(upstream, body))
            await happens(lambda one=one: one.peers)
            await asyncio.sleep(0.05)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            if script is not stuck:
                await happens(lambda one=one: one.ended == 1)
            assert await ask(upstream) == b"ok"


async def test_a_call_cancelled_while_it_connects_leaves_no_connection_behind() -> None:
    async def silent(peer: Peer) -> None:
        await peer.until_closed()

    async with backend(silent) as one, upstream_to(one.url.replace("http:", "https:"), pool_size=1) as upstream:
        for number in range(3):
            calling = asyncio.ensure_future(send(upstream))
            await happens(lambda number=number: len(one.peers) == number + 1)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await happens(lambda number=number: one.ended == number + 1)


@given(st.floats(0, 0.01))
@settings(max_examples=30)
async def test_a_call_cancelled_at_a_random_moment_gives_its_place_back(delay: float) -> None:
    reply = CHUNKED + b"2\r\nok\r\n0\r\n\r\n"

    async def script(peer: Peer) -> None:
        for _ in range(10):
            await peer.answer(reply[:20], reply[20:50], reply[50:])

    async with backend(script) as one, upstream_to(one.url, pool_size=2) as upstream:
        calls = [asyncio.ensure_future(ask(upstream)) for _ in range(6)]
        await asyncio.sleep(delay)
        for call in calls[::2]:
            call.cancel()
        assert set(await asyncio.gather(*calls[1::2])) == {b"ok"}
        assert set(await asyncio.gather(*[ask(upstream) for _ in range(4)])) == {b"ok"}
        (pool,) = upstream._pools.values()
        assert len(pool.connections) <= 2
        await asyncio.gather(*calls, return_exceptions=True)


# The pool


async def test_no_more_connections_than_the_pool_has_places_and_first_come_first_served() -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        for _ in range(20):
            request = await peer.request()
            seen.append(request.partition(b"\r\n\r\n")[2])
            await peer.say(SHORT)

    async with backend(script) as one, upstream_to(one.url, pool_size=1) as upstream:
        bodies = [b"%d" % number for number in range(8)]
        assert await asyncio.gather(*[ask(upstream, body) for body in bodies]) == [b"ok"] * 8
        assert (seen, len(one.peers)) == (bodies, 1)


async def test_a_place_is_free_again_after_every_failure(unused_tcp_port: int) -> None:
    answers = (b"", b"garbage\r\n\r\n", OK + b"content-length: 9\r\n\r\nx")
    scripts = [once(answer, close=True) for answer in answers]
    async with backend(*scripts, serving(SHORT)) as one, upstream_to(one.url, pool_size=1) as upstream:
        for _ in answers:
            with pytest.raises(UpstreamError):
                await ask(upstream)
        assert await asyncio.gather(*[ask(upstream) for _ in range(3)]) == [b"ok"] * 3
    async with upstream_to(f"http://127.0.0.1:{unused_tcp_port}/v1", pool_size=1) as upstream:
        results = await asyncio.gather(*[ask(upstream) for _ in range(5)], return_exceptions=True)
        assert {failure(error) for error in results} == {"cannot connect (ConnectionRefusedError)"}


async def test_waiting_for_a_place_ends_with_the_time_for_the_call() -> None:
    async with backend(serving(SHORT)) as one, upstream_to(one.url, pool_size=1) as upstream:
        assert await ask(upstream) == b"ok"
        (pool,) = upstream._pools.values()
        connection = await pool.take(pool.loop.time() + 20)
        with pytest.raises(UpstreamTimeout, match="no connection in time"):
            await pool.take(pool.loop.time() + 0.1)
        pool.give_back(connection)
        assert await ask(upstream) == b"ok"
        assert len(one.peers) == 1


async def test_one_that_waits_and_gives_up_lets_the_next_in_line_go_first() -> None:
    async with backend(once(CHUNKED), serving(SHORT)) as one, upstream_to(one.url, pool_size=1) as upstream:
        reply = await send(upstream)
        waiting = [asyncio.ensure_future(ask(upstream)) for _ in range(4)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        reply.close()
        waiting[1].cancel()
        assert await asyncio.gather(*waiting[2:]) == [b"ok"] * 2
        assert len(one.peers) == 2
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_connection_that_is_given_to_one_that_just_left_goes_to_the_next() -> None:
    async with backend(serving(SHORT)) as one, upstream_to(one.url, pool_size=1) as upstream:
        assert await ask(upstream) == b"ok"
        (pool,) = upstream._pools.values()
        connection = await pool.take(pool.loop.time() + 20)
        leaving, staying = (asyncio.ensure_future(ask(upstream)) for _ in range(2))
        await asyncio.sleep(0)
        pool.give_back(connection)
        leaving.cancel()
        assert await staying == b"ok"
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert len(one.peers) == 1


def test_one_upstream_serves_several_event_loops(kind: type[Client]) -> None:
    with FakeBackend() as fake:
        upstream = kind(Target("small", "m", fake.url))

        async def twice() -> list[int]:
            statuses = []
            for _ in range(2):
                reply = await send(upstream)
                await reply.read(1000)
                statuses.append(reply.status)
            await upstream.aclose()
            return statuses

        for factory in LOOPS.values():
            with asyncio.Runner(loop_factory=factory) as runner:
                assert runner.run(twice()) == [200, 200]


async def test_a_closed_upstream_opens_again_with_the_next_call(kind: type[Client]) -> None:
    async with backend(serving(SHORT)) as one, upstream_to(one.url, kind) as upstream:
        assert await ask(upstream) == b"ok"
        await upstream.aclose()
        await upstream.aclose()
        await happens(lambda: one.ended == 1)
        assert await ask(upstream) == b"ok"


async def test_closing_ends_what_is_under_way() -> None:
    async with backend(once(CHUNKED)) as one, upstream_to(one.url) as upstream:
        reply = await send(upstream)
        await upstream.aclose()
        with pytest.raises(UpstreamError, match=BROKE):
            await anext(reply.chunks)
        await happens(lambda: one.ended == 1)


async def test_closing_ends_what_is_still_connecting_or_waiting() -> None:
    async def silent(peer: Peer) -> None:
        await peer.until_closed()

    async with backend(silent) as one, upstream_to(one.url, pool_size=1) as upstream:
        calls = [asyncio.ensure_future(send(upstream)) for _ in range(3)]
        await asyncio.sleep(0)
        await upstream.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {failure(error) for error in results} == {BROKE}


# Where it connects


async def test_a_refused_connection_is_told_by_its_kind(kind: type[Client], unused_tcp_port: int) -> None:
    async with upstream_to(f"http://127.0.0.1:{unused_tcp_port}/v1", kind) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await send(upstream)
    assert failure(raised.value) == "cannot connect (ConnectionRefusedError)"


async def test_a_host_that_does_not_exist_cannot_be_connected_to(kind: type[Client]) -> None:
    async with upstream_to("http://nowhere.invalid/v1", kind) as upstream:
        with pytest.raises(UpstreamError, match=r"cannot connect \(gaierror\)"):
            await send(upstream)


async def test_a_host_that_cannot_exist_cannot_be_connected_to() -> None:
    async with upstream_to(f"http://{'a' * 70}.invalid/v1") as upstream:
        with pytest.raises(UpstreamError, match=r"cannot connect"):
            await send(upstream)


async def test_ipv6(kind: type[Client]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.answer(SHORT))

    async with backend(script, host="::1") as one, upstream_to(one.url, kind) as upstream:
        assert await ask(upstream) == b"ok"
    assert b"ost: [::1]:" in requests[0]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_tls_with_an_authority_of_ones_own(kind: type[Client], authority: trustme.CA, ca: str) -> None:
    content = random.Random(2).randbytes(3_000_000)
    got: list[bytes] = []

    async def script(peer: Peer) -> None:
        for _ in range(2):
            got.append((await peer.answer(SHORT)).partition(b"\r\n\r\n")[2])

    async with backend(script, tls=certified(authority, "localhost")) as one, upstream_to(one.url, kind, ca=ca) as upstream:
        assert [await ask(upstream), await ask(upstream, content)] == [b"ok", b"ok"]
        assert len(one.peers) == 1
    assert got == [BODY, content]


async def test_tls_streams_and_lets_go_like_plain_connections(kind: type[Client], authority: trustme.CA, ca: str) -> None:
    size = 8_000_000

    async def long(peer: Peer) -> None:
        await peer.answer(OK + b"content-length: %d\r\n\r\n" % size)
        for _ in range(size // 80_000):
            await peer.say(bytes(80_000))

    async with backend(long, once(CHUNKED + b"2\r\nok\r\n"), tls=certified(authority, "localhost")) as one:  # noqa: SIM117
        async with upstream_to(one.url, kind, ca=ca) as upstream:
            reply = await send(upstream)
            await asyncio.sleep(0.1)
            assert len(await reply.read(1 << 30)) == size
            one.peers[0].close()
            await happens(lambda: one.ended == 1)
            reply = await send(upstream)
            assert await anext(reply.chunks) == b"ok"
            reply.close()
            await happens(lambda: one.ended == 2)


@pytest.mark.parametrize(("names", "known"), [(["localhost"], False), (["elsewhere.example"], True)])
async def test_a_certificate_that_proves_nothing_is_refused(
    kind: type[Client], authority: trustme.CA, ca: str, names: list[str], known: bool
) -> None:
    async with backend(serving(SHORT), tls=certified(authority, *names)) as one:  # noqa: SIM117
        async with upstream_to(one.url, kind, ca=ca if known else None) as upstream:
            with pytest.raises(UpstreamError, match=r"cannot connect \(.*Cert.*\)"):
                await send(upstream)


async def test_plain_http_behind_an_https_url_cannot_be_connected_to(kind: type[Client]) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with backend(refuse) as one, upstream_to(one.url.replace("http:", "https:"), kind) as upstream:
        with pytest.raises(UpstreamError, match="cannot connect"):
            await send(upstream)


# Anything at all


VALID = [
    SHORT,
    CHUNKED + b"5;x=y\r\nhello\r\n3\r\n...\r\n0\r\nx-trailer: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy",
]


@given(st.sampled_from([Http1Upstream, LibraryUpstream]), st.sampled_from(VALID), st.data())
@settings(max_examples=60)
async def test_a_damaged_reply_is_a_reply_or_an_upstream_error_in_time(
    kind: type[Client], valid: bytes, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(valid)))
    damaged = valid[:place] + data.draw(st.binary(max_size=3)) + valid[place + data.draw(st.integers(0, 3)) :]
    async with backend(once(damaged, close=data.draw(st.booleans()))) as one:  # noqa: SIM117
        async with upstream_to(one.url, kind, timeouts=Timeouts(read=0.1, total=3)) as upstream, asyncio.timeout(20):
            with suppress(UpstreamError):
                reply = await send(upstream)
                assert 100 <= reply.status <= 999
                await reply.read(1 << 20)
    assert isinstance(one, Backend)
