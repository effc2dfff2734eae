"""Every fault, streamed or not, at the first or at a later backend: each request ends rightly, and nothing is left behind."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from fingerpost.assemble import World, build_world
from fingerpost.config.shape import Config
from fingerpost.records import Exchange
from fingerpost.server.serve import build_server
from fingerpost.testing import FAULTS, FakeBackend, FakeReply, Fault, FaultProxy

Until = Callable[[Callable[[], object]], None]
CHAT = "/v1/chat/completions"
WORDS = "The whole answer, word by word, and nothing but the answer."

PASSES = frozenset({"slow", "drip"})
"""Faults that a client never notices."""

BREAKS = frozenset({"closed in the body", "reset in the body", "silence in the body"})
"""Faults after the first byte of the body: nothing may be retried."""

BY_CLIENT = frozenset({"content-length too long", "content-length too short", "content-length twice"})
"""Faults whose effect is the HTTP client's to say: it may refuse such a reply, or believe one of the two lengths."""


class Faulty:
    """A server in front of a fake behind a faulty proxy, and of a good one after it or a busy one before it."""

    def __init__(self, world: World, port: int, proxy: FaultProxy, behind: FakeBackend, told: list[Exchange]) -> None:
        self.world, self.port, self.proxy, self.behind, self.told = world, port, proxy, behind, told

    async def ask(self, *, stream: bool) -> str:
        return await asyncio.to_thread(ask, self.port, stream)


def ask(port: int, stream: bool) -> str:
    """How a request ended for its client: answer, error, error event, broken (the transfer), or what it was that was wrong."""
    body = {"model": "other", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
        client.request("POST", CHAT, json.dumps(body))
        answer = client.getresponse()
        try:
            content = answer.read()
        except (http.client.IncompleteRead, ConnectionError):
            return "broken"
    if answer.status != 200:
        return "error" if is_error(content) and answer.status in (502, 503, 504) else f"{answer.status} {content!r}"
    if not stream:
        try:
            return "answer" if json.loads(content)["choices"][0]["message"]["content"] == WORDS else repr(content)
        except ValueError:
            return "short"
    events = [event.removeprefix("data: ") for event in content.decode().replace("\r\n", "\n").split("\n\n") if event]
    if events[-1] == "[DONE]":
        deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
        return "answer" if "".join(deltas) == WORDS else repr(content)
    return "error event" if is_error(events[-1].encode()) else repr(content)


def is_error(content: bytes) -> bool:
    error = json.loads(content)["error"]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


@asynccontextmanager
async def serving(fault: str, *, first: bool, read: float = 0.5, **server: Any) -> AsyncIterator[Faulty]:
    told: list[Exchange] = []

    class Recorder:
        observe = told.append

    with FakeBackend(FakeReply(WORDS)) as behind, FakeBackend() as other, FaultProxy(behind.port, FAULTS[fault]) as proxy:
        other.default = FakeReply(WORDS) if first else FakeReply(status=503)
        urls = [proxy.url, other.url] if first else [other.url, proxy.url]
        limits = {"connect": 0.5, "read": read}
        backends = [{"name": f"b{i}", "model": "m", "url": url, "timeouts": limits} for i, url in enumerate(urls)]
        sections = {"backends": backends, "routes": [{"name": "other", "backends": ["b0", "b1"]}],
                    "classifier": {"use": "fixed", "route": "other"},
                    "server": {"port": 0, "retries": 0, "deadline": 2.0, **server}}  # fmt: skip
        before = asyncio.all_tasks()
        world = build_world(Config.model_validate(sections), [Recorder()])
        running = build_server(world)
        task = asyncio.ensure_future(running.serve())
        while not running.started:  # noqa: ASYNC110  (uvicorn tells nobody)
            await asyncio.sleep(0.005)
        port = running.servers[0].sockets[0].getsockname()[1]
        try:
            yield Faulty(world, port, proxy, behind, told)
        finally:
            running.should_exit = True
            await task
        assert asyncio.all_tasks() == before, "a task is left"
        async with asyncio.timeout(10):
            while proxy.open:  # noqa: ASYNC110  (it counts in a thread of its own)
                await asyncio.sleep(0.005)


def expected(fault: str, *, stream: bool, first: bool) -> set[str]:
    """How a request may end that meets a fault at the first backend, with a good one after it, or at the last one."""
    if fault in PASSES:
        return {"answer"}
    broken = "error event" if stream else "broken"
    elsewhere = "answer" if first else "error"
    if fault in BREAKS:
        return {broken}
    if fault in BY_CLIENT:
        return {elsewhere, broken, "answer", *(["short"] if fault == "content-length too short" and not stream else [])}
    return {elsewhere}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_every_request_ends_rightly_and_leaves_nothing_behind(fault: str, stream: bool, first: bool) -> None:
    async with serving(fault, first=first) as faulty:
        ends = [await faulty.ask(stream=stream) for _ in range(2)]
        async with asyncio.timeout(10):
            while len(faulty.told) < 2 or faulty.world.gateway.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert len(faulty.told) == 2
        guards = faulty.world.guards.values()
        assert [(guard.gate.inside, guard.gate.waiting) for guard in guards] == [(0, 0)] * 2
    assert set(ends) <= expected(fault, stream=stream, first=first)
    outcomes = {"answer": "completed", "short": "completed", "error": "failed", "error event": "cut", "broken": "cut"}
    assert [told.outcome for told in faulty.told] == [outcomes[end] for end in ends]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", ["too slow", "black hole", "half a head, then silence"])
async def test_a_hedge_answers_long_before_a_silent_backend_times_out(fault: str, stream: bool) -> None:
    async with serving(fault, first=True, hedge=0.02) as faulty:
        assert await faulty.ask(stream=stream) == "answer"
    assert [(attempt.backend, attempt.kind) for attempt in faulty.told[0].attempts] == [("b1", "hedge"), ("b0", "first")]


@pytest.mark.parametrize("fault", ["refused", "black hole", "reset before the reply"])
async def test_after_a_few_failures_a_faulty_backend_costs_no_time_any_more(fault: str) -> None:
    async with serving(fault, first=True) as faulty:
        for _ in range(6):
            assert await faulty.ask(stream=False) == "answer"
    kinds = [[attempt.kind for attempt in told.attempts] for told in faulty.told]
    assert kinds == [["first", "failover"]] * 5 + [["open", "first"]]


async def test_a_client_that_reads_slowly_slows_the_backend_down_and_the_backend_is_not_blamed() -> None:
    content = b"x" * 64_000_000
    async with serving("slow", first=True, read=1.0, deadline=30.0) as faulty:
        faulty.proxy.fault = Fault()
        faulty.behind.default = FakeReply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
        reader, writer = await asyncio.open_connection("127.0.0.1", faulty.port, limit=1 << 16)
        body = b'{"model":"other","messages":[{"role":"user","content":"hi"}]}'
        writer.write(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        await reader.readuntil(b"\r\n\r\n")
        passed = [-1, -1, -1]
        while len(set(passed[-3:])) > 1:  # until it has stood still for longer than the time to read
            await asyncio.sleep(0.6)
            passed.append(faulty.proxy.passed)
        assert passed[-1] < len(content) // 2
        assert await reader.read() == content
        writer.close()
    assert [(told.outcome, told.sent_bytes) for told in faulty.told] == [("completed", len(content))]
