"""The application: requests in, gateway calls out. No framework: a dictionary of paths and a few small functions."""

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
from fingerpost.hollow import check_values
from fingerpost.policy import usable_names
from fingerpost.records import Decision
from fingerpost.routes import AUTO, EVERYTHING
from fingerpost.server import auth, systemone
from fingerpost.server import decision as switchyard
from fingerpost.server.request import ClientGone, Request
from fingerpost.server.sending import decision_lines, fail, id_line, limit_headers, pass_on, send_bytes, send_json
from fingerpost.server.upkeep import Upkeep
from fingerpost.splice import Source
from fingerpost.upstreams.wire import fields

_PLAIN = b"", b"identity"

Door = Callable[[Request, Visit | None], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

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
        self._prefix, self._numbers = os.urandom(11).hex(), itertools.count(1 << 40)
        self._doors: dict[tuple[str, str], Door] = {
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
        self._doors |= {("HEAD", path): door for (method, path), door in self._doors.items() if method == "GET"}

    @property
    def world(self) -> World:
        """The world that is served now; a reload puts another one in its place."""
        return self.upkeep.world

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The start and end of the server around it, as ASGI tells of them; requests come to `serve`."""
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

    def serve(self, request: Request) -> Awaitable[None]:
        """Answers a request of a client, whatever becomes of it."""
        return self._answer(request, self._doors.get((request.method, request.path)))

    def serve_admin(self, request: Request) -> Awaitable[None]:
        """Answers a request that came in by the port of the administrators."""
        request.on_admin_port = True
        known = request.path in auth.OPEN_PATHS | auth.ADMIN_PATHS
        return self._answer(request, self._doors.get((request.method, request.path)) if known else None)

    async def _answer(self, request: Request, door: Door | None) -> None:
        request.id = self._prefix + hex(next(self._numbers))[3:]  # of 0x1 and ten digits
        visit: Visit | None = None
        try:
            if door is None:
                raise self._no_door(request.path)
            visit = self._admit(request)
            await door(request, visit)
        except ClientGone:
            return
        except asyncio.CancelledError:
            if not request.gone:  # then it is the server that stops or reloads; its requests have had their time to finish
                self._fail(request, _stopping())
        except FingerpostError as error:
            self._fail(request, error, visit)
        except Exception as error:
            # A defect of ours. Its text may quote the request, so only its kind and place are told.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
            self._fail(request, FingerpostError("internal error; the log names its place"))
        finally:
            if visit is not None:
                await visit.end()

    def _fail(self, request: Request, error: FingerpostError, visit: Visit | None = None) -> None:
        allowed = self._allowed(request.path) if error.status == 405 else ()
        allow = [(b"allow", b", ".join(allowed))] if allowed else []
        fail(request, error, id_line(request.id) + fields([*allow, *limit_headers(visit)]))

    def _admit(self, request: Request) -> Visit | None:
        """The visit that a request is, before anything of its body is read; None at a door that is open to all."""
        world, path = self.upkeep.world, request.path
        if path in auth.OPEN_PATHS:
            return None
        if path in auth.ADMIN_PATHS:
            auth.check_admin(world.config, request.headers, own_port=request.on_admin_port)
            return None
        if world.keys is None:
            return None
        try:
            return Visit(world.keys.find(request.headers), world.ledger)
        except Refused as error:
            world.gateway.refuse(error, request.id)
            raise

    def _allowed(self, path: str) -> list[bytes]:
        """The methods that a path takes; none where there is nothing."""
        return [method.encode() for method, known in self._doors if known == path]

    def _no_door(self, path: str) -> FingerpostError:
        allowed = self._allowed(path)
        if allowed:
            error: FingerpostError = InvalidRequest(f"{path} takes {b', '.join(allowed).decode()}")
            error.status, error.code = 405, "method_not_allowed"
            return error
        error = UnknownModel(
            f"there is nothing at this path; there is {', '.join(dict.fromkeys(path for _, path in self._doors))}"
        )
        error.code = "not_found"
        return error

    async def _chat(self, request: Request, visit: Visit | None) -> None:
        # The first spares a coroutine.
        body = self._whole(request, visit) if request.whole else await self._body(request, visit)
        with self.upkeep.world.gateway.carry(body, request.headers, request.id, visit, request.task) as carrying:
            rest = pass_on(await carrying.answer(), request, visit)
            if rest is not None:
                await rest

    async def _route(self, request: Request, visit: Visit | None) -> None:
        _, decision = await self.world.gateway.decide(await self._body(request, visit), request.id, visit=visit)
        send_json(request, 200, {**decision.to_json(), "request_id": request.id}, _told(request, decision, visit))

    async def _sfc(self, request: Request, visit: Visit | None) -> None:
        # Clients of the reference name any model; what they ask for is always a decision.
        body = await self._body(request, visit)
        asked, decision = await self.world.gateway.decide(body, request.id, model=AUTO, visit=visit)
        model = decision.backend.model if decision.backend else ""
        kind, content = sfc.answer(model, request.id, int(self._now()), stream=asked.stream)
        send_bytes(request, 200, content, kind, _told(request, decision, visit))

    async def _systemone(self, request: Request, visit: Visit | None) -> None:
        body = await self._body(request, visit)
        try:
            asked = systemone.read(body)
        except InvalidRequest as error:
            self.world.gateway.refuse(error, request.id, visit)
            raise
        verdicts = await self.world.gateway.believe(asked.tables, request.id, visit)
        lines = id_line(request.id) + fields(limit_headers(visit))
        send_json(request, 200, systemone.answer(asked, verdicts), lines)

    async def _decision(self, request: Request, visit: Visit | None) -> None:
        body = await self._body(request, visit)
        _, decision = await self.world.gateway.decide(body, request.id, visit=visit, parse=switchyard.read)
        send_json(request, 200, switchyard.answer(decision), _told(request, decision, visit))

    async def _models(self, request: Request, visit: Visit | None) -> None:
        names = usable_names(self.world.gateway.router.table, visit.client.access if visit else EVERYTHING)
        models = [{"id": n, "object": "model", "created": self._started, "owned_by": "fingerpost"} for n in names]
        send_json(request, 200, {"object": "list", "data": models})

    async def _health(self, request: Request, visit: Visit | None) -> None:
        send_json(request, 200, {"status": "ok", "version": __version__})

    async def _readyz(self, request: Request, visit: Visit | None) -> None:
        status = 200 if self.ready else 503
        detail: dict[str, object] = {"status": "ready" if self.ready else "starting"}
        with suppress(Refused):
            auth.check_admin(self.world.config, request.headers, own_port=request.on_admin_port)
            detail["in_flight"] = self.world.gateway.in_flight
            detail |= self.upkeep.detail()
        send_json(request, status, detail)

    async def _metrics(self, request: Request, visit: Visit | None) -> None:
        content = self.world.report()
        if self.upkeep.summed is not None:
            content = await self.upkeep.summed(content)
        send_bytes(request, 200, content, b"text/plain; version=0.0.4; charset=utf-8")

    async def _body(self, request: Request, visit: Visit | None) -> Source:
        """The request body, refused as soon as it is known to be beyond the limits."""
        limit = self.world.config.server.max_body
        try:
            if request.stated <= limit and request.encoding in _PLAIN:
                await request.arrive(limit)
        except (ClientGone, asyncio.CancelledError):
            self.world.gateway.refuse(None, request.id, visit)
            raise
        return self._whole(request, visit)

    def _whole(self, request: Request, visit: Visit | None) -> Source:
        """The same where no more of it is to come."""
        world = self.upkeep.world
        settings = world.config.server
        try:
            if request.gone:
                raise ClientGone
            if request.encoding not in _PLAIN:
                raise _packed()
            if request.size > settings.max_body or request.stated > settings.max_body:
                raise InvalidRequest.too_large(f"the body is larger than {settings.max_body} bytes (server.max_body)")
            body = request.take()
            check_values(body, settings.max_values)
        except (InvalidRequest, ClientGone) as error:
            world.gateway.refuse(error if isinstance(error, InvalidRequest) else None, request.id, visit)
            raise
        return body


def _told(request: Request, decision: Decision, visit: Visit | None) -> bytes:
    """The header lines of an answer that tells a decision."""
    return decision_lines(decision, decision.backend, request.id) + fields(limit_headers(visit))


def _packed() -> InvalidRequest:
    error = InvalidRequest("the body is compressed (content-encoding); send it plain")
    error.status, error.code = 415, "unsupported_encoding"
    return error


def _stopping() -> FingerpostError:
    error = FingerpostError("the server stops, or its configuration was reloaded, and the time to finish is over")
    error.status, error.code = 503, "stopping"
    return error
