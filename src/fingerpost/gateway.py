"""Carrying a request: decide, try backends in order until one answers, pass its reply on, tell the story once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType

import msgspec

from fingerpost.attempts import Attempts, Trail
from fingerpost.chat import ChatRequest, Conversation
from fingerpost.clients import Visit
from fingerpost.deadlines import Deadlines
from fingerpost.errors import FingerpostError, InvalidRequest, UpstreamError, UpstreamTimeout
from fingerpost.headers import ReplyHead, going_on, read_head, readable
from fingerpost.observers import Observer
from fingerpost.records import Decision, Exchange, Outcome, Usage, Verdict
from fingerpost.router import Router
from fingerpost.routes import EVERYTHING, Backend, RouteTable
from fingerpost.upstreams import Call, Headers, Reply, Take, Upstream, Upstreams, openai
from fingerpost.upstreams.health import Budget
from fingerpost.upstreams.sse import UsageReader, read_usage

Parse = Callable[[bytes], ChatRequest]
"""What reads a request out of a body."""

_log = logging.getLogger("fingerpost.gateway")


class Answer(msgspec.Struct, frozen=True):
    """What goes back to the client: the decision, the backend that answered, and its reply; read the chunks once."""

    decision: Decision
    backend: Backend
    status: int
    head: ReplyHead
    chunks: Chunks


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
    ) -> None:
        self.router = router
        self.upstreams = upstreams
        self.observers = tuple(observers)
        self.deadlines = Deadlines(deadline)
        self.attempts = Attempts(upstreams, budget or Budget(), retries=retries, hedge=hedge, clock=clock, pause=pause)
        self.in_flight = 0
        self.running: set[asyncio.Task[object]] = set()
        self.clock = clock

    async def decide(
        self,
        body: bytes,
        request_id: str = "",
        *,
        model: str | None = None,
        visit: Visit | None = None,
        parse: Parse = ChatRequest.parse,
    ) -> tuple[ChatRequest, Decision]:
        """A body's request and its decision, carrying nothing; `model` overrides what the body names.

        Raises what `parse`, `Visit.admit` and `Router.decide` raise.
        """
        with self._telling(request_id, visit) as story:
            request = parse(body)
            if model is not None:
                request = msgspec.structs.replace(request, model=model)
            story.stream = request.stream
            if visit is not None:
                await visit.admit(0)
            story.decision = await self.router.decide(request, visit.client.access if visit else EVERYTHING)
            story.status, story.outcome = 200, "completed"
            return request, story.decision

    async def believe(
        self, asked: Sequence[tuple[Conversation, RouteTable]], request_id: str = "", visit: Visit | None = None
    ) -> list[Verdict]:
        """What the classifier believes about each conversation and table, told as one exchange without a decision.

        Raises what `Visit.admit` and `Router.believe` raise.
        """
        with self._telling(request_id, visit) as story:
            if visit is not None:
                await visit.admit(0)
            verdicts = [await self.router.believe(conversation, table) for conversation, table in asked]
            story.status, story.outcome = 200, "completed"
            return verdicts

    def refuse(self, error: FingerpostError | None, request_id: str = "", visit: Visit | None = None) -> None:
        """Tells the observers of a request that ended before it was read: refused, or (None) left by its client."""
        story = _Story(request_id, self.clock(), key=visit.name if visit else None)
        if error is not None:
            story.fail(error)
        self.tell(story.exchange(self.clock()))

    def carry(self, body: bytes, headers: Headers = (), request_id: str = "", visit: Visit | None = None) -> Carrying:
        """The context in which there is an answer to a chat body, from the first backend that gives one; leaving it lets go of
        the backend.

        Raises, when it is entered:
            FingerpostError: the request is wrong, its client may not, nothing fits, or no backend answered; its message names
                those tried.
        """
        story = _Story(request_id, self.clock(), key=visit.name if visit else None)
        return Carrying(self, story, visit, _body=body, _headers=headers)

    def cut(self) -> None:
        """Cancels the tasks of all requests that are being served."""
        for task in self.running:
            task.cancel()

    async def aclose(self, keep: Collection[Upstream] = ()) -> None:
        """Closes the router and all upstreams but those to `keep`, which another gateway uses."""
        await self.router.aclose()
        for upstream in self.upstreams.values():
            if upstream not in keep:
                await upstream.aclose()

    def _telling(self, request_id: str, visit: Visit | None = None) -> _Telling:
        """A story that is told to the observers once, however the block ends; one that is cancelled has lost its client."""
        return _Telling(self, _Story(request_id, self.clock(), key=visit.name if visit else None), visit)

    def tell(self, exchange: Exchange) -> None:
        """Tells the observers."""
        for observer in self.observers:
            try:
                observer.observe(exchange)
            except Exception as error:  # a full disk or a broken plugin must not fail the request that it watches
                _log.error("observer %s failed: %s", type(observer).__name__, type(error).__name__)


class _Story(msgspec.Struct):
    """What is known of a request so far; becomes its Exchange."""

    request_id: str
    start: float
    outcome: Outcome | None = None
    status: int = 0
    stream: bool = False
    decision: Decision | None = None
    trail: Trail = msgspec.field(default_factory=Trail)
    first_byte: float | None = None
    sent_bytes: int = 0
    usage: Usage | None = None
    error: str = ""
    key: str | None = None
    backend: Backend | None = None

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
            attempts=tuple(self.trail.attempts),
            first_byte=self.first_byte,
            sent_bytes=self.sent_bytes,
            usage=self.usage,
            error=self.error,
            key=self.key,
            backend=self.backend,
        )


class _Telling(msgspec.Struct):
    """The block in which a request is served; no generator, since one for each request takes longer."""

    _gateway: Gateway
    _story: _Story
    _visit: Visit | None
    _task: asyncio.Task[object] | None = None

    def __enter__(self) -> _Story:
        task = self._task = asyncio.current_task()
        assert task is not None
        gateway = self._gateway
        gateway.in_flight += 1
        gateway.running.add(task)
        return self._story

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self._story.fail(error)
        gateway = self._gateway
        gateway.in_flight -= 1
        gateway.running.discard(self._task)
        exchange = self._story.exchange(gateway.clock())
        if self._visit is not None:
            self._visit.settle(exchange)
        gateway.tell(exchange)


class Carrying(_Telling):
    """The block in which a backend's answer is at hand."""

    _body: bytes = b""
    _headers: Headers = ()
    _chunks: Chunks | None = None
    _reply: Reply | None = None

    async def __aenter__(self) -> Answer:
        self.__enter__()
        try:
            return await self._ask(self._gateway, self._story, self._visit)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._chunks is not None
        try:
            self._chunks.close()
            if self._reply is not None:
                await self._reply.close()
        finally:
            self.__exit__(kind, error, trace)

    async def _ask(self, gateway: Gateway, story: _Story, visit: Visit | None) -> Answer:
        """Reads, decides, and finds the backend that answers."""
        request = ChatRequest.parse(self._body)
        story.stream = request.stream
        access, headers = EVERYTHING, self._headers
        if visit is not None:
            await visit.admit(request.needs.tokens)
            access, headers = visit.client.access, readable(headers) if visit.metered else headers
        story.decision = decision = await gateway.router.decide(request, access)
        gateway.attempts.budget.earn()
        assert self._task is not None
        deadline, passed = gateway.deadlines.begin(self._task), going_on(tuple(headers))

        def call(backend: Backend) -> Call:
            return Call(backend, request.body_for(backend.model), passed, deadline=deadline.at)

        try:
            backend, reply, first = await gateway.attempts.first_reply(decision.backends, call, story.trail)
        except asyncio.CancelledError:
            if gateway.deadlines.missed(deadline):
                late = f"no backend answered within {gateway.deadlines.seconds:g} s ({story.trail.tried})"
                raise UpstreamTimeout(late) from None
            raise
        finally:
            gateway.deadlines.end(deadline)
        try:
            head = read_head(tuple(reply.headers))
        except ValueError:  # no client can be told that
            await reply.close()
            raise openai.not_http(backend.name) from None
        story.status, story.first_byte, story.backend = reply.status, gateway.clock() - story.start, backend
        chunks = self._chunks = Chunks(reply, first, head, story)
        if reply.whole is None:  # else there is nothing to let go of
            self._reply = reply
        return Answer(decision, backend, reply.status, head, chunks)


class Chunks:
    """The reply's chunks as they are, counted, with usage read in passing.

    A body of which all is there need not be waited for: it is `whole`, to be sent at once (then `take` it); else that is empty.
    """

    __slots__ = ("_all_there", "_chunks", "_head", "_next", "_pour", "_reader", "_story", "whole")

    def __init__(self, reply: Reply, first: bytes, head: ReplyHead, story: _Story) -> None:
        self.whole = first if head.length == len(first) else b""
        self._all_there = reply.whole is not None
        self._chunks, self._pour, self._head, self._story = reply.chunks, reply.pour, head, story
        self._next: bytes | None = first
        self._reader: UsageReader | None = None

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._next = self._next, None
        if chunk is None and not self._all_there:
            try:
                chunk = await self._chunks.__anext__()
            except StopAsyncIteration:
                chunk = b""
        if not chunk:
            self._story.outcome = "completed"
            raise StopAsyncIteration
        self._count(chunk)
        return chunk

    async def pour(self, take: Take) -> None:
        """Hands the chunks that come to `take`, as far as the upstream can do that; see `Reply`. Then go on iterating."""
        if self._pour is not None:

            def count_and_take(chunk: bytes) -> bool:
                self._count(chunk)
                return take(chunk)

            await self._pour(count_and_take)

    def take(self) -> None:
        """Notes that the whole was sent."""
        self._count(self.whole)
        self._next, self._story.outcome = b"", "completed"

    def close(self) -> None:
        """Notes what the backend says that it used."""
        if self._reader is not None:
            self._story.usage = self._reader.close()

    def _count(self, chunk: bytes) -> None:
        head, story, reader = self._head, self._story, self._reader
        story.sent_bytes += len(chunk)
        if head.encoded:
            return
        if chunk is self.whole and not head.events:
            story.usage = read_usage(chunk)
            return
        if reader is None:
            reader = self._reader = UsageReader(stream=head.events)
        reader.feed(chunk)
