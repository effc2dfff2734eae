"""The ASGI application: sockets in, gateway calls out. No framework: a dictionary of paths and a few small functions."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

import msgspec

from fingerpost import __version__, sfc
from fingerpost.assemble import World
from fingerpost.errors import FingerpostError, InvalidRequest, RequestTooLarge, UnknownModel
from fingerpost.gateway import Answer, is_event_stream
from fingerpost.records import Decision
from fingerpost.routes import AUTO, Backend

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")

_log = logging.getLogger("fingerpost.server")


class ClientGone(Exception):
    """The client closed its connection before the reply was over."""


class App:
    """Answers HTTP requests for one world; `now` gives seconds since the epoch."""

    def __init__(self, world: World, now: Callable[[], float] = time.time) -> None:  # noqa: TID251  (a stamp)
        self.world = world
        self._now = now
        self.ready = False
        self._started = int(now())
        self._doors: dict[tuple[str, str], Callable[[Scope, Receive, Send, bytes], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/route"): self._route,
            ("POST", "/sfc_router/chat/completions"): self._sfc,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/livez"): self._health,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/metrics"): self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection: an HTTP request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.world.gateway.router.prepare()
                except Exception as error:  # told without a traceback: it is the operator's model file or plugin
                    await send({"type": "lifespan.startup.failed", "message": f"the classifier cannot start: {error}"})
                    return
                self.ready = True
                await send({"type": "lifespan.startup.complete"})
            else:
                self.ready = False
                await self.world.gateway.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        own = [(b"x-fingerpost-request-id", request_id.encode())]
        sending = _Sending(send)
        try:
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            door = self._doors.get((method, scope["path"]))
            if door is None:
                own += self._allowed(scope["path"])
                raise self._no_door(scope)
            await door(scope, receive, sending, request_id.encode())
        except ClientGone:
            return
        except asyncio.CancelledError:
            # Only the server cancels requests, when it stops and they have had their time to finish.
            stopping = FingerpostError("the server is stopping")
            stopping.status, stopping.code = 503, "stopping"
            await sending.fail(stopping, own)
        except FingerpostError as error:
            await sending.fail(error, own)
        except Exception as error:
            # A defect of ours. Its text may quote the request, so only its kind and place are told.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
            await sending.fail(FingerpostError("internal error; the log names its place"), own)

    def _allowed(self, path: str) -> Headers:
        methods = {"GET": b"GET, HEAD", "POST": b"POST"}
        return [(b"allow", methods[method]) for method, known in self._doors if known == path]

    def _no_door(self, scope: Scope) -> FingerpostError:
        allowed = self._allowed(scope["path"])
        if allowed:
            error: FingerpostError = InvalidRequest(f"{scope['path']} takes {allowed[0][1].decode()}")
            error.status, error.code = 405, "method_not_allowed"
            return error
        paths = ", ".join(path for _, path in self._doors)
        error = UnknownModel(f"there is nothing at this path; there is {paths}")
        error.code = "not_found"
        return error

    async def _chat(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)

        async def carry() -> None:
            async with self.world.gateway.carry(body, scope["headers"], request_id.decode()) as answer:
                await _pass_on(answer, send, request_id)

        await _until_client_leaves(carry, receive)

    async def _route(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        _, decision = await self.world.gateway.decide(body, request_id.decode())
        headers = decision_headers(decision, decision.backend, request_id)
        await _send_json(send, 200, {**decision.to_json(), "request_id": request_id.decode()}, headers)

    async def _sfc(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        # Clients of the reference name any model; what they ask for is always a decision.
        request, decision = await self.world.gateway.decide(body, request_id.decode(), model=AUTO)
        model = decision.backend.model if decision.backend else ""
        kind, content = sfc.answer(model, request_id.decode(), int(self._now()), stream=request.stream)
        headers = decision_headers(decision, decision.backend, request_id)
        await _send_bytes(send, 200, content, [(b"content-type", kind), *headers])

    async def _models(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        table = self.world.gateway.router.table
        names = [AUTO, *table.by_name, *(name for name in table.backends if name not in table.by_name)]
        models = [{"id": n, "object": "model", "created": self._started, "owned_by": "fingerpost"} for n in names]
        await _send_json(send, 200, {"object": "list", "data": models})

    async def _health(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        await _send_json(send, 200, {"status": "ok", "version": __version__})

    async def _readyz(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        status = 200 if self.ready else 503
        detail = {"status": "ready" if self.ready else "starting", "in_flight": self.world.gateway.in_flight}
        await _send_json(send, status, detail)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        content = self.world.metrics.render(self.world.gateway.in_flight)
        await _send_bytes(send, 200, content, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    async def _body(self, scope: Scope, receive: Receive, request_id: bytes) -> bytes:
        """The request body, refused as soon as it is known to be larger than the limit."""
        limit = self.world.config.server.max_body
        too_large = RequestTooLarge(f"the body is larger than {limit} bytes (server.max_body)")
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        size = int(stated) if stated.isdigit() else 0
        parts: list[bytes] = []
        more = size <= limit
        size = 0 if more else size
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.world.gateway.refuse(None, request_id.decode())
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = bool(message.get("more_body")) and size <= limit
        if size > limit:
            self.world.gateway.refuse(too_large, request_id.decode())
            raise too_large
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Sending:
    """`send` that knows how an error can still be told: before a response has started, or as an event of a stream."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._open_ended = False
        self._tail = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            names = {name for name, _ in message["headers"]}
            self._open_ended = is_event_stream(message["headers"]) and not names & {b"content-encoding", b"content-length"}
        else:
            self._tail = (self._tail + message["body"][-4:])[-4:]
        await self._send(message)

    async def fail(self, error: FingerpostError, headers: Headers) -> None:
        """Answers with the error; ends a stream that has begun with an error event, and any other response by cutting it."""
        if not self._started:
            return await _send_json(self._send, error.status, error.to_json(), headers)
        if not self._open_ended:
            raise ConnectionAbortedError(error.message) from None
        # The backend may have broken off within an event; a blank line ends that one, so that ours is read by itself.
        ended = self._tail.endswith((b"\n\n", b"\n\r\n"))
        gap = b"" if ended else b"\n" if self._tail.endswith(b"\n") else b"\n\n"
        event = gap + b"data: " + msgspec.json.encode(error.to_json()) + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


async def _until_client_leaves(work: Callable[[], Awaitable[None]], receive: Receive) -> None:
    """Runs `work`, and cancels it as soon as the client closes its connection."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ClientGone

    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            await work()
            watching.cancel()
    except BaseExceptionGroup as failed:
        # One of the two failed; the other was only cancelled for it.
        raise failed.exceptions[0] from None


async def _pass_on(answer: Answer, send: Send, request_id: bytes) -> None:
    headers = [*answer.headers, *decision_headers(answer.decision, answer.backend, request_id)]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for chunk in answer.chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def decision_headers(decision: Decision, backend: Backend | None, request_id: bytes) -> Headers:
    """The `x-fingerpost-*` headers; names are percent-encoded where they are not plain ASCII."""
    values = {
        b"route": decision.route,
        b"backend": backend.name if backend else None,
        b"confidence": None if decision.confidence is None else f"{decision.confidence:.4f}",
        b"source": decision.source,
        b"decision-ms": f"{decision.elapsed * 1e3:.3f}",
    }
    headers = [
        (b"x-fingerpost-" + name, quote(value, safe=" !#$&'()*+,/:;=?@[]~").encode())
        for name, value in values.items()
        if value is not None
    ]
    return [*headers, (b"x-fingerpost-request-id", request_id)]


async def _send_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    await _send_bytes(send, status, msgspec.json.encode(value), [JSON, *(headers or [])])


async def _send_bytes(send: Send, status: int, content: bytes, headers: Headers) -> None:
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": content})
