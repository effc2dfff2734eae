"""Uvicorn's HTTP protocol on httptools, with what a server that strangers reach needs: bounds in size, number and time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from fingerpost.errors import FingerpostError
from fingerpost.server.leaving import Leaving

MAX_HEAD = 65_536
"""Bytes that a request's line and headers may take together."""

MAX_HEADERS = 100

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")

MAX_PIPELINED = 32
"""Requests that may wait on a connection for the one before them."""


class _Refusal(FingerpostError):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class GuardedProtocol(HttpToolsProtocol):
    """One connection; at most `most` of them are served at a time. `expire` is to be called every now and then.

    A request's scope has two things more than ASGI says: `leaving`, who is called when the client has left, and
    `at_once`, see `answer_at_once`. They spare each request a task that waits for the client, and a response in three pieces.

    httptools parses strictly: conflicting lengths, folded headers, bare line ends and control characters are refused there.
    """

    def __init__(self, *arguments: Any, most: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most
        self._began: float | None = None
        self._in_head = False
        self._head_size = 0
        self._may_be_large = False
        self._leaving = Leaving()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or refuses one too many."""
        super().connection_made(transport)
        self._began = self.loop.time()
        if len(self.connections) > self._most:
            self._refuse(_Refusal(503, "too_many_connections", f"there are {self._most} connections already"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was told to."""
        super().connection_lost(exc)
        self._leaving.left()

    def data_received(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._unset_keepalive_if_required()
        if self._began is None and (self.cycle is None or self.cycle.response_complete):
            self._began = self.loop.time()
        within_head = self._in_head
        self._may_be_large = within_head or len(data) > MAX_HEAD
        self._feed(data)
        if within_head and self._in_head:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._refuse(_head_too_large())

    def expire(self, before: float) -> None:
        """Ends the connection if the request that is coming in began before that time of the loop."""
        if self._began is None or self._began > before or self.transport.is_closing():
            return
        if self.flow.read_paused:
            self._began = self.loop.time()  # it is we who do not read
        elif self.cycle is None and not self._in_head:
            self.transport.close()
        else:
            self._refuse(_Refusal(408, "request_timeout", "the request did not come in time (server.request_timeout)"))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        if self._began is None:
            self._began = self.loop.time()
        self._in_head, self._head_size = True, 0

    def on_headers_complete(self) -> None:
        """The headers are there; a request that asks to go on in another protocol is read again without that wish."""
        self._in_head = False
        if self.parser.should_upgrade():
            return
        self._check_head()
        super().on_headers_complete()
        self.scope["leaving"], self.scope["at_once"] = self._leaving, partial(answer_at_once, self.cycle)  # type: ignore[typeddict-unknown-key]
        # Trailers come to the same list; what comes after the body must not pass for what came before it.
        self.headers = []

    def on_message_complete(self) -> None:
        """The request is there."""
        if not self.parser.should_upgrade():
            self._began = None
            super().on_message_complete()
            if not self.pipeline:
                self.flow.resume_reading()  # a large body has stopped it; but only who reads notes that the client leaves

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_again(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            found = error.__context__
            self._refuse(found if isinstance(found, _Refusal) else _Refusal(400, "invalid_http", "this is not valid HTTP/1.1"))

    def _read_again(self, rest: bytes) -> None:
        """Reads a request without its `upgrade` header, which a server may ignore (RFC 9110, section 7.8)."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            return self._refuse(_Refusal(405, "method_not_allowed", "this is no proxy"))
        lines = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines)) + rest)

    def _check_head(self) -> None:
        headers, version = self.headers, self.parser.get_http_version()
        encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        if len(headers) > MAX_HEADERS or (
            self._may_be_large  # else it came at once and is small; adding up takes time
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD
        ):
            raise _head_too_large()
        if version not in ("1.1", "1.0"):
            raise _Refusal(505, "http_version_not_supported", "use HTTP/1.1")
        if encodings and (encodings != [b"chunked"] or version == "1.0"):
            raise _Refusal(400, "invalid_http", "the only transfer-encoding here is chunked, once, in HTTP/1.1")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _Refusal(400, "invalid_http", f"more than {MAX_PIPELINED} requests wait on this connection")

    def _refuse(self, refusal: _Refusal) -> None:
        """Tells the refusal where that cannot be taken for another request's answer, and closes the connection."""
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering or not (self.cycle.response_started or self.pipeline):
            content = msgspec.json.encode(refusal.to_json())
            status = b"%d %b" % (refusal.status, HTTPStatus(refusal.status).phrase.encode())
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(content)) + content)
        self.transport.close()


def answer_at_once(cycle: RequestResponseCycle, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
    """Writes a whole response, which states its length, in one piece; false, and nothing, where that cannot be done now."""
    if cycle.response_started or cycle.disconnected or cycle.flow.write_paused or cycle.scope["method"] == "HEAD":
        return False
    lines = [b"%b: %b\r\n" % pair for pair in (*cycle.default_headers, *headers)]
    head = b"".join(lines)
    if _CONTROL.search(head) or head.count(b"\n") != len(lines):
        raise ValueError("a header of the response cannot be sent")
    cycle.response_started = cycle.response_complete = True
    end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    cycle.transport.write(b"".join((STATUS_LINE[status], head, end, body)))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


def _head_too_large() -> _Refusal:
    what = f"the request line and headers take more than {MAX_HEAD} bytes, or there are more than {MAX_HEADERS} headers"
    return _Refusal(431, "headers_too_large", what)
