"""The values that travel to and from a backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fingerpost.upstreams import Reply


class Body:
    """Chunks that break off where `error` is given, and whether they were closed."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.closed = 0
        self.left = list(chunks)
        self.error = error

    async def chunks(self) -> AsyncIterator[bytes]:
        while self.left:
            yield self.left.pop(0)
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed += 1

    @property
    def reply(self) -> Reply:
        return Reply(200, (), self.chunks(), self.close)


def test_a_header_is_the_first_of_its_name_or_empty() -> None:
    reply = Reply(200, ((b"a", b"1"), (b"b", b"2"), (b"b", b"3")), Body().chunks())
    assert [reply.header(name) for name in (b"a", b"b", b"c")] == [b"1", b"2", b""]


async def test_read_gives_the_whole_body_and_closes() -> None:
    body = Body(b"one ", b"two")
    assert await body.reply.read(100) == b"one two"
    assert body.closed == 1


async def test_read_stops_at_its_limit() -> None:
    body = Body(b"one ", b"two", b"three")
    assert await body.reply.read(6) == b"one tw"
    assert body.left == [b"three"]
    assert body.closed == 1


async def test_read_closes_a_body_that_breaks_off() -> None:
    body = Body(b"one", error=ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await body.reply.read(100)
    assert body.closed == 1


async def test_closing_a_reply_that_holds_nothing_does_nothing() -> None:
    reply = Reply(200, (), Body().chunks())
    reply.close()
    assert await reply.read(1) == b""
