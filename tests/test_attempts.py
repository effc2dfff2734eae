"""The trail of one request, and what its client is told when no backend answered; tests/test_gateway.py tries real backends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fingerpost.attempts import Attempts, Order, Trail
from fingerpost.chat import ChatRequest
from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.records import Attempt
from fingerpost.routes import Backend
from fingerpost.upstreams import Call, Reply
from fingerpost.upstreams.health import Budget

LIMITED, FAILED, SLOW = Attempt("a", 429, "answered 429"), Attempt("a", 500, "answered 500"), Attempt("a", None, "late")
OPEN, RESTING = Attempt("a", None, "not called", kind="open"), Attempt("a", None, "not called", kind="resting")


@pytest.mark.parametrize(
    ("trail", "status", "code", "seconds"),
    [
        (Trail(), 502, "upstream_error", None),
        (Trail([FAILED]), 502, "upstream_error", None),
        (Trail([SLOW, SLOW], timeouts=2), 504, "upstream_timeout", None),
        (Trail([SLOW, FAILED], timeouts=1), 502, "upstream_error", None),
        (Trail([LIMITED, LIMITED], limited=2, waits=[7.0, 3.0]), 429, "rate_limit_exceeded", 3.0),
        (Trail([LIMITED, RESTING], limited=2), 429, "rate_limit_exceeded", None),
        (Trail([LIMITED, OPEN], limited=1, waits=[9.0]), 503, "backends_busy", 9.0),
        (Trail([OPEN]), 503, "backends_busy", None),
        (Trail([OPEN, FAILED], waits=[1.0]), 502, "upstream_error", None),
        (Trail([OPEN, SLOW], timeouts=1), 502, "upstream_error", None),
    ],
)
def test_what_all_attempts_have_in_common_is_told(trail: Trail, status: int, code: str, seconds: float | None) -> None:
    error = trail.failure()
    assert (error.status, error.code, error.retry_after) == (status, code, seconds)
    assert error.message == f"no backend answered ({trail.tried})"


def test_a_trail_knows_whether_anybody_was_called_and_counts_limits() -> None:
    trail = Trail([OPEN])
    assert (trail.called, Trail([OPEN, FAILED]).called) == (False, True)
    for seconds, status in ((2.0, 429), (None, 429), (1.0, 503), (None, 500)):
        trail.wait_for(seconds, status)
    assert (trail.limited, trail.waits) == (2, [2.0, 1.0])


ORDER = Order(ChatRequest.from_messages("Hello"), (), math.inf)


class Saying:
    """An upstream that says statuses in order."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)

    async def send(self, call: Call) -> Reply:
        async def chunks() -> AsyncIterator[bytes]:
            yield call.backend.name.encode()

        return Reply(self.statuses.pop(0), (), chunks())

    async def aclose(self) -> None:
        raise NotImplementedError


async def test_backends_are_tried_until_one_answers_with_pauses_between_the_rounds() -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    backends = [Backend("a", "m", "http://a"), Backend("b", "m", "http://b")]
    upstreams: dict[str, Any] = {"a": Saying(500, 500, 200), "b": Saying(503, 401)}
    trail = Trail()
    attempts = Attempts(upstreams, Budget(), retries=2, pause=pause)
    backend, reply, first = await attempts.first_reply(backends, ORDER, trail)
    assert (backend.name, reply.status, first, len(pauses)) == ("a", 200, b"a", 2)
    assert [(a.backend, a.kind, a.status) for a in trail.attempts] == [
        ("a", "first", 500), ("b", "failover", 503), ("a", "retry", 500), ("b", "retry", 401), ("a", "retry", 200)
    ]  # fmt: skip


async def test_when_nobody_answers_the_error_is_the_trails() -> None:
    trail, upstreams = Trail(), {"a": Saying(429), "b": Saying(429)}
    backends = [Backend("a", "m", "http://a"), Backend("b", "m", "http://b")]
    with pytest.raises(UpstreamError) as caught:
        await Attempts(upstreams, Budget(), retries=0).first_reply(backends, ORDER, trail)
    assert (caught.value.status, type(caught.value) is UpstreamTimeout) == (429, False)
