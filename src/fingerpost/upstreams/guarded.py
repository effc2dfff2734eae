"""The upstream that all calls of the gateway go through: it asks the backend's Guard first and tells it how each call went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fingerpost.errors import UpstreamError
from fingerpost.upstreams import Call, Reply, Upstream
from fingerpost.upstreams.health import Guard, Lease, retry_after


class Guarded:
    """Carries calls to one backend by the upstream of the URL that its Guard picks; `upstreams` has one for each URL.

    Bad is what the backend is to blame for: no connection, no answer in time, a 5xx, a break before the first byte of the body.
    Any other answer is good, a 4xx too. A client that leaves says nothing about the backend.
    """

    def __init__(
        self,
        guard: Guard,
        upstreams: Sequence[Upstream],
        wall: Callable[[], float] = time.time,  # noqa: TID251  (a stamp)
    ) -> None:
        self.guard = guard
        self.upstreams = tuple(upstreams)
        self._wall = wall

    async def send(self, call: Call) -> Reply:
        """The backend's reply as soon as its headers are there.

        Raises:
            UpstreamBusy: the backend was not called; another one may serve.
            UpstreamError: as of `Upstream.send`.
        """
        guard = self.guard
        lease = guard.lease() if guard.gate.slip_in() else await guard.enter()  # the first spares a coroutine
        try:
            reply = await self.upstreams[lease.place.index].send(call)
        except BaseException as error:
            lease.settle(_blame(error, call))
            lease.release()
            raise
        rest = retry_after(reply.headers, self._wall()) if reply.status in (429, 503) else None
        if rest is not None:
            lease.rest(rest, reply.status)
        if reply.status >= 500:
            lease.settle(False)
        elif reply.whole is not None:  # nothing of it can go wrong any more
            lease.settle(True)
            lease.release()
            return reply
        chunks = _Chunks(reply, lease, call)
        return Reply(reply.status, reply.headers, chunks, chunks.close, reply.pour, length=reply.length)

    async def probe(self) -> None:
        """Asks each URL whether it lives, and lets one call try those that do."""
        settings = self.guard.backend.probe
        assert settings is not None
        call = Call(self.guard.backend, b"", path=settings.path, method="GET")
        for place, upstream in zip(self.guard.places, self.upstreams, strict=True):
            circuit, token = place.circuit, place.circuit.token
            try:
                async with asyncio.timeout(settings.timeout):
                    reply = await upstream.send(call)
                    reply.close()
                alive = reply.status < 500
            except (TimeoutError, UpstreamError):
                alive = False
            if alive:
                circuit.let_one_try(self.guard.now())
            elif circuit.state(self.guard.now()) != "open":
                circuit.failed(token, self.guard.now())

    async def aclose(self) -> None:
        """Closes all connections."""
        for upstream in self.upstreams:
            await upstream.aclose()


class _Chunks:
    """A reply's chunks as they are; what becomes of the first one is the call's result."""

    __slots__ = ("_begun", "_call", "_chunks", "_close", "_lease")

    def __init__(self, reply: Reply, lease: Lease, call: Call) -> None:
        self._chunks, self._close, self._lease, self._call = reply.chunks, reply.close, lease, call
        self._begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        if self._begun:
            return self._chunks.__anext__()
        self._begun = True
        return self._first()

    def close(self) -> None:
        """Lets go of the lease and closes the reply."""
        self._lease.release()
        self._close()

    async def _first(self) -> bytes:
        try:
            chunk = await self._chunks.__anext__()
        except BaseException as error:
            self._lease.settle(_blame(error, self._call))
            raise
        self._lease.settle(True)
        return chunk


def _blame(error: BaseException, call: Call) -> bool | None:
    """What an error says about the backend. A cancellation is the client's, or the end of the time that the call had."""
    if isinstance(error, StopAsyncIteration):
        return True
    late = call.deadline is not None and asyncio.get_running_loop().time() >= call.deadline
    if isinstance(error, UpstreamError) or (isinstance(error, asyncio.CancelledError) and late):
        return False
    return None
