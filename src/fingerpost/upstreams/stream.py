"""One stream of an HTTP/2 connection: a request that goes out and its reply, with windows and a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from fingerpost.errors import UpstreamError
from fingerpost.routes import Timeouts
from fingerpost.splice import Source
from fingerpost.upstreams import Headers, Reply, Take, openai
from fingerpost.upstreams.connection import HIGH_WATER
from fingerpost.upstreams.watch import Watch
from fingerpost.upstreams.wire import MAX_FIELDS, MAX_HEAD

STREAM_WINDOW = HIGH_WATER
"""Bytes of one reply that may wait for a slow client before the backend is made to wait too."""


class Carrier(Protocol):
    """The connection that a stream is part of; `heard` counts what it has read."""

    loop: asyncio.AbstractEventLoop
    limits: Timeouts
    heard: int

    def credit(self, stream: Stream, size: int) -> None:
        """Lets the backend send so many more bytes of a reply."""

    def drop(self, stream: Stream, error: Callable[[str], UpstreamError]) -> None:
        """Ends a reply before its time, which stops the model."""

    def expired(self, stream: Stream) -> None:
        """Ends a reply that takes too long."""


class Stream:
    """One request and its reply; as an iterator, the reply's body: whatever came since the last look, in one piece."""

    def __init__(self, carrier: Carrier, number: int, content: Source, deadline: float) -> None:
        self.number = number
        self.status = 0
        self.headers: Headers = ()
        self.length: int | None = None
        self.unsent = memoryview(content)
        self.complete = False
        self.error: UpstreamError | None = None
        self.heard_before = self.heard = carrier.heard
        self._carrier = carrier
        self._loop = carrier.loop
        self._parts: list[bytes] = []
        self._room = MAX_HEAD
        self._held = self._owed = 0
        self._news: asyncio.Future[None] | None = None
        self._take: Take | None = None
        self._total = deadline
        self._watch = Watch(carrier.loop, lambda: carrier.expired(self))
        self.go_on()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        while not self._parts:
            if self.error is not None:
                raise self.error
            if self.complete:
                raise StopAsyncIteration
            await self._wait()
        return self._in_one_piece()

    async def pour(self, take: Take) -> None:
        """Hands what comes to `take`, until nothing more comes or it has had enough. See `Reply`."""
        if self._parts or self.complete or self.error is not None:
            return
        self._take = take
        try:
            await self._wait()
        finally:
            self._take = None

    async def reply(self) -> Reply:
        """The reply as soon as its head is there."""
        while not self.status:
            if self.error is not None:
                raise self.error
            await self._wait()
        return Reply(self.status, self.headers, self, self.close, self.pour, length=self.length)

    def close(self) -> None:
        """Tells the backend to stop, unless the reply has come to its end."""
        if not self.complete and self.error is None:
            self._carrier.drop(self, openai.broken)

    def go_on(self) -> None:
        """Starts the time between two reads again; there is none while it is we who make the backend wait."""
        self.heard = self._carrier.heard
        waiting = self._held >= STREAM_WINDOW // 2
        self._watch.expect_by(self._total if waiting else min(self._loop.time() + self._carrier.limits.read, self._total))

    def spend(self, headers: Headers) -> bool:
        """Whether these header fields, with all before them, are within bounds."""
        self._room -= sum(len(name) + len(value) + 4 for name, value in headers)
        return self._room >= 0 and len(headers) <= MAX_FIELDS

    def add(self, data: bytes, size: int) -> None:
        """Takes a piece of the body, which came as `size` bytes with its padding."""
        if data:
            self._parts.append(data)
        self._held += len(data)
        self._owe(size - len(data))
        self.go_on()

    def hand_on(self) -> None:
        """Hands on what has come, or says that it has; what goes wrong with the former is for the one who pours."""
        if self._take is None or not self._parts or self._news is None or self._news.done():
            return self.tell()
        try:
            wants_more = self._take(self._in_one_piece())
        except Exception as error:
            self._news.set_exception(error)
        else:
            if not wants_more:
                self.tell()

    def end(self, error: UpstreamError | None = None) -> None:
        """Notes that nothing more comes: the reply is complete, or it ends with an error."""
        self.error, self.complete = error, error is None
        self.unsent = memoryview(b"")
        self._watch.stop()
        self.tell()

    def tell(self) -> None:
        """Wakes who waits for news."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _in_one_piece(self) -> bytes:
        """What has come and was not taken, which is taken now."""
        chunk = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._taken()
        return chunk

    def _wait(self) -> asyncio.Future[None]:
        self._news = self._loop.create_future()
        return self._news

    def _taken(self) -> None:
        """Notes that all that had come was taken."""
        held, self._held = self._held, 0
        self._owe(held)
        if held >= STREAM_WINDOW // 2 and not self.complete and self.error is None:
            self.go_on()

    def _owe(self, size: int) -> None:
        """Lets the backend send so much more, many bytes at a time."""
        self._owed += size
        if self._owed >= STREAM_WINDOW // 2 and not self.complete and self.error is None:
            self._carrier.credit(self, self._owed)
            self._owed = 0
