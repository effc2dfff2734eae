"""The ASGI application: sockets in, gateway calls out. No framework: a dictionary of paths and a few small functions."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from fingerpost import __version__, sfc
from fingerpost.assemble import World, conceal_options
from fingerpost.clients import Visit
from fingerpost.errors import FingerpostError, InvalidRequest, Refused, UnknownModel
from fingerpost.policy import usable_names
from fingerpost.routes import AUTO, EVERYTHING
from fingerpost.server import auth, systemone
from fingerpost.server import decision as switchyard
from fingerpost.server.leaving import ClientGone, until_client_leaves, until_disconnect
from fingerpost.server.sending import Headers, Send, Sending, decision_headers, limit_headers, pass_on, send_bytes, send_json
from fingerpost.server.upkeep import Upkeep

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_log = logging.getLogger("fingerpost.server")


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
            why = conceal_options(str(error), self.world.config)
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
        sending = Sending(send, scope.get("at_once"))
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
            await sending.fail(error, [*own, *limit_headers(visit)])
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
                await pass_on(answer, send, request_id, visit)

        if "leaving" in scope:
            await until_client_leaves(carry, scope["leaving"])
        else:
            await until_disconnect(carry, receive)

    async def _route(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        _, decision = await self.world.gateway.decide(body, request_id.decode(), visit=scope["visit"])
        headers = [*decision_headers(decision, decision.backend, request_id), *limit_headers(scope["visit"])]
        await send_json(send, 200, {**decision.to_json(), "request_id": request_id.decode()}, headers)

    async def _sfc(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        # Clients of the reference name any model; what they ask for is always a decision.
        request, decision = await self.world.gateway.decide(body, request_id.decode(), model=AUTO, visit=scope["visit"])
        model = decision.backend.model if decision.backend else ""
        kind, content = sfc.answer(model, request_id.decode(), int(self._now()), stream=request.stream)
        headers = [*decision_headers(decision, decision.backend, request_id), *limit_headers(scope["visit"])]
        await send_bytes(send, 200, content, [(b"content-type", kind), *headers])

    async def _systemone(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        try:
            asked = systemone.read(body)
        except InvalidRequest as error:
            self.world.gateway.refuse(error, request_id.decode(), scope["visit"])
            raise
        verdicts = await self.world.gateway.believe(asked.tables, request_id.decode(), scope["visit"])
        headers = [(b"x-fingerpost-request-id", request_id), *limit_headers(scope["visit"])]
        await send_json(send, 200, systemone.answer(asked, verdicts), headers)

    async def _decision(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        body = await self._body(scope, receive, request_id)
        _, decision = await self.world.gateway.decide(body, request_id.decode(), visit=scope["visit"], parse=switchyard.read)
        headers = [*decision_headers(decision, decision.backend, request_id), *limit_headers(scope["visit"])]
        await send_json(send, 200, switchyard.answer(decision), headers)

    async def _models(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        visit: Visit | None = scope["visit"]
        names = usable_names(self.world.gateway.router.table, visit.client.access if visit else EVERYTHING)
        models = [{"id": n, "object": "model", "created": self._started, "owned_by": "fingerpost"} for n in names]
        await send_json(send, 200, {"object": "list", "data": models})

    async def _health(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        await send_json(send, 200, {"status": "ok", "version": __version__})

    async def _readyz(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        status = 200 if self.ready else 503
        detail: dict[str, object] = {"status": "ready" if self.ready else "starting"}
        with suppress(Refused):
            auth.check_admin(self.world.config, scope["headers"], own_port="admin" in scope)
            detail["in_flight"] = self.world.gateway.in_flight
            detail["config"] = "the last reload failed; the log says why" if self.upkeep.failed else "ok"
        await send_json(send, status, detail)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        content = self.world.metrics.render(self.world.gateway.in_flight, self.world.guards.values())
        await send_bytes(send, 200, content, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

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
