"""The ASGI application: sockets in, gateway calls out. No framework: a dictionary of paths and a few small functions."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec

from fingerpost import __version__, sfc
from fingerpost.assemble import World, conceal
from fingerpost.clients import Visit
from fingerpost.errors import FingerpostError, InvalidRequest, Refused, UnknownModel
from fingerpost.gateway import Answer, is_event_stream
from fingerpost.policy import usable_names
from fingerpost.records import Decision
from fingerpost.routes import AUTO, EVERYTHING, Backend
from fingerpost.server import auth, systemone
from fingerpost.server import decision as switchyard
from fingerpost.server.upkeep import Upkeep

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")

_log = logging.getLogger("fingerpost.server")


class ClientGone(Exception):
    """The client closed its connection before the reply was over."""


class App:
    """Answers HTTP requests for the world that `upkeep` holds; `now` gives seconds since the epoch."""

    def __init__(
        self,
        world: World,
        now: Callable[[], float] = time.time,  # noqa: TID251  (a stamp)
        upkeep: Upkeep | None = None,
    ) -> None:
        self.upkeep = upkeep or Upkeep(world)
        self._now = now
        self.ready = False
        self._started = int(now())
        self._prefix, self._numbers = os.urandom(11).hex(), itertools.count()
        self._doors: dict[tuple[str, str], Callable[[Scope, Receive, Send, bytes], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/route"): self._route,
            ("POST", "/sfc_router/chat/completions"): self._sfc,
            ("POST", "/v1/systemone"): self._systemone,
            ("POST", "/v1/decision"): self._decision,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/livez"): self._health,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/metrics"): self._metrics,
        }

    @property
    def world(self) -> World:
        """The world that is served now; a reload puts another one in its place."""
        return self.upkeep.world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection: an HTTP request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.world.gateway.router.prepare()
        except Exception as error:  # told without a traceback: it is the operator's model file or plugin
            why = conceal(str(error), getattr(self.world.config.classifier, "options", {}))
            await send({"type": "lifespan.startup.failed", "message": f"the classifier cannot start: {why}"})
            return
        self.ready = True
        await send({"type": "lifespan.startup.complete"})
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self.upkeep.keep())
            await receive()
            self.ready = False
            keeping.cancel()
        await self.world.gateway.aclose()
        await self.world.ledger.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection on the port of the administrators."""
        scope["admin"] = True
        await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = f"{self._prefix}{next(self._numbers):010x}"
        own = [(b"x-fingerpost-request-id", request_id.encode())]
        sending = _Sending(send, scope.get("at_once"))
        visit: Visit | None = None
        try:
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            door = self._doors.get((method, scope["path"]))
            if door is None or ("admin" in scope and scope["path"] not in auth.OPEN_PATHS | auth.ADMIN_PATHS):
                own += self._allowed(scope["path"])
                raise self._no_door(scope)
            scope["visit"] = visit = self._admit(scope, request_id)
            await door(scope, receive, sending, request_id.encode())
        except ClientGone:
            return
        except asyncio.CancelledError:
            # Only the server cancels requests, when it stops or reloads and they have had their time to finish.
            stopping = FingerpostError("the server stops, or its configuration was reloaded, and the time to finish is over")
            stopping.status, stopping.code = 503, "stopping"
            await sending.fail(stopping, own)
        except FingerpostError as error:
            await sending.fail(error, [*own, *_limit_headers(visit)])
        except Exception as error:
            # A defect of ours. Its text may quote the request, so only its kind and place are told.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
            await sending.fail(FingerpostError("internal error; the log names its place"), own)
        finally:
            if visit is not None:
                await visit.end()

    def _admit(self, scope: Scope, request_id: str) -> Visit | None:
        """The visit that a request is, before anything of its body is read; None at a door that is open to all."""
        world, path = self.world, scope["path"]
        if path in auth.OPEN_PATHS:
            return None
        if path in auth.ADMIN_PATHS:
            auth.check_admin(world.config, scope["headers"], own_port="admin" in scope)
            return None
        if world.keys is None:
            return None
        try:
            return Visit(world.keys.find(scope["headers"]), world.ledger)
        except Refused as error:
            world.gateway.refuse(error, request_id)
            raise

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
        visit: Visit | None = scope["visit"]

        async def carry() -> None:
            async with self.world.gateway.carry(body, scope["headers"], request_id.decode(), visit) as answer:
                await _pass_on(answer, send, request_id, visit)

        if "leaving" in scope:
            await _until_client_leaves(carry, scope["leaving"])
        else:
            await _until_disconnect(carry, receive)

    async def _route(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        _, decision = await self.world.gateway.decide(body, request_id.decode(), visit=scope["visit"])
        headers = [*decision_headers(decision, decision.backend, request_id), *_limit_headers(scope["visit"])]
        await _send_json(send, 200, {**decision.to_json(), "request_id": request_id.decode()}, headers)

    async def _sfc(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        # Clients of the reference name any model; what they ask for is always a decision.
        request, decision = await self.world.gateway.decide(body, request_id.decode(), model=AUTO, visit=scope["visit"])
        model = decision.backend.model if decision.backend else ""
        kind, content = sfc.answer(model, request_id.decode(), int(self._now()), stream=request.stream)
        headers = [*decision_headers(decision, decision.backend, request_id), *_limit_headers(scope["visit"])]
        await _send_bytes(send, 200, content, [(b"content-type", kind), *headers])

    async def _systemone(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        try:
            asked = systemone.read(body)
        except InvalidRequest as error:
            self.world.gateway.refuse(error, request_id.decode(), scope["visit"])
            raise
        verdicts = await self.world.gateway.believe(asked.tables, request_id.decode(), scope["visit"])
        headers = [(b"x-fingerpost-request-id", request_id), *_limit_headers(scope["visit"])]
        await _send_json(send, 200, systemone.answer(asked, verdicts), headers)

    async def _decision(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        _, decision = await self.world.gateway.decide(body, request_id.decode(), visit=scope["visit"], parse=switchyard.read)
        headers = [*decision_headers(decision, decision.backend, request_id), *_limit_headers(scope["visit"])]
        await _send_json(send, 200, switchyard.answer(decision), headers)

    async def _models(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        visit: Visit | None = scope["visit"]
        names = usable_names(self.world.gateway.router.table, visit.client.access if visit else EVERYTHING)
        models = [{"id": n, "object": "model", "created": self._started, "owned_by": "fingerpost"} for n in names]
        await _send_json(send, 200, {"object": "list", "data": models})

    async def _health(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        await _send_json(send, 200, {"status": "ok", "version": __version__})

    async def _readyz(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        status = 200 if self.ready else 503
        detail: dict[str, object] = {"status": "ready" if self.ready else "starting"}
        with suppress(Refused):
            auth.check_admin(self.world.config, scope["headers"], own_port="admin" in scope)
            detail["in_flight"] = self.world.gateway.in_flight
            detail["config"] = "the last reload failed; the log says why" if self.upkeep.failed else "ok"
        await _send_json(send, status, detail)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        content = self.world.metrics.render(self.world.gateway.in_flight, self.world.guards.values())
        await _send_bytes(send, 200, content, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    async def _body(self, scope: Scope, receive: Receive, request_id: bytes) -> bytes:
        """The request body, refused as soon as it is known to be larger than the limit."""
        limit = self.world.config.server.max_body
        too_large = InvalidRequest.too_large(f"the body is larger than {limit} bytes (server.max_body)")
        stated = b"0"
        for name, value in scope["headers"]:
            if name == b"content-length":
                stated = value
            elif name == b"content-encoding" and value.lower() != b"identity":
                packed = InvalidRequest("the body is compressed (content-encoding); send it plain")
                packed.status, packed.code = 415, "unsupported_encoding"
                self.world.gateway.refuse(packed, request_id.decode(), scope["visit"])
                raise packed
        size = int(stated) if stated.isdigit() else 0
        parts: list[bytes] = []
        more = size <= limit
        size = 0 if more else size
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.world.gateway.refuse(None, request_id.decode(), scope["visit"])
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = bool(message.get("more_body")) and size <= limit
        if size > limit:
            self.world.gateway.refuse(too_large, request_id.decode(), scope["visit"])
            raise too_large
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Sending:
    """`send` that knows how an error can still be told: before a response has started, or as an event of a stream."""

    def __init__(self, send: Send, at_once: Callable[[int, Headers, bytes], bool] | None) -> None:
        self._send = send
        self._at_once = at_once
        self._started = False
        self._open_ended = False
        self._tail = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            if (whole := message.get("whole")) is not None:
                return await self._whole(message, whole)
            names = {name for name, _ in message["headers"]}
            self._open_ended = is_event_stream(message["headers"]) and not names & {b"content-encoding", b"content-length"}
        else:
            self._tail = (self._tail + message["body"][-4:])[-4:]
        await self._send(message)

    async def _whole(self, start: MutableMapping[str, Any], body: bytes) -> None:
        if self._at_once is None or not self._at_once(start["status"], start["headers"], body):
            await self._send({"type": "http.response.start", "status": start["status"], "headers": start["headers"]})
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def fail(self, error: FingerpostError, headers: Headers) -> None:
        """Answers with the error; ends a stream that has begun with an error event, and any other response by cutting it."""
        if not self._started:
            return await _send_json(self, error.status, error.to_json(), [*headers, *_error_headers(error)])
        if not self._open_ended:
            raise ConnectionAbortedError(error.message) from None
        # The backend may have broken off within an event; a blank line ends that one, so that ours is read by itself.
        ended = self._tail.endswith((b"\n\n", b"\n\r\n"))
        gap = b"" if ended else b"\n" if self._tail.endswith(b"\n") else b"\n\n"
        event = gap + b"data: " + msgspec.json.encode(error.to_json()) + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


async def _until_client_leaves(work: Callable[[], Awaitable[None]], leaving: set[Callable[[], None]]) -> None:
    """Runs `work`, and cancels it as soon as the client closes its connection, which calls what is in `leaving`."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    leaving.add(leave)
    try:
        await work()
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        leaving.discard(leave)


async def _until_disconnect(work: Callable[[], Awaitable[None]], receive: Receive) -> None:
    """The same in a server that tells of it by a message only, for which a second task must wait."""

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


async def _pass_on(answer: Answer, send: Send, request_id: bytes, visit: Visit | None) -> None:
    headers = [*answer.headers, *decision_headers(answer.decision, answer.backend, request_id)]
    if limits := _limit_headers(visit):
        # Those of the backend speak of the key that all clients share there.
        headers = [*(pair for pair in headers if not pair[0].startswith(b"x-ratelimit-")), *limits]
    chunks = answer.chunks
    if chunks.whole:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers, "whole": chunks.whole})
        return chunks.take()
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _limit_headers(visit: Visit | None) -> Headers:
    return [] if visit is None else visit.headers()


def _error_headers(error: FingerpostError) -> Headers:
    """The headers that HTTP asks for with some errors (RFC 9110, sections 10.2.3 and 11.6.1)."""
    headers: Headers = [(b"www-authenticate", b'Bearer realm="fingerpost"')] if error.status == 401 else []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    return headers


def decision_headers(decision: Decision, backend: Backend | None, request_id: bytes) -> Headers:
    """The `x-fingerpost-*` headers; names are percent-encoded where they are not plain ASCII."""
    headers = [(b"x-fingerpost-" + name, _quoted(value)) for name, value in _names(decision, backend) if value is not None]
    if decision.confidence is not None:
        headers.append((b"x-fingerpost-confidence", b"%.4f" % decision.confidence))
    headers.append((b"x-fingerpost-decision-ms", b"%.3f" % (decision.elapsed * 1e3)))
    return [*headers, (b"x-fingerpost-request-id", request_id)]


def _names(decision: Decision, backend: Backend | None) -> tuple[tuple[bytes, str | None], ...]:
    return (b"route", decision.route), (b"backend", backend.name if backend else None), (b"source", decision.source)


@lru_cache(1024)
def _quoted(name: str) -> bytes:
    return quote(name, safe=" !#$&'()*+,/:;=?@[]~").encode()


async def _send_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    await _send_bytes(send, status, msgspec.json.encode(value), [JSON, *(headers or [])])


async def _send_bytes(send: Send, status: int, content: bytes, headers: Headers) -> None:
    length = (b"content-length", b"%d" % len(content))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length], "whole": content})
