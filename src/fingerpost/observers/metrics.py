"""Prometheus metrics of the exchanges."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from fingerpost.observers.series import Counts, Histograms, Times
from fingerpost.records import Attempt, Exchange
from fingerpost.upstreams.health import Guard

DECISION_BUCKETS = (0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
REPLY_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

STATES = {"closed": 0, "half_open": 1, "open": 2}
"""The values of the gauge of circuits."""

BROUGHT_ALONG = "(brought along)"
"""The label for routes that requests bring along: their names are the clients' to choose and must not become series."""


class Metrics:
    """Counts exchanges. `routes` are the configured route names, the only ones that become label values."""

    def __init__(self, routes: Collection[str]) -> None:
        self.registry = CollectorRegistry()
        self._routes = frozenset(routes)
        count, time = partial(Counts, self.registry), partial(Histograms, self.registry)
        self._requests = count("requests", "Requests by how they ended.", "route", "backend", "status", "outcome")
        self._decisions = time("decision_seconds", "Time to decide.", DECISION_BUCKETS, "source", "cached")
        self._attempts = count(
            "attempts", "Calls to backends; status is `none` where there was no answer.", "backend", "status"
        )
        self._first_byte = time("first_byte_seconds", "Time until the first byte of a reply.", REPLY_BUCKETS, "backend")
        self._tokens = count("tokens", "Tokens that backends report.", "backend", "direction")
        self._cost = count("cost_usd", "What those tokens cost at the configured prices.", "backend")
        why_skipped = "Calls that were not made: the backend's queue was full, it rests, or its circuit is open."
        self._skipped = count("skipped", why_skipped, "backend", "why")
        kinds = "Calls after the first one of a request; kind is failover, retry or hedge."
        self._retries = count("retries", kinds, "backend", "kind")
        self._key_requests = count("key_requests", "Requests by the name of their client's key.", "key", "status")
        by_key = "Tokens that backends report, by the name of the client's key."
        self._key_tokens = count("key_tokens", by_key, "key", "direction")
        self._key_cost = count("key_cost_usd", "What those tokens cost at the configured prices.", "key")
        self._reloads = count("config_reload", "Reloads of the configuration: ok or failed.", "result")
        self._cells: dict[_Kind, _Cells] = {}
        self._in_flight = Gauge("fingerpost_in_flight", "Requests being served now.", registry=self.registry)
        self._backends = _Backends(self.registry)
        self._last_reload_ok = Gauge(
            "fingerpost_config_last_reload_ok", "1 unless the last reload failed.", registry=self.registry
        )
        self._last_reload_ok.set(1)
        self._renewals = count("certificate_reload", "Reloads of the certificate: ok or failed.", "result")
        self._last_renewal_ok = Gauge(
            "fingerpost_certificate_last_reload_ok", "1 unless the last reload failed.", registry=self.registry
        )
        self._last_renewal_ok.set(1)

    def reloaded(self, *, ok: bool) -> None:
        """Counts a reload of the configuration."""
        self._reloads.add("ok" if ok else "failed")
        self._last_reload_ok.set(ok)

    def renewed(self, *, ok: bool) -> None:
        """Counts a reload of the certificate."""
        self._renewals.add("ok" if ok else "failed")
        self._last_renewal_ok.set(ok)

    def learn(self, routes: Collection[str]) -> None:
        """Makes more route names label values."""
        self._routes |= frozenset(routes)

    def observe(self, exchange: Exchange) -> None:
        """Counts one exchange."""
        decision, backend, usage, attempts = exchange.decision, exchange.backend, exchange.usage, exchange.attempts
        status, first_byte = exchange.status, exchange.first_byte
        name, route, source, cached, plain = "", None, None, False, False
        if decision is not None:
            route, source, cached = decision.route, decision.source, decision.cached
            if route is not None and route not in self._routes:
                route = BROUGHT_ALONG
        if backend is not None:
            name = backend.name
        if len(attempts) == 1:
            attempt = attempts[0]
            plain = attempt.kind == "first" and attempt.status == status and attempt.backend == name
        kind = (route, name, status, exchange.outcome, source, cached, first_byte is not None, usage is not None, plain)
        cells = self._cells.get(kind) or self._add_cells(kind)
        cells.requests[0] += 1
        if decision is not None:
            cells.decisions.add(decision.elapsed)
        if first_byte is not None:
            cells.first_byte.add(first_byte)
        if usage is not None:
            cells.input[0] += usage.input_tokens
            cells.output[0] += usage.output_tokens
            if backend is not None:
                cells.cost[0] += backend.price.cost(usage.input_tokens, usage.output_tokens)
        if cells.attempt is not None:
            cells.attempt[0] += 1
        else:
            self._count_attempts(attempts)
        if exchange.key is not None:
            self._count_key(exchange, exchange.key)

    def render(self, in_flight: int = 0, guards: Iterable[Guard] = ()) -> bytes:
        """The metrics in Prometheus's text format; `in_flight` is how many requests are being served now."""
        self._in_flight.set(in_flight)
        self._backends.show(guards)
        return generate_latest(self.registry)

    def _add_cells(self, kind: _Kind) -> _Cells:
        """The cells for exchanges of a kind: looked for once, label by label, and found in one step from then on."""
        route, name, status, outcome, source, cached, begun, counted, plain = kind
        cells = self._cells[kind] = _Cells(
            self._requests.cell(route or "", name, str(status), outcome),
            self._decisions.cell(source, "true" if cached else "false") if source is not None else Times(()),
            self._first_byte.cell(name) if begun else Times(()),
            self._tokens.cell(name, "input") if counted else [0.0],
            self._tokens.cell(name, "output") if counted else [0.0],
            self._cost.cell(name) if counted else [0.0],
            self._attempts.cell(name, str(status)) if plain else None,
        )
        return cells

    def _count_attempts(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            if not attempt.called:
                self._skipped.add(attempt.backend, attempt.kind)
                continue
            self._attempts.add(attempt.backend, str(attempt.status or "none"))
            if attempt.kind != "first":
                self._retries.add(attempt.backend, attempt.kind)

    def _count_key(self, exchange: Exchange, key: str) -> None:
        # Bounded: a request without a known key has none, and the known ones are the configuration's.
        self._key_requests.add(key, str(exchange.status))
        if exchange.usage is not None:
            self._key_tokens.add(key, "input", amount=exchange.usage.input_tokens)
            self._key_tokens.add(key, "output", amount=exchange.usage.output_tokens)
            self._key_cost.add(key, amount=exchange.cost or 0.0)


_Kind = tuple[str | None, str, int, str, str | None, bool, bool, bool, bool]
"""What tells exchanges apart: route, backend, status, outcome, the decision's source and whether it was cached, whether a reply
had begun, whether it said its usage, and whether there was one attempt, which gave them their status.
"""


class _Cells(NamedTuple):
    """Where exchanges of one kind are counted; what they do not have is counted nowhere.

    `attempt` is that of those with one attempt, which gave them their status; None where attempts are counted one by one.
    """

    requests: list[float]
    decisions: Times
    first_byte: Times
    input: list[float]
    output: list[float]
    cost: list[float]
    attempt: list[float] | None


class _Backends:
    """Gauges of how backends fare."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting = Gauge("fingerpost_backend_waiting", "Calls in a backend's queue.", ["backend"], registry=registry)
        self._calls = Gauge(
            "fingerpost_backend_in_flight", "Calls on their way to a backend.", ["backend", "url"], registry=registry
        )
        self._circuits = Gauge(
            "fingerpost_circuit_state",
            "A URL's circuit: 0 closed, 1 half open, 2 open.",
            ["backend", "url"],
            registry=registry,
        )

    def show(self, guards: Iterable[Guard]) -> None:
        """Sets them to what is true now."""
        for gauge in (self._waiting, self._calls, self._circuits):
            gauge.clear()  # a reload may have taken a backend away
        for guard in guards:
            self._waiting.labels(guard.backend.name).set(guard.gate.waiting)
            for place in guard.places:
                labels = guard.backend.name, place.shown
                self._calls.labels(*labels).set(place.in_flight)
                self._circuits.labels(*labels).set(STATES[place.circuit.state(guard.now())])
