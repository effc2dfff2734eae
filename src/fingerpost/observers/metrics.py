"""Prometheus metrics of the exchanges."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fingerpost.records import Exchange

DECISION_BUCKETS = (0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
REPLY_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

BROUGHT_ALONG = "(brought along)"
"""The label for routes that requests bring along: their names are the clients' to choose and must not become series."""


class Metrics:
    """Counts exchanges. `routes` are the configured route names, the only ones that become label values."""

    def __init__(self, routes: Collection[str]) -> None:
        self.registry = CollectorRegistry()
        self._routes = frozenset(routes)
        self._requests = Counter(
            "fingerpost_requests",
            "Requests by how they ended.",
            ["route", "backend", "status", "outcome"],
            registry=self.registry,
        )
        self._decisions = Histogram(
            "fingerpost_decision_seconds",
            "Time to decide.",
            ["source", "cached"],
            buckets=DECISION_BUCKETS,
            registry=self.registry,
        )
        self._attempts = Counter(
            "fingerpost_attempts",
            "Calls to backends; status is `none` where there was no answer.",
            ["backend", "status"],
            registry=self.registry,
        )
        self._first_byte = Histogram(
            "fingerpost_first_byte_seconds",
            "Time until the first byte of a reply.",
            ["backend"],
            buckets=REPLY_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "fingerpost_tokens", "Tokens that backends report.", ["backend", "direction"], registry=self.registry
        )
        self._cost = Counter(
            "fingerpost_cost_usd", "What those tokens cost at the configured prices.", ["backend"], registry=self.registry
        )
        self._key_requests = Counter(
            "fingerpost_key_requests", "Requests by the name of their client's key.", ["key", "status"], registry=self.registry
        )
        self._key_tokens = Counter(
            "fingerpost_key_tokens",
            "Tokens that backends report, by the name of the client's key.",
            ["key", "direction"],
            registry=self.registry,
        )
        self._key_cost = Counter(
            "fingerpost_key_cost_usd", "What those tokens cost at the configured prices.", ["key"], registry=self.registry
        )
        self._in_flight = Gauge("fingerpost_in_flight", "Requests being served now.", registry=self.registry)

    def observe(self, exchange: Exchange) -> None:
        """Counts one exchange."""
        decision, backend = exchange.decision, exchange.backend.name if exchange.backend else ""
        self._requests.labels(self._route(exchange), backend, str(exchange.status), exchange.outcome).inc()
        if decision is not None:
            self._decisions.labels(decision.source, str(decision.cached).lower()).observe(decision.elapsed)
        for attempt in exchange.attempts:
            self._attempts.labels(attempt.backend, str(attempt.status or "none")).inc()
        if exchange.first_byte is not None:
            self._first_byte.labels(backend).observe(exchange.first_byte)
        if exchange.usage is not None:
            self._tokens.labels(backend, "input").inc(exchange.usage.input_tokens)
            self._tokens.labels(backend, "output").inc(exchange.usage.output_tokens)
            self._cost.labels(backend).inc(exchange.cost or 0.0)
        if exchange.key is not None:
            self._count_key(exchange, exchange.key)

    def render(self, in_flight: int = 0) -> bytes:
        """The metrics in Prometheus's text format; `in_flight` is how many requests are being served now."""
        self._in_flight.set(in_flight)
        return generate_latest(self.registry)

    def _count_key(self, exchange: Exchange, key: str) -> None:
        # Bounded: a request without a known key has none, and the known ones are the configuration's.
        self._key_requests.labels(key, str(exchange.status)).inc()
        if exchange.usage is not None:
            self._key_tokens.labels(key, "input").inc(exchange.usage.input_tokens)
            self._key_tokens.labels(key, "output").inc(exchange.usage.output_tokens)
            self._key_cost.labels(key).inc(exchange.cost or 0.0)

    def _route(self, exchange: Exchange) -> str:
        route = exchange.decision.route if exchange.decision else None
        return "" if route is None else route if route in self._routes else BROUGHT_ALONG
