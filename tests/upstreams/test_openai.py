"""Carrying calls over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import client_exceptions
from aiohttp.client_reqrep import ConnectionKey

from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.routes import Backend, Timeouts
from fingerpost.testing import FakeBackend, FakeReply
from fingerpost.upstreams import Call, Reply
from fingerpost.upstreams.openai import OpenAIUpstream, as_upstream_error

BODY = b'{"messages": [{"role": "user", "content": "caf\\u00e9 \xc3\xa9"}], "temperature": 1.0}'
STREAM = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true}'


@asynccontextmanager
async def upstream_to(url: str, **backend: Any) -> AsyncIterator[OpenAIUpstream]:
    upstream = OpenAIUpstream(Backend("small", "m", url, **backend))
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def send(upstream: OpenAIUpstream, body: bytes = BODY, *headers: tuple[bytes, bytes]) -> Reply:
    return await upstream.send(Call(upstream.backend, body, headers))


async def read_all(reply: Reply) -> bytes:
    return await reply.read(1 << 30)


Until = Callable[[Callable[[], object]], None]


def raw(*lines: bytes, body: bytes = b"") -> FakeReply:
    return FakeReply(raw=b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", body]))


async def test_the_body_arrives_byte_for_byte_by_post(fake: FakeBackend) -> None:
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream)
        answer = json.loads(await read_all(reply))
    assert reply.status == 200
    assert answer["choices"][0]["message"]["content"] == "Hello from the backend."
    received = fake.requests[0]
    assert (received.method, received.target, received.body) == ("POST", "/v1/chat/completions", BODY)


@pytest.mark.parametrize(
    ("backend", "header", "target"),
    [
        ({"key": "k1"}, {"authorization": "Bearer k1"}, "/v1/chat/completions"),
        ({"key": "k1", "auth": "api-key"}, {"api-key": "k1"}, "/v1/chat/completions"),
        (
            {"key": "k1", "auth": "api-key", "api_version": "2024-10-21"},
            {"api-key": "k1"},
            "/v1/chat/completions?api-version=2024-10-21",
        ),
        ({}, {}, "/v1/chat/completions"),
    ],
)
async def test_the_configured_key_goes_into_its_header(
    fake: FakeBackend, backend: dict[str, Any], header: dict[str, str], target: str
) -> None:
    async with upstream_to(fake.url, **backend) as upstream:
        await read_all(await send(upstream))
    received = fake.requests[0]
    assert {name: received.headers[name] for name in ("authorization", "api-key") if name in received.headers} == header
    assert received.target == target


async def test_another_path_can_be_called_below_a_base_url_with_a_slash(fake: FakeBackend) -> None:
    async with upstream_to(fake.url + "/") as upstream:
        await read_all(await upstream.send(Call(upstream.backend, BODY, path="/embeddings")))
    assert fake.requests[0].target == "/v1/embeddings"


async def test_configured_headers_replace_those_of_the_client_whatever_their_case(fake: FakeBackend) -> None:
    own = {"X-Team": "own", "Content-Type": "application/json; charset=utf-8", "USER-AGENT": "ours"}
    async with upstream_to(fake.url, key="k1", headers=own) as upstream:
        theirs = ((b"x-team", b"theirs"), (b"authorization", b"Bearer theirs"), (b"user-agent", b"theirs"))
        await read_all(await send(upstream, BODY, *theirs, (b"content-type", b"text/plain"), (b"traceparent", b"00-1-2-3")))
    received = fake.requests[0].headers
    assert received["x-team"] == "own"
    assert received["authorization"] == "Bearer k1"
    assert received["content-type"] == "application/json; charset=utf-8"
    assert received["user-agent"] == "ours"
    assert received["traceparent"] == "00-1-2-3"


async def test_nothing_is_said_about_the_client_that_it_did_not_say_itself(fake: FakeBackend) -> None:
    async with upstream_to(fake.url) as upstream:
        await read_all(await send(upstream))
    assert sorted(fake.requests[0].headers) == ["accept", "content-length", "content-type", "host"]


async def test_a_header_value_outside_ascii_arrives_as_it_was_sent(fake: FakeBackend) -> None:
    async with upstream_to(fake.url) as upstream:
        await read_all(await send(upstream, BODY, (b"user-agent", "Käse 你".encode()), (b"x-request-id", b"\xe9")))
    assert fake.requests[0].headers["user-agent"].encode("latin-1").decode() == "Käse 你"
    assert fake.requests[0].headers["x-request-id"].encode("latin-1").decode() == "\ufffd"


async def test_reply_headers_come_in_lower_case_and_in_order(fake: FakeBackend) -> None:
    fake.script(raw(b"X-One: 1", b"x-TWO: 2", b"X-One: 3", b"Content-Length: 2", body=b"ok"))
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream)
        assert await read_all(reply) == b"ok"
    assert reply.headers == ((b"x-one", b"1"), (b"x-two", b"2"), (b"x-one", b"3"), (b"content-length", b"2"))


async def test_a_compressed_body_stays_compressed(fake: FakeBackend) -> None:
    packed = gzip.compress(b'{"choices": []}')
    fake.script(raw(b"content-encoding: gzip", b"content-length: %d" % len(packed), body=packed))
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream, BODY, (b"accept-encoding", b"gzip"))
        assert await read_all(reply) == packed
    assert reply.header(b"content-encoding") == b"gzip"
    assert fake.requests[0].headers["accept-encoding"] == "gzip"


async def test_error_statuses_are_replies_like_any_other(fake: FakeBackend) -> None:
    fake.script(FakeReply("busy", status=429, headers={"retry-after": "7"}))
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream)
        assert b"busy" in await read_all(reply)
    assert (reply.status, reply.header(b"retry-after")) == (429, b"7")


async def test_a_redirect_is_not_followed(fake: FakeBackend) -> None:
    fake.script(FakeReply(status=307, headers={"location": fake.url + "/elsewhere"}))
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream)
        await reply.close()
    assert reply.status == 307
    assert len(fake.requests) == 1


async def test_a_cookie_of_one_reply_is_not_sent_with_the_next_request(fake: FakeBackend) -> None:
    fake.script(FakeReply(headers={"set-cookie": "session=1; Path=/"}))
    async with upstream_to(fake.url) as upstream:
        await read_all(await send(upstream))
        await read_all(await send(upstream))
    assert "cookie" not in fake.requests[1].headers


async def test_the_first_events_arrive_while_the_backend_is_still_speaking(fake: FakeBackend) -> None:
    fake.script(FakeReply("one two three", pause=60))
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream, STREAM)
        assert (await anext(reply.chunks)).startswith(b"data: ")
        await reply.close()


async def test_a_body_read_to_its_end_gives_its_connection_to_the_next_call() -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n" + BODY)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, upstream_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1") as upstream:
        assert [await read_all(await send(upstream)) for _ in range(2)] == [b"ok", b"ok"]
    assert len(connections) == 1


async def test_closing_a_reply_before_its_end_stops_the_backend(fake: FakeBackend, eventually: Until) -> None:
    fake.script(FakeReply("word " * 100, pause=0.05))
    async with upstream_to(fake.url) as upstream:
        reply = await send(upstream, STREAM)
        await anext(reply.chunks)
        await reply.close()
        await asyncio.to_thread(eventually, lambda: fake.abandoned == 1)


async def test_a_cancelled_call_stops_the_backend(fake: FakeBackend, eventually: Until) -> None:
    fake.script(FakeReply(hang=True))
    async with upstream_to(fake.url) as upstream:
        calling = asyncio.ensure_future(send(upstream))
        await asyncio.to_thread(eventually, lambda: fake.requests)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await asyncio.to_thread(eventually, lambda: fake.abandoned == 1)


async def test_a_refused_connection_is_told_by_its_kind(unused_tcp_port: int) -> None:
    async with upstream_to(f"http://127.0.0.1:{unused_tcp_port}/v1") as upstream:
        with pytest.raises(UpstreamError, match=r"^small: cannot connect \(ConnectionRefusedError\)$"):
            await send(upstream)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://nowhere.invalid/v1", r"cannot connect"),
        ("http:///v1", "InvalidUrlClientError"),
        ("gopher://localhost/v1", "NonHttpUrlClientError"),
        ("http://[::1/v1", "small: "),
    ],
)
async def test_a_url_that_leads_nowhere_is_an_upstream_error(url: str, message: str) -> None:
    async with upstream_to(url) as upstream:
        with pytest.raises(UpstreamError, match=message):
            await send(upstream)


async def test_plain_http_behind_an_https_url_is_an_upstream_error() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server, upstream_to(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1") as upstream:
        with pytest.raises(UpstreamError, match=r"^small: cannot connect"):
            await send(upstream)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the connection broke"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "the connection broke"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "small: "),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "small: "),
        (b"HTTP/1.1 200 OK\r\nbad header: 1\r\n\r\n", "small: "),
    ],
)
async def test_no_proper_head_of_a_reply_is_an_upstream_error(fake: FakeBackend, answer: bytes, message: str) -> None:
    fake.script(FakeReply(raw=answer))
    async with upstream_to(fake.url) as upstream:
        with pytest.raises(UpstreamError, match=message):
            await send(upstream)


@pytest.mark.parametrize(
    ("framing", "body", "message"),
    [
        (b"content-length: 100", b"twenty bytes of them", "^small: the connection broke$"),
        (b"transfer-encoding: chunked", b"5\r\nhello\r\n", "^small: the connection broke$"),
        (b"transfer-encoding: chunked", b"5\r\nhello\r\nZZ\r\nhello\r\n0\r\n\r\n", "^small: "),
    ],
)
async def test_a_body_that_breaks_off_is_an_upstream_error(
    fake: FakeBackend, framing: bytes, body: bytes, message: str
) -> None:
    fake.script(raw(framing, body=body))
    async with upstream_to(fake.url) as upstream:
        with pytest.raises(UpstreamError, match=message):
            await read_all(await send(upstream))


@pytest.mark.parametrize("limits", [Timeouts(read=0.1), Timeouts(total=0.1)])
async def test_no_answer_within_the_limits_is_a_timeout(fake: FakeBackend, limits: Timeouts) -> None:
    fake.script(FakeReply(hang=True))
    async with upstream_to(fake.url, timeouts=limits) as upstream:
        with pytest.raises(UpstreamTimeout, match=r"^small: no answer in time$"):
            await send(upstream)


@pytest.mark.parametrize("limits", [Timeouts(read=0.1), Timeouts(total=0.1)])
async def test_a_pause_in_the_body_beyond_the_limits_is_a_timeout(fake: FakeBackend, limits: Timeouts) -> None:
    fake.script(FakeReply("one two", pause=60))
    async with upstream_to(fake.url, timeouts=limits) as upstream:
        with pytest.raises(UpstreamTimeout, match=r"^small: no answer in time$"):
            await read_all(await send(upstream, STREAM))


SECRET = "sk-canary"


def examples_of_client_errors() -> list[Exception]:
    """One of each exception that aiohttp's client raises, those about web sockets left out."""
    key = ConnectionKey("example.com", 443, True, True, None, None, None)
    info = aiohttp.RequestInfo("http://example.com", "POST", {"authorization": SECRET}, "http://example.com")  # type: ignore
    special = {
        aiohttp.ClientConnectorError: (key, OSError(SECRET)),
        aiohttp.ClientSSLError: (key, OSError(SECRET)),
        aiohttp.ClientProxyConnectionError: (key, OSError(SECRET)),
        aiohttp.ClientConnectorSSLError: (key, OSError(SECRET)),
        aiohttp.ClientConnectorDNSError: (key, OSError(SECRET)),
        aiohttp.ClientConnectorCertificateError: (key, ValueError(SECRET)),
        client_exceptions.UnixClientConnectorError: ("/tmp/x", key, OSError(SECRET)),
        aiohttp.ServerFingerprintMismatch: (b"1", b"2", "example.com", 443),
    }
    found = []
    for name in (name for name in client_exceptions.__all__ if not name.startswith("WS")):
        kind = getattr(client_exceptions, name)
        response_error = inspect.isclass(kind) and issubclass(kind, aiohttp.ClientResponseError)
        found.append(kind(*special.get(kind, (info, ()) if response_error else (SECRET,))))
    return found


@pytest.mark.parametrize("error", examples_of_client_errors(), ids=lambda error: type(error).__name__)
def test_every_error_of_the_http_library_is_caught_and_mapped_without_its_text(error: Exception) -> None:
    assert isinstance(error, TimeoutError | aiohttp.ClientError | OSError | ValueError)
    mapped = as_upstream_error("small", error)
    assert isinstance(mapped, UpstreamTimeout) == isinstance(error, TimeoutError)
    assert mapped.message.startswith("small: ")
    assert SECRET not in mapped.message


def test_a_late_connection_is_told_apart_from_a_late_answer() -> None:
    assert as_upstream_error("small", aiohttp.ConnectionTimeoutError()).message == "small: no connection in time"
    assert as_upstream_error("small", aiohttp.SocketTimeoutError()).message == "small: no answer in time"


def test_one_upstream_serves_two_event_loops(fake: FakeBackend) -> None:
    upstream = OpenAIUpstream(Backend("small", "m", fake.url))

    async def once() -> int:
        reply = await send(upstream)
        await read_all(reply)
        await upstream.aclose()
        return reply.status

    assert [asyncio.run(once()), asyncio.run(once())] == [200, 200]


async def test_an_upstream_that_never_called_can_be_closed_twice() -> None:
    upstream = OpenAIUpstream(Backend("small", "m", "http://localhost/v1"))
    await upstream.aclose()
    await upstream.aclose()


async def test_a_closed_upstream_opens_again_with_the_next_call(fake: FakeBackend) -> None:
    async with upstream_to(fake.url) as upstream:
        await read_all(await send(upstream))
        await upstream.aclose()
        assert (await read_all(await send(upstream))).startswith(b"{")
