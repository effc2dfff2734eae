"""The log: one JSON line for each exchange."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from fingerpost.observers.log import JsonLog
from fingerpost.records import Attempt, Decision, Exchange, Usage, Verdict
from fingerpost.routes import Backend, Price

BACKEND = Backend("klein-ü", "m", "http://localhost/v1", key="sk-canary", headers={"x-team": "sk-canary"}, price=Price(1, 2))


def lines_of(*exchanges: Exchange, now: float = 0.0) -> list[str]:
    stream = io.StringIO()
    log = JsonLog(stream, lambda: now)
    for exchange in exchanges:
        log.observe(exchange)
    return stream.getvalue().splitlines(keepends=True)


def whole_exchange() -> Exchange:
    verdict = Verdict({"你好": 0.75, "other": 0.25}, "fixed")
    decision = Decision("你好", (BACKEND,), 'fixed is "75%" sure\n', "fixed", 0.75, verdict, elapsed=0.001)
    attempts = (Attempt("big", 503, "answered 503", 0.01), Attempt("klein-ü", 200, "", 0.02, "failover"))
    return Exchange("r1", "completed", 200, True, 0.5, decision, attempts, 0.25, 1234, Usage(1000, 500), backend=BACKEND)


def test_every_exchange_is_one_line_of_json() -> None:
    lines = lines_of(whole_exchange(), whole_exchange())
    assert len(lines) == 2
    assert all(line.endswith("}\n") for line in lines)


def test_a_line_tells_the_whole_story() -> None:
    assert json.loads(lines_of(whole_exchange(), now=1_700_000_000.25)[0]) == {
        "at": "2023-11-14T22:13:20.250+00:00",
        "request_id": "r1",
        "outcome": "completed",
        "status": 200,
        "key": None,
        "stream": True,
        "route": "你好",
        "backend": "klein-ü",
        "confidence": 0.75,
        "source": "fixed",
        "reason": 'fixed is "75%" sure\n',
        "decision_ms": 1.0,
        "attempts": [
            {"backend": "big", "kind": "first", "status": 503, "error": "answered 503", "ms": 10.0},
            {"backend": "klein-ü", "kind": "failover", "status": 200, "error": "", "ms": 20.0},
        ],
        "first_byte_ms": 250.0,
        "ms": 500.0,
        "bytes": 1234,
        "input_tokens": 1000,
        "output_tokens": 500,
        "cost_usd": 0.002,
        "error": "",
    }


def test_an_exchange_that_came_to_nothing_has_the_same_fields() -> None:
    bare = Exchange("r2", "rejected", 413, False, 0.0, error="the body is larger than 10 bytes")
    line = json.loads(lines_of(bare)[0])
    assert list(line) == list(json.loads(lines_of(whole_exchange())[0]))
    assert (line["route"], line["backend"], line["cost_usd"], line["attempts"]) == (None, None, None, [])


def test_no_key_is_in_the_log() -> None:
    assert "canary" not in lines_of(whole_exchange())[0]


def test_a_line_is_written_out_at_once() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    JsonLog(stream).observe(whole_exchange())
    assert stream.flushed == 1
    assert json.loads(stream.getvalue())["at"].startswith("2")


async def test_what_ends_in_one_round_of_the_loop_is_written_together() -> None:
    class Stream(io.StringIO):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    stream = Stream()
    log = JsonLog(stream)
    for expected in (2, 3):
        while len(stream.getvalue().splitlines()) + len(log._told) < expected:
            log.observe(whole_exchange())
        await asyncio.sleep(0)
        assert len(stream.getvalue().splitlines()) == expected
    assert stream.flushes == 2


async def test_a_stream_that_cannot_be_written_is_said_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    log = JsonLog(stream)
    stream.close()
    log.observe(whole_exchange())
    await asyncio.sleep(0)
    assert caplog.messages == ["the log of requests cannot be written: ValueError"]
