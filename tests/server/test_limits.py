"""Limits and budgets, through real sockets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from fingerpost.clients.keys import hash_of, new_key
from fingerpost.testing import FakeBackend, FakeReply

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
HI = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
KEY = new_key()
HEADERS = {"authorization": f"Bearer {KEY}"}


def start(serving: Callable[..., Any], **limits: Any) -> Any:
    backend = {"price": {"input": 1e6, "output": 1e6}, "breaker": {"enabled": False}}
    return serving(backend=backend, keys=[{"name": "team", "hash": hash_of(KEY), **limits}])


def code(content: bytes) -> str:
    return str(json.loads(content)["error"]["code"])


def test_requests_a_minute(serving: Callable[..., Any], fake: FakeBackend) -> None:
    fake.default = FakeReply(headers={"x-ratelimit-remaining-requests": "of-the-backend", "x-ratelimit-other": "x"})
    door = start(serving, requests_per_minute=2)
    for left in ("1", "0"):
        status, headers, _ = door.request("POST", CHAT, HI, HEADERS)
        assert (status, headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == (200, "2", left)
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-other" not in headers
        assert "x-ratelimit-limit-tokens" not in headers
    for path in (CHAT, ROUTE, "/sfc_router/chat/completions"):
        status, headers, content = door.request("POST", path, HI, HEADERS)
        assert (status, code(content), headers["x-ratelimit-remaining-requests"]) == (429, "rate_limit_exceeded", "0")
        assert 1 <= int(headers["retry-after"]) <= 30
    assert door.request("GET", "/v1/models", headers=HEADERS)[0] == 200
    assert [(told.status, told.outcome, told.key) for told in door.told(5)] == [(200, "completed", "team")] * 2 + [
        (429, "rejected", "team")
    ] * 3
    assert len(fake.requests) == 2


def test_without_limits_the_headers_of_the_backend_pass(serving: Callable[..., Any], fake: FakeBackend) -> None:
    fake.default = FakeReply(headers={"x-ratelimit-remaining-requests": "7"})
    _, headers, _ = start(serving).request("POST", CHAT, HI, HEADERS)
    assert headers["x-ratelimit-remaining-requests"] == "7"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute_are_those_that_the_backend_reports(
    serving: Callable[..., Any], fake: FakeBackend, stream: bool
) -> None:
    fake.default = FakeReply(usage=(300, 400))
    door = start(serving, tokens_per_minute=1000)
    body = {**HI, "stream": stream, "stream_options": {"include_usage": True}}
    assert door.request("POST", CHAT, body, HEADERS)[0] == 200
    door.told(1)
    _, headers, _ = door.request("POST", CHAT, body, HEADERS)
    assert 270 <= int(headers["x-ratelimit-remaining-tokens"]) < 500  # what flowed back in between included
    door.told(2)
    status, headers, content = door.request("POST", CHAT, body, HEADERS)
    assert (status, code(content)) == (429, "rate_limit_exceeded")
    assert int(headers["retry-after"]) >= 1


def test_an_answer_longer_than_the_limit_is_refused_before_it_is_asked_for(
    serving: Callable[..., Any], fake: FakeBackend
) -> None:
    door = start(serving, tokens_per_minute=1000)
    status, headers, content = door.request("POST", CHAT, {**HI, "max_tokens": 5000}, HEADERS)
    assert (status, code(content), "retry-after" in headers) == (429, "rate_limit_exceeded", False)
    assert not fake.requests


def test_a_spent_budget_is_insufficient_quota(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = start(serving, budget={"usd": 10, "per": "day"})
    assert door.request("POST", CHAT, HI, HEADERS)[0] == 200  # 12 tokens at a dollar each
    door.told(1)
    status, headers, content = door.request("POST", CHAT, HI, HEADERS)
    assert (status, code(content)) == (429, "insufficient_quota")
    assert json.loads(content)["error"]["message"] == "the key team has spent its budget of 10 USD for this day"
    assert 1 <= int(headers["retry-after"]) <= 86400


def test_a_client_that_is_counted_cannot_hide_its_usage(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = start(serving, budget={"usd": 10})
    packed = {**HEADERS, "accept-encoding": "gzip, br"}
    assert door.request("POST", CHAT, {**HI, "stream": True}, packed)[0] == 200  # says nothing of usage
    assert fake.requests[0].headers["accept-encoding"] == "identity"
    door.told(1)
    assert code(door.request("POST", CHAT, HI, packed)[2]) == "insufficient_quota"


def test_one_that_is_not_counted_gets_what_it_accepts(serving: Callable[..., Any], fake: FakeBackend) -> None:
    content = gzip.compress(b"{}")
    fake.default = FakeReply(
        raw=b"HTTP/1.1 200 X\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(content) + content
    )
    door = start(serving, requests_per_minute=10)
    assert door.request("POST", CHAT, HI, {**HEADERS, "accept-encoding": "gzip"})[2] == content
    assert fake.requests[0].headers["accept-encoding"] == "gzip"


def test_what_no_backend_served_is_given_back(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = start(serving, tokens_per_minute=100, budget={"usd": 1})
    fake.default = FakeReply(status=500)
    for _ in range(3):
        assert door.request("POST", CHAT, {**HI, "max_tokens": 90}, HEADERS)[0] == 502
        door.told(1)
    fake.default = FakeReply()
    assert door.request("POST", CHAT, {**HI, "max_tokens": 90}, HEADERS)[0] == 200
