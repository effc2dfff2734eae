"""One HTTP request as far as it has come in, and the way its response goes out."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Protocol

import msgspec

from fingerpost.splice import Source

WITHOUT_BODY = frozenset({204, 304})
"""Statuses whose responses end with their head (RFC 9112, section 6.3)."""


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode()


_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES = {status: _status_line(status) for status in range(100, 1000)}


class ClientGone(Exception):
    """The client closed its connection before the response was over."""


class Line(Protocol):
    """The connection that a request came in by."""

    transport: asyncio.Transport
    is_full: bool

    def wanted(self, request: Request) -> None:
        """Notes that the body of that request is waited for."""

    async def drained(self) -> None:
        """Waits until the client has taken what was written, as far as it takes to write more."""

    def over(self, request: Request) -> None:
        """Notes that the response to that request is out."""


class Request(msgspec.Struct, eq=False):
    """A request and its response. What has come is `parts`, `size` bytes in all; `whole` says that nothing more comes.

    The response is sent whole (`send`), or begun, written in chunks, and ended. `sent` says that bytes of it went out, and
    `ended` that there can be no more. `stated` is the length that the client states, 0 where it states none; the `headers`
    are all others. `limit` is what the body may have, once somebody waits for it; `gone` says that the client has left. `id`
    and `on_admin_port` are for whoever serves it to set.
    """

    _line: Line
    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    keep_alive: bool
    encoding: bytes = b""
    parts: list[Source] = []
    size: int = 0
    stated: int = 0
    whole: bool = False
    is_http10: bool = False
    id: str = ""
    on_admin_port: bool = False
    limit: int | None = None
    sent: bool = False
    ended: bool = False
    takes_events: bool = False
    task: asyncio.Task[None] | None = None
    gone: bool = False
    _awaited: asyncio.Future[None] | None = None
    _head: bytes = b""
    _tail: bytes = b""
    _chunked: bool = False
    _left: int = 0

    async def arrive(self, limit: int) -> None:
        """Waits until the body is there, or known to be larger than `limit` bytes.

        Raises:
            ClientGone: the rest of it will not come.
        """
        if not self.whole:
            self.limit = limit
            self._line.wanted(self)
        while not (self.whole or self.size > limit or self.gone):
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        if self.gone:
            raise ClientGone

    def take(self) -> Source:
        """What has come, which is not kept."""
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def arrived(self) -> None:
        """Tells whoever waits for the body that its end has come, or more than its limit."""
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    def leave(self) -> None:
        """Notes that the client has left, and ends what is being done for it."""
        self.gone = True
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)
        elif self.task is not None:
            self.task.cancel()

    def send(self, status: int, lines: bytes, content: bytes) -> None:
        """Sends a whole response in one piece; `lines` are its headers (see `fields`), which state its length."""
        if self.gone:
            return
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        shown = b"" if self.method == "HEAD" else content
        self._line.transport.write(b"".join((_STATUS_LINES[status], lines, ending, shown)))
        self.sent = True
        self._over()

    def begin(self, status: int, lines: bytes, length: int | None = None, *, takes_events: bool = False) -> None:
        """Begins a response whose body is written in chunks; its head goes out with the first of them.

        `length` is what its headers state, if they do; `takes_events` says that one more event can be added to it.
        """
        framing = b""
        self._left = -1
        if self.method == "HEAD" or status in WITHOUT_BODY:
            self._left = 0
        elif length is not None:
            self._left = length
        elif self.is_http10:
            self.keep_alive = False  # the body reaches to the end of the connection
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        self.takes_events = takes_events and self._left < 0
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._head = b"%b%b%b%b" % (_STATUS_LINES[status], lines, framing, ending)

    def write(self, chunk: bytes) -> bool:
        """Writes a chunk of the body; whether the client has room for more. If not, wait until it has `drained`.

        Raises:
            ConnectionAbortedError: it is more than the length that was stated.
        """
        if self._left >= 0:
            if self.method == "HEAD":
                return True
            self._left -= len(chunk)
            if self._left < 0:
                raise ConnectionAbortedError("the body is longer than was stated")
        data = b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk
        if self._head or self.gone:
            self._put(data)
        else:
            self._line.transport.write(data)
        self._tail = chunk if len(chunk) > 3 else self._tail[-3:] + chunk
        return not self._line.is_full

    async def drained(self) -> None:
        """Waits while the client takes less than it is given."""
        if self._line.is_full:
            await self._line.drained()

    def end(self) -> None:
        """Ends the response.

        Raises:
            ConnectionAbortedError: the body is shorter than was stated.
        """
        if self._left > 0:
            raise ConnectionAbortedError("the body is shorter than was stated")
        if self._chunked or self._head:
            self._put(b"0\r\n\r\n" if self._chunked else b"")
        self._over()

    def end_with_event(self, data: bytes) -> None:
        """Ends a stream of events with one more.

        The backend may have broken off within an event; a blank line ends that one, so that this one is read by itself.
        """
        ended = self._tail.endswith((b"\n\n", b"\n\r\n"))
        event = (b"" if ended else b"\n" if self._tail.endswith(b"\n") else b"\n\n") + b"data: " + data + b"\n\n"
        self._put(b"%x\r\n%b\r\n" % (len(event), event) if self._chunked else event)
        self.end()

    def cut(self) -> None:
        """Ends the response and its connection, so that the client does not take what it has for the whole."""
        self.ended = True
        if self._left < 0 and not self._chunked:
            self._line.transport.abort()  # the end of the connection would be that of the body
        else:
            self._line.transport.close()

    def _put(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        self.sent = True
        if not self.gone:
            self._line.transport.write(data)

    def _over(self) -> None:
        self.ended = True
        self._line.over(self)
