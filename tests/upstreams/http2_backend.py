"""A backend that speaks HTTP/2 and does exactly what a script says, frame by frame."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

Fields = list[tuple[bytes, bytes]]
OK: Fields = [(b":status", b"200")]


class Exchange:
    """One request as the backend sees it, and what it answers."""

    def __init__(self, peer: Http2Peer, number: int, headers: Fields) -> None:
        self.peer, self.number, self.headers = peer, number, headers
        self.fields = dict(headers)
        self.body = bytearray()
        self.whole = asyncio.Event()
        self.reset: ErrorCodes | int | None = None

    def head(self, *more: tuple[bytes, bytes], status: bytes = b"200", end: bool = False) -> None:
        self.peer.h2.send_headers(self.number, [(b":status", status), *more], end_stream=end)
        self.peer.flush()

    def data(self, content: bytes, end: bool = False, pad: int | None = None) -> None:
        self.peer.h2.send_data(self.number, content, end_stream=end, pad_length=pad)
        self.peer.flush()

    async def stream(self, content: bytes) -> None:
        """Sends content as the windows allow."""
        while content and self.reset is None:
            size = min(len(content), self.peer.h2.local_flow_control_window(self.number), 16_384)
            if size == 0:
                self.peer.opened.clear()
                await self.peer.opened.wait()
                continue
            self.data(content[:size])
            content = content[size:]
            await asyncio.sleep(0)

    def refuse(self, code: ErrorCodes = ErrorCodes.REFUSED_STREAM) -> None:
        self.peer.h2.reset_stream(self.number, code)
        self.peer.flush()

    async def ok(self) -> None:
        """Answers ok when the request is whole."""
        await self.whole.wait()
        self.head()
        self.data(b"ok", end=True)


Script = Callable[[Exchange], Awaitable[None]]


class Http2Peer(asyncio.Protocol):
    """One connection as the backend sees it."""

    def __init__(self, backend: Http2Backend) -> None:
        # What we say is what we mean, valid or not.
        config = H2Configuration(client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = H2Connection(config)
        self.h2.local_settings = Settings(client=False, initial_values=backend.settings)
        self.backend = backend
        self.exchanges: dict[int, Exchange] = {}
        self.opened = asyncio.Event()
        self.closed = False
        self.error: ProtocolError | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.backend.peers.append(self)
        if self.backend.greets:
            self.h2.initiate_connection()
            self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.opened.set()

    def data_received(self, data: bytes) -> None:
        if not self.backend.greets:
            return
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as error:
            self.error = error
            return
        for event in events:
            if isinstance(event, RequestReceived):
                exchange = self.exchanges[event.stream_id] = Exchange(self, event.stream_id, list(event.headers))
                self.backend.start(exchange)
            elif isinstance(event, DataReceived):
                self.exchanges[event.stream_id].body += event.data
                if self.backend.credits:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.exchanges[event.stream_id].whole.set()
            elif isinstance(event, StreamReset):
                self.exchanges[event.stream_id].reset = event.error_code
                self.opened.set()
            elif isinstance(event, WindowUpdated):
                self.opened.set()
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def say(self, *frames: bytes) -> None:
        """Sends bytes past h2."""
        for frame in frames:
            self.transport.write(frame)

    def goodbye(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """A GOAWAY after which this side goes on."""
        self.say(frame(7, 0, 0, last.to_bytes(4, "big") + int(code).to_bytes(4, "big")))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Http2Backend:
    """Follows one script per request, the last one for all further requests; `peers` are the connections so far."""

    def __init__(self, *scripts: Script, greets: bool = True, credits: bool = True, **settings: int) -> None:
        self.scripts = list(scripts)
        self.greets, self.credits = greets, credits
        self.settings = {SettingCodes[name.upper()]: value for name, value in settings.items()}
        self.peers: list[Http2Peer] = []
        self.seen: list[Exchange] = []
        self.tasks: set[asyncio.Future[None]] = set()
        self.url = ""

    def start(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        script = self.scripts[min(len(self.seen), len(self.scripts)) - 1]
        self.tasks.add(asyncio.ensure_future(script(exchange)))  # type: ignore[arg-type]


@asynccontextmanager
async def http2_backend(
    *scripts: Script, tls: ssl.SSLContext | None = None, greets: bool = True, credits: bool = True, **settings: int
) -> AsyncIterator[Http2Backend]:
    """An Http2Backend on a loopback socket."""
    one = Http2Backend(*scripts, greets=greets, credits=credits, **settings)
    server = await asyncio.get_running_loop().create_server(lambda: Http2Peer(one), "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    one.url = f"https://localhost:{port}/v1" if tls else f"http://127.0.0.1:{port}/v1"
    try:
        yield one
    finally:
        server.close()
        for peer in one.peers:
            peer.transport.abort()
        for task in one.tasks:
            task.cancel()
        # A script that failed has shown itself as a request without an answer, but for what its own assertions say.
        results = await asyncio.gather(*one.tasks, return_exceptions=True)
        assert not [result for result in results if isinstance(result, AssertionError)]
