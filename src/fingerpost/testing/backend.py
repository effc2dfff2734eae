"""A backend for tests: a real OpenAI-speaking server on a loopback socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(frozen=True, slots=True)
class FakeReply:
    """How a FakeBackend answers one request.

    `text` is the assistant's message, sent word by word when the request streams, `pause` seconds apart. `tool_call` is a
    name and arguments to call instead. `delay` seconds pass before the first byte; `hang` sends nothing and waits;
    `cut_after` closes the connection after that many body chunks; `raw` is sent in place of everything.
    """

    text: str = "Hello from the backend."
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    tool_call: tuple[str, Mapping[str, Any]] | None = None
    usage: tuple[int, int] = (7, 5)
    delay: float = 0.0
    pause: float = 0.0
    hang: bool = False
    cut_after: int | None = None
    raw: bytes | None = None
    completion: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A request as a FakeBackend got it; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON values."""
        return json.loads(self.body)


class FakeBackend:
    """An OpenAI-speaking HTTP server on a loopback socket, in a thread of its own.

    Answers by its script, then with `default`. `requests` holds what it got; `abandoned` counts the clients that left
    before their answer was over.
    """

    def __init__(self, default: FakeReply | Callable[[Received], FakeReply] | None = None, port: int = 0) -> None:
        self.default = default or FakeReply()
        self.requests: list[Received] = []
        self.abandoned = 0
        self.port = port
        self._script: deque[FakeReply] = deque()
        self._open: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL to configure as a backend's."""
        return f"http://127.0.0.1:{self.port}/v1"

    def script(self, *replies: FakeReply) -> None:
        """Answers the next requests with these, in order."""
        self._script.extend(replies)

    def __enter__(self) -> FakeBackend:
        started = threading.Event()
        # Bound here, so that a taken port is the caller's error and not a thread's.
        listening = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listening.getsockname()[1]
        serving = self._serve(listening, started)
        self._thread = threading.Thread(target=asyncio.run, args=(serving,), name="fake-backend", daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Cuts all connections and refuses new ones; entering it again serves again on the same port."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(10)

    async def _serve(self, listening: socket.socket, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=listening, limit=1 << 26, backlog=1024)
        started.set()
        await self._stop.wait()
        # A connection that has just come takes a few turns of the loop to get its task; without one nobody would close it.
        for _ in range(10):
            await asyncio.sleep(0)
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        early: bytes | None = b""
        try:
            while early is not None:
                request = await _read_request(early, reader)
                self.requests.append(request)
                reply = self._script.popleft() if self._script else self.default
                reply = reply(request) if callable(reply) else reply
                early = await self._answer(reply, request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(
        self, reply: FakeReply, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """Sends the reply; returns what came of the next request meanwhile, or None when the connection is over."""
        coming = asyncio.ensure_future(reader.read(1))
        sending = asyncio.ensure_future(self._send(reply, request, writer))
        try:
            await asyncio.wait({coming, sending}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done() and not coming.exception() and coming.result():
                await asyncio.wait({sending})
            if not sending.done() or sending.exception():
                self.abandoned += 1
                return None
            early = coming.result() if coming.done() and not coming.exception() else b""
            return early if sending.result() else None
        finally:
            for task in (coming, sending):
                task.cancel()
            await asyncio.gather(coming, sending, return_exceptions=True)

    async def _send(self, reply: FakeReply, request: Received, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(3600 if reply.hang else reply.delay)
        if reply.raw is not None:
            writer.write(reply.raw)
            await writer.drain()
            return False
        body = request.json if request.body else {}
        stream = bool(body.get("stream")) and reply.status == 200
        chunks = _events(reply, body) if stream else [json.dumps(_completion(reply, body)).encode()]
        kind = "text/event-stream" if stream else "application/json"
        framing = {"transfer-encoding": "chunked"} if stream else {"content-length": str(len(chunks[0]))}
        headers = {"content-type": kind, **framing, **reply.headers}
        head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(head.encode() + b"\r\n")
        await writer.drain()
        for number, chunk in enumerate(chunks):
            if number:
                await asyncio.sleep(reply.pause)
            if number == reply.cut_after:
                return False
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if stream else chunk)
            await writer.drain()
        if stream:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return True


async def _read_request(early: bytes, reader: asyncio.StreamReader) -> Received:
    head = early + await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip(" \t") for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(method, target, headers, body)


def _completion(reply: FakeReply, body: Mapping[str, Any]) -> Mapping[str, Any]:
    if reply.completion is not None:
        return reply.completion
    if reply.status != 200:
        return {"error": {"message": reply.text, "type": "server_error", "param": None, "code": None}}
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool_call:
        message.update(content=None, tool_calls=[_tool_call(reply.tool_call)])
    finish = "tool_calls" if reply.tool_call else "stop"
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": body.get("model", "")}
    return {**head, "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": _usage(reply)}


def _events(reply: FakeReply, body: Mapping[str, Any]) -> list[bytes]:
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": body.get("model", "")}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if reply.tool_call:
        deltas.append({"tool_calls": [{"index": 0, **_tool_call(reply.tool_call)}]})
    else:
        deltas += [{"content": word} for word in _words(reply.text)]
    finish = "tool_calls" if reply.tool_call else "stop"
    events: list[dict[str, Any]] = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append({**head, "choices": [], "usage": _usage(reply)})
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _tool_call(call: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    name, arguments = call
    return {"id": "call_fake", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def _usage(reply: FakeReply) -> dict[str, int]:
    given, made = reply.usage
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
