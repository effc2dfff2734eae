"""Finding the backend that answers: one after the other, once more, or two side by side, until a first byte has come."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from fingerpost.chat import ChatRequest
from fingerpost.errors import UpstreamBusy, UpstreamError, UpstreamTimeout
from fingerpost.records import Attempt, AttemptKind
from fingerpost.routes import Backend
from fingerpost.upstreams import Call, Headers, Reply, Upstreams
from fingerpost.upstreams.health import Budget, backoff, retry_after

BUSY_STATUSES = frozenset({408, 429, *range(500, 1000)})
"""The backend cannot answer now: the next one is tried, and this one again in a later round."""

MISCONFIGURED_STATUSES = frozenset({101, *range(300, 400), 401, 403, 404, 405, 407})
"""The backend refuses our key, path or model, or points to another URL, where a client must not be sent with its prompt. The
client cannot mend that, so the next backend is tried, this one not again."""

_NEXT_BACKEND_STATUSES = BUSY_STATUSES | MISCONFIGURED_STATUSES

Found = tuple[Backend, Reply, bytes]
"""The backend that answered, its reply, and the first chunk of it."""


class Order(msgspec.Struct, eq=False, gc=False):
    """What is to be carried, to whichever backend: a request, the client's headers that may pass, and until when."""

    request: ChatRequest
    headers: Headers
    deadline: float

    def to(self, backend: Backend) -> Call:
        """The call of that backend."""
        return Call(backend, self.request.body_for(backend.model), self.headers, deadline=self.deadline)


class Trail(msgspec.Struct):
    """What has been tried for one request so far, and what came of it."""

    attempts: list[Attempt] = msgspec.field(default_factory=list)
    timeouts: int = 0
    limited: int = 0
    waits: list[float] = msgspec.field(default_factory=list)
    hedged: bool = False
    answered: bool = False

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

    def failure(self) -> UpstreamError:
        """What to tell the client when no backend answered: 429 if all limit us, 503 if none could be called, 504 if all were
        slow, else 502. The first two say when to come again, where that is known.
        """
        attempts, message = self.attempts, f"no backend answered ({self.tried})"
        if attempts and all(attempt.status == 429 or not attempt.called for attempt in attempts):
            busy = UpstreamError(message)
            busy.status, busy.code = UpstreamBusy.status, UpstreamBusy.code
            if self.limited == len(attempts):
                busy.status, busy.code = 429, "rate_limit_exceeded"
            busy.retry_after = min(self.waits, default=None)
            return busy
        slow = 0 < len(attempts) == self.timeouts
        return (UpstreamTimeout if slow else UpstreamError)(message)


class Attempts:
    """Tries backends. `retries` is how many more times the whole list of them is tried, as far as the `budget` for more calls
    than requests goes. After `hedge` seconds without a first byte (None: never) the next backend is asked beside the first.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        budget: Budget,
        *,
        retries: int = 1,
        hedge: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,  # noqa: TID251  (a stamp)
    ) -> None:
        self.upstreams = upstreams
        self.budget = budget
        self.retries = retries
        self.hedge = hedge
        self._clock = clock
        self._pause = pause
        self._wall = wall

    async def first_reply(self, backends: Sequence[Backend], order: Order, trail: Trail) -> Found:
        """The first reply worth passing on.

        Until its first chunk has come, nothing has gone to the client and another backend may be tried. A backend with several
        URLs is tried as many times in a row. The first time through the list costs nothing of the budget: no backend gets more
        calls by it than there are requests.

        Raises:
            UpstreamError: no backend answered.
        """
        if self.hedge is None and backends:
            found = await self._attempt(order.to(backends[0]), "first", trail)
            if found is not None:
                return found
        return await self._search(list(backends), order, trail)

    async def _search(self, left: list[Backend], order: Order, trail: Trail) -> Found:
        """The rest of `first_reply`, from the second attempt on or, where there may be a hedge, from the first."""
        for round_ in range(1 + self.retries):
            if round_ and left:
                await self._pause(backoff(round_, random.random()))
            turns = deque([backend for backend in left for _ in backend.urls])
            before = seen = 0
            if round_:
                before = seen = len(trail.attempts)
            elif trail.attempts:
                turns.popleft()
            while True:
                for attempt in trail.attempts[seen:]:
                    if attempt.status in MISCONFIGURED_STATUSES:
                        left = [backend for backend in left if backend.name != attempt.backend]
                    if attempt.status in MISCONFIGURED_STATUSES or not attempt.called:
                        turns = deque(backend for backend in turns if backend.name != attempt.backend)
                if not turns or (round_ and not self.budget.spend()):
                    break
                seen = len(trail.attempts)
                kind: AttemptKind = "retry" if round_ else "failover" if trail.called else "first"
                if self.hedge is None or trail.hedged or len(turns) < 2:
                    found = await self._attempt(order.to(turns.popleft()), kind, trail)
                else:
                    found = await self._hedged(turns, self.hedge, order, kind, trail)
                if found is not None:
                    return found
            if turns or not any(attempt.called for attempt in trail.attempts[before:]):
                break
        raise trail.failure()

    async def _hedged(
        self, turns: deque[Backend], patience: float, order: Order, kind: AttemptKind, trail: Trail
    ) -> Found | None:
        """Tries the backend whose turn it is and, when it is slow and the budget allows it, the next one beside it."""
        backend = turns.popleft()
        try:
            async with asyncio.TaskGroup() as group:
                done, running = await asyncio.wait(
                    {group.create_task(self._attempt(order.to(backend), kind, trail))}, timeout=patience
                )
                if running and self.budget.spend():
                    trail.hedged = True
                    running.add(group.create_task(self._attempt(order.to(turns.popleft()), "hedge", trail)))
                found = [task.result() for task in done]
                while running and not any(found):
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    found += [task.result() for task in done]
                for task in running:
                    task.cancel()
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return next(filter(None, found), None)

    async def _attempt(self, call: Call, kind: AttemptKind, trail: Trail) -> Found | None:
        """The reply and its first chunk, or None when another backend may do better; the trail gets the attempt in any case."""
        name, start = call.backend.name, self._clock()
        status: int | None = None
        why = "given up"
        try:
            reply = await self.upstreams[name].send(call)
            if reply.status in _NEXT_BACKEND_STATUSES:
                reply.close()
                status, why = reply.status, f"answered {reply.status}"
                trail.wait_for(retry_after(reply.headers, self._wall()), status)
                return None
            first = await _first_chunk(reply) if reply.whole is None else reply.whole
            if trail.answered:  # by the one that it was a hedge for, or by the hedge
                reply.close()
                return None
            trail.answered = True
            status, why = reply.status, ""
            return call.backend, reply, first
        except UpstreamBusy as busy:
            why, kind = busy.message, busy.why
            trail.wait_for(busy.retry_after, busy.status)
            return None
        except UpstreamError as error:
            why = error.message.removeprefix(f"{name}: ")
            trail.timeouts += isinstance(error, UpstreamTimeout)
            return None
        finally:
            trail.attempts.append(Attempt(name, status, why, self._clock() - start, kind))


async def _first_chunk(reply: Reply) -> bytes:
    """The first chunk, empty when there is none; closes the reply if it does not come."""
    try:
        return await reply.chunks.__anext__()  # `anext` with a default takes two more objects
    except StopAsyncIteration:
        return b""
    except BaseException:
        reply.close()
        raise
