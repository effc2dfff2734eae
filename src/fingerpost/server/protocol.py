"""The connections of clients: bytes to requests, one after the other, with the bounds that a server for strangers needs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import unquote

import httptools
import msgspec
import uvicorn
from uvicorn.server import ServerState

from fingerpost.errors import FingerpostError
from fingerpost.heads import Headers, KnownHead, shared
from fingerpost.server.filling import Filling
from fingerpost.server.request import Request

MAX_HEAD = 65_536
"""Bytes that a request's line and headers may take together."""

MAX_HEADERS = 100

MAX_PIPELINED = 32
"""Requests that may wait on a connection for the one before them."""

MAX_UNREAD = 65_536
"""Bytes of a body that may lie about before somebody wants them."""

LARGE_BODY = 262_144
"""Bytes still to come of a body from which on it is worth reading it past the parser."""

KEEP_ALIVE = 75.0
"""Seconds that an idle connection is kept: longer than clients keep theirs (5 s to 60 s), or one of theirs would now and then
meet a connection that is just being closed."""

HEADS_LEARNT = 4
"""Heads of a connection that are kept, each in place of the one before; a client whose heads go on changing gains nothing."""

_log = logging.getLogger("fingerpost.server")


class _Refusal(FingerpostError):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ClientConnection(asyncio.Protocol):
    """One connection; at most `most` of them are open at a time. `serve` answers its requests, one after the other.

    `expire` is to be called every now and then. The first arguments are those that uvicorn's server gives. httptools parses
    strictly: conflicting lengths, folded headers, bare line ends and control characters are refused there. The methods named
    `on_` are called by it.
    """

    transport: asyncio.Transport
    _task: asyncio.Task[None]

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        serve: Callable[[Request], Awaitable[None]],
        most: int,
    ) -> None:
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._serve = serve
        self._most = most
        self._parser = self._new_parser()
        self._request: Request | None = None
        self._coming: Request | None = None
        self._waiting: deque[Request] = deque()
        self._known: KnownHead | None = None
        self._head: tuple[str, str, Headers, bytes]
        self._to_learn = HEADS_LEARNT
        self._began: float | None = None
        self._idle_since = 0.0
        self._in_head = self._may_be_large = False
        self._head_size = 0
        self._is_reading = True
        self._drained: asyncio.Future[None] | None = None
        self.is_full = self._ending = self._expects = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a connection, or refuses one too many."""
        self.transport = transport  # type: ignore[assignment]
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._began = self._idle_since = self._loop.time()
        if len(self._state.connections) > self._most:
            self._refuse(_Refusal(503, "too_many_connections", f"there are {self._most} connections already"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was told to."""
        self._state.connections.discard(self)
        self._waiting.clear()
        if self._request is not None:
            self._request.leave()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Takes the next bytes."""
        within_head = self._in_head
        between = self._request is None and self._coming is None and not within_head
        if between and self._known is not None and (body := self._known.body(data)) is not None:
            return self._start_known(body)
        if self._began is None and self._request is None:
            self._began = self._loop.time()
        self._may_be_large = within_head or len(data) > MAX_HEAD
        self._feed(data)
        if within_head and self._in_head:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._refuse(_head_too_large())
        if between and self._to_learn:
            self._learn(data)

    def expire(self, now: float, patience: float) -> None:
        """Ends the connection if nothing has come for too long, or not all of a request within `patience` seconds."""
        if self.transport.is_closing():
            return
        if self._began is None:
            if self._request is None and now - self._idle_since > KEEP_ALIVE:
                self.transport.close()
        elif not self._is_reading:
            self._began = now  # it is we who do not read
        elif now - self._began > patience:
            if self._coming is None and not self._in_head:
                self.transport.close()
            else:
                self._refuse(_Refusal(408, "request_timeout", "the request did not come in time (server.request_timeout)"))

    def shutdown(self) -> None:
        """Ends the connection as soon as the request that is being served is answered."""
        self._ending = True
        if self._request is None:
            self.transport.close()
        else:
            self._request.keep_alive = False

    def pause_writing(self) -> None:
        """The client takes less than it is given."""
        self.is_full = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drained(self) -> None:
        """Waits until the client has taken what was written, as far as it takes to write more."""
        self._drained = self._loop.create_future()
        await self._drained

    def wanted(self, request: Request) -> None:
        """Lets the body of that request come in."""
        if self._expects and not request.size and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects = False
        if request is self._coming and request.stated - request.size >= LARGE_BODY and request.stated <= (request.limit or 0):
            self._pass_to(Filling(self, request))
        self._read(True)

    def filled(self, request: Request, body: bytearray) -> None:
        """Takes the body of that request, and goes on with what comes after it."""
        self._pass_to(self)
        self._parser = self._new_parser()
        request.parts = [body]
        self.on_message_complete()

    def over(self, request: Request) -> None:
        """Goes on to the next request; what still comes of this one's body is nobody's."""
        self._request, self._idle_since = None, self._loop.time()
        self._state.total_requests += 1
        if not request.keep_alive:
            self.transport.close()
        elif not self.transport.is_closing():
            if self._waiting:
                self._start(self._waiting.popleft())
            if not self._is_reading:
                self._read(True)

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._began is None:
            self._began = self._loop.time()
        self._in_head, self._head_size = True, 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._encodings: list[bytes] = []
        self._expects = False
        self._length, self._encoding = 0, b""

    def on_url(self, url: bytes) -> None:
        """More of what is asked for."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer, which must not pass for one."""
        if not self._in_head:
            return
        name = name.lower()
        if name == b"transfer-encoding":
            self._encodings.append(value.lower())
        elif name == b"content-length":
            self._length = int(value)  # a matter of this connection
            return
        elif name == b"content-encoding":
            self._encoding = value.lower()
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The headers are there; a request that asks to go on in another protocol is read again without that wish."""
        self._in_head = False
        parser, version = self._parser, self._parser.get_http_version()
        if parser.should_upgrade():
            return
        self._check_head(version)
        is_http10 = version == "1.0"
        method, path = parser.get_method().decode("ascii"), _path_of(self._url)
        keep_alive = not is_http10 and not self._ending and parser.should_keep_alive()
        request = self._coming = Request(self, method, path, tuple(self._headers), keep_alive=keep_alive)
        request.is_http10, request.stated, request.encoding = is_http10, self._length, self._encoding
        if self._request is None:
            self._start(request)
        else:
            self._waiting.append(request)

    def on_body(self, body: bytes) -> None:
        """More of the body."""
        request = self._coming
        if request is None or request.ended:
            return
        request.parts.append(body)
        request.size += len(body)
        if request.limit is None:
            self._read(request.size <= MAX_UNREAD)
        elif request.size > request.limit:
            request.arrived()

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._parser.should_upgrade() or self._coming is None:
            return
        self._began = None
        request, self._coming = self._coming, None
        request.whole = True
        request.arrived()
        if not self._waiting:
            self._read(True)  # a large body has stopped it; but only who reads notes that the client leaves

    def _start_known(self, body: bytes) -> None:
        """Starts a request that has come whole and whose head is known."""
        self._began = None
        method, path, headers, encoding = self._head
        size, keep_alive = len(body), not self._ending
        self._start(Request(self, method, path, headers, keep_alive, encoding, [body], size, size, True))

    def _learn(self, data: bytes) -> None:
        """Keeps the head of the request that has just come, if it came whole, and with nothing else."""
        request = self._request
        alone = request is not None and self._coming is None and not self._waiting and not self._in_head
        if request is not None and alone and request.keep_alive and 0 < request.stated == request.size:
            self._to_learn -= 1
            self._known = KnownHead.of(data, request.size)
            self._head = request.method, request.path, shared(request.headers), request.encoding

    def _start(self, request: Request) -> None:
        self._request = request
        # Each connection's requests are tasks of the server, which waits for them when it stops.
        # The loop's `create_task` would count them to name them, and takes longer.
        self._task = asyncio.Task(self._answer(request), loop=self._loop, name="request")
        self._state.tasks.add(self._task)

    async def _answer(self, request: Request) -> None:
        """Has the request served, and cuts what could not be brought to an end."""
        task = request.task = self._task
        try:
            await self._serve(request)
        except Exception as error:
            _log.error("a response could not be sent: %s", type(error).__name__)
        finally:
            request.task = None
            if not request.ended:
                request.cut()
            self._state.tasks.discard(task)

    def _pass_to(self, protocol: asyncio.BaseProtocol) -> None:
        """Has another protocol take what comes. Which of its methods are called is settled when reading begins."""
        if not self.transport.is_closing():
            self._read(False)
            self.transport.set_protocol(protocol)
            self._read(True)

    def _read(self, more: bool) -> None:
        if self._is_reading != more and not self.transport.is_closing():
            self._is_reading = more
            self.transport.resume_reading() if more else self.transport.pause_reading()

    def _new_parser(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # What comes behind a request with `connection: close` is no error of that request.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_again(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            found = error.__context__
            self._refuse(found if isinstance(found, _Refusal) else _Refusal(400, "invalid_http", "this is not valid HTTP/1.1"))

    def _read_again(self, rest: bytes) -> None:
        """Reads a request without its `upgrade` header, which a server may ignore (RFC 9110, section 7.8)."""
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if method == b"CONNECT":
            return self._refuse(_Refusal(405, "method_not_allowed", "this is no proxy"))
        headers = [*self._headers, (b"content-length", b"%d" % self._length)] if self._length else self._headers
        lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] != b"upgrade"]
        self._parser = self._new_parser()
        self._feed(b"%b %b HTTP/%b\r\n%b\r\n" % (method, self._url, version, b"".join(lines)) + rest)

    def _check_head(self, version: str) -> None:
        headers, encodings = self._headers, self._encodings
        if len(headers) > MAX_HEADERS or (
            self._may_be_large  # else it came at once and is small; adding up takes time
            and len(self._url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD
        ):
            raise _head_too_large()
        if version not in ("1.1", "1.0"):
            raise _Refusal(505, "http_version_not_supported", "use HTTP/1.1")
        if encodings and (encodings != [b"chunked"] or version == "1.0"):
            raise _Refusal(400, "invalid_http", "the only transfer-encoding here is chunked, once, in HTTP/1.1")
        if len(self._waiting) >= MAX_PIPELINED:
            raise _Refusal(400, "invalid_http", f"more than {MAX_PIPELINED} requests wait on this connection")

    def _refuse(self, refusal: _Refusal) -> None:
        """Tells the refusal where that cannot be taken for another request's answer, and closes the connection."""
        if self.transport.is_closing():
            return
        # A request that has come whole waits for an answer of its own; what is wrong came behind it.
        if self._request is None or (self._request is self._coming and not self._request.sent):
            content = msgspec.json.encode(refusal.to_json())
            status = b"%d %b" % (refusal.status, HTTPStatus(refusal.status).phrase.encode())
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(content)) + content)
        self.transport.close()


@lru_cache(256)
def _path_of(url: bytes) -> str:
    """The path that a request's target names, percent-decoded; for both of its forms (RFC 9112, section 3.2)."""
    try:
        return unquote(httptools.parse_url(url).path.decode("ascii"))
    except (httptools.HttpParserError, AttributeError, UnicodeDecodeError):
        _invalid("the request's target is no path")


def _invalid(what: str) -> NoReturn:
    raise _Refusal(400, "invalid_http", what)


def _head_too_large() -> _Refusal:
    what = f"the request line and headers take more than {MAX_HEAD} bytes, or there are more than {MAX_HEADERS} headers"
    return _Refusal(431, "headers_too_large", what)
