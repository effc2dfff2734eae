"""Our own HTTP/1.1 client: a pool of kept connections to one backend, on asyncio's transports, with no layer in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from fingerpost.routes import Backend
from fingerpost.splice import Source
from fingerpost.upstreams import Call, Reply, openai
from fingerpost.upstreams.connection import Connection
from fingerpost.upstreams.openai import POOL_SIZE, parse_url, tls_context
from fingerpost.upstreams.wire import RequestWriter

IDLE = 15.0
"""Seconds that an unused connection is kept. Model servers keep theirs 5 s to 75 s; that one closes first is normal, see
`Http1Upstream.send`."""


class Http1Upstream:
    """Carries calls to one OpenAI-compatible backend over kept connections.

    Create it anywhere; it has connections of its own for each event loop that calls (a server has one loop, synchronous
    library use brings a second).

    Raises:
        ValueError: the backend's URL or one of its headers cannot be put into HTTP.
        OSError: its file of authorities cannot be read.
    """

    def __init__(self, backend: Backend, *, pool_size: int = POOL_SIZE, idle: float = IDLE) -> None:
        self.backend = backend
        self.address = parse_url(backend.url)
        self.tls = tls_context(backend.ca) if self.address.secure else None
        self.pool_size = pool_size
        self.idle = idle
        self._total = backend.timeouts.total
        self._writer = RequestWriter(backend, self.address)
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()
        self._latest: _Pool | None = None

    def send(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """The backend's reply as soon as its headers are there; see `Upstream.send` for what it raises.

        A kept connection may be closed by the backend just as the request sets out on it. Where it closes without a byte of
        a reply, the request is sent once more on a new connection. Chat requests are no idempotent method (RFC 9110, section
        9.2.2), but they change nothing at the backend, and without this every backend that closes idle connections early
        would make requests fail now and then. A connection that was new, or of which a byte was heard, gets no second try.
        """
        name, body = self.backend.name, call.body
        try:
            head = self._writer.head(call.path, call.headers, len(body), call.method)
        except ValueError:
            raise openai.unsendable(name) from None
        pool = self._pool()
        now = pool.loop.time()
        connection = pool.at_rest()
        if connection is not None:  # this spares a coroutine
            return connection.carry(head, body, now, now + self._total)
        return pool.carry(head, body, now + self._total)

    async def aclose(self) -> None:
        """Closes all connections of the running loop."""
        pool, self._latest = self._pools.pop(asyncio.get_running_loop(), None), None
        if pool is not None:
            await pool.aclose()

    def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        pool = self._latest
        if pool is None or pool.loop is not loop:
            pool = self._latest = self._pools.get(loop) or self._pools.setdefault(loop, _Pool(self, loop))
        return pool


class _Pool:
    """The connections of one event loop to one backend: up to a number, and who comes when all are busy waits in line."""

    def __init__(self, upstream: Http1Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.name = upstream.backend.name
        self.limits = upstream.backend.timeouts
        self.idle = upstream.idle
        self._upstream = upstream
        self._resting: list[Connection] = []
        self.connections: set[Connection] = set()
        self._places = upstream.pool_size
        self._line: deque[asyncio.Future[Connection | None]] = deque()
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    async def carry(self, head: bytes, content: Source, deadline: float, *, new: bool = False) -> Reply:
        """The reply to a request on a connection that is waited for, or on a new one; see `Connection.carry`."""
        connection = await (self.add(deadline) if new else self.take(deadline))
        return await connection.carry(head, content, self.loop.time(), deadline)

    def at_rest(self) -> Connection | None:
        """A connection that waits for work, and the sole right to it; None where all are busy."""
        while self._resting:
            connection = self._resting.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def take(self, deadline: float) -> Connection:
        """A connection to use now, and the sole right to it; waits for one where there may be no more."""
        if (resting := self.at_rest()) is not None:
            return resting
        if self._places > 0:
            return await self.add(deadline)
        waiting: asyncio.Future[Connection | None] = self.loop.create_future()
        self._line.append(waiting)
        try:
            async with asyncio.timeout_at(deadline):
                found = await waiting
        except BaseException as error:
            # What was handed over in the very moment of giving up goes to the next in line.
            if waiting.done() and not waiting.cancelled():
                self._pass_on(waiting.result())
            elif waiting in self._line:
                self._line.remove(waiting)
            if isinstance(error, TimeoutError):
                raise openai.connected_late(self.name) from None
            raise
        if found is not None and not found.transport.is_closing():
            return found
        self._places += found is None  # the place that was kept for it, which `add` takes again
        return await self.add(deadline)

    async def add(self, deadline: float) -> Connection:
        """A new connection, even beyond the number: a dead one has left its place, but others may have been faster there."""
        self._places -= 1
        try:
            async with asyncio.timeout_at(min(self.loop.time() + self.limits.connect, deadline)):
                connection = await self._connect()
        except BaseException as error:
            self._pass_on(None)
            if isinstance(error, TimeoutError):
                raise openai.connected_late(self.name) from None
            if isinstance(error, OSError | ValueError):
                raise openai.unreachable(self.name, error) from None
            raise
        if connection.lost:
            self._pass_on(None)
            raise openai.broken(self.name)
        self.connections.add(connection)
        if self._closed:
            connection.cut()
            raise openai.broken(self.name)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Takes a connection that is fit for another request."""
        if self._closed:
            connection.cut()
        elif self._line:
            self._pass_on(connection)
        else:
            self._resting.append(connection)
            connection.rest()

    def forget(self, connection: Connection) -> None:
        """Takes note of a connection that is about to close: nobody gets it any more."""
        if connection in self._resting:
            self._resting.remove(connection)

    def lost(self, connection: Connection) -> None:
        """Takes note of a connection that is closed: its place is free."""
        self.forget(connection)
        if connection in self.connections:
            self.connections.remove(connection)
            self._pass_on(None)
        if self._emptied is not None and not self.connections and not self._emptied.done():
            self._emptied.set_result(None)

    async def aclose(self) -> None:
        """Cuts all connections and waits until they are closed."""
        self._closed = True
        for connection in tuple(self.connections):
            connection.cut()
        if self.connections:
            self._emptied = self.loop.create_future()
            await self._emptied

    def _pass_on(self, connection: Connection | None) -> None:
        """Gives a connection, or the place for one, to the first in line."""
        if connection is None and self._places < 0:
            self._places += 1
            return
        if connection is not None and connection.transport.is_closing():
            return
        while self._line:
            waiting = self._line.popleft()
            if not waiting.done():
                waiting.set_result(connection)
                return
        if connection is None:
            self._places += 1
        else:
            self._resting.append(connection)
            connection.rest()

    async def _connect(self) -> Connection:
        address, tls = self._upstream.address, self._upstream.tls
        host = None if tls is None else address.host
        _, connection = await self.loop.create_connection(
            lambda: Connection(self), address.host, address.port, ssl=tls, server_hostname=host
        )
        return connection
