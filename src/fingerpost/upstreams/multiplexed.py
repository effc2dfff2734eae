"""One HTTP/2 connection on an asyncio transport: many requests at once, each a stream that fails or ends by itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error, StreamClosedError
from h2.settings import SettingCodes, Settings

from fingerpost.errors import UpstreamError
from fingerpost.routes import Timeouts
from fingerpost.splice import Source
from fingerpost.upstreams import Headers, Reply, openai
from fingerpost.upstreams.connection import HIGH_WATER
from fingerpost.upstreams.stream import STREAM_WINDOW, Stream
from fingerpost.upstreams.wire import MAX_HEAD, without_length

CONNECTION_WINDOW = 16_777_216
"""Bytes on their way in all replies together. They are credited as they come, so that a slow client holds up its own alone."""

ONE_FRAME = 65_536
"""Bytes of a body in one frame at most, whatever the backend allows; the bodies of other requests come in between."""

MOST_UNSENT = 1_048_576
"""Bytes that may wait for a backend which makes us answer (pings, settings) and does not read."""

LAST_STREAM = 2**31 - 1001
"""Beyond this stream a connection takes no more requests; their numbers come to an end."""

OURS = {
    SettingCodes.ENABLE_PUSH: 0,
    SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD,
}
"""What we tell the backend about us. h2 keeps to the size of headers, counted after decompression, and to 64 continuations."""

Failure = Callable[[str], UpstreamError]


class Unprocessed(UpstreamError):
    """The backend has done nothing about a request, so that it may be sent once more."""


class Owner(Protocol):
    """Whom a connection belongs to: the pool that it tells of its end, and the limits of its backend."""

    name: str
    limits: Timeouts
    idle: float
    loop: asyncio.AbstractEventLoop

    def lost(self, connection: Connection) -> None:
        """Takes note of a connection that is closed."""


class Connection(asyncio.Protocol):
    """One connection: carries as many requests at once as the backend allows, and closes itself when it is idle for long.

    `ready` is done with the backend's settings, which prove that it speaks HTTP/2, or with why they do not come.
    """

    def __init__(self, owner: Owner) -> None:
        self.transport: asyncio.Transport
        self.loop = owner.loop
        self.limits = owner.limits
        self.ready: asyncio.Future[UpstreamError | None] = owner.loop.create_future()
        self.heard = 0
        self.lost = False
        self._owner = owner
        self._h2 = _new_state()
        self._streams: dict[int, Stream] = {}
        self._fed: set[Stream] = set()
        self._sending: deque[Stream] = deque()
        self._turn: asyncio.Handle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._blocked = False
        self._retired = False
        self._used = False
        self._owed = 0
        self._begun = b""
        self._inside = 0

    @property
    def room(self) -> bool:
        """Whether it takes another request."""
        return not self._retired and self.ready.done() and len(self._streams) < self._h2.remote_settings.max_concurrent_streams

    async def carry(self, fields: Headers, content: Source, deadline: float) -> Reply:
        """The reply to a request, as soon as its head is there; `deadline` is when all of it must be over.

        Call it only where there is room. Raises what `Upstream.send` does, and Unprocessed.
        """
        number = self._h2.get_next_available_stream_id()
        self._h2.send_headers(number, fields, end_stream=not content)
        stream = self._streams[number] = Stream(self, number, content, deadline)
        self._retired = self._retired or number > LAST_STREAM
        if self._idle is not None:
            self._idle.cancel()
        if content:
            self._sending.append(stream)
            self._send_more()
        self._flush()
        try:
            return await stream.reply()
        except BaseException:
            stream.close()
            raise

    def credit(self, stream: Stream, size: int) -> None:
        """Lets the backend send so many more bytes of a reply."""
        with suppress(StreamClosedError):  # h2 may have read its end already
            self._h2.increment_flow_control_window(size, stream.number)
        self._flush()

    def drop(self, stream: Stream, error: Failure) -> None:
        """Ends a reply before its time, which stops the model."""
        self._reset(stream)
        self._leave(stream, error(self._owner.name))

    def expired(self, stream: Stream) -> None:
        """Ends a reply that takes too long. Where no other one spoke meanwhile, the connection itself may be dead."""
        self._retired = self._retired or stream.heard == self.heard
        self.drop(stream, openai.answered_late)

    def fail(self, error: Failure) -> None:
        """Ends all replies under way with an error, and the connection with them."""
        self._retired = True
        for stream in tuple(self._streams.values()):
            # Nothing at all was heard since it set out on a connection that had worked: the same as over HTTP/1.1.
            unheard = self._used and stream.heard_before == self.heard and error is openai.broken
            ended = error(self._owner.name)
            self._leave(stream, Unprocessed(ended.message) if unheard else ended)
        if not self.ready.done():
            self.ready.set_result(error(self._owner.name))
        self.cut()

    def cut(self) -> None:
        """Closes the connection at once."""
        self._retired = True
        if self._turn is not None:
            self._turn.cancel()
        if self._idle is not None:
            self._idle.cancel()
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            return self.fail(openai.no_http2)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        if not self._fits(data):
            return self.fail(openai.not_http)
        try:
            events = self._h2.receive_data(data)
        except H2Error:
            self._flush()  # says why
            return self.fail(openai.not_http)
        for event in events:
            self._take(event)
        for stream in self._fed:
            stream.hand_on()
        self._fed.clear()
        if self._sending:
            self._send_more()
        self._flush()
        if self.transport.get_write_buffer_size() > MOST_UNSENT:
            self.fail(openai.broken)

    def eof_received(self) -> None:
        self.fail(openai.broken)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.fail(openai.broken)
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._send_more()

    def _fits(self, data: bytes) -> bool:
        """Whether no frame is longer than we allow. h2 looks when it has all of it, and would wait for one of 16 MB."""
        data, place = self._begun + data, self._inside
        while place + 9 <= len(data):
            length = int.from_bytes(data[place : place + 3], "big")
            if length > self._h2.max_inbound_frame_size:
                return False
            place += 9 + length
        self._begun, self._inside = data[place:], max(0, place - len(data))
        return True

    def _take(self, event: Event) -> None:
        """Acts on what h2 read."""
        if isinstance(event, ConnectionTerminated):
            return self._retire(event.last_stream_id or 0)
        if isinstance(event, RemoteSettingsChanged) and not self.ready.done():
            self.ready.set_result(None)
        if isinstance(event, DataReceived):
            self._owed += event.flow_controlled_length
            if self._owed >= CONNECTION_WINDOW // 2:
                self._h2.increment_flow_control_window(self._owed)
                self._owed = 0
        stream = self._streams.get(getattr(event, "stream_id", 0))
        if stream is None:
            return
        match event:
            case DataReceived():
                stream.add(event.data, event.flow_controlled_length)
                self._fed.add(stream)
            case StreamEnded():
                self._used = True
                if stream.unsent:  # it answered before it had read all
                    self._reset(stream)
                self._leave(stream)
            case StreamReset():
                refused = event.error_code == ErrorCodes.REFUSED_STREAM and not stream.status
                self._leave(stream, Unprocessed("") if refused else openai.broken(self._owner.name))
            case ResponseReceived() | InformationalResponseReceived() | TrailersReceived():
                self._take_headers(stream, event)

    def _take_headers(self, stream: Stream, event: ResponseReceived | InformationalResponseReceived | TrailersReceived) -> None:
        status = next((value for name, value in event.headers if name == b":status"), b"")
        if not stream.spend(event.headers) or (status and not (len(status) == 3 and status.isdigit() and status >= b"100")):
            self.drop(stream, openai.not_http)
        elif isinstance(event, ResponseReceived):
            fields = tuple((bytes(name), bytes(value)) for name, value in event.headers if name[:1] != b":")
            stream.headers, stream.length = without_length(fields)
            stream.status = int(status)
            stream.go_on()
            stream.tell()
        else:
            stream.go_on()

    def _retire(self, last: int) -> None:
        """The backend takes no more requests here; those up to `last` it may still answer."""
        self._retired = True
        for stream in tuple(self._streams.values()):
            if stream.number > last:
                self._leave(stream, Unprocessed("") if not stream.status else openai.broken(self._owner.name))
        if not self._streams:
            self.cut()

    def _send_more(self) -> None:
        """Sends a frame of each body in turn, until windows or the transport have enough, or others shall have a turn."""
        left, stuck = HIGH_WATER, 0
        while left > 0 and stuck < len(self._sending) and not self._blocked:
            stream = self._sending[0]
            self._sending.rotate(-1)
            size = self._send_piece(stream)
            stuck = 0 if size else stuck + 1
            left -= size
        if left <= 0 and self._sending and not self._blocked:
            if self._turn is not None:
                self._turn.cancel()
            self._turn = self.loop.call_soon(self._send_more)

    def _send_piece(self, stream: Stream) -> int:
        """The number of bytes that could be sent of a body."""
        window = self._h2.local_flow_control_window(stream.number)
        size = min(len(stream.unsent), window, self._h2.max_outbound_frame_size, ONE_FRAME)
        if size <= 0:
            return 0
        piece, stream.unsent = stream.unsent[:size], stream.unsent[size:]
        self._h2.send_data(stream.number, piece, end_stream=not stream.unsent)
        if not stream.unsent:
            self._sending.remove(stream)
        stream.go_on()
        self._flush()
        return size

    def _reset(self, stream: Stream) -> None:
        with suppress(StreamClosedError):
            self._h2.reset_stream(stream.number, ErrorCodes.CANCEL)
        self._flush()

    def _leave(self, stream: Stream, error: UpstreamError | None = None) -> None:
        """Takes a stream that has ended out of the connection."""
        del self._streams[stream.number]
        if stream.unsent:
            self._sending.remove(stream)
        stream.end(error)
        if self._streams:
            return
        if self._retired:
            self.cut()
        else:
            self._idle = self.loop.call_later(self._owner.idle, self._rested)

    def _rested(self) -> None:
        """Says goodbye after a time without requests."""
        self._h2.close_connection()
        self._flush()
        self.cut()

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self.transport.write(data)


class _Draining(H2ConnectionStateMachine):
    """Lets replies under way come to their end after a GOAWAY (RFC 9113, section 6.8); h2 takes them for errors by itself."""

    def process_input(self, input_: ConnectionInputs) -> list[Event]:
        return [] if input_ is ConnectionInputs.RECV_GOAWAY else super().process_input(input_)


def _new_state() -> H2Connection:
    """The state of a new connection. What we send is checked before, so h2 need not do it again."""
    state = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
    state.local_settings = Settings(client=True, initial_values=OURS)
    state.decoder.max_header_list_size = MAX_HEAD
    state.state_machine = _Draining()
    return state
