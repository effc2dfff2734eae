"""Responses on their way out: a backend's reply, our own JSON, errors, and the headers that tell the decision."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from functools import lru_cache
from urllib.parse import quote

import msgspec

from fingerpost.clients import Visit
from fingerpost.errors import FingerpostError
from fingerpost.gateway import Answer
from fingerpost.records import Decision
from fingerpost.routes import Backend
from fingerpost.server.request import Request
from fingerpost.upstreams.wire import fields

Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"


def pass_on(answer: Answer, request: Request, visit: Visit | None) -> Awaitable[None] | None:
    """Sends a backend's answer to the client: whole at once where all of it is there, else as what it returns is awaited."""
    head, lines = answer.head, answer.head.lines
    if visit is not None and (limits := visit.headers()):
        # Those of the backend speak of the key that all clients share there.
        lines = fields([*(pair for pair in head.going_back if not pair[0].startswith(b"x-ratelimit-")), *limits])
    lines += decision_lines(answer.decision, answer.backend, request.id)
    if answer.length is not None:
        lines = b"%bcontent-length: %d\r\n" % (lines, answer.length)
    if not answer.whole:
        return _pass_on_chunks(answer, request, lines)
    request.send(answer.status, lines, answer.whole)
    answer.take()
    return None


async def _pass_on_chunks(answer: Answer, request: Request, lines: bytes) -> None:
    head = answer.head
    request.begin(answer.status, lines, answer.length, takes_events=head.events and not head.encoded)
    async for chunk in answer:
        if request.write(chunk):
            await answer.pour(request.write)
        await request.drained()
    request.end()


def fail(request: Request, error: FingerpostError, lines: bytes) -> None:
    """Answers with the error; ends a stream that has begun with an error event, and any other response by cutting it."""
    if request.ended or request.gone:
        return
    if not request.sent:
        send_json(request, error.status, error.to_json(), lines + fields(_error_headers(error)))
    elif request.takes_events:
        request.end_with_event(msgspec.json.encode(error.to_json()))
    else:
        request.cut()


def limit_headers(visit: Visit | None) -> Headers:
    """The headers that tell a client what is left of its limits; none where there are no keys."""
    return [] if visit is None else visit.headers()


def _error_headers(error: FingerpostError) -> Headers:
    """The headers that HTTP asks for with some errors (RFC 9110, sections 10.2.3 and 11.6.1)."""
    headers: Headers = [(b"www-authenticate", b'Bearer realm="fingerpost"')] if error.status == 401 else []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    return headers


def decision_lines(decision: Decision, backend: Backend | None, request_id: str) -> bytes:
    """The `x-fingerpost-*` headers, as lines; names are percent-encoded where they are not plain ASCII."""
    lines = _name_lines(decision.route, None if backend is None else backend.name, decision.source)
    if decision.confidence is not None:
        lines += b"x-fingerpost-confidence: %.4f\r\n" % decision.confidence
    told = lines, decision.elapsed * 1e3, request_id.encode()
    return b"%bx-fingerpost-decision-ms: %.3f\r\nx-fingerpost-request-id: %b\r\n" % told


def id_line(request_id: str) -> bytes:
    """The header with the id by which a request is found in the log."""
    return b"x-fingerpost-request-id: %b\r\n" % request_id.encode()


@lru_cache(1024)
def _name_lines(route: str | None, backend: str | None, source: str) -> bytes:
    names = (b"route", route), (b"backend", backend), (b"source", source)
    return fields([(b"x-fingerpost-" + what, _quoted(name)) for what, name in names if name is not None])


def _quoted(name: str) -> bytes:
    return quote(name, safe=" !#$&'()*+,/:;=?@[]~").encode()


def send_json(request: Request, status: int, value: object, lines: bytes = b"") -> None:
    """Sends a JSON response of our own, with more header lines."""
    send_bytes(request, status, msgspec.json.encode(value), JSON, lines)


def send_bytes(request: Request, status: int, content: bytes, kind: bytes, lines: bytes = b"") -> None:
    """Sends a response of our own, whole; `kind` is its content type."""
    head = b"content-type: %b\r\n%bcontent-length: %d\r\n" % (kind, lines, len(content))
    request.send(status, head, content)
