"""Carrying a request: decide, try backends in order until one answers, pass its reply on, tell the story once."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from fingerpost.chat import ChatRequest
from fingerpost.errors import FingerpostError, InvalidRequest, UpstreamBusy, UpstreamError, UpstreamTimeout
from fingerpost.observers import Observer
from fingerpost.records import Attempt, AttemptKind, Decision, Exchange, Outcome, Usage
from fingerpost.router import Router
from fingerpost.routes import Backend
from fingerpost.upstreams import Call, Headers, Reply, Upstreams
from fingerpost.upstreams.health import Budget, backoff, retry_after
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

_log = logging.getLogger("fingerpost.gateway")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client: the decision, the backend that answered, and its reply; read the chunks once."""

    decision: Decision
    backend: Backend
    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]


Found = tuple[Backend, Reply, bytes]
"""The backend that answered, its reply, and the first chunk of it."""


class Gateway:
    """Decides and carries. `retries` is how many more times the whole list of backends is tried, as far as the `budget` for
    more calls than requests goes; `deadline` bounds, in seconds, the time until the first byte of a reply. After `hedge`
    seconds without one (None: never) the next backend is asked beside the first.
    """

    def __init__(
        self,
        router: Router,
        upstreams: Upstreams,
        observers: Sequence[Observer] = (),
        *,
        retries: int = 1,
        deadline: float = 600.0,
        hedge: float | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,  # noqa: TID251  (a stamp)
    ) -> None:
        self.router = router
        self.upstreams = upstreams
        self.observers = tuple(observers)
        self.retries = retries
        self.deadline = deadline
        self.hedge = hedge
        self.budget = budget or Budget()
        self.in_flight = 0
        self._running: set[asyncio.Task[object]] = set()
        self._clock = clock
        self._pause = pause
        self._wall = wall

    async def decide(self, body: bytes, request_id: str = "", *, model: str | None = None) -> tuple[ChatRequest, Decision]:
        """A chat body's request and its decision, carrying nothing; `model` overrides what the body names.

        Raises what `ChatRequest.parse` and `Router.decide` raise.
        """
        with self._telling(request_id) as story:
            request = ChatRequest.parse(body)
            if model is not None:
                request = replace(request, model=model)
            story.stream = request.stream
            story.decision = await self.router.decide(request)
            story.status, story.outcome = 200, "completed"
            return request, story.decision

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
            self.budget.earn()
            deadline = asyncio.get_running_loop().time() + self.deadline
            passed = _going_on(headers)

            def call(backend: Backend) -> Call:
                return Call(backend, request.body_for(backend.model), passed, deadline=deadline)

            try:
                async with asyncio.timeout_at(deadline):
                    backend, reply, first = await self._first_reply(call, story)
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

    def cut(self) -> None:
        """Cancels the tasks of all requests that are being served."""
        for task in self._running:
            task.cancel()

    async def aclose(self) -> None:
        """Closes the router and all upstreams."""
        await self.router.aclose()
        for upstream in self.upstreams.values():
            await upstream.aclose()

    async def _first_reply(self, call: Callable[[Backend], Call], story: _Story) -> Found:
        """The first reply worth passing on.

        Until its first chunk has come, nothing has gone to the client and another backend may be tried. A backend with several
        URLs is tried as many times in a row. The first time through the list costs nothing of the budget: no backend gets more
        calls by it than there are requests.
        """
        left = list(story.decision.backends if story.decision else ())
        for round_ in range(1 + self.retries):
            if round_ and left:
                await self._pause(backoff(round_, random.random()))
            turns = deque(backend for backend in left for _ in backend.urls)
            before = len(story.attempts)
            while turns and (not round_ or self.budget.spend()):
                seen = len(story.attempts)
                found = await self._next(turns, call, "retry" if round_ else "failover" if story.called else "first", story)
                if found is not None:
                    return found
                for attempt in story.attempts[seen:]:
                    if attempt.status in MISCONFIGURED_STATUSES:
                        left = [backend for backend in left if backend.name != attempt.backend]
                    if attempt.status in MISCONFIGURED_STATUSES or not attempt.called:
                        turns = deque(backend for backend in turns if backend.name != attempt.backend)
            if turns or not any(attempt.called for attempt in story.attempts[before:]):
                break
        raise _all_failed(story)

    async def _next(
        self, turns: deque[Backend], call: Callable[[Backend], Call], kind: AttemptKind, story: _Story
    ) -> Found | None:
        """Tries the backend whose turn it is and, when it is slow and a hedge is allowed, the next one beside it."""
        backend = turns.popleft()
        if self.hedge is None or story.hedged or not turns:
            return await self._attempt(call(backend), kind, story)
        try:
            async with asyncio.TaskGroup() as group:
                done, running = await asyncio.wait(
                    {group.create_task(self._attempt(call(backend), kind, story))}, timeout=self.hedge
                )
                if running and self.budget.spend():
                    story.hedged = True
                    running.add(group.create_task(self._attempt(call(turns.popleft()), "hedge", story)))
                found = [task.result() for task in done]
                while running and not any(found):
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    found += [task.result() for task in done]
                for task in running:
                    task.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return next(filter(None, found), None)

    async def _attempt(self, call: Call, kind: AttemptKind, story: _Story) -> Found | None:
        """The reply and its first chunk, or None when another backend may do better; the story gets the attempt in any case."""
        name, start = call.backend.name, self._clock()
        status: int | None = None
        why = "given up"
        try:
            reply = await self.upstreams[name].send(call)
            if reply.status in _NEXT_BACKEND_STATUSES:
                await reply.close()
                status, why = reply.status, f"answered {reply.status}"
                story.wait_for(retry_after(reply.headers, self._wall()), status)
                return None
            first = await _first_chunk(reply)
            if story.answered:  # by the one that it was a hedge for, or by the hedge
                await reply.close()
                return None
            story.answered = True
            status, why = reply.status, ""
            return call.backend, reply, first
        except UpstreamBusy as busy:
            why, kind = busy.message, busy.why
            story.wait_for(busy.retry_after, busy.status)
            return None
        except UpstreamError as error:
            why = error.message.removeprefix(f"{name}: ")
            story.timeouts += isinstance(error, UpstreamTimeout)
            return None
        finally:
            story.attempts.append(Attempt(name, status, why, self._clock() - start, kind))

    @contextmanager
    def _telling(self, request_id: str) -> Iterator[_Story]:
        """A story that is told to the observers once, however the block ends; one that is cancelled has lost its client."""
        story = _Story(request_id, self._clock())
        self.in_flight += 1
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield story
        except Exception as error:
            story.fail(error)
            raise
        finally:
            self.in_flight -= 1
            self._running.discard(task)
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
    limited: int = 0
    waits: list[float] = field(default_factory=list)
    hedged: bool = False
    answered: bool = False
    first_byte: float | None = None
    sent_bytes: int = 0
    usage: Usage | None = None
    error: str = ""

    @property
    def tried(self) -> str:
        """Each attempt's backend and why it gave no reply."""
        return "; ".join(f"{attempt.backend}: {attempt.error}" for attempt in self.attempts) or "there is none to try"

    @property
    def called(self) -> bool:
        """Whether any backend was called."""
        return any(attempt.called for attempt in self.attempts)

    def wait_for(self, seconds: float | None, status: int) -> None:
        """Notes that a backend is not to be asked now, and how long it wants to be left alone."""
        self.limited += status == 429
        if seconds is not None:
            self.waits.append(seconds)

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
    """What to tell the client when no backend answered: 429 if all limit us, 503 if none could be called, 504 if all were
    slow, else 502. The first two say when to come again, where that is known.
    """
    attempts, message = story.attempts, f"no backend answered ({story.tried})"
    if attempts and all(attempt.status == 429 or not attempt.called for attempt in attempts):
        busy = UpstreamError(message)
        busy.status, busy.code = UpstreamBusy.status, UpstreamBusy.code
        if story.limited == len(attempts):
            busy.status, busy.code = 429, "rate_limit_exceeded"
        busy.retry_after = min(story.waits, default=None)
        return busy
    slow = 0 < len(attempts) == story.timeouts
    return (UpstreamTimeout if slow else UpstreamError)(message)
