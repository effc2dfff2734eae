"""What a parent and its workers say to each other: one JSON line each over a pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec

from fingerpost.server.files import Looks

EVERY = 1.0
"""Seconds between two reports of a worker, which show that it lives and are what is left of its metrics should it be killed."""


class Begin(msgspec.Struct):
    """What a worker is told first, on its standard input: what to serve, and the sockets that it has inherited.

    `fixed` are the keys of the server that a reload cannot change, as all serve them, whatever `text` says.
    """

    path: str
    instead: dict[str, Any]
    fixed: dict[str, Any]
    text: str
    looks: Looks
    number: int
    line: int
    main: list[list[int]]
    admin: list[int]


class Ready(msgspec.Struct, tag=True):
    """From a worker: it could serve."""


class Took(msgspec.Struct, tag=True):
    """From a worker: it has taken up another configuration, whose file looked like this."""

    text: str
    looks: Looks


class Counted(msgspec.Struct, tag=True):
    """From a worker: its metrics, by itself as often as `EVERY` says, or because `Count` asked."""

    metrics: str
    asked: int = 0


class Gather(msgspec.Struct, tag=True):
    """From a worker: its metrics; it wants those of all."""

    metrics: str
    asked: int


class Leaving(msgspec.Struct, tag=True):
    """From a worker: it takes no more connections, and ends when its requests have."""


class Listen(msgspec.Struct, tag=True):
    """To a worker: take connections from the sockets of the workers with these numbers, and from no others."""

    numbers: list[int]


class Reload(msgspec.Struct, tag=True):
    """To a worker: read the files again."""


class Count(msgspec.Struct, tag=True):
    """To a worker: say your metrics."""

    asked: int


class Sum(msgspec.Struct, tag=True):
    """To a worker: the metrics of all."""

    metrics: str
    asked: int


Said = Ready | Took | Counted | Gather | Leaving | Listen | Reload | Count | Sum

LONGEST = 64 * 1024 * 1024
"""Bytes of a line: metrics of thousands of series, and a configuration, are far shorter."""

_decode = msgspec.json.Decoder(Said).decode


class Line:
    """One end of the pair; as an iterator, what the other end says until it is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Line:
        """The line over a connected socket, which it closes in its time."""
        return cls(*await asyncio.open_connection(sock=end, limit=LONGEST))

    def say(self, what: Said) -> None:
        """Says something; to one who is gone it is lost."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(what) + b"\n")

    async def __aiter__(self) -> AsyncIterator[Said]:
        with suppress(ConnectionError):
            async for line in self._reader:
                if line.endswith(b"\n"):  # else it was cut off as its speaker died
                    yield _decode(line)

    async def sent(self) -> None:
        """Waits while the other end has yet to take too much of what was said."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def hear_out(self) -> None:
        """Lets the iterator end after what was said until now: a child of a process that has ended may hold its end open."""
        with suppress(OSError):
            self._writer.get_extra_info("socket").shutdown(socket.SHUT_RD)

    async def close(self) -> None:
        """Hangs up when all is said."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
