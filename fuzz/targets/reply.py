"""Our HTTP/1.1 client: replies cut anywhere are one result without a byte of another; h11 reads them and our heads alike."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import h11

from fingerpost.errors import UpstreamError
from fingerpost.headers import PASSED_REQUEST_HEADERS
from fingerpost.routes import Backend, Timeouts
from fingerpost.upstreams import Reply
from fingerpost.upstreams.connection import Connection
from fingerpost.upstreams.openai import parse_url
from fingerpost.upstreams.wire import Incoming, NotHttp, ReplyParser, RequestWriter
from fuzz.targets import cuttings

NEXT = b"====\n"
"""Between what comes in answer to the first request, and what comes after the second was sent on the same connection."""

_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
SEEDS = (
    _OK,
    _OK + NEXT + _OK,
    _OK + NEXT + _OK.replace(b"2", b"00003") + b"!",
    _OK + NEXT + _OK.replace(b"200", b"201"),
    _OK + NEXT + _OK.replace(b"2\r", b"1\r"),
    _OK + _OK + NEXT + _CHUNKED,
    _CHUNKED + NEXT + _OK,
    b"HTTP/1.1 100 Continue\r\n\r\n" + _CHUNKED,
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n",
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc" + NEXT + _OK,
    b"HTTP/1.1 204 No Content\r\n\r\n" + NEXT + b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nxyz",
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
)
WORDS = (
    NEXT, _OK, _CHUNKED, b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2.0 ", b"200 ", b"100 ", b"101 ", b"103 ", b"204 ", b"304 ",
    b"099 ",
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"content-length: ", b"Content-Length: 0\r\n", b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n", b"connection: close\r\n", b"connection: keep-alive\r\n", b"upgrade: websocket\r\n",
    b"0\r\n\r\n", b"5\r\n", b"ffffffffffffffff", b"0x5", b"+5", b"-5", b" ", b"\t", b"\0", b"\x0b", b"\x7f", b"\xff", b";a=b",
    b": ", b":", b"x-trailer: 1\r\n", b" folded\r\n", b"trailer: x\r\n", b"keep-alive: timeout=5\r\n",
    b"proxy-connection: close\r\n",
)  # fmt: skip


def check(data: bytes) -> None:
    """Raises when a promise is broken."""
    first, _, second = data.partition(NEXT)
    one = _parsed([first])
    for pieces in cuttings(first):
        assert _parsed(pieces) == one, (pieces, _parsed(pieces), one)
    _compare_with_h11(first, one)
    for pieces in ([first], *cuttings(first)):
        for enough in (0, 2, 1000):
            _check_connection(pieces, second, one, enough)
    _check_head(data)


@dataclass(frozen=True)
class Result:
    """What became of a reply; what had come before an error is no part of it."""

    failed: bool
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    length: int | None = None
    body: bytes = b""


def _parsed(pieces: list[bytes]) -> Result:
    parser, incoming = ReplyParser(), Incoming()
    parser.expect(incoming)
    try:
        for piece in pieces:
            parser.feed(piece)
            if incoming.complete:
                break
        else:
            parser.end()
    except NotHttp:
        return Result(failed=True)
    if not incoming.complete:
        return Result(failed=True)
    return Result(False, incoming.status, tuple(incoming.headers), incoming.length, b"".join(incoming.parts))


def _compare_with_h11(data: bytes, ours: Result) -> None:
    """Where h11 takes the reply too, it has the same status and body."""
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    peer.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        peer.receive_data(data)
        closed = False
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif event is h11.NEED_DATA and not closed:
                closed = True
                peer.receive_data(b"")
            elif not isinstance(event, h11.InformationalResponse):
                if not isinstance(event, h11.EndOfMessage):
                    return
                break
    except h11.RemoteProtocolError:
        return
    assert ours.failed or (ours.status, ours.body) == (status, body), (ours, status, body)


class Wire(asyncio.Transport):
    """A transport that goes nowhere and notes what becomes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        if not self.closed:  # as asyncio's own transports do
            self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def pause_reading(self) -> None:
        """Does nothing: what comes is already here."""

    resume_reading = pause_reading


class Owner:
    """Whom the connection belongs to."""

    name, limits, idle = "b", Timeouts(5, 5, 5), 5.0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.given_back = 0

    async def carry(self, head: bytes, content: bytes, deadline: float, *, new: bool) -> Reply:
        raise AssertionError("a new connection cannot have been closed while it rested")

    def give_back(self, connection: Connection) -> None:
        self.given_back += 1
        connection.rest()

    def forget(self, connection: Connection) -> None:
        """Keeps no list."""

    lost = forget


_loop = asyncio.new_event_loop()


def _check_connection(pieces: list[bytes], second: bytes, expected: Result, enough: int) -> None:
    """Both requests on one connection end in a result or in one of our errors; the second has nothing of the first's bytes.

    They are poured, each time until there is `enough`; with 0 they are only iterated.
    """
    owner = Owner(_loop)
    connection, wire = Connection(owner), Wire()
    connection.connection_made(wire)
    result, surplus = _loop.run_until_complete(_carried(connection, wire, pieces, enough))
    assert result == expected, (result, expected)
    if surplus or not owner.given_back or wire.closed:
        assert not surplus or wire.closed
    elif second:
        again, _ = _loop.run_until_complete(_carried(connection, wire, [second], enough))
        assert again == _parsed([second])
    connection.connection_lost(None)


async def _carried(connection: Connection, wire: Wire, pieces: list[bytes], enough: int) -> tuple[Result, bool]:
    """What one request gets, and whether there was more than its reply."""
    carrying = asyncio.ensure_future(_answer(connection, enough))
    await asyncio.sleep(0)
    surplus = False
    for piece in pieces:
        surplus = surplus or carrying.done()
        if not wire.closed:
            connection.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    if not carrying.done() and not wire.closed:
        connection.eof_received()
    return await asyncio.wait_for(carrying, 5), surplus


async def _answer(connection: Connection, enough: int) -> Result:
    chunks: list[bytes] = []

    def take(chunk: bytes) -> bool:
        chunks.append(chunk)
        return len(chunks) % enough > 0

    try:
        reply = await connection.carry(b"HEAD", b"", _loop.time(), _loop.time() + 5)
        async for chunk in reply.chunks:
            chunks.append(chunk)
            if enough and reply.pour is not None:
                await reply.pour(take)
    except UpstreamError:
        return Result(failed=True)
    assert reply.whole in (None, b"".join(chunks))
    return Result(False, reply.status, tuple(reply.headers), reply.length, b"".join(chunks))


_BACKEND = Backend("b", "m", "http://upstream:8000/v1", key="sk-1", headers={"x-own": "1"})
_writer = RequestWriter(_BACKEND, parse_url(_BACKEND.url))
_NAMES = sorted(PASSED_REQUEST_HEADERS)


def _check_head(data: bytes) -> None:
    """A head made of any values is one request with these headers for h11 too, or it is refused."""
    headers = [(_NAMES[i % len(_NAMES)], value) for i, value in enumerate(data.split(b"\r\n")[:12])]
    try:
        head = _writer.head("/chat/completions", headers, 3)
    except ValueError:
        return
    assert head.count(b"\n") == head.count(b"\r\n") == 7 + sum(name != b"content-type" for name, _ in headers)
    peer = h11.Connection(h11.SERVER)
    try:
        peer.receive_data(head + b"abc")
        request, body, end = peer.next_event(), peer.next_event(), peer.next_event()
    except h11.RemoteProtocolError:
        assert any(value.strip(b" \t") != value or any(c < 32 or c == 127 for c in value) for _, value in headers), head
        return
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (b"POST", b"/v1/chat/completions")
    assert isinstance(body, h11.Data)
    assert bytes(body.data) == b"abc"
    assert isinstance(end, h11.EndOfMessage)
    told = dict(request.headers)
    assert (told[b"host"], told[b"authorization"], told[b"content-type"]) == (
        b"upstream:8000",
        b"Bearer sk-1",
        b"application/json",
    )
