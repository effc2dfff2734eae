"""Our HTTP/2 client: frames cut anywhere give the same replies; each request ends in its own or in one of our errors."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress

import h2.config
import h2.connection
import h2.events
from h2.exceptions import H2Error

from fingerpost.errors import UpstreamError
from fingerpost.routes import Timeouts
from fingerpost.upstreams.multiplexed import Connection
from fuzz.targets import cuttings
from fuzz.targets.reply import Wire

FIRST, SECOND = 1, 3
"""The streams of the two requests that are under way."""

Server = h2.connection.H2Connection


def _from_server(act: Callable[[Server], None]) -> bytes:
    """What a server writes that greets, and then does that."""
    client, server = (h2.connection.H2Connection(h2.config.H2Configuration(client_side=side)) for side in (True, False))
    client.initiate_connection()
    for stream in (FIRST, SECOND):
        client.send_headers(stream, _FIELDS, end_stream=True)
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    act(server)
    written: bytes = server.data_to_send()
    return written


_FIELDS = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/")]
_OK = [(":status", "200"), ("content-type", "text/event-stream")]


def _answer(server: Server, stream: int, *chunks: bytes) -> None:
    server.send_headers(stream, _OK)
    for chunk in chunks:
        server.send_data(stream, chunk, pad_length=3 if len(chunk) > 3 else None)
    server.end_stream(stream)


def _both(server: Server) -> None:
    server.send_headers(SECOND, _OK)
    _answer(server, FIRST, b"first", b"1")
    server.send_data(SECOND, b"second")
    server.ping(b"12345678")
    server.end_stream(SECOND)


def _trailers(server: Server) -> None:
    server.send_headers(FIRST, [(":status", "103"), ("link", "</a>")])
    server.send_headers(FIRST, _OK)
    server.send_headers(FIRST, [("x-end", "1")], end_stream=True)
    server.reset_stream(SECOND, 7)


def _goodbye(server: Server) -> None:
    server.send_headers(FIRST, [*_OK, ("content-length", "5")])
    server.close_connection(last_stream_id=FIRST)


_FINISH = struct.pack(">I", 5)[1:] + b"\0\1" + struct.pack(">I", FIRST) + b"hello"
SEEDS = (
    _from_server(lambda server: None),
    _from_server(lambda server: _answer(server, FIRST, b"hello")),
    _from_server(_both),
    _from_server(_trailers),
    _from_server(_goodbye) + _FINISH,
    _from_server(lambda server: server.update_settings({1: 0, 3: 1, 4: 0, 5: 20_000})),
    _from_server(lambda server: server.send_headers(FIRST, [(":status", "204")], end_stream=True)) + b"\0\0\0",
)
_KINDS = [
    struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    for size in (0, 4, 5, 8)
    for kind in range(11)
    for flags in (0, 1, 4, 5, 8, 0x20)
    for stream in (0, 1, 2, 3, 5)
]
WORDS = (
    *_KINDS, _FINISH, b"\x88", b"\x8d", b"\x3f\xe1\x1f", b"\0", b"\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0",
    b"\x40\x0acontent-length\x011", b"\x0f\x0d\x015", b"\x08\x03200", b"\x08\x03099", b"\x48\x03999", b"hello",
)  # fmt: skip

Results = list[tuple[int, tuple[tuple[bytes, bytes], ...], bytes] | None]
"""What came of each request: status, headers and body, or None for one of our errors."""


def check(data: bytes) -> None:
    """Raises when a promise is broken."""
    results, is_open = _loop.run_until_complete(_carried([data]))
    for pieces, enough in zip(cuttings(data), (0, 2, 1000), strict=False):
        again, still_open = _loop.run_until_complete(_carried(pieces, enough))
        for one, other in zip(results, again, strict=True):
            # What breaks the connection may come in one piece with the end of a reply before it, which is then lost.
            assert one == other or (None in (one, other) and not (is_open and still_open)), (pieces, results, again)
    for result in results:
        if result is not None:
            _check_sound(*result[:2])
    if is_open:
        _compare_with_h2(data, results)


class Owner:
    """Whom the connection belongs to."""

    name, limits, idle = "b", Timeouts(5, 5, 5), 5.0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def lost(self, connection: Connection) -> None:
        """Keeps no list."""


_loop = asyncio.new_event_loop()


async def _carried(pieces: list[bytes], enough: int = 0) -> tuple[Results, bool]:
    """What two requests get that are under way when these pieces come, and whether the connection was still open then.

    They are poured, each time until there is `enough`; with 0 they are only iterated.
    """
    connection, wire = Connection(Owner(_loop)), Wire()
    connection.connection_made(wire)
    asking = [asyncio.ensure_future(_ask(connection, enough)) for _ in (FIRST, SECOND)]
    await asyncio.sleep(0)
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
        await asyncio.sleep(0)
    is_open = not wire.closed
    if is_open:
        connection.eof_received()
    connection.connection_lost(None)
    return list(await asyncio.wait_for(asyncio.gather(*asking), 5)), is_open


async def _ask(connection: Connection, enough: int) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes] | None:
    chunks: list[bytes] = []

    def take(chunk: bytes) -> bool:
        chunks.append(chunk)
        return len(chunks) % enough > 0

    try:
        reply = await connection.carry(_FIELDS, b"", _loop.time() + 5)
        async for chunk in reply.chunks:
            chunks.append(chunk)
            if enough and reply.pour is not None:
                await reply.pour(take)
    except UpstreamError:
        return None
    assert reply.length in (None, sum(map(len, chunks))) or not chunks
    return reply.status, tuple(reply.headers), b"".join(chunks)


def _check_sound(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """A reply that is taken can be passed on over HTTP/1.1 as it is."""
    assert 200 <= status <= 999
    for name, value in headers:
        assert name == name.lower()
        assert not name.startswith(b":")
        assert not set(name + value) & set(b"\r\n\0"), (name, value)
        assert name != b"content-length"


def _compare_with_h2(data: bytes, results: Results) -> None:
    """What was read to its end has the bytes that h2 finds for that stream, and no others."""
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    peer.initiate_connection()
    for stream in (FIRST, SECOND):
        peer.send_headers(stream, _FIELDS, end_stream=True)
    bodies = {FIRST: b"", SECOND: b""}
    with suppress(H2Error):
        for event in peer.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] += event.data
        for stream, result in zip((FIRST, SECOND), results, strict=True):
            assert result is None or result[2] == bodies[stream], (stream, result, bodies)
