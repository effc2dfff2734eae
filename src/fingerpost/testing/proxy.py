"""A proxy for tests: a real TCP socket before a backend, which does to its replies what networks and broken servers do."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

_PIECE = 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a connection; what is not stated passes unharmed.

    `delay` seconds pass before the reply. `cut_at` counts bytes of it, the head included: there the connection is closed, or
    `reset`, or (`hang`) kept open in silence; `hang` alone is silence from the start. `refuse` lets nobody connect. `drip`
    seconds pass between pieces of 16 bytes. `rewrite` changes the head, up to its blank line.
    """

    delay: float = 0.0
    cut_at: int | None = None
    reset: bool = False
    hang: bool = False
    refuse: bool = False
    drip: float = 0.0
    rewrite: Callable[[bytes], bytes] | None = None


def add_header(line: bytes) -> Callable[[bytes], bytes]:
    """A rewriting that puts a header line at the head's end."""
    return lambda head: head[:-2] + line + b"\r\n\r\n"


def change_length(by: int) -> Callable[[bytes], bytes]:
    """A rewriting that makes the stated content-length larger or smaller; states one where there is none."""

    def rewrite(head: bytes) -> bytes:
        stated = re.search(rb"(?i)content-length: *(\d+)", head)
        if stated is None:
            return add_header(b"content-length: %d" % (1000 + by))(head)
        return head.replace(stated[0], b"content-length: %d" % (int(stated[1]) + by))

    return rewrite


FAULTS: Mapping[str, Fault] = {
    "slow": Fault(delay=0.1),
    "too slow": Fault(delay=60.0),
    "closed before the reply": Fault(cut_at=0),
    "reset before the reply": Fault(cut_at=0, reset=True),
    "half a head": Fault(cut_at=30),
    "half a head, then silence": Fault(cut_at=30, hang=True),
    "closed in the body": Fault(cut_at=150),
    "reset in the body": Fault(cut_at=150, reset=True),
    "silence in the body": Fault(cut_at=150, hang=True),
    "black hole": Fault(hang=True),
    "refused": Fault(refuse=True),
    "drip": Fault(drip=0.002),
    "garbage status line": Fault(rewrite=lambda head: b"\x16\x03\x01 what\r\n" + head.partition(b"\r\n")[2]),
    "content-length too long": Fault(rewrite=change_length(50)),
    "content-length too short": Fault(rewrite=change_length(-50)),
    "content-length twice": Fault(rewrite=lambda head: add_header(b"content-length: 7")(change_length(0)(head))),
    "huge headers": Fault(rewrite=add_header(b"x-huge: " + b"x" * 1_000_000)),
}
"""One fault of each kind, by what it is."""


class FaultProxy:
    """A TCP proxy on a loopback socket before the server at `port`, in a thread of its own.

    `fault` is what happens to connections made from then on. `open` is how many there are now, `accepted` how many there were,
    and `passed` how many bytes of replies went through.
    """

    def __init__(self, port: int, fault: Fault | None = None) -> None:
        self.open = 0
        self.accepted = 0
        self.passed = 0
        self.port = 0
        self._behind = port
        self._fault = fault or Fault()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL to configure as a backend's."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def fault(self) -> Fault:
        """What happens to connections made from now on."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def cut(self) -> None:
        """Resets all connections that are open."""

        async def cancel() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self._loop).result(10)

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        wanted, self.fault = self._fault, Fault()  # it listens once in any case, to have a port
        self.fault = wanted
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._thread is not None
        self.fault = Fault(refuse=True)
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        if self._fault.refuse and self._server is not None:
            self._server.close()
            self._server = None
        elif not self._fault.refuse and self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        self.accepted += 1
        behind: asyncio.StreamWriter | None = None
        try:
            answers, behind = await asyncio.open_connection("127.0.0.1", self._behind)
            going = asyncio.ensure_future(_pass(reader, behind))
            coming = asyncio.ensure_future(self._reply(self._fault, answers, writer))
            try:
                # Over when the backend's side is, or when the client has gone.
                await asyncio.wait({going, coming}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for half in (going, coming):
                    half.cancel()
                await asyncio.gather(going, coming, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            _reset(writer)
        finally:
            self.open -= 1
            self._tasks.discard(task)
            for side in (writer, behind):
                if side is not None:
                    side.close()

    async def _reply(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes the backend's bytes on as far and in the way that the fault allows."""
        if fault.hang and fault.cut_at is None:
            await asyncio.Event().wait()
        data = await (reader.readuntil(b"\r\n\r\n") if fault.rewrite else reader.read(1 << 16))
        data = fault.rewrite(data) if fault.rewrite else data
        await asyncio.sleep(fault.delay)
        left = fault.cut_at
        while data:
            data = data if left is None else data[:left]
            step = _PIECE if fault.drip else max(len(data), 1)
            for start in range(0, len(data), step):
                writer.write(data[start : start + step])
                await writer.drain()
                self.passed += len(data[start : start + step])
                await asyncio.sleep(fault.drip)
            if left is not None:
                left -= len(data)
                if not left:
                    break
            data = await reader.read(1 << 16)
        if left == 0:
            if fault.hang:
                await asyncio.Event().wait()
            if fault.reset:
                await asyncio.sleep(0.02)  # so that what was sent is read before the reset overtakes it
                _reset(writer)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes everything on until the one who sends it closes."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
