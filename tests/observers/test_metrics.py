"""The metrics, read back with Prometheus's own parser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fingerpost.observers.metrics import BROUGHT_ALONG, Metrics
from fingerpost.records import Attempt, Decision, Exchange, Usage
from fingerpost.routes import Backend, Breaker, Price
from fingerpost.upstreams.health import Guard

BACKEND = Backend("small", "m", "http://localhost/v1", key="sk-canary", price=Price(1.0, 2.0))


def exchange(route: str | None = "chat", **fields: Any) -> Exchange:
    decision = Decision(route, (BACKEND,), "canary reason", "fixed", 1.0, elapsed=0.004)
    known = {"request_id": "r1", "outcome": "completed", "status": 200, "stream": False, "elapsed": 1.0, "decision": decision,
             "attempts": (Attempt("small", 200),), "first_byte": 0.3}  # fmt: skip
    known |= fields
    served = known["first_byte"] is not None and known["decision"] is not None
    backend = known["decision"].backend if served else None
    return Exchange(**{"backend": backend, **known})


class Samples:
    """What a scrape says: `samples(name, label=value)` is one value, `all_of(name)` are all by their labels' values."""

    def __init__(self, metrics: Metrics, in_flight: int = 0, guards: Sequence[Guard] = ()) -> None:
        families = text_string_to_metric_families(metrics.render(in_flight, guards).decode())
        self.all = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        return next((sample.value for sample in self.all if (sample.name, sample.labels) == (name, labels)), None)

    def all_of(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        return {tuple(s.labels[label] for label in labels): s.value for s in self.all if s.name == name}


def observed(*exchanges: Exchange) -> Samples:
    metrics = Metrics(["chat", "other"])
    for one in exchanges:
        metrics.observe(one)
    return Samples(metrics)


def test_requests_are_counted_by_how_they_ended() -> None:
    failed = exchange(outcome="failed", status=502, attempts=(Attempt("small", 503, "answered 503"),), first_byte=None)
    counts = observed(exchange(), exchange(), failed).all_of(
        "fingerpost_requests_total", "route", "backend", "status", "outcome"
    )
    assert counts == {("chat", "small", "200", "completed"): 2, ("chat", "", "502", "failed"): 1}


def test_an_exchange_without_a_decision_is_counted() -> None:
    samples = observed(exchange(decision=None, outcome="rejected", status=400, attempts=(), first_byte=None))
    assert samples("fingerpost_requests_total", route="", backend="", status="400", outcome="rejected") == 1
    assert not samples.all_of("fingerpost_decision_seconds_count", "source")


def test_decisions_are_timed() -> None:
    samples = observed(exchange())
    assert samples("fingerpost_decision_seconds_count", source="fixed", cached="false") == 1
    assert samples("fingerpost_decision_seconds_sum", source="fixed", cached="false") == pytest.approx(0.004)


def test_attempts_are_counted_by_backend_and_status() -> None:
    attempts = (Attempt("big", 503, "x"), Attempt("big", None, "the connection broke"), Attempt("small", 200))
    counts = observed(exchange(attempts=attempts)).all_of("fingerpost_attempts_total", "backend", "status")
    assert counts == {("big", "503"): 1, ("big", "none"): 1, ("small", "200"): 1}


def test_calls_that_were_not_the_first_or_not_made_are_counted_apart() -> None:
    attempts = (Attempt("big", None, kind="open"), Attempt("big", None, kind="full"), Attempt("a", 500, "x"),
                Attempt("b", None, "given up", kind="failover"), Attempt("small", 200, kind="hedge"))  # fmt: skip
    samples = observed(exchange(attempts=attempts))
    assert samples.all_of("fingerpost_attempts_total", "backend") == {("a",): 1, ("b",): 1, ("small",): 1}
    assert samples.all_of("fingerpost_retries_total", "backend", "kind") == {("b", "failover"): 1, ("small", "hedge"): 1}
    assert samples.all_of("fingerpost_skipped_total", "backend", "why") == {("big", "open"): 1, ("big", "full"): 1}


async def test_backends_are_shown_as_they_fare_and_those_that_are_gone_are_not_shown() -> None:
    guard = Guard(Backend("b", "m", "http://user:canary@one/v1", more_urls=("http://two:8/v1",), breaker=Breaker(failures=1)))
    first, second = await guard.enter(), await guard.enter()
    first.settle(False)
    first.release()
    metrics = Metrics([])
    samples = Samples(metrics, 0, [guard])
    assert samples.all_of("fingerpost_circuit_state", "backend", "url") == {("b", "one/v1"): 2, ("b", "two:8/v1"): 0}
    assert samples.all_of("fingerpost_backend_in_flight", "url") == {("one/v1",): 0, ("two:8/v1",): 1}
    assert samples("fingerpost_backend_waiting", backend="b") == 0
    assert not Samples(metrics).all_of("fingerpost_circuit_state", "backend")
    second.release()


def test_routes_that_a_reload_brings_get_series_of_their_own() -> None:
    metrics = Metrics(["chat"])
    metrics.learn(["new"])
    for route in ("chat", "new", "canary"):
        metrics.observe(exchange(route))
    routes = Samples(metrics).all_of("fingerpost_requests_total", "route")
    assert set(routes) == {("chat",), ("new",), (BROUGHT_ALONG,)}


def test_first_bytes_are_timed_where_there_are_any() -> None:
    samples = observed(exchange(), exchange(first_byte=None))
    assert samples("fingerpost_first_byte_seconds_count", backend="small") == 1
    assert samples("fingerpost_first_byte_seconds_sum", backend="small") == pytest.approx(0.3)


def test_tokens_and_their_cost_add_up() -> None:
    samples = observed(exchange(usage=Usage(1_000_000, 500_000)), exchange(usage=Usage(1_000_000, 0)), exchange())
    assert samples("fingerpost_tokens_total", backend="small", direction="input") == 2_000_000
    assert samples("fingerpost_tokens_total", backend="small", direction="output") == 500_000
    assert samples("fingerpost_cost_usd_total", backend="small") == pytest.approx(3.0)


def test_routes_that_clients_bring_share_one_series() -> None:
    samples = observed(exchange("canary-1"), exchange("canary-2"), exchange(None))
    assert samples.all_of("fingerpost_requests_total", "route") == {(BROUGHT_ALONG,): 2, ("",): 1}


def test_neither_keys_nor_reasons_nor_errors_are_in_the_metrics() -> None:
    metrics = Metrics(["chat"])
    metrics.observe(exchange("canary-route", error="canary error", request_id="canary-id"))
    assert b"canary" not in metrics.render()


def test_what_is_in_flight_is_what_the_caller_says() -> None:
    metrics = Metrics([])
    assert Samples(metrics, 7)("fingerpost_in_flight") == 7
    assert Samples(metrics)("fingerpost_in_flight") == 0


def test_two_gateways_in_one_process_count_apart() -> None:
    one, two = Metrics(["chat"]), Metrics(["chat"])
    one.observe(exchange())
    assert Samples(one).all_of("fingerpost_requests_total", "route") == {("chat",): 1}
    assert Samples(two).all_of("fingerpost_requests_total", "route") == {}


def test_names_with_quotes_and_backslashes_stay_readable() -> None:
    odd = Backend('a"b\\c', "m", "http://localhost/v1")
    decision = Decision("chat", (odd,), "", "fixed")
    samples = observed(exchange(decision=decision, attempts=(Attempt('a"b\\c', 200),)))
    assert samples.all_of("fingerpost_requests_total", "backend") == {('a"b\\c',): 1}
