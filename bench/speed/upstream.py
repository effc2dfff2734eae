"""A model server of canned replies: `python -m bench.speed.upstream KIND PORT`.

nginx answers what is one buffer; this one streams, since nginx alone cannot send a reply in 200 pieces over time. It is also
the upstream where nginx is missing. It reads every request to its end before it answers.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop
from bench.speed.cases import LARGE, SMALL, events

PAUSE = 0.005
"""Seconds between two chunks of a stream, while the rate allows it."""

RATE = 12_800
"""Chunks a second that all streams together get at most: then the pauses grow, so that this server never is what limits."""

_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Canned:
    """What is answered, and how many streams are open now."""

    def __init__(self, kind: str) -> None:
        text = LARGE if kind == "large" else SMALL
        self.whole = _JSON % (len(text), text)
        self.chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events()] if kind == "stream" else []
        self.open = 0


class Connection(asyncio.Protocol):
    """One keep-alive connection of a client that waits for each reply."""

    def __init__(self, canned: Canned) -> None:
        self._canned = canned
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client has come."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answers."""
        if not self._canned.chunks or self._parser.get_method() != b"POST":
            return self._transport.write(self._canned.whole)
        self._canned.open += 1
        self._transport.write(_HEAD)
        self._send(0)

    def _send(self, place: int) -> None:
        """One chunk as a write, hence a segment, of its own; the next one later."""
        chunks = self._canned.chunks
        if self._transport.is_closing():
            self._canned.open -= 1
        elif place < len(chunks) - 1:
            self._transport.write(chunks[place])
            self._loop.call_later(max(PAUSE, self._canned.open / RATE), self._send, place + 1)
        else:
            self._canned.open -= 1
            self._transport.write(chunks[place] + b"0\r\n\r\n")


async def serve(kind: str, port: int) -> None:
    """Answers until it is stopped."""
    canned = Canned(kind)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(canned), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
