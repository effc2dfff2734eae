"""Carrying requests to real backends on loopback sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.fixed import Fixed
from fingerpost.errors import (
    FingerpostError,
    InvalidRequest,
    NothingFits,
    UnknownModel,
    UpstreamError,
    UpstreamTimeout,
)
from fingerpost.gateway import Answer, Gateway
from fingerpost.headers import ReplyHead
from fingerpost.observers import Observer
from fingerpost.records import Exchange, Usage
from fingerpost.router import Router
from fingerpost.routes import Backend, Breaker, Price, Route, RouteTable, Timeouts
from fingerpost.testing import FakeBackend, FakeReply, ScriptedClassifier
from fingerpost.upstreams import Call, Headers, Reply
from fingerpost.upstreams.guarded import Guarded
from fingerpost.upstreams.health import Budget, Guard
from fingerpost.upstreams.http1 import Http1Upstream

Until = Callable[[Callable[[], object]], None]
BODY = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"model":"auto","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}'
HANG = FakeReply(hang=True)
CUT_BEFORE_BODY = FakeReply(cut_after=0)
NO_HEADERS = FakeReply(raw=b"")


class World:
    """A gateway in front of three fakes a, b and c, all backends of the route `other`; `told` is what it observed."""

    def __init__(self, fakes: Sequence[FakeBackend], **options: Any) -> None:
        self.a, self.b, self.c = self.fakes = tuple(fakes)
        self.told: list[Exchange] = []
        self.pauses: list[float] = []
        limits, price = Timeouts(read=options.pop("read", 30.0)), Price(1.0, 2.0)
        backends = {
            name: Backend(name, f"m-{name}", fake.url, f"key-{name}", timeouts=limits, price=price)
            for name, fake in zip("abc", self.fakes, strict=True)
        }
        self.classifier = ScriptedClassifier()
        router = Router(RouteTable((Route("other", backends=tuple(options.pop("order", "abc"))),), backends), self.classifier)
        self.upstreams: dict[str, Any] = {name: Http1Upstream(backend) for name, backend in backends.items()}
        self.gateway = Gateway(router, self.upstreams, [self], pause=self.pause, **{"retries": 0, **options})

    def observe(self, exchange: Exchange) -> None:
        self.told.append(exchange)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    @property
    def calls(self) -> str:
        """The backends' names, in the order in which the exchange says that they were tried."""
        return "".join(attempt.backend for attempt in self.told[0].attempts)

    async def ask(self, body: bytes = BODY, headers: Headers = ()) -> tuple[Answer, bytes]:
        with self.gateway.carry(body, headers, "r1") as carrying:
            answer = await carrying.answer()
            return answer, b"".join([chunk async for chunk in answer])

    async def refused(self, body: bytes = BODY) -> FingerpostError:
        with pytest.raises(FingerpostError) as caught:
            await self.ask(body)
        return caught.value


@pytest.fixture
async def world() -> AsyncIterator[Callable[..., World]]:
    """Builds worlds: `world(retries=1, deadline=2.0, order="ab", read=0.2)`."""
    with ExitStack() as fakes:
        async with AsyncExitStack() as worlds:

            def build(**options: Any) -> World:
                built = World([fakes.enter_context(FakeBackend()) for _ in "abc"], **options)
                worlds.push_async_callback(built.gateway.aclose)
                return built

            yield build


Build = Callable[..., World]


def raw(*lines: bytes, status: int = 200, body: bytes = b"") -> FakeReply:
    return FakeReply(raw=b"\r\n".join([b"HTTP/1.1 %d X" % status, *lines, b"", body]))


# What reaches the backend


@pytest.mark.parametrize(
    "rest",
    [
        '"messages":[{"role":"user","content":"hi"}]',
        '"messages":[{"role":"user","content":"caf\\u00e9 é 你好 \\ud83d\\ude00 😀 \\/ \\"x\\""}]',
        '"messages":[ {"content" : [ {"type":"text","text":"a\\n"},\n{"type":"new_kind","x":[1,2.50,1e3]} ],"role":"user"} ]',
        '"temperature":1.00,"seed":12345678901234567890123,"messages":[{"role":"user","content":""}],"x":null,"é":{"y":[]}',
        '"messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"arguments":"{\\"a\\":1}"}}],"content":null}],"n":-0.0',
        '"messages":[{"role":"user","content":"' + "long " * 50_000 + '"}]',
    ],
)
async def test_the_body_reaches_the_backend_byte_for_byte_but_for_the_model(world: Build, rest: str) -> None:
    w = world()
    await w.ask(('{"model":"auto",' + rest + "}").encode())
    assert w.a.requests[0].body == ('{"model":"m-a",' + rest + "}").encode()


async def test_not_even_the_space_between_the_fields_of_the_body_changes(world: Build) -> None:
    w = world()
    body = b'\n{ "messages" : [ {"role": "user",  "content": "hi"} ] ,\r\n\t"model":"%b" , "user" : "u" }  '
    await w.ask(body % b"auto")
    assert w.a.requests[0].body == body % b"m-a"


async def test_each_backend_gets_its_own_model_name(world: Build) -> None:
    w = world()
    w.a.script(FakeReply(status=503))
    await w.ask()
    assert w.a.requests[0].json == {**json.loads(BODY), "model": "m-a"}
    assert w.b.requests[0].json == {**json.loads(BODY), "model": "m-b"}


async def test_routes_brought_along_do_not_reach_the_backend(world: Build) -> None:
    w = world()
    routes = b'"fingerpost":{"routes":[{"name":"parcel","description":"Where is my parcel?"}]},'
    await w.ask(BODY.replace(b'"messages"', routes + b'"messages"'))
    assert w.a.requests[0].body == BODY.replace(b"auto", b"m-a")


async def test_credentials_of_the_client_stop_here_and_the_configured_key_goes_on(world: Build) -> None:
    w = world()
    names = ("authorization", "api-key", "x-api-key", "cookie", "proxy-authorization", "x-goog-api-key", "openai-organization")
    await w.ask(headers=[(name.encode(), b"canary") for name in names])
    received = w.a.requests[0].headers
    assert received["authorization"] == "Bearer key-a"
    assert "canary" not in str(received)


async def test_of_the_client_headers_only_the_listed_ones_go_on(world: Build) -> None:
    w = world()
    passed = {"user-agent": "OpenAI/Python 1", "traceparent": "00-1-2-3", "accept-encoding": "gzip", "x-request-id": "q1",
              "idempotency-key": "i1", "openai-beta": "b1"}  # fmt: skip
    stopped = {"connection": "keep-alive", "keep-alive": "timeout=5", "te": "trailers", "upgrade": "h2c",
               "expect": "100-continue", "trailer": "x", "transfer-encoding": "gzip", "proxy-connection": "close",
               "x-forwarded-for": "1.2.3.4",
               "forwarded": "for=1.2.3.4", "origin": "http://x", "x-stainless-os": "Linux",
               "content-encoding": "gzip"}  # fmt: skip
    sent = [(name.encode(), value.encode()) for name, value in {**passed, **stopped, "host": "gateway"}.items()]
    await w.ask(headers=sent)
    received = w.a.requests[0].headers
    assert {name: received.get(name) for name in passed} == passed
    assert not set(stopped) & set(received)
    assert received["host"] == f"127.0.0.1:{w.a.port}"


async def test_what_connection_names_belongs_to_this_hop_in_both_directions(world: Build) -> None:
    w = world()
    w.a.script(raw(b"connection: close, X-Hop", b"x-hop: 1", b"x-end: 2", b"content-length: 2", body=b"ok"))
    answer, _ = await w.ask(headers=[(b"connection", b"close, Traceparent"), (b"traceparent", b"1"), (b"tracestate", b"2")])
    assert "traceparent" not in w.a.requests[0].headers
    assert w.a.requests[0].headers["tracestate"] == "2"
    assert answer.head.going_back == ((b"x-end", b"2"),)


# What comes back


async def test_reply_headers_pass_but_for_those_of_the_hop_and_of_the_backends_host(world: Build) -> None:
    w = world()
    stopped = [b"keep-alive: timeout=5", b"proxy-authenticate: x", b"te: x", b"trailer: x", b"upgrade: h3", b"set-cookie: a=1",
               b"set-cookie: b=2", b"alt-svc: h3", b"strict-transport-security: max-age=1", b"x-fingerpost-route: lie",
               b"X-Fingerpost-New: lie", b"proxy-connection: x"]  # fmt: skip
    passed = [b"content-type: application/json", b"openai-processing-ms: 5", b"x-ratelimit-remaining: 3"]
    w.a.script(raw(*stopped, *passed, b"content-length: 2", body=b"ok"))
    answer, content = await w.ask()
    assert content == b"ok"
    assert [b": ".join(pair) for pair in answer.head.going_back] == passed
    assert answer.length == 2


async def test_a_compressed_reply_passes_unchanged(world: Build) -> None:
    w = world()
    packed = gzip.compress(b'{"usage":{"prompt_tokens":7,"completion_tokens":5}}')
    w.a.script(raw(b"content-encoding: gzip", b"content-length: %d" % len(packed), body=packed))
    answer, content = await w.ask()
    assert content == packed
    assert (b"content-encoding", b"gzip") in answer.head.going_back
    assert w.told[0].usage is None


async def test_a_stream_passes_unchanged_and_event_by_event(world: Build) -> None:
    w = world()
    w.a.script(FakeReply("one two", pause=0.03))
    with w.gateway.carry(STREAM) as carrying:
        answer = await carrying.answer()
        chunks = [chunk async for chunk in answer]
    assert answer.head.events
    assert len(chunks) > 1
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert sum(map(len, chunks)) == w.told[0].sent_bytes


@pytest.mark.parametrize("status", [200, 204])
async def test_a_reply_without_a_body_is_a_whole_reply(world: Build, status: int) -> None:
    w = world()
    w.a.script(raw(b"content-length: 0", status=status) if status == 200 else raw(status=status))
    answer, content = await w.ask()
    assert (answer.status, content) == (status, b"")
    assert (w.told[0].outcome, w.told[0].sent_bytes) == ("completed", 0)


@pytest.mark.parametrize("status", [400, 402, 406, 409, 413, 415, 422, 451])
async def test_what_the_client_did_wrong_passes_through_and_no_other_backend_is_asked(world: Build, status: int) -> None:
    w = world(retries=3)
    w.a.script(FakeReply("context too long", status=status))
    answer, content = await w.ask()
    assert answer.status == status
    assert b"context too long" in content
    assert (w.told[0].outcome, w.told[0].status, w.calls) == ("completed", status, "a")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"content-type", b"text/event-stream")], True),
        ([(b"x", b"y"), (b"content-type", b"Text/Event-Stream; charset=utf-8")], True),
        ([(b"content-type", b"application/json")], False),
        ([(b"x", b"text/event-stream")], False),
        ([], False),
    ],
)
def test_a_stream_of_events_is_known_by_its_content_type(headers: Headers, expected: bool) -> None:
    assert ReplyHead(headers).events is expected


# Failover


@pytest.mark.parametrize("status", [408, 429, 500, 501, 503, 504, 529, 599, 999, 401, 403, 404, 405, 407, 301, 302, 307, 308])
async def test_the_next_backend_answers_when_the_first_one_cannot(world: Build, status: int) -> None:
    w = world()
    w.a.script(FakeReply("sorry", status=status, headers={"location": "http://elsewhere/"}))
    answer, _ = await w.ask()
    assert (answer.backend.name, answer.status) == ("b", 200)
    assert w.told[0].backend == answer.backend
    assert [(a.backend, a.status, a.error) for a in w.told[0].attempts] == [("a", status, f"answered {status}"), ("b", 200, "")]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (NO_HEADERS, "the connection broke"),
        (CUT_BEFORE_BODY, "the connection broke"),
        (raw(b"transfer-encoding: chunked"), "the connection broke"),
        (HANG, "no answer in time"),
        (raw(b"content-length: 5"), "the connection broke"),
        (FakeReply(raw=b"garbage\r\n\r\n"), "spoke no valid HTTP"),
    ],
)
@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_the_next_backend_answers_when_the_first_one_breaks_before_its_first_byte(
    world: Build, reply: FakeReply, why: str, body: bytes
) -> None:
    w = world(read=0.2)
    w.a.script(reply)
    answer, content = await w.ask(body)
    assert (answer.backend.name, answer.status) == ("b", 200)
    assert b"backend" in content
    assert [(a.backend, a.status, a.error) for a in w.told[0].attempts] == [("a", None, why), ("b", 200, "")]


async def test_the_next_backend_answers_when_the_first_one_refuses_the_connection(world: Build) -> None:
    w = world()
    w.a.stop()
    w.b.stop()
    answer, _ = await w.ask()
    assert answer.backend.name == "c"
    assert [a.error for a in w.told[0].attempts] == ["cannot connect (ConnectionRefusedError)"] * 2 + [""]


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (STREAM, FakeReply("one two three", cut_after=2)),
        (BODY, raw(b"content-length: 100", body=b'{"choices"')),
        (STREAM, FakeReply("one two three", pause=60)),
    ],
)
async def test_nothing_is_retried_after_the_first_byte(world: Build, body: bytes, reply: FakeReply) -> None:
    w = world(retries=3, read=0.3)
    w.a.script(reply)
    await w.refused(body)
    assert w.told[0].sent_bytes > 0
    assert [len(fake.requests) for fake in w.fakes] == [1, 0, 0]
    assert (w.told[0].outcome, w.told[0].status, w.calls) == ("cut", 200, "a")


async def test_a_busy_backend_is_tried_again_after_the_others_and_a_pause(world: Build) -> None:
    w = world(retries=2)
    for fake in w.fakes:
        fake.default = FakeReply(status=503)
    w.b.script(FakeReply(status=503), FakeReply(status=503), FakeReply())
    answer, _ = await w.ask()
    assert answer.backend.name == "b"
    assert w.calls == "abcabcab"
    assert len(w.pauses) == 2
    assert 0.1 <= w.pauses[0] <= 0.2 <= w.pauses[1] <= 0.4


async def test_a_backend_that_refuses_our_key_is_not_tried_again(world: Build) -> None:
    w = world(retries=1)
    w.a.default, w.b.default, w.c.default = FakeReply(status=401), FakeReply(status=500), FakeReply(status=404)
    await w.refused()
    assert w.calls == "abcb"


async def test_no_pause_is_made_when_there_is_nobody_left_to_try(world: Build) -> None:
    w = world(retries=5)
    for fake in w.fakes:
        fake.default = FakeReply(status=403)
    await w.refused()
    assert (w.calls, w.pauses) == ("abc", [])


# Nobody answers


async def test_the_error_names_each_backend_and_why(world: Build) -> None:
    w = world(retries=1)
    w.a.default, w.b.default = FakeReply(status=503), FakeReply(status=401)
    w.c.stop()
    error = await w.refused()
    refused = "c: cannot connect (ConnectionRefusedError)"
    assert error.message == f"no backend answered (a: answered 503; b: answered 401; {refused}; a: answered 503; {refused})"
    assert (error.status, error.code) == (502, "upstream_error")
    assert error.to_json()["error"]["type"] == "server_error"
    assert (w.told[0].outcome, w.told[0].status, w.told[0].error) == ("failed", 502, error.message)


@pytest.mark.parametrize(
    ("replies", "status", "code"),
    [
        ((FakeReply(status=429),) * 3, 429, "rate_limit_exceeded"),
        ((FakeReply(status=429), FakeReply(status=429), FakeReply(status=503)), 502, "upstream_error"),
        ((HANG,) * 3, 504, "upstream_timeout"),
        ((HANG, HANG, FakeReply(status=504)), 502, "upstream_error"),
        ((NO_HEADERS,) * 3, 502, "upstream_error"),
    ],
)
async def test_the_status_says_what_all_backends_have_in_common(
    world: Build, replies: Sequence[FakeReply], status: int, code: str
) -> None:
    w = world(read=0.2)
    for fake, reply in zip(w.fakes, replies, strict=True):
        fake.default = reply
    error = await w.refused()
    assert (error.status, error.code) == (status, code)
    assert (w.told[0].outcome, w.told[0].status, w.calls) == ("failed", status, "abc")


async def test_the_name_of_a_backend_does_not_make_its_failure_a_timeout(fake: FakeBackend) -> None:
    fake.default = NO_HEADERS
    backend = Backend("just in time", "m", fake.url)
    table = RouteTable((Route("other", backends=("just in time",)),), {backend.name: backend})
    gateway = Gateway(Router(table, Fixed("other")), {backend.name: Http1Upstream(backend)}, retries=0)
    with pytest.raises(UpstreamError) as caught, gateway.carry(BODY) as carrying:
        await carrying.answer()
    assert (caught.value.status, caught.value.message) == (502, "no backend answered (just in time: the connection broke)")
    await gateway.aclose()


async def test_the_deadline_ends_all_attempts_together_and_names_them(world: Build) -> None:
    w = world(deadline=0.3)
    w.a.script(FakeReply(status=503))
    w.b.script(HANG)
    error = await w.refused()
    assert isinstance(error, UpstreamTimeout)
    assert error.message == "no backend answered within 0.3 s (a: answered 503; b: given up)"
    assert (w.told[0].outcome, w.told[0].status, w.told[0].backend) == ("failed", 504, None)
    assert not w.c.requests


async def test_the_deadline_ends_a_wait_for_the_first_byte_and_stops_the_backend(world: Build, eventually: Until) -> None:
    w = world(deadline=0.05)
    w.a.script(HANG)
    await w.refused()
    await asyncio.to_thread(eventually, lambda: w.a.abandoned == 1)


async def test_the_deadline_does_not_end_a_stream_that_has_begun(world: Build) -> None:
    w = world(deadline=0.3)
    w.a.script(FakeReply("one two three", pause=0.1))
    _, content = await w.ask(STREAM)
    assert content.endswith(b"data: [DONE]\n\n")
    assert w.told[0].elapsed > 0.3


async def test_a_table_without_backends_carries_nothing_and_says_so() -> None:
    gateway = Gateway(Router(RouteTable((Route("other"),)), Fixed("other")), {})
    with pytest.raises(UpstreamError, match=r"there is none to try") as caught, gateway.carry(BODY) as carrying:
        await carrying.answer()
    assert caught.value.status == 502


# Backends that may not be called now, and calls beside others


@pytest.fixture
def guards() -> Callable[..., None]:
    def put(w: World, names: str = "abc", **settings: Any) -> None:
        for name in names:
            backend = replace(w.upstreams[name].backend, **{"breaker": OPENS_AT_ONCE, **settings})
            w.upstreams[name] = Guarded(Guard(backend, jitter=lambda: 1.0), [w.upstreams[name]])

    return put


OPENS_AT_ONCE = Breaker(failures=1, pause=100.0, longest=100.0)
Put = Callable[..., None]


async def test_a_backend_that_keeps_failing_is_passed_over_without_a_call(world: Build, guards: Put) -> None:
    w = world()
    guards(w)
    w.a.default = FakeReply(status=500)
    for _ in range(3):
        await w.ask()
    assert (len(w.a.requests), len(w.b.requests)) == (1, 3)
    assert [(a.backend, a.kind, a.status) for a in w.told[0].attempts] == [("a", "first", 500), ("b", "failover", 200)]
    assert [(a.backend, a.kind, a.status) for a in w.told[2].attempts] == [("a", "open", None), ("b", "first", 200)]


async def test_a_backend_whose_queue_is_full_is_passed_over_at_once(world: Build, guards: Put, eventually: Until) -> None:
    w = world()
    guards(w, "a", concurrency=1, queue=1)
    w.a.script(FakeReply("one two", pause=0.3), FakeReply())
    asking = [asyncio.ensure_future(w.ask(STREAM)) for _ in range(3)]
    answers = await asyncio.gather(*asking)
    assert sorted(answer.backend.name for answer, _ in answers) == ["a", "a", "b"]
    assert [a.kind for told in w.told for a in told.attempts if not a.called] == ["full"]


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limit_exceeded"), (503, "backends_busy")])
async def test_when_all_rest_the_client_is_told_when_to_come_again(world: Build, guards: Put, status: int, code: str) -> None:
    w = world(retries=2)
    guards(w)
    for fake, seconds in zip(w.fakes, ("40", "20", "30"), strict=True):
        fake.default = FakeReply(status=status, headers={"retry-after": seconds})
    await w.refused()
    error = await w.refused()
    assert (error.status, error.code, len(w.a.requests)) == (status, code, 1)
    assert error.retry_after is not None
    assert 19 < error.retry_after <= 20
    assert [a.kind for a in w.told[1].attempts] == ["resting"] * 3
    assert w.pauses == [w.pauses[0]]
    assert "a: not called, it asked for a rest" in error.message


async def test_limits_of_the_backends_reach_the_client_with_the_shortest_wait(world: Build) -> None:
    w = world()
    for fake, headers in zip(w.fakes, ({"retry-after": "9"}, {}, {"retry-after": "4"}), strict=True):
        fake.default = FakeReply(status=429, headers=headers)
    error = await w.refused()
    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 4.0)


async def test_one_that_is_limited_and_one_that_keeps_failing_are_busy_together(world: Build, guards: Put) -> None:
    w = world(order="ab")
    guards(w)
    w.a.default, w.b.default = FakeReply(status=500), FakeReply(status=429)
    await w.refused()
    error = await w.refused()
    assert (error.status, error.code) == (503, "backends_busy")


async def test_a_backend_with_several_urls_is_tried_at_each_before_the_next_one(world: Build) -> None:
    w = world(order="ac")
    urls = Guard(replace(w.upstreams["a"].backend, more_urls=(w.b.url,)))
    table = w.gateway.router.table
    w.gateway.router.table = RouteTable(table.routes, {**table.backends, "a": urls.backend})
    w.upstreams["a"] = Guarded(urls, [w.upstreams["a"], w.upstreams["b"]])
    w.a.default = FakeReply(status=500)
    answer, _ = await w.ask()
    assert (answer.backend.name, len(w.a.requests), len(w.b.requests)) == ("a", 1, 1)
    assert [(a.backend, a.kind, a.status) for a in w.told[0].attempts] == [("a", "first", 500), ("a", "failover", 200)]


async def test_retries_stop_where_the_budget_ends(world: Build) -> None:
    w = world(retries=5, budget=Budget(0.0, 2.0, clock=lambda: 0.0))
    for fake in w.fakes:
        fake.default = FakeReply(status=500)
    for _ in range(2):
        await w.refused()
    assert [len(told.attempts) for told in w.told] == [5, 3]
    assert [a.kind for a in w.told[0].attempts] == ["first", "failover", "failover", "retry", "retry"]


async def test_a_slow_backend_gets_a_hedge_and_the_quicker_one_answers(world: Build, eventually: Until) -> None:
    w = world(hedge=0.05)
    w.a.script(HANG)
    answer, content = await w.ask()
    assert (answer.backend.name, b"Hello" in content) == ("b", True)
    await asyncio.to_thread(eventually, lambda: w.a.abandoned == 1)
    assert [(a.backend, a.kind, a.status, a.error) for a in w.told[0].attempts] == [
        ("b", "hedge", 200, ""), ("a", "first", None, "given up")
    ]  # fmt: skip
    assert (w.told[0].backend.name, w.told[0].outcome) == ("b", "completed")  # type: ignore[union-attr]
    assert not w.c.requests


async def test_a_backend_that_answers_in_time_gets_no_hedge(world: Build) -> None:
    w = world(hedge=5.0)
    answer, _ = await w.ask(STREAM)
    assert (answer.backend.name, len(w.b.requests), w.calls) == ("a", 0, "a")


async def test_the_first_of_two_may_win_though_it_got_a_hedge(world: Build, eventually: Until) -> None:
    w = world(hedge=0.05)
    w.a.script(FakeReply(delay=0.3))
    w.b.script(HANG)
    answer, _ = await w.ask()
    assert (answer.backend.name, w.told[0].backend.name) == ("a", "a")  # type: ignore[union-attr]
    await asyncio.to_thread(eventually, lambda: w.b.abandoned == 1)


async def test_when_both_fail_the_third_is_tried_without_another_hedge(world: Build) -> None:
    w = world(hedge=0.05, retries=1)
    w.a.script(FakeReply(delay=0.2, status=500))
    w.b.script(FakeReply(delay=0.2, status=401))
    w.c.script(FakeReply(delay=0.2))
    answer, _ = await w.ask()
    assert answer.backend.name == "c"
    assert [(a.backend, a.kind, a.status) for a in w.told[0].attempts] == [
        ("a", "first", 500), ("b", "hedge", 401), ("c", "failover", 200)
    ]  # fmt: skip


async def test_no_hedge_is_made_beyond_the_budget(world: Build) -> None:
    w = world(hedge=0.02, budget=Budget(0.0, 0.0))
    w.a.script(FakeReply(delay=0.2))
    answer, _ = await w.ask()
    assert (answer.backend.name, w.calls) == ("a", "a")


class Instant:
    """An upstream whose replies both come when `go` is set; `closed` counts those that were let go of."""

    def __init__(self, go: asyncio.Event, error: Exception | None = None) -> None:
        self.go, self.error, self.closed = go, error, 0

    async def send(self, call: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"x"

        def close() -> None:
            self.closed += 1

        await self.go.wait()
        if self.error:
            raise self.error
        return Reply(200, (), chunks(), close)

    async def aclose(self) -> None:
        pass


async def test_of_two_that_answer_in_the_same_moment_one_is_passed_on_and_both_are_closed(world: Build) -> None:
    w, go = world(hedge=0.01), asyncio.Event()
    w.upstreams.update(a=Instant(go), b=Instant(go))
    asyncio.get_running_loop().call_later(0.1, go.set)
    answer, content = await w.ask()
    assert (answer.backend.name, content) == ("a", b"x")
    assert (w.upstreams["a"].closed, w.upstreams["b"].closed) == (1, 1)
    assert [(a.backend, a.error) for a in w.told[0].attempts] == [("a", ""), ("b", "given up")]


async def test_a_defect_in_one_of_two_is_told_as_what_it_is(world: Build) -> None:
    w, go = world(hedge=0.01), asyncio.Event()
    w.upstreams.update(a=Instant(go), b=Instant(go, LookupError("canary")))
    asyncio.get_running_loop().call_later(0.1, go.set)
    w.upstreams["a"].go = asyncio.Event()
    with pytest.raises(LookupError):
        await w.ask()
    assert [told.error for told in w.told] == ["LookupError"]


async def test_a_client_that_leaves_cancels_both_of_two_calls(world: Build, eventually: Until) -> None:
    w = world(hedge=0.02)
    w.a.script(HANG)
    w.b.script(HANG)
    asking = asyncio.ensure_future(w.ask())
    await asyncio.to_thread(eventually, lambda: w.b.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(eventually, lambda: w.a.abandoned + w.b.abandoned == 2)
    assert (w.told[0].outcome, sorted(a.backend for a in w.told[0].attempts)) == ("client_gone", ["a", "b"])


# Clients that leave


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_a_request_cancelled_while_waiting_cancels_the_call_at_once(world: Build, body: bytes, eventually: Until) -> None:
    w = world()
    w.a.script(HANG)
    asking = asyncio.ensure_future(w.ask(body))
    await asyncio.to_thread(eventually, lambda: w.a.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(eventually, lambda: w.a.abandoned == 1)
    assert not w.b.requests
    told = w.told[0]
    assert (told.outcome, told.status, told.stream, told.backend) == ("client_gone", 0, body is STREAM, None)
    assert [(a.backend, a.status, a.error) for a in told.attempts] == [("a", None, "given up")]


async def test_a_request_cancelled_in_the_middle_of_a_stream_cancels_the_call_at_once(world: Build, eventually: Until) -> None:
    w = world()
    w.a.script(FakeReply("word " * 100, pause=0.05))
    begun = asyncio.Event()

    async def ask() -> None:
        with w.gateway.carry(STREAM) as carrying:
            answer = await carrying.answer()
            async for _ in answer:
                begun.set()

    asking = asyncio.ensure_future(ask())
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(eventually, lambda: w.a.abandoned == 1)
    assert (w.told[0].outcome, w.told[0].status) == ("client_gone", 200)
    assert w.told[0].sent_bytes > 0


@pytest.mark.parametrize("read", [0, 1])
async def test_leaving_the_context_early_lets_go_of_the_backend(world: Build, read: int, eventually: Until) -> None:
    w = world()
    w.a.script(FakeReply("word " * 100, pause=0.05))
    with w.gateway.carry(STREAM) as carrying:
        answer = await carrying.answer()
        for _ in range(read):
            await anext(answer)
    await asyncio.to_thread(eventually, lambda: w.a.abandoned == 1)
    assert (w.told[0].outcome, w.told[0].error) == ("client_gone", "")


async def test_usage_that_came_before_the_client_left_is_told(world: Build) -> None:
    w = world()
    w.a.script(raw(b"content-type: text/event-stream", b"content-length: 999",
                   body=b'data: {"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'))  # fmt: skip
    with w.gateway.carry(STREAM) as carrying:
        answer = await carrying.answer()
        await anext(answer)
    assert w.told[0].usage == Usage(7, 1)


async def test_an_error_of_the_reader_in_the_middle_of_a_reply_cuts_it(world: Build) -> None:
    w = world()

    async def ask() -> None:
        with w.gateway.carry(BODY) as carrying:
            await carrying.answer()
            raise ZeroDivisionError("canary")

    with pytest.raises(ZeroDivisionError):
        await ask()
    assert (w.told[0].outcome, w.told[0].error) == ("cut", "ZeroDivisionError")


# The story


@pytest.mark.parametrize(
    ("body", "error", "status"),
    [
        (b"no json", InvalidRequest, 400),
        (b'{"messages":[]}', InvalidRequest, 400),
        (b'{"messages":[{"role":"user","content":"hi"}],"model":"gpt-9"}', UnknownModel, 404),
        (b'{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}', NothingFits, 422),
    ],
)
@pytest.mark.parametrize("door", ["carry", "decide"])
async def test_a_request_that_cannot_be_served_is_told_once_as_rejected(
    world: Build, body: bytes, error: type[Exception], status: int, door: str
) -> None:
    w = world()
    with pytest.raises(error):
        await (w.ask(body) if door == "carry" else w.gateway.decide(body, "r1"))
    assert [(told.outcome, told.status, told.request_id) for told in w.told] == [("rejected", status, "r1")]
    assert w.told[0].error
    assert not any(fake.requests for fake in w.fakes)


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_a_good_request_is_told_once_with_its_numbers(world: Build, body: bytes) -> None:
    w = world()
    w.a.script(FakeReply(status=503))
    _, content = await w.ask(body)
    assert len(w.told) == 1
    told = w.told[0]
    assert (told.request_id, told.outcome, told.status, told.stream, told.error) == ("r1", "completed", 200, body is STREAM, "")
    assert told.backend is not None
    assert (told.backend.name, told.usage, told.sent_bytes) == ("b", Usage(7, 5), len(content))
    assert told.cost == pytest.approx((7 * 1.0 + 5 * 2.0) / 1e6)
    assert told.decision is not None
    assert told.decision.route == "other"
    assert 0 < told.first_byte <= told.elapsed
    assert all(attempt.elapsed > 0 for attempt in told.attempts)


async def test_a_decision_alone_is_told_once_and_calls_nobody(world: Build) -> None:
    w = world()
    request, decision = await w.gateway.decide(STREAM, "r1")
    assert isinstance(request, ChatRequest)
    assert [backend.name for backend in decision.backends] == ["a", "b", "c"]
    assert [(t.request_id, t.outcome, t.status, t.stream, t.decision, t.attempts) for t in w.told] == [
        ("r1", "completed", 200, True, decision, ())
    ]
    assert not w.a.requests


async def test_a_decision_can_be_asked_for_whatever_model_the_body_names(world: Build) -> None:
    w = world()
    body = BODY.replace(b"auto", b"gpt-9")
    request, decision = await w.gateway.decide(body, model="auto")
    assert (request.model, decision.route) == ("auto", "other")


async def test_a_request_refused_or_left_before_it_was_read_is_told_once(world: Build) -> None:
    w = world()
    w.gateway.refuse(InvalidRequest.too_large("too large"), "r1")
    w.gateway.refuse(None, "r2")
    assert [(t.request_id, t.outcome, t.status, t.error) for t in w.told] == [
        ("r1", "rejected", 413, "request_too_large"), ("r2", "client_gone", 0, "")
    ]  # fmt: skip


async def test_a_defect_is_told_by_its_kind_only(world: Build) -> None:
    w = world()

    class Broken:
        async def send(self, call: Call) -> Reply:
            raise LookupError("canary " + call.body.decode())

    w.upstreams["a"] = Broken()  # type: ignore[assignment]
    with pytest.raises(LookupError):
        await w.ask()
    assert (w.told[0].outcome, w.told[0].status, w.told[0].error) == ("failed", 500, "LookupError")
    assert "canary" not in str(w.told[0].to_json())
    del w.upstreams["a"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"messages":[{"role":"canary","content":"canary"}]}', "invalid_request at messages[0].role"),
        (b'{"messages":[{"role":"user","content":"canary"}],"fingerpost":{"canary":1}}', "invalid_request at fingerpost"),
        (b"canary", "invalid_request"),
    ],
)
async def test_the_story_of_a_malformed_request_does_not_quote_it(world: Build, body: bytes, error: str) -> None:
    w = world()
    await w.refused(body)
    assert w.told[0].error == error


async def test_in_flight_counts_requests_from_decision_to_last_byte(world: Build) -> None:
    w = world()
    with w.gateway.carry(BODY) as one, w.gateway.carry(STREAM) as two:
        await one.answer()
        await two.answer()
        assert w.gateway.in_flight == 2
    await w.refused(b"no json")
    assert w.gateway.in_flight == 0


async def test_cutting_cancels_every_request_that_is_being_served(world: Build, eventually: Until) -> None:
    w = world()
    w.a.default = HANG
    asking = [asyncio.ensure_future(w.ask()) for _ in range(3)]
    await asyncio.to_thread(eventually, lambda: len(w.a.requests) == 3)
    w.gateway.cut()
    assert [type(end) for end in await asyncio.gather(*asking, return_exceptions=True)] == [asyncio.CancelledError] * 3
    assert [told.outcome for told in w.told] == ["client_gone"] * 3
    assert w.gateway.in_flight == 0


async def test_all_observers_are_told_though_one_fails_and_nobody_quotes_it(
    world: Build, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def observe(self, exchange: Exchange) -> None:
            raise OSError("canary: no space left")

    w = world()
    w.gateway.observers = (Full(), *w.gateway.observers)
    with caplog.at_level(logging.DEBUG, "fingerpost.gateway"):
        _, content = await w.ask()
    assert b"Hello" in content
    assert len(w.told) == 1
    assert [record.getMessage() for record in caplog.records if record.name == "fingerpost.gateway"] == [
        "observer Full failed: OSError"
    ]


async def test_times_are_taken_from_the_clock(fake: FakeBackend) -> None:
    ticks = iter(range(100))
    told: list[Exchange] = []

    class Collecting:
        observe = told.append

    backend = Backend("a", "m", fake.url)
    table = RouteTable((Route("other", backends=("a",)),), {"a": backend})
    observers: list[Observer] = [Collecting()]
    gateway = Gateway(Router(table, Fixed("other")), {"a": Http1Upstream(backend)}, observers, clock=lambda: float(next(ticks)))
    with gateway.carry(BODY) as carrying:
        answer = await carrying.answer()
        assert [chunk async for chunk in answer]
    await gateway.aclose()
    assert (told[0].attempts[0].elapsed, told[0].first_byte, told[0].elapsed) == (1.0, 3.0, 4.0)


async def test_closing_the_gateway_closes_its_classifier_and_its_upstreams(world: Build) -> None:
    w = world()
    await w.ask()
    (pool,) = w.upstreams["a"]._pools.values()
    assert pool.connections
    await w.gateway.aclose()
    assert not pool.connections
    assert w.classifier.closed == 1


class Replying:
    """An upstream without `pour`, whose reply is the pieces or breaks off before them; `closed` gets its status on closing."""

    def __init__(
        self,
        status: int = 200,
        headers: Headers = (),
        pieces: Sequence[bytes] = (b"x",),
        error: Exception | None = None,
        closed: list[int] | None = None,
    ) -> None:
        self.status, self.headers, self.pieces, self.error = status, headers, pieces, error
        self.closed: list[int] = [] if closed is None else closed

    async def send(self, call: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            if self.error:
                raise self.error
            for piece in self.pieces:
                yield piece

        def close() -> None:
            self.closed.append(self.status)

        return Reply(self.status, self.headers, chunks(), close)

    async def aclose(self) -> None:
        pass


async def test_replies_that_are_not_passed_on_are_closed(world: Build) -> None:
    w = world()
    closed: list[int] = []
    b = Replying(201, error=UpstreamTimeout("b: late"), closed=closed)
    w.upstreams.update(a=Replying(503, closed=closed), b=b, c=Replying(202, closed=closed))
    _, content = await w.ask()
    assert content == b"x"
    assert closed == [503, 201, 202]
    assert [attempt.error for attempt in w.told[0].attempts] == ["answered 503", "late", ""]


async def test_chunks_of_an_upstream_that_cannot_pour_are_iterated(world: Build) -> None:
    w = world()
    poured: list[bytes] = []
    w.upstreams["a"] = Replying(pieces=(b"x", b"y"))
    iterated = []
    with w.gateway.carry(BODY) as carrying:
        answer = await carrying.answer()
        async for chunk in answer:
            iterated.append(chunk)
            await answer.pour(lambda chunk: not poured.append(chunk))
    assert (iterated, poured) == ([b"x", b"y"], [])
    assert (w.told[0].outcome, w.told[0].sent_bytes) == ("completed", 2)


@pytest.mark.parametrize("pair", [(b"x-a", b"b\r\nx-c: d"), (b"x-a", b"b\0")])
async def test_headers_that_no_client_can_be_told_are_no_reply(world: Build, pair: tuple[bytes, bytes]) -> None:
    w = world()
    w.upstreams["a"] = replying = Replying(headers=(pair,))
    error = await w.refused(BODY)
    assert (error.status, error.message) == (502, "a: spoke no valid HTTP")
    assert replying.closed == [200]
    assert (w.told[0].outcome, w.gateway.in_flight) == ("failed", 0)


def test_an_exchange_of_the_log_is_json(world: Build) -> None:
    w = world()
    asyncio.run(w.gateway.decide(BODY))
    assert msgspec.json.decode(msgspec.json.encode(w.told[0].to_json()))["route"] == "other"
