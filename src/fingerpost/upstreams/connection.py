"""One HTTP/1.1 connection on an asyncio transport: requests go out, replies come in, no layer in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from fingerpost.errors import UpstreamError
from fingerpost.routes import Timeouts
from fingerpost.splice import Source
from fingerpost.upstreams import Reply, Take, openai
from fingerpost.upstreams.watch import Watch
from fingerpost.upstreams.wire import Incoming, NotHttp, ReplyParser

HIGH_WATER = 262_144
"""Bytes of a reply that may wait for a slow client before the backend is made to wait too; about one read of a socket."""

ONE_WRITE = 65_536
"""Bytes of a body that are joined to their head and written at once; larger ones are not copied, but sliced."""


class Stale(UpstreamError):
    """A used connection closed before a byte of the reply came."""


class Owner(Protocol):
    """Whom a connection belongs to: the pool that it tells of its fate, and the limits of its backend."""

    name: str
    limits: Timeouts
    idle: float
    loop: asyncio.AbstractEventLoop

    async def carry(self, head: bytes, content: Source, deadline: float, *, new: bool) -> Reply:
        """The reply to a request on another connection, a new one."""

    def give_back(self, connection: Connection) -> None:
        """Takes a connection that is fit for another request."""

    def forget(self, connection: Connection) -> None:
        """Takes note of a connection that is about to close: nobody must get it any more."""

    def lost(self, connection: Connection) -> None:
        """Takes note of a connection that is closed: its place is free."""


class Body(Incoming, kw_only=True, eq=False):
    """A reply coming in over a connection; as an iterator, its body: whatever came since the last look, in one piece.

    While it is poured, `take` is where it goes.
    """

    _connection: Connection
    error: UpstreamError | None = None
    take: Take | None = None

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        while not self.parts:
            if self.error is not None:
                raise self.error
            if self.complete:
                raise StopAsyncIteration
            await self._connection.news()
        chunk = self.in_one_piece()
        if not self.complete:
            self._connection.taken()
        return chunk

    async def pour(self, take: Take) -> None:
        """Hands what comes to `take`, until nothing more comes or it has had enough. See `Reply`."""
        if self.parts or self.complete or self.error is not None:
            return
        self.take = take
        try:
            await self._connection.news()
        finally:
            self.take = None

    def in_one_piece(self) -> bytes:
        """What has come and was not taken, which is taken now."""
        chunk = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts.clear()
        return chunk

    def close(self) -> None:
        """Cuts the connection, which stops the model, unless the reply has come to its end."""
        if not self.complete and self.error is None:
            self._connection.fail(openai.broken)


class Connection(asyncio.Protocol):
    """One connection: carries one request after the other and tells its owner when it is free.

    A single timer watches over it.
    """

    def __init__(self, owner: Owner) -> None:
        self.transport: asyncio.Transport
        self.used = False
        self.lost = False
        self._owner = owner
        self._loop = owner.loop
        self._parser = ReplyParser()
        self._body: Body | None = None
        self._unsent = memoryview(b"")
        self._blocked = False
        self._held = 0
        self._news: asyncio.Future[None] | None = None
        self._total = 0.0
        self._read_limit = owner.limits.read
        self._watch = Watch(owner.loop, lambda: self.fail(openai.answered_late))

    async def carry(self, head: bytes, content: Source, now: float, deadline: float) -> Reply:
        """The reply to a request, as soon as its head is there; `deadline` is when all of it must be over.

        Where this connection turns out to be closed, the request goes out once more, on a new one. Raises what
        `Upstream.send` does.
        """
        self._body = body = Body(_connection=self)
        self._parser.expect(body)
        self._held, self._total = 0, deadline
        if len(content) <= ONE_WRITE:
            self.transport.write(head + content)
        else:
            self.transport.write(head)
            self._unsent = memoryview(content)
            self._send_more()
        self._expect_news(now)
        try:
            while not body.status:
                if body.error is not None:
                    raise body.error
                await self.news()
        except Stale:
            return await self._owner.carry(head, content, deadline, new=True)
        except BaseException:
            self.cut()
            raise
        whole = body.parts[0] if body.complete and len(body.parts) == 1 else None
        return Reply(body.status, body.headers, body, body.close, body.pour, whole, body.length)

    def news(self) -> asyncio.Future[None]:
        """What is done when something has come, or the connection has failed."""
        self._news = self._loop.create_future()
        return self._news

    def taken(self) -> None:
        """Notes that all that had come was taken."""
        if self._held >= HIGH_WATER and self._body is not None:
            self.transport.resume_reading()
            self._expect_news(self._loop.time())
        self._held = 0

    def rest(self) -> None:
        """Notes that it is idle from now on."""
        self._watch.expect_by(self._loop.time() + self._owner.idle)

    def fail(self, error: Callable[[str], UpstreamError]) -> None:
        """Ends the reply under way, if any, with an error, and the connection in any case."""
        body, self._body = self._body, None
        if body is not None and not body.complete:
            body.error = error(self._owner.name)
            if self.used and not body.begun and error is openai.broken:
                body.error = Stale(body.error.message)
        self.cut()
        self._tell()

    def cut(self) -> None:
        """Closes the connection at once."""
        self._unsent = memoryview(b"")
        self._owner.forget(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        body = self._body
        if body is None:
            # Nothing was asked. What speaks out of turn would answer the next request with the wrong reply.
            return self.cut()
        try:
            self._parser.feed(data)
        except NotHttp:
            return self.fail(openai.not_http)
        if body.take is not None:
            if body.parts and not self._hand_on(body, body.take):
                body.take = None
        elif not body.complete:
            self._held += len(data)
            if self._held < HIGH_WATER:
                self._expect_news(self._loop.time())
            elif self._held - len(data) < HIGH_WATER:
                self.transport.pause_reading()
                self._watch.expect_by(self._total)  # it is we who make the backend wait
        if body.complete:
            self._complete(body)
        elif body.take is not None:
            return self._expect_news(self._loop.time())
        self._tell()

    def eof_received(self) -> None:
        if self._body is not None and self._parser.end():
            self._complete(self._body)
            self._tell()
        else:
            self.fail(openai.broken)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._watch.stop()
        self.fail(openai.broken)
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._send_more()
        if self._body is not None and self._held < HIGH_WATER:
            self._expect_news(self._loop.time())

    def _send_more(self) -> None:
        """Hands slices of the body to the transport until that has enough of them for now."""
        while self._unsent and not self._blocked:
            piece, self._unsent = self._unsent[:HIGH_WATER], self._unsent[HIGH_WATER:]
            self.transport.write(piece)

    def _hand_on(self, body: Body, take: Take) -> bool:
        """Hands on what has come; whether more may come. What goes wrong there is for the one who pours."""
        try:
            return take(body.in_one_piece())
        except Exception as error:
            if self._news is not None and not self._news.done():
                self._news.set_exception(error)
            return False

    def _complete(self, body: Body) -> None:
        self._body = None
        self.used = True
        if self._held >= HIGH_WATER:
            self.transport.resume_reading()
        # A backend may answer before it has read all; what is left of the request then cannot be taken back.
        if body.reusable and not self._unsent and not self.transport.get_write_buffer_size():
            self._owner.give_back(self)
        else:
            self.cut()

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _expect_news(self, now: float) -> None:
        """Gives the backend as long as it may take between two reads."""
        until, total = now + self._read_limit, self._total
        self._watch.expect_by(until if until < total else total)
