"""Carrying a request: decide, try backends in order until one answers, pass its reply on, tell the story once."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.errors import FingerpostError, InvalidRequest, UpstreamError, UpstreamTimeout
from fingerpost.observers import Observer
from fingerpost.records import Attempt, Decision, Exchange, Outcome, Usage, Verdict
from fingerpost.router import Router
from fingerpost.routes import Backend, RouteTable
from fingerpost.upstreams import Call, Headers, Reply, Upstreams
from fingerpost.upstreams.sse import UsageReader

PASSED_REQUEST_HEADERS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"content-type", b"idempotency-key", b"openai-beta", b"traceparent",
    b"tracestate", b"user-agent", b"x-request-id",
})  # fmt: skip
"""Client headers that reach a backend. A list of what may pass, so that no client can add a key, a host or a proxy hop."""

STOPPED_REPLY_HEADERS = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
    b"upgrade", b"set-cookie", b"alt-svc", b"strict-transport-security",
})  # fmt: skip
"""Reply headers that stop here: hop-by-hop ones (RFC 9110, section 7.6.1) and those that speak for the backend's host."""

BUSY_STATUSES = frozenset({408, 429, *range(500, 1000)})
"""The backend cannot answer now: the next one is tried, and this one again in a later round."""

MISCONFIGURED_STATUSES = frozenset({101, *range(300, 400), 401, 403, 404, 405, 407})
"""The backend refuses our key, path or model, or points to another URL, where a client must not be sent with its prompt. The
client cannot mend that, so the next backend is tried, this one not again."""

_NEXT_BACKEND_STATUSES = BUSY_STATUSES | MISCONFIGURED_STATUSES

Parse = Callable[[bytes], ChatRequest]
"""What reads a request out of a body."""

_log = logging.getLogger("fingerpost.gateway")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client: the decision, the backend that answered, and its reply; read the chunks once."""

    decision: Decision
    backend: Backend
    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]


class Gateway:
    """Decides and carries. `retries` is how many more times the whole list of backends is tried; `deadline` bounds, in
    seconds, the time until the first byte of a reply.
    """

    def __init__(
        self,
        router: Router,
        upstreams: Upstreams,
        observers: Sequence[Observer] = (),
        *,
        retries: int = 1,
        deadline: float = 600.0,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.router = router
        self.upstreams = upstreams
        self.observers = tuple(observers)
        self.retries = retries
        self.deadline = deadline
        self.in_flight = 0
        self._clock = clock
        self._pause = pause

    async def decide(
        self, body: bytes, request_id: str = "", *, model: str | None = None, parse: Parse = ChatRequest.parse
    ) -> tuple[ChatRequest, Decision]:
        """A body's request and its decision, carrying nothing; `model` overrides what the body names.

        Raises what `parse` and `Router.decide` raise.
        """
        with self._telling(request_id) as story:
            request = parse(body)
            if model is not None:
                request = replace(request, model=model)
            story.stream = request.stream
            story.decision = await self.router.decide(request)
            story.status, story.outcome = 200, "completed"
            return request, story.decision

    async def believe(self, asked: Sequence[tuple[Conversation, RouteTable]], request_id: str = "") -> list[Verdict]:
        """What the classifier believes about each conversation and table, told as one exchange without a decision.

        Raises what `Router.believe` raises.
        """
        with self._telling(request_id) as story:
            verdicts = [await self.router.believe(conversation, table) for conversation, table in asked]
            story.status, story.outcome = 200, "completed"
            return verdicts

    def refuse(self, error: FingerpostError | None, request_id: str = "") -> None:
        """Tells the observers of a request that ended before it was read: refused, or (None) left by its client."""
        story = _Story(request_id, self._clock())
        if error is not None:
            story.fail(error)
        self._tell(story.exchange(self._clock()))

    @asynccontextmanager
    async def carry(self, body: bytes, headers: Headers = (), request_id: str = "") -> AsyncIterator[Answer]:
        """The answer to a chat body, from the first backend that gives one; leaving the context lets go of the backend.

        Raises:
            FingerpostError: the request is wrong, nothing fits, or no backend answered; its message names those tried.
        """
        with self._telling(request_id) as story:
            request = ChatRequest.parse(body)
            story.stream = request.stream
            story.decision = await self.router.decide(request)
            try:
                async with asyncio.timeout(self.deadline):
                    backend, reply, first = await self._first_reply(request, story.decision, headers, story)
            except TimeoutError:
                raise UpstreamTimeout(f"no backend answered within {self.deadline:g} s ({story.tried})") from None
            story.status = reply.status
            story.first_byte = self._clock() - story.start
            chunks = _watched(reply, first, story)
            try:
                yield Answer(story.decision, backend, reply.status, _going_back(reply.headers), chunks)
            finally:
                await chunks.aclose()
                await reply.close()

    async def aclose(self) -> None:
        """Closes the router and all upstreams."""
        await self.router.aclose()
        for upstream in self.upstreams.values():
            await upstream.aclose()

    async def _first_reply(
        self, request: ChatRequest, decision: Decision, headers: Headers, story: _Story
    ) -> tuple[Backend, Reply, bytes]:
        """The backend with the first reply worth passing on, that reply, and its first chunk.

        Until a first chunk has come, nothing has gone to the client and another backend may be tried.
        """
        passed = _going_on(headers)
        left = list(decision.backends)
        for round_ in range(1 + self.retries):
            if round_ and left:
                await self._pause(0.1 * 2**round_ * random.uniform(0.5, 1.0))
            for backend in tuple(left):
                call = Call(backend, request.body_for(backend.model), passed)
                found = await self._attempt(call, story)
                if found is not None:
                    return backend, *found
                if story.attempts[-1].status in MISCONFIGURED_STATUSES:
                    left.remove(backend)
        raise _all_failed(story)

    async def _attempt(self, call: Call, story: _Story) -> tuple[Reply, bytes] | None:
        """The reply and its first chunk, or None when another backend may do better; the story gets the attempt in any case."""
        name, start = call.backend.name, self._clock()
        status: int | None = None
        why = "given up"
        try:
            reply = await self.upstreams[name].send(call)
            if reply.status in _NEXT_BACKEND_STATUSES:
                await reply.close()
                status, why = reply.status, f"answered {reply.status}"
                return None
            first = await _first_chunk(reply)
            status, why = reply.status, ""
            return reply, first
        except UpstreamError as error:
            why = error.message.removeprefix(f"{name}: ")
            story.timeouts += isinstance(error, UpstreamTimeout)
            return None
        finally:
            story.attempts.append(Attempt(name, status, why, self._clock() - start))

    @contextmanager
    def _telling(self, request_id: str) -> Iterator[_Story]:
        """A story that is told to the observers once, however the block ends; one that is cancelled has lost its client."""
        story = _Story(request_id, self._clock())
        self.in_flight += 1
        try:
            yield story
        except Exception as error:
            story.fail(error)
            raise
        finally:
            self.in_flight -= 1
            self._tell(story.exchange(self._clock()))

    def _tell(self, exchange: Exchange) -> None:
        for observer in self.observers:
            try:
                observer.observe(exchange)
            except Exception as error:  # a full disk or a broken plugin must not fail the request that it watches
                _log.error("observer %s failed: %s", type(observer).__name__, type(error).__name__)


@dataclass(slots=True)
class _Story:
    """What is known of a request so far; becomes its Exchange."""

    request_id: str
    start: float
    outcome: Outcome | None = None
    status: int = 0
    stream: bool = False
    decision: Decision | None = None
    attempts: list[Attempt] = field(default_factory=list)
    timeouts: int = 0
    first_byte: float | None = None
    sent_bytes: int = 0
    usage: Usage | None = None
    error: str = ""

    @property
    def tried(self) -> str:
        """Each attempt's backend and why it gave no reply."""
        return "; ".join(f"{attempt.backend}: {attempt.error}" for attempt in self.attempts) or "there is none to try"

    def fail(self, error: Exception) -> None:
        """Notes how an error ended the request, in words that cannot quote it: a prompt may stand where a role should."""
        if isinstance(error, InvalidRequest):
            self.error = f"{error.code} at {error.param}" if error.param else error.code
        else:
            self.error = error.message if isinstance(error, FingerpostError) else type(error).__name__
        if self.first_byte is not None:
            self.outcome = "cut"
            return
        self.status = error.status if isinstance(error, FingerpostError) else 500
        self.outcome = "failed" if self.status >= 500 or isinstance(error, UpstreamError) else "rejected"

    def exchange(self, now: float) -> Exchange:
        return Exchange(
            request_id=self.request_id,
            outcome=self.outcome or "client_gone",
            status=self.status,
            stream=self.stream,
            elapsed=now - self.start,
            decision=self.decision,
            attempts=tuple(self.attempts),
            first_byte=self.first_byte,
            sent_bytes=self.sent_bytes,
            usage=self.usage,
            error=self.error,
        )


async def _first_chunk(reply: Reply) -> bytes:
    """The first chunk, empty when there is none; closes the reply if it does not come."""
    try:
        return await anext(reply.chunks, b"")
    except BaseException:
        await reply.close()
        raise


async def _watched(reply: Reply, first: bytes, story: _Story) -> AsyncGenerator[bytes, None]:
    """The reply's chunks as they are, counted, with usage read in passing."""
    reader = UsageReader(stream=is_event_stream(reply.headers))
    readable = not reply.header(b"content-encoding")
    chunk = first
    try:
        while chunk:
            story.sent_bytes += len(chunk)
            if readable:
                reader.feed(chunk)
            yield chunk
            chunk = await anext(reply.chunks, b"")
        story.outcome = "completed"
    finally:
        story.usage = reader.close()


def is_event_stream(headers: Headers) -> bool:
    """Whether a reply with these headers is a stream of server-sent events."""
    return any(name == b"content-type" and b"event-stream" in value.lower() for name, value in headers)


def _going_on(headers: Headers) -> Headers:
    """Those of a client's headers that a backend gets."""
    passed = PASSED_REQUEST_HEADERS - _hop_by_hop(headers)
    return tuple(pair for pair in headers if pair[0] in passed)


def _going_back(headers: Headers) -> Headers:
    """Those of a backend's headers that the client gets."""
    stopped = STOPPED_REPLY_HEADERS | _hop_by_hop(headers)
    return tuple(pair for pair in headers if pair[0] not in stopped and not pair[0].startswith(b"x-fingerpost-"))


def _hop_by_hop(headers: Headers) -> frozenset[bytes]:
    """The headers that `connection` declares to be about this hop only."""
    return frozenset(token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b","))


def _all_failed(story: _Story) -> UpstreamError:
    """What to tell the client when no backend answered: 429 if all were busy, 504 if all were slow, else 502."""
    slow = 0 < len(story.attempts) == story.timeouts
    error = (UpstreamTimeout if slow else UpstreamError)(f"no backend answered ({story.tried})")
    if story.attempts and all(attempt.status == 429 for attempt in story.attempts):
        error.status, error.code = 429, "rate_limit_exceeded"
    return error
