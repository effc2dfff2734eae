"""Carrying a request: decide, try backends in order until one answers, pass its reply on, tell the story once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from fingerpost.attempts import Attempts, Order, Trail
from fingerpost.chat import ChatRequest, Conversation
from fingerpost.clients import Visit
from fingerpost.deadlines import Deadlines
from fingerpost.errors import FingerpostError, InvalidRequest, UpstreamError, UpstreamTimeout
from fingerpost.headers import ReplyHead, going_on, read_head, readable
from fingerpost.observers import Observer
from fingerpost.records import Decision, Exchange, Outcome, Usage, Verdict
from fingerpost.router import Router
from fingerpost.routes import EVERYTHING, Backend, RouteTable
from fingerpost.splice import Source
from fingerpost.upstreams import Headers, Reply, Take, Upstream, Upstreams, openai
from fingerpost.upstreams.health import Budget
from fingerpost.upstreams.sse import UsageReader, read_usage

Parse = Callable[[Source], ChatRequest]
"""What reads a request out of a body."""

_log = logging.getLogger("fingerpost.gateway")


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
        self.running: set[_Telling] = set()
        self.clock = clock

    @property
    def in_flight(self) -> int:
        """The requests that are being served."""
        return len(self.running)

    async def decide(
        self,
        body: Source,
        request_id: str = "",
        *,
        model: str | None = None,
        visit: Visit | None = None,
        parse: Parse = ChatRequest.parse,
    ) -> tuple[ChatRequest, Decision]:
        """A body's request and its decision, carrying nothing; `model` overrides what the body names.

        Raises what `parse`, `Visit.admit` and `Router.decide` raise.
        """
        with self._telling(request_id, visit) as telling:
            story = telling.story
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
        with self._telling(request_id, visit) as telling:
            story = telling.story
            if visit is not None:
                await visit.admit(0)
            verdicts = [await self.router.believe(conversation, table) for conversation, table in asked]
            story.status, story.outcome = 200, "completed"
            return verdicts

    def refuse(self, error: FingerpostError | None, request_id: str = "", visit: Visit | None = None) -> None:
        """Tells the observers of a request that ended before it was read: refused, or (None) left by its client."""
        story = self._story(request_id, visit)
        if error is not None:
            story.fail(error)
        self.tell(story.exchange(self.clock()))

    def carry(
        self,
        body: Source,
        headers: Headers = (),
        request_id: str = "",
        visit: Visit | None = None,
        task: asyncio.Task[None] | None = None,
    ) -> Carrying:
        """The block in which a chat body can be answered, by the first backend that does; leaving it lets go of the backend.

        `task` is the current one, for who knows it.
        """
        return Carrying(self, self._story(request_id, visit), visit, task, body, headers)

    def cut(self) -> None:
        """Cancels the tasks of all requests that are being served."""
        for telling in self.running:
            telling.cancel()

    async def aclose(self, keep: Collection[Upstream] = ()) -> None:
        """Closes the router and all upstreams but those to `keep`, which another gateway uses."""
        await self.router.aclose()
        for upstream in self.upstreams.values():
            if upstream not in keep:
                await upstream.aclose()

    def _telling(self, request_id: str, visit: Visit | None = None) -> _Telling:
        """A story that is told to the observers once, however the block ends; one that is cancelled has lost its client."""
        return _Telling(self, self._story(request_id, visit), visit)

    def _story(self, request_id: str, visit: Visit | None) -> _Story:
        return _Story(request_id=request_id, start=self.clock(), key=None if visit is None else visit.name)

    def tell(self, exchange: Exchange) -> None:
        """Tells the observers."""
        for observer in self.observers:
            try:
                observer.observe(exchange)
            except Exception as error:  # a full disk or a broken plugin must not fail the request that it watches
                _log.error("observer %s failed: %s", type(observer).__name__, type(error).__name__)


class _Story(Trail, kw_only=True):
    """What is known of a request so far; becomes its Exchange."""

    request_id: str
    start: float
    outcome: Outcome | None = None
    status: int = 0
    stream: bool = False
    decision: Decision | None = None
    first_byte: float | None = None
    sent_bytes: int = 0
    usage: Usage | None = None
    error: str = ""
    key: str | None = None
    backend: Backend | None = None
    reader: UsageReader | None = None
    reply: Reply | None = None

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
            self.request_id,
            self.outcome or "client_gone",
            self.status,
            self.stream,
            now - self.start,
            self.decision,
            tuple(self.attempts),
            self.first_byte,
            self.sent_bytes,
            self.usage,
            self.error,
            self.key,
            self.backend,
        )


class _Telling(msgspec.Struct, eq=False):
    """The block in which a request is served, by `task`; no generator, since one for each request takes longer."""

    _gateway: Gateway
    story: _Story
    _visit: Visit | None
    task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        if self.task is None:
            self.task = asyncio.current_task()
        self._gateway.running.add(self)
        return self

    def cancel(self) -> None:
        """Cancels the task."""
        assert self.task is not None
        self.task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        gateway, story = self._gateway, self.story
        if isinstance(error, Exception):
            story.fail(error)
        if story.reader is not None:
            story.usage = story.reader.close()
        gateway.running.discard(self)
        exchange = story.exchange(gateway.clock())
        if self._visit is not None:
            self._visit.settle(exchange)
        gateway.tell(exchange)
        if story.reply is not None:
            story.reply.close()


class Carrying(_Telling):
    """The block in which a backend's answer is at hand."""

    _body: Source = b""
    _headers: Headers = ()

    async def answer(self) -> Answer:
        """Reads, decides, and finds the backend that answers; call it once.

        Raises:
            FingerpostError: the request is wrong, its client may not, nothing fits, or no backend answered; its message names
                those tried.
        """
        gateway, story, visit = self._gateway, self.story, self._visit
        router, deadlines, task = gateway.router, gateway.deadlines, self.task
        assert task is not None
        request = ChatRequest.parse(self._body)
        story.stream = request.stream
        access, headers = EVERYTHING, self._headers
        if visit is not None:
            await visit.admit(request.needs.tokens)
            access, headers = visit.client.access, readable(headers) if visit.metered else headers
        found = router.look_up(request, access)  # mostly the decision, without a coroutine
        story.decision = decision = found if isinstance(found, Decision) else await router.settle(found)
        gateway.attempts.budget.earn()
        order = Order(request, going_on(tuple(headers)), deadlines.begin(task))
        try:
            backend, reply, first = await gateway.attempts.first_reply(decision.backends, order, story)
        except asyncio.CancelledError:
            if deadlines.missed(task):
                late = f"no backend answered within {deadlines.seconds:g} s ({story.tried})"
                raise UpstreamTimeout(late) from None
            raise
        finally:
            deadlines.end(task)
        if reply.whole is None:  # else there is nothing to let go of
            story.reply = reply
        try:
            head = read_head(tuple(reply.headers))
        except ValueError:  # no client can be told that
            raise openai.not_http(backend.name) from None
        story.status, story.first_byte, story.backend = reply.status, gateway.clock() - story.start, backend
        whole = first if reply.length == len(first) else b""
        return Answer(decision, backend, reply.status, head, reply.length, whole, first, reply, story)


class Answer(msgspec.Struct, eq=False):
    """What goes back to the client: the decision, the backend that answered, and its reply. As an iterator, the reply's chunks
    as they are, counted, with usage read in passing; read them once.

    A body of which all is there need not be waited for: it is `whole`, to be sent at once (then `take` it); else that is empty.
    """

    decision: Decision
    backend: Backend
    status: int
    head: ReplyHead
    length: int | None
    whole: bytes
    _next: bytes | None
    _reply: Reply
    _story: _Story

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._next = self._next, None
        if chunk is None and self._reply.whole is None:
            try:
                chunk = await self._reply.chunks.__anext__()
            except StopAsyncIteration:
                chunk = b""
        if not chunk:
            self._story.outcome = "completed"
            raise StopAsyncIteration
        self._count(chunk)
        return chunk

    async def pour(self, take: Take) -> None:
        """Hands the chunks that come to `take`, as far as the upstream can do that; see `Reply`. Then go on iterating."""
        if self._reply.pour is not None:

            def count_and_take(chunk: bytes) -> bool:
                self._count(chunk)
                return take(chunk)

            await self._reply.pour(count_and_take)

    def take(self) -> None:
        """Notes that the whole was sent."""
        self._count(self.whole)
        self._next, self._story.outcome = b"", "completed"

    def _count(self, chunk: bytes) -> None:
        head, story = self.head, self._story
        story.sent_bytes += len(chunk)
        if head.encoded:
            return
        if chunk is self.whole and not head.events:
            story.usage = read_usage(chunk)
            return
        if story.reader is None:
            story.reader = UsageReader(stream=head.events)
        story.reader.feed(chunk)
