"""Responses on their way out: a backend's reply, our own JSON, errors, and the headers that tell the decision."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import msgspec

from fingerpost.clients import Visit
from fingerpost.errors import FingerpostError
from fingerpost.gateway import Answer, is_event_stream
from fingerpost.records import Decision
from fingerpost.routes import Backend

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


class Sending:
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
            return await send_json(self, error.status, error.to_json(), [*headers, *_error_headers(error)])
        if not self._open_ended:
            raise ConnectionAbortedError(error.message) from None
        # The backend may have broken off within an event; a blank line ends that one, so that ours is read by itself.
        ended = self._tail.endswith((b"\n\n", b"\n\r\n"))
        gap = b"" if ended else b"\n" if self._tail.endswith(b"\n") else b"\n\n"
        event = gap + b"data: " + msgspec.json.encode(error.to_json()) + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})


async def pass_on(answer: Answer, send: Send, request_id: bytes, visit: Visit | None) -> None:
    """Sends a backend's answer to the client: whole at once where all of it is there, else chunk by chunk."""
    headers = [*answer.headers, *decision_headers(answer.decision, answer.backend, request_id)]
    if limits := limit_headers(visit):
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


def limit_headers(visit: Visit | None) -> Headers:
    """The headers that tell a client what is left of its limits; none where there are no keys."""
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


async def send_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    """Sends a JSON response of our own."""
    await send_bytes(send, status, msgspec.json.encode(value), [JSON, *(headers or [])])


async def send_bytes(send: Send, status: int, content: bytes, headers: Headers) -> None:
    """Sends a response of our own, whole."""
    length = (b"content-length", b"%d" % len(content))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length], "whole": content})
