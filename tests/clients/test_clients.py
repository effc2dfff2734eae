from __future__ import annotations

from typing import Any

import pytest

from fingerpost.clients import Client, Limits, Standing, Visit, used
from fingerpost.clients.local import Local
from fingerpost.errors import FingerpostError
from fingerpost.records import Attempt, Decision, Exchange, Usage
from fingerpost.routes import Backend, Price

BACKEND = Backend("b", "m", "http://b", price=Price(1.0, 2.0))
DECISION = Decision("chat", (BACKEND,), "so", "fixed")


def exchange(**fields: Any) -> Exchange:
    start: dict[str, Any] = {"decision": DECISION, "attempts": (Attempt("b", 200),), "first_byte": 0.1,
                             "backend": BACKEND}  # fmt: skip
    return Exchange("id", fields.pop("outcome", "completed"), fields.pop("status", 200), fields.pop("stream", False), 1.0,
                    **{**start, **fields})  # fmt: skip


class Clock:
    def __init__(self, at: float = 0.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def test_what_the_backend_reports_is_what_was_used() -> None:
    assert used(exchange(usage=Usage(1_000_000, 500_000)), 7) == (1_500_000, 2.0)


@pytest.mark.parametrize(("stream", "output"), [(True, 20), (False, 1000)])
def test_what_it_does_not_report_is_estimated_from_what_went_out(stream: bool, output: int) -> None:
    for outcome in ("completed", "client_gone", "cut"):
        tokens, usd = used(exchange(stream=stream, sent_bytes=3000, outcome=outcome), 100)
        assert (tokens, usd) == (100 + output, pytest.approx((100 + 2 * output) / 1e6))


@pytest.mark.parametrize("fields", [
    {"first_byte": None, "status": 502, "attempts": (Attempt("b", None, "cannot connect"),)},
    {"status": 400, "sent_bytes": 300}, {"attempts": (), "backend": None},
])  # fmt: skip
def test_what_was_not_served_costs_nothing(fields: dict[str, Any]) -> None:
    assert used(exchange(**fields), 100) == (0, 0.0)


async def test_a_client_without_limits_is_never_counted() -> None:
    visit = Visit(Client("free"), Broken())
    await visit.admit(10**9)
    visit.settle(exchange(usage=Usage(1, 1)))
    await visit.end()
    assert visit.headers() == []
    assert not visit.metered


class Broken(Local):
    async def take(self, client: Client, tokens: int) -> Standing:
        raise AssertionError("it was asked")

    def settle(self, client: Client, tokens: int, usd: float) -> None:
        raise AssertionError("it was asked")

    async def flush(self) -> None:
        raise AssertionError("it was asked")


async def test_requests_in_a_minute_run_out_and_come_back_steadily() -> None:
    clock = Clock(1000.0)
    client, ledger = Client("team", limits=Limits(requests=3)), Local(clock, Clock())
    for left in (2, 1, 0):
        visit = Visit(client, ledger)
        await visit.admit(0)
        assert dict(visit.headers())[b"x-ratelimit-remaining-requests"] == b"%d" % left
        assert dict(visit.headers())[b"x-ratelimit-limit-requests"] == b"3"
    assert dict(visit.headers())[b"x-ratelimit-reset-requests"] == b"60.000s"
    visit = Visit(client, ledger)
    with pytest.raises(FingerpostError) as refused:
        await visit.admit(0)
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "rate_limit_exceeded", 20.0)
    assert refused.value.message == "the key team has used its 3 requests a minute; try again in 20.0 s"
    assert dict(visit.headers())[b"x-ratelimit-remaining-requests"] == b"0"
    clock.at += 20.0
    await Visit(client, ledger).admit(0)
    with pytest.raises(FingerpostError):
        await Visit(client, ledger).admit(0)
    clock.at += 3600.0
    for _ in range(3):
        await Visit(client, ledger).admit(0)
    with pytest.raises(FingerpostError):
        await Visit(client, ledger).admit(0)


async def test_tokens_are_taken_as_estimated_and_corrected_to_what_was_used() -> None:
    client, ledger = Client("team", limits=Limits(tokens=1000)), Local(Clock(5.0), Clock())

    async def visit(estimate: int, **fields: Any) -> int:
        one = Visit(client, ledger)
        await one.admit(estimate)
        one.settle(exchange(**fields))
        await one.end()
        return int(dict(one.headers())[b"x-ratelimit-remaining-tokens"])

    assert await visit(600, usage=Usage(50, 50)) == 400
    assert await visit(600, first_byte=None, status=502) == 300
    assert await visit(800, usage=Usage(900, 400)) == 100  # 900 were left, and more than that was used
    with pytest.raises(FingerpostError, match="the key team has used its 1000 tokens a minute; try again in 24"):
        await visit(1)


async def test_a_request_larger_than_the_limit_is_refused_for_good_and_takes_nothing() -> None:
    client, ledger = Client("team", limits=Limits(requests=10, tokens=1000)), Local(Clock(), Clock())
    visit = Visit(client, ledger)
    with pytest.raises(FingerpostError, match="larger than the 1000 tokens a minute") as refused:
        await visit.admit(1001)
    assert refused.value.retry_after is None
    assert dict(visit.headers())[b"x-ratelimit-remaining-tokens"] == b"1000"
    assert dict(visit.headers())[b"x-ratelimit-remaining-requests"] == b"10"
    visit.settle(exchange(usage=Usage(500, 0)))
    await Visit(client, ledger).admit(1000)


async def test_a_spent_budget_refuses_until_the_next_period() -> None:
    now = Clock(1_764_547_200.0 - 3600)  # an hour before December 2025 begins
    client, ledger = Client("team", limits=Limits(usd=2.0)), Local(Clock(), now)
    for _ in range(2):
        visit = Visit(client, ledger)
        await visit.admit(100)
        visit.settle(exchange(usage=Usage(1_000_000, 0)))
    assert visit.headers() == []
    with pytest.raises(FingerpostError) as refused:
        await Visit(client, ledger).admit(100)
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "insufficient_quota", 3600.0)
    assert refused.value.message == "the key team has spent its budget of 2 USD for this month"
    now.at += 3600
    await Visit(client, ledger).admit(100)


async def test_clients_are_counted_apart_by_name_and_keep_their_count_when_their_limits_change() -> None:
    ledger = Local(Clock(), Clock())
    await Visit(Client("a", limits=Limits(requests=1)), ledger).admit(0)
    await Visit(Client("b", limits=Limits(requests=1)), ledger).admit(0)
    with pytest.raises(FingerpostError):
        await Visit(Client("a", limits=Limits(requests=1)), ledger).admit(0)
    await ledger.flush()
    await ledger.aclose()
