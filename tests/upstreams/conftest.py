"""A backend that does exactly what a script says, byte by byte, for tests of the clients that talk to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
import uvloop

from fingerpost.errors import FingerpostError
from fingerpost.upstreams import Reply

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], object]]:
    """Our own clients run on uvloop in the server and on asyncio in a library: their tests run on both."""
    return LOOPS if item.path.name in ("test_http1.py", "test_http2.py") else {"asyncio": LOOPS["asyncio"]}


class Peer:
    """One connection as the backend sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        """The next request whole: head, blank line, body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        """Sends each piece, with a moment between them so that they are likely to arrive apart."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.002 if len(pieces) > 1 else 0)

    async def answer(self, *pieces: bytes) -> bytes:
        """Sends the pieces when a request has come, and returns that request."""
        request = await self.request()
        await self.say(*pieces)
        return request

    def close(self) -> None:
        """Ends the connection in good order."""
        self.writer.close()

    def reset(self) -> None:
        """Ends the connection with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Waits until the client has closed the connection."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except (ConnectionError, ssl.SSLError):
            pass


Script = Callable[[Peer], Awaitable[object]]


class Backend:
    """Follows one script per connection, the last one for all further connections; `peers` are the connections so far."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = scripts
        self.peers: list[Peer] = []
        self.url = ""
        self.ended = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.scripts[min(len(self.peers), len(self.scripts)) - 1](peer)
            await peer.until_closed()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self.ended += 1
            writer.transport.abort()


@asynccontextmanager
async def backend(*scripts: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Backend]:
    """A Backend on a loopback socket."""
    one = Backend(*scripts)
    server = await asyncio.start_server(one.serve, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    one.url = f"http{'s' if tls else ''}://{'[::1]' if ':' in host else 'localhost' if tls else host}:{port}/v1"
    try:
        yield one
    finally:
        server.close()
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)


async def happens(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until a condition holds, with a generous end."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (any condition at all)
            await asyncio.sleep(0.002)


def failure(error: BaseException) -> str:
    """An error's text without the backend's name."""
    assert isinstance(error, FingerpostError)
    return error.message.removeprefix("small: ")


async def pour(reply: Reply, into: list[bytes], enough: int = 100) -> list[bytes]:
    """All chunks of a reply, those poured marked by a P before them; the function has had enough of every `enough`th."""
    poured: list[bytes] = []

    def take(chunk: bytes) -> bool:
        poured.append(chunk)
        into.append(b"P" + chunk)
        return len(poured) % enough > 0

    assert reply.pour is not None
    async for chunk in reply.chunks:
        into.append(chunk)
        await reply.pour(take)
    return into
