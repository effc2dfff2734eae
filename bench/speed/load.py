"""Load: wrk for short requests, and a generator of our own that completes what it has begun and looks at every byte."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httptools
import numpy as np
import uvloop
from bench.speed.cases import Body

PATIENCE = 120.0
"""Seconds that requests which were begun in time get to complete."""

LUA = Path(__file__).with_name("chat.lua")


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and the reply that each must get (None: only its status is looked at)."""

    port: int
    body: Body
    headers: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False
    reply: bytes | None = None
    path: str = "/v1/chat/completions"

    def head(self) -> bytes:
        """The request's head."""
        headers = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + f"\r\ncontent-length: {len(self.body)}\r\n\r\n").encode()


@dataclass(frozen=True, slots=True)
class Load:
    """What came of some load; latencies in seconds."""

    requests: int
    errors: int
    seconds: float
    p50: float
    p99: float


def run_wrk(target: Target, connections: int, seconds: float, first: int, folder: Path) -> Load:
    """Load by wrk; fresh conversations are numbered from `first`."""
    before, after = folder / "before", folder / "after"
    before.write_bytes(target.body.before)
    after.write_bytes(target.body.after)
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", str(LUA)]
    for name, value in target.headers.items():
        options += ["-H", f"{name}: {value}"]
    url = f"http://127.0.0.1:{target.port}{target.path}"
    command = ["wrk", *options, url, "--", str(before), str(after), str(first), "fresh" if target.fresh else "same"]
    return read_wrk(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def read_wrk(told: str) -> Load:
    """The figures in the last line that our script has wrk print; one error where it did not get that far."""
    last = (told.splitlines() or [""])[-1]
    if not last.startswith("{"):
        return Load(0, 1, 1.0, 0.0, 0.0)
    read = json.loads(last)
    return Load(read["requests"], read["errors"], read["us"] / 1e6, read["p50_us"] / 1e6, read["p99_us"] / 1e6)


def has_wrk() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def run_own(target: Target, connections: int, seconds: float, first: int = 0, *, count: int = 10**12) -> Load:
    """Load by our own generator: until the time is over or `count` requests were sent, and what was begun is completed."""
    return uvloop.run(_run(target, connections, seconds, first, count))


async def _run(target: Target, connections: int, seconds: float, first: int, count: int) -> Load:
    loop = asyncio.get_running_loop()
    clients = Clients(target, first, count, time.perf_counter() + seconds)
    start = time.perf_counter()
    everyone = [loop.create_task(clients.one()) for _ in range(connections)]
    _, late = await asyncio.wait(everyone, timeout=seconds + PATIENCE)
    elapsed = time.perf_counter() - start
    for task in late:
        task.cancel()
    await asyncio.gather(*everyone, return_exceptions=True)
    times = np.array(clients.times or [0.0])
    p50, p99 = np.percentile(times, [50, 99])
    return Load(len(clients.times), clients.errors + len(late), elapsed, float(p50), float(p99))


class Clients:
    """Clients that each send a request, wait for the reply to end, and send the next one on the same connection."""

    def __init__(self, target: Target, first: int, count: int, end: float) -> None:
        self.times: list[float] = []
        self.errors = 0
        self._target = target
        self._head = target.head()
        self._next, self._last = first, first + count
        self._end = end

    async def one(self) -> None:
        """One client's requests, until the time or the numbers are used up."""
        connection: Connection | None = None
        try:
            while self._next < self._last and time.perf_counter() < self._end:
                number, self._next = self._next, self._next + 1
                if connection is None or connection.closed:
                    connection = await _connect(self._target.port)
                start = time.perf_counter()
                status, right = await connection.ask(self._request(number), self._target.reply)
                self.times.append(time.perf_counter() - start)
                self.errors += status != 200 or not right
        except OSError:
            self.errors += 1
        finally:
            if connection is not None:
                connection.close()

    def _request(self, number: int) -> list[bytes]:
        body = self._target.body
        return [self._head, body.before, body.number(number if self._target.fresh else 0), body.after]


async def _connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


class Connection(asyncio.Protocol):
    """A keep-alive connection that asks one thing at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[tuple[int, bool]] | None = None
        self._reply: bytes | None = None
        self._place = 0
        self._right = True

    def connection_made(self, transport: asyncio.Transport) -> None:
        """It is open."""
        self._transport = transport

    async def ask(self, request: list[bytes], reply: bytes | None) -> tuple[int, bool]:
        """The status of the reply, and whether its body was the one expected.

        Raises:
            ConnectionError: the connection broke before the reply was over.
        """
        self._done = asyncio.get_running_loop().create_future()
        self._reply, self._place, self._right = reply, 0, True
        self._transport.writelines(request)
        return await self._done

    def close(self) -> None:
        """Closes it."""
        self.closed = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Some bytes of the reply."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._fail(ConnectionError(f"no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whichever side."""
        self.closed = True
        self._fail(ConnectionResetError("closed before the reply was over"))

    def on_body(self, body: bytes) -> None:
        """Compares a piece of the body."""
        if self._reply is not None:
            self._right &= self._reply.startswith(body, self._place)
            self._place += len(body)

    def on_message_complete(self) -> None:
        """The reply is over."""
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        right = self._right and (self._reply is None or self._place == len(self._reply))
        if not keep:
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result((status, right))

    def _fail(self, error: ConnectionError) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)
