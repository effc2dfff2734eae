"""Our own HTTP/2 client: few connections to one backend, each for many requests at once, on h2 and asyncio's transports."""

from __future__ import annotations

import asyncio
import re
import ssl
from weakref import WeakKeyDictionary

from hpack import NeverIndexedHeaderTuple

from fingerpost.errors import UpstreamError
from fingerpost.routes import Backend
from fingerpost.upstreams import Call, Headers, Reply, openai
from fingerpost.upstreams.http1 import IDLE
from fingerpost.upstreams.multiplexed import Connection, Unprocessed
from fingerpost.upstreams.openai import Address, own_headers, parse_url, tls_context
from fingerpost.upstreams.wire import FRAMING

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\r\n\0]*")


class Http2Upstream:
    """Carries calls to one OpenAI-compatible backend over HTTP/2: agreed on in TLS (ALPN), or known beforehand without TLS.

    Create it anywhere; it has connections of its own for each event loop that calls. A connection carries as many calls as
    the backend allows at once; a further one opens where that is not enough. How many calls there may be is not its business.

    Raises:
        ValueError: the backend's URL or one of its headers cannot be put into HTTP.
        OSError: its file of authorities cannot be read.
    """

    def __init__(self, backend: Backend, *, idle: float = IDLE) -> None:
        self.backend = backend
        self.address = parse_url(backend.url)
        self.tls = tls_context(backend.ca, "h2") if self.address.secure else None
        self.idle = idle
        self._fields = RequestFields(backend, self.address)
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()

    async def send(self, call: Call) -> Reply:
        """The backend's reply as soon as its headers are there; see `Upstream.send` for what it raises.

        A request of which the backend says that it did nothing about it (REFUSED_STREAM, or a GOAWAY that leaves it out) is
        sent once more, and so is one on a connection that had worked and closes without a byte; see `Http1Upstream.send`.
        """
        name, body = self.backend.name, call.body
        try:
            fields = self._fields.fields(call.path, call.headers, len(body), call.method)
        except ValueError:
            raise openai.unsendable(name) from None
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop) or self._pools.setdefault(loop, _Pool(self, loop))
        deadline = loop.time() + self.backend.timeouts.total
        try:
            return await (await pool.take(deadline)).carry(fields, body, deadline)
        except Unprocessed:
            connection = await pool.take(deadline)
        try:
            return await connection.carry(fields, body, deadline)
        except Unprocessed:
            raise openai.refused(name) from None

    async def aclose(self) -> None:
        """Closes all connections of the running loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()


class RequestFields:
    """The header fields of requests to one backend; those that do not change between them are written once."""

    def __init__(self, backend: Backend, address: Address) -> None:
        self._backend, self._address = backend, address
        own = {name.encode("latin-1"): value.encode() for name, value in own_headers(backend).items()}
        self._stopped = FRAMING | own.keys()
        host = own.pop(b"host", address.authority.encode())
        kept = [(name, value) for name, value in own.items() if name not in FRAMING]
        self._pseudo = (b":scheme", b"https" if address.secure else b"http"), (b":authority", host)
        # What is configured may be a key, which must not go into tables that compression shares between requests.
        self._own = tuple(NeverIndexedHeaderTuple(*field) for field in _checked([*kept, (b"host", host)])[:-1])

    def fields(self, path: str, headers: Headers, length: int, method: str = "POST") -> Headers:
        """The fields for a body of `length` bytes, with those of a client's headers that we do not send ourselves.

        Raises:
            ValueError: a header or the path has a character that it must not have.
        """
        target = self._address.target(path, self._backend.api_version)
        if not target.isascii() or not target.isprintable() or " " in target:
            raise ValueError("this path cannot be asked for")
        passed = _checked([field for field in headers if field[0] not in self._stopped])
        start = ((b":method", method.encode("ascii")), *self._pseudo, (b":path", target.encode()))
        return (*start, *self._own, *passed, (b"content-length", b"%d" % length))


def _checked(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Header fields without white space around their values.

    Raises:
        ValueError: one has a character that a field must not have; a server would end the connection for it.
    """
    if not all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers):
        raise ValueError("this header cannot be sent")
    return [(name, value.strip(b" \t")) for name, value in headers]


class _Pool:
    """The connections of one event loop to one backend."""

    def __init__(self, upstream: Http2Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.name = upstream.backend.name
        self.limits = upstream.backend.timeouts
        self.idle = upstream.idle
        self.connections: list[Connection] = []
        self._upstream = upstream
        self._connecting = asyncio.Lock()
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    async def take(self, deadline: float) -> Connection:
        """A connection that has room for a request, to be used before anything else is awaited."""
        if (connection := self._with_room()) is not None:
            return connection
        try:
            async with asyncio.timeout_at(min(self.loop.time() + self.limits.connect, deadline)):
                # One connects and the others wait, since most of them will find room on what it has made.
                async with self._connecting:
                    return self._with_room() or await self._connect()
        except TimeoutError:
            raise openai.connected_late(self.name) from None
        except (OSError, ValueError) as error:
            if isinstance(error, ssl.SSLError) and "NO_APPLICATION_PROTOCOL" in (error.reason or ""):
                raise openai.no_http2(self.name) from None
            raise openai.unreachable(self.name, error) from None

    def lost(self, connection: Connection) -> None:
        """Takes note of a connection that is closed."""
        if connection in self.connections:
            self.connections.remove(connection)
        if self._emptied is not None and not self.connections and not self._emptied.done():
            self._emptied.set_result(None)

    async def aclose(self) -> None:
        """Cuts all connections and waits until they are closed."""
        self._closed = True
        for connection in tuple(self.connections):
            connection.fail(openai.broken)
        if self.connections:
            self._emptied = self.loop.create_future()
            await self._emptied

    def _with_room(self) -> Connection | None:
        return next((connection for connection in self.connections if connection.room), None)

    async def _connect(self) -> Connection:
        """A new connection, as soon as the backend has said what it allows."""
        if self._closed:
            raise openai.broken(self.name)
        address, tls = self._upstream.address, self._upstream.tls
        host = None if tls is None else address.host
        _, connection = await self.loop.create_connection(
            lambda: Connection(self), address.host, address.port, ssl=tls, server_hostname=host
        )
        if not connection.lost:
            self.connections.append(connection)
        if self._closed:
            connection.fail(openai.broken)
        try:
            error: UpstreamError | None = await connection.ready
        except BaseException:
            connection.cut()
            raise
        if error is not None:
            raise error
        if not connection.room:  # for one that allows no request at all, or is gone again
            raise openai.refused(self.name)
        return connection
