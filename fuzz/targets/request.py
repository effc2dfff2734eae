"""The server's connections: wherever bytes are cut, and whatever came before, the same requests, which h11 reads alike.

One answer each; one goes on.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import h11
import uvicorn
from uvicorn.server import ServerState

from fingerpost.headers import going_on
from fingerpost.routes import Backend
from fingerpost.server.protocol import ClientConnection
from fingerpost.server.request import ClientGone, Request
from fingerpost.upstreams.openai import parse_url
from fingerpost.upstreams.wire import RequestWriter
from fuzz.targets import cuttings
from fuzz.targets.reply import NEXT, Wire

_GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
_CHUNKED = b"POST /v1/route HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
_LONGER = _POST.replace(b": 2", b": 5").replace(b"{}", b"[{},]")
SEEDS = (
    _POST + NEXT + _POST,
    _POST + NEXT + _LONGER,
    _LONGER + NEXT + _LONGER.replace(b": 5", b": 0005"),
    _POST + NEXT + _POST.replace(b"content-length", b"Content-Length") + _POST,
    _GET,
    _POST + _GET,
    _CHUNKED + _POST,
    b"POST / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{}" + _GET,
    b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
    b"POST / HTTP/1.0\r\ncontent-length: 1\r\n\r\na",
    b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1\r\nx-request-id: 1\r\nuser-agent: a\r\n\r\na",
    b"GET /?a=b#c HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" + _GET,
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;a=b\r\na\r\n0\r\nx-t: 1\r\n\r\n" + _GET,
)
WORDS = (
    NEXT, _LONGER, _GET, _POST, _CHUNKED,
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b"\x0b", b"\x0c", b"\x7f", b"\xff",
    b"\x85", b"\xa0",
    b"GET ", b"POST ", b"HEAD ", b"CONNECT ", b"PRI ", b"OPTIONS * ", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/0.9", b" HTTP/2.0",
    b"http://a/",
    b"content-length: 2\r\n", b"Content-Length: 0\r\n", b"content-length: 2, 2\r\n", b"content-length : 2\r\n",
    b"content-length: +2\r\n",
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: Chunked\r\n", b"transfer-encoding: chunked, identity\r\n",
    b"transfer-encoding: gzip\r\n", b"transfer-encoding:\r\n chunked\r\n", b"transfer_encoding: chunked\r\n",
    b"te: trailers\r\n",
    b"upgrade: websocket\r\n", b"upgrade: h2c\r\n", b"connection: upgrade\r\n", b"connection: close\r\n",
    b"connection: keep-alive\r\n",
    b"connection: close, content-length\r\n", b"expect: 100-continue\r\n", b"host: y\r\n", b"user-agent: z\r\n",
    b"0\r\n\r\n", b"2\r\n{}\r\n",
    b"2;x\r\n{}\r\n", b"2;x=\"\r\n\"\r\n", b"fffffffffffffffff\r\n", b"-1\r\n", b"0x2\r\n", b"2 \r\n", b"00002\r\n",
    b"traceparent: \r\n",
)  # fmt: skip

Taken = list[tuple[str, str, list[tuple[bytes, bytes]], bytes | None]]
"""Method, path, headers and body of each request; without a body where that has not come to its end."""


def check(data: bytes) -> None:
    """Raises when a promise is broken."""
    data, _, second = data.partition(NEXT)
    if second:
        _check_what_follows(data, second)
    taken, written, is_open = _served([data])
    _check_answers(taken, written)
    for pieces in cuttings(data):
        again, said, still_open = _served(pieces)
        _check_answers(again, said)
        assert again == taken or not (is_open and still_open), (pieces, again, taken)
        # Where the connection was closed, it is a matter of time how much of what came before that was answered.
        for (*head, body), (*other, same) in zip(taken, again, strict=False):
            assert head == other, (pieces, again, taken)
            assert body == same or None in (body, same), (pieces, again, taken)
    for _, _, headers, _ in taken:
        _check_unambiguous(headers)
        _check_what_goes_on(headers)
    _compare_with_h11(data, taken)


def _check_what_follows(first: bytes, second: bytes) -> None:
    """What comes on a connection that has answered a request is understood as on a new one, also where its head is known."""
    before, _, is_open = _served([first])
    if len(before) != 1 or not is_open or _served([first, _GET])[0] != before + _served([_GET])[0]:
        return
    together, alone = _served([first, second])[0], _served([second])[0]
    assert together == before + alone, (first, second, together, alone)


async def _answer(taken: Taken, request: Request) -> None:
    """Notes a request and echoes its body: whole, in chunks of a stated length, or without one."""
    place = len(taken)
    head = (request.method, request.path, list(request.headers))
    taken.append((*head, None))
    try:
        await request.arrive(1_000_000)
    except ClientGone:
        return
    assert request.whole
    body = request.take()
    taken[place] = (*head, body)
    line = b"content-length: %d\r\n" % len(body)
    if len(body) % 3 == 0:
        return request.send(200, line, body)
    request.begin(200, *((line, len(body)) if len(body) % 3 == 1 else (b"",)))
    request.write(body[:1])
    if len(body) > 1:
        request.write(body[1:])
    request.end()


_loop = asyncio.new_event_loop()
_CONFIG = uvicorn.Config(_answer, log_config=None)


def _served(pieces: list[bytes]) -> tuple[Taken, bytes, bool]:
    """The requests that are taken from these pieces, all that is written in answer, and whether the connection stays open."""
    return _loop.run_until_complete(_serve(pieces))


async def _serve(pieces: list[bytes]) -> tuple[Taken, bytes, bool]:
    taken: Taken = []
    state, wire = ServerState(), Wire()

    async def serve(request: Request) -> None:
        await _answer(taken, request)

    connection = ClientConnection(_CONFIG, state, {}, _loop, serve=serve, most=10)
    connection.connection_made(wire)
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
        await asyncio.sleep(0)
    for _ in range(100):  # as many requests as may wait in line, and their bodies
        if not state.tasks:
            break
        await asyncio.sleep(0)
    is_open, written = not wire.closed, wire.written
    connection.connection_lost(None)
    if state.tasks:
        await asyncio.wait(state.tasks, timeout=5)
    assert not state.tasks
    assert not state.connections
    return taken, written, is_open


def _check_answers(taken: Taken, written: bytes) -> None:
    """Each request gets its own answer, in its turn; behind them there may be one refusal, and nothing else."""
    rest = written
    for method, _, _, body in taken:
        if not rest:
            return  # closed before its turn came
        if body is None:
            break
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(rest)
        echoed, event = b"", peer.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = peer.next_event()
        if event is h11.NEED_DATA:
            return  # the same, after it was told to go on
        assert isinstance(event, h11.Response)
        assert event.status_code == 200, (taken, written)
        while (event := peer.next_event()) is h11.NEED_DATA or isinstance(event, h11.Data):
            if event is h11.NEED_DATA:
                peer.receive_data(b"")
            else:
                echoed += bytes(event.data)
        assert isinstance(event, h11.EndOfMessage)
        assert echoed == (b"" if method == "HEAD" else body)
        rest = peer.trailing_data[0]
    rest = rest.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not rest or (rest.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) and rest.count(b"HTTP/1.1 ") == 1), (taken, written)


_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


def _check_unambiguous(headers: list[tuple[bytes, bytes]]) -> None:
    """Nothing in a head that is taken can be understood in two ways."""
    names = [name for name, _ in headers]
    assert names.count(b"transfer-encoding") <= 1
    assert b"content-length" not in names
    assert all(name and set(name) <= _TOKEN for name in names)
    assert not any((c < 32 and c != 9) or c == 127 for _, value in headers for c in value)


_BACKEND = Backend("b", "m", "http://upstream:8000/v1", key="sk-1")
_writer = RequestWriter(_BACKEND, parse_url(_BACKEND.url))


def _check_what_goes_on(headers: list[tuple[bytes, bytes]]) -> None:
    """What a backend gets of these headers is one request, whose body is ours."""
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(_writer.head("/chat/completions", going_on(tuple(headers)), 3) + b"abc")
    request, body, end = peer.next_event(), peer.next_event(), peer.next_event()
    assert isinstance(request, h11.Request)
    assert isinstance(body, h11.Data)
    assert bytes(body.data) == b"abc"
    assert isinstance(end, h11.EndOfMessage)
    assert peer.trailing_data == (b"", False)


def _compare_with_h11(data: bytes, taken: Taken) -> None:
    """H11 reads no request where we read another: as far as it follows, method, target, length and body are the same."""
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    peer.receive_data(data)
    for method, path, headers, body in taken:
        upgrades = {b"upgrade"} & {name for name, _ in headers}
        try:
            request = peer.next_event()
            if not isinstance(request, h11.Request) or upgrades:
                return
            theirs = b""
            while isinstance(event := peer.next_event(), h11.Data):
                theirs += bytes(event.data)
        except h11.RemoteProtocolError:
            return
        assert request.method.decode() == method
        assert unquote(request.target.decode("ascii")).find(path) >= 0, (request.target, path)
        assert body is None or not isinstance(event, h11.EndOfMessage) or body == theirs, (body, theirs)
        assert body is None or isinstance(event, h11.EndOfMessage) or event is h11.PAUSED
        if peer.their_state is not h11.DONE:
            return
        peer.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        peer.send(h11.EndOfMessage())
        if peer.our_state is not h11.DONE:
            return
        peer.start_next_cycle()
