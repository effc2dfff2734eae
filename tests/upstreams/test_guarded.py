"""What the guard hears about each call, and that its places are given back however a call ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fingerpost.errors import UpstreamBusy, UpstreamError
from fingerpost.routes import Backend, Breaker, Probe, Timeouts
from fingerpost.testing import FakeBackend, FakeReply
from fingerpost.upstreams import Call, Reply
from fingerpost.upstreams.guarded import Guarded
from fingerpost.upstreams.health import Guard
from fingerpost.upstreams.http1 import Http1Upstream

BODY = b'{"messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"stream":true}'
CUT_BEFORE_BODY = FakeReply(raw=b"HTTP/1.1 200 X\r\ncontent-length: 5\r\n\r\n")


class Guarding:
    """A guarded backend at a fake, whose circuit opens at the first failure."""

    def __init__(self, fake: FakeBackend) -> None:
        breaker = Breaker(failures=1, pause=100.0, longest=100.0)
        self.backend = Backend(
            "b", "m", fake.url, timeouts=Timeouts(read=0.3), concurrency=2, queue=0, breaker=breaker, probe=Probe("/health")
        )
        self.guard = Guard(self.backend)
        self.upstream = Guarded(self.guard, [Http1Upstream(self.backend)])

    async def ask(self, body: bytes = BODY, deadline: float | None = None) -> Reply:
        return await self.upstream.send(Call(self.backend, body, deadline=deadline))

    @property
    def state(self) -> str:
        return self.guard.places[0].circuit.state(self.guard.now())

    @property
    def held(self) -> tuple[int, int]:
        return self.guard.gate.inside, self.guard.places[0].in_flight


@pytest.fixture
async def guarding(fake: FakeBackend) -> AsyncIterator[Guarding]:
    one = Guarding(fake)
    yield one
    await one.upstream.aclose()


async def test_a_reply_passes_as_it_is_and_holds_its_place_until_it_is_closed(guarding: Guarding, fake: FakeBackend) -> None:
    fake.default = FakeReply("one two", pause=0.05)
    reply = await guarding.ask(STREAM)
    assert guarding.held == (1, 1)
    content = b"".join([chunk async for chunk in reply.chunks])
    assert (reply.status, b"two" in content) == (200, True)
    reply.close()
    reply.close()
    assert (guarding.held, guarding.state) == ((0, 0), "closed")


@pytest.mark.parametrize("reply", [FakeReply(hang=True), FakeReply(raw=b""), FakeReply(raw=b"nonsense\r\n\r\n")])
async def test_no_answer_counts_against_the_backend(guarding: Guarding, fake: FakeBackend, reply: FakeReply) -> None:
    fake.script(reply)
    with pytest.raises(UpstreamError):
        await guarding.ask()
    assert (guarding.held, guarding.state) == ((0, 0), "open")
    with pytest.raises(UpstreamBusy, match="keeps failing"):
        await guarding.ask()
    assert len(fake.requests) == 1


@pytest.mark.parametrize(("status", "state"), [(500, "open"), (503, "open"), (599, "open"), (200, "closed"), (400, "closed"),
                                               (401, "closed"), (404, "closed"), (429, "closed")])  # fmt: skip
async def test_a_status_of_the_5xx_counts_against_the_backend_and_no_other(
    guarding: Guarding, fake: FakeBackend, status: int, state: str
) -> None:
    fake.script(FakeReply(status=status))
    reply = await guarding.ask()
    await reply.read(1_000_000)
    assert (reply.status, guarding.held, guarding.state) == (status, (0, 0), state)


async def test_a_break_before_the_first_byte_of_the_body_counts_against_the_backend(
    guarding: Guarding, fake: FakeBackend
) -> None:
    fake.script(CUT_BEFORE_BODY)
    reply = await guarding.ask()
    with pytest.raises(UpstreamError):
        await anext(reply.chunks)
    reply.close()
    assert (guarding.held, guarding.state) == ((0, 0), "open")


async def test_a_break_after_the_first_byte_does_not(guarding: Guarding, fake: FakeBackend) -> None:
    fake.script(FakeReply("one two three", cut_after=1))
    reply = await guarding.ask(STREAM)
    with pytest.raises(UpstreamError):
        await reply.read(1_000_000)
    assert (guarding.held, guarding.state) == ((0, 0), "closed")


async def test_a_reply_without_a_body_is_good(guarding: Guarding, fake: FakeBackend) -> None:
    fake.script(FakeReply(raw=b"HTTP/1.1 204 X\r\n\r\n"))
    assert await (await guarding.ask()).read(10) == b""
    assert (guarding.held, guarding.state) == ((0, 0), "closed")


async def test_a_client_that_leaves_says_nothing_about_the_backend(guarding: Guarding, fake: FakeBackend) -> None:
    fake.default = FakeReply("one two", delay=0.1, pause=60)
    later = asyncio.get_running_loop().time() + 100
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await guarding.ask(deadline=later)
    reply = await guarding.ask(STREAM)
    await anext(reply.chunks)
    reply.close()
    assert (guarding.held, guarding.state) == ((0, 0), "closed")


async def test_a_backend_that_used_up_the_time_of_its_call_is_to_blame(guarding: Guarding, fake: FakeBackend) -> None:
    fake.default = FakeReply(hang=True)
    soon = asyncio.get_running_loop().time() + 0.02
    with pytest.raises(TimeoutError):
        async with asyncio.timeout_at(soon):
            await guarding.ask(deadline=soon)
    assert (guarding.held, guarding.state) == ((0, 0), "open")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_backend_that_asks_for_a_rest_gets_it(guarding: Guarding, fake: FakeBackend, status: int) -> None:
    fake.script(FakeReply(status=status, headers={"retry-after": "30"}))
    (await guarding.ask()).close()
    with pytest.raises(UpstreamBusy, match="asked for a rest") as caught:
        await guarding.ask()
    assert (caught.value.why, caught.value.status) == ("resting", status)
    assert 29 < caught.value.retry_after <= 30
    assert guarding.held == (0, 0)


async def test_a_reply_that_has_come_whole_holds_no_place(guarding: Guarding, fake: FakeBackend) -> None:
    fake.default = FakeReply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    reply = await guarding.ask()
    assert (reply.whole, guarding.held) == (b"ok", (0, 0))
    assert [chunk async for chunk in reply.chunks] == [b"ok"]
    reply.close()
    assert (guarding.held, guarding.state) == ((0, 0), "closed")


async def test_more_calls_than_may_run_and_wait_are_refused(guarding: Guarding, fake: FakeBackend) -> None:
    fake.default = FakeReply("one two", pause=60)
    replies = [await guarding.ask(STREAM), await guarding.ask(STREAM)]
    with pytest.raises(UpstreamBusy, match="queue is full"):
        await guarding.ask()
    for reply in replies:
        reply.close()
    (await guarding.ask(STREAM)).close()
    assert guarding.held == (0, 0)


async def test_a_probe_lets_one_call_try_a_backend_that_lives_again(guarding: Guarding, fake: FakeBackend) -> None:
    fake.script(FakeReply(status=500), FakeReply(status=500), FakeReply(status=404))
    (await guarding.ask()).close()
    await guarding.upstream.probe()
    assert guarding.state == "open"
    await guarding.upstream.probe()
    assert guarding.state == "half_open"
    assert [(request.method, request.target) for request in fake.requests[1:]] == [("GET", "/v1/health")] * 2
    await (await guarding.ask()).read(1_000_000)
    assert guarding.state == "closed"


@pytest.mark.parametrize("reply", [FakeReply(hang=True), FakeReply(status=500)])
async def test_probes_that_fail_open_the_circuit(guarding: Guarding, fake: FakeBackend, reply: FakeReply) -> None:
    fake.default = reply
    await guarding.upstream.probe()
    assert guarding.state == "open"
