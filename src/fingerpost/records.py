"""What was believed, decided, tried and told: frozen values, each with `to_json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fingerpost.routes import OTHER, Backend


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What a classifier believes about the routes.

    `probabilities` maps route names, `other` among them, to numbers from 0 to 1 that sum to about 1; `elapsed` is in
    seconds; `note` says what limits the verdict, such as a conversation that had to be cut. A `provisional` one was given
    while a source that should have been asked was out of reach; it holds for this request and is not remembered.
    """

    probabilities: Mapping[str, float]
    source: str
    elapsed: float = 0.0
    note: str = ""
    provisional: bool = False

    @property
    def route(self) -> str:
        """The most probable route; `other` when there is nothing to choose from."""
        return max(self.probabilities, key=self.probabilities.__getitem__, default=OTHER)

    @property
    def confidence(self) -> float:
        """The probability of the most probable route."""
        return max(self.probabilities.values(), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON values, the most probable route first."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return {
            "route": self.route,
            "confidence": round(self.confidence, 4),
            "probabilities": {name: round(value, 4) for name, value in ranked},
            "source": self.source,
            "ms": round(self.elapsed * 1e3, 3),
            **({"note": self.note} if self.note else {}),
        }


class Constraint(msgspec.Struct, frozen=True, gc=False):
    """Why a backend cannot serve a request."""

    backend: str
    why: str

    def to_json(self) -> dict[str, str]:
        """The constraint as JSON values."""
        return {"backend": self.backend, "why": self.why}


class Decision(msgspec.Struct, frozen=True, gc=False):
    """One route, its backends in the order to try, and why.

    `route` is None when the request named a backend; `elapsed` is the time it took to decide, in seconds.
    """

    route: str | None
    backends: tuple[Backend, ...]
    reason: str
    source: str
    confidence: float | None = None
    verdict: Verdict | None = None
    constraints: tuple[Constraint, ...] = ()
    elapsed: float = 0.0
    cached: bool = False

    def timed(self, elapsed: float, *, cached: bool) -> Decision:
        """The same, with how long it took; written out, since every request passes here and `replace` is slow."""
        return Decision(
            self.route,
            self.backends,
            self.reason,
            self.source,
            self.confidence,
            self.verdict,
            self.constraints,
            elapsed,
            cached,
        )

    @property
    def backend(self) -> Backend | None:
        """The backend to try first; None in a table of routes without backends."""
        return self.backends[0] if self.backends else None

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON values: what `/v1/route` answers."""
        verdict = self.verdict.to_json() if self.verdict else {"probabilities": {}}
        return {
            "route": self.route,
            "backend": self.backend.name if self.backend else None,
            "model": self.backend.model if self.backend else None,
            "backends": [backend.name for backend in self.backends],
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "probabilities": verdict["probabilities"],
            "source": self.source,
            "reason": self.reason,
            "constraints": [constraint.to_json() for constraint in self.constraints],
            "cached": self.cached,
            "ms": round(self.elapsed * 1e3, 3),
        }


AttemptKind = Literal["first", "failover", "retry", "hedge", "full", "resting", "open"]
"""first: the first call of a request. failover: to another backend or URL after one failed. retry: the list once more. hedge:
beside a call that is slow. Not called: full, its queue is; resting, it asked for that; open, it keeps failing."""


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One call to one backend and how it went: an HTTP status, or why there is none. `elapsed` is in seconds.

    `kind` says how the call came about, or why there was none.
    """

    backend: str
    status: int | None
    error: str = ""
    elapsed: float = 0.0
    kind: AttemptKind = "first"

    @property
    def called(self) -> bool:
        """Whether the backend was called at all."""
        return self.kind not in ("full", "resting", "open")

    def line(self) -> AttemptLine:
        """What the log says of it."""
        return AttemptLine(self.backend, self.kind, self.status, self.error, int(self.elapsed * 1e4 + 0.5) / 10)


class AttemptLine(msgspec.Struct, frozen=True, gc=False):
    """An attempt in the log; `ms` is milliseconds."""

    backend: str
    kind: AttemptKind
    status: int | None
    error: str
    ms: float


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens that a backend says it used."""

    input_tokens: int = 0
    output_tokens: int = 0


Outcome = Literal["completed", "rejected", "failed", "cut", "client_gone"]
"""completed: the whole reply went out. rejected: the request could not be served as asked (4xx of our own). failed: no
backend answered. cut: a backend broke off after its first byte. client_gone: the client left."""


class Exchange(msgspec.Struct, frozen=True, gc=False):
    """The whole story of one request, told once, when it is over. Times are in seconds; it holds no prompt and no key: `key`
    is the name of the one that the client has. `backend` is the one whose reply went to the client.
    """

    request_id: str
    outcome: Outcome
    status: int
    stream: bool
    elapsed: float
    decision: Decision | None = None
    attempts: tuple[Attempt, ...] = ()
    first_byte: float | None = None
    sent_bytes: int = 0
    usage: Usage | None = None
    error: str = ""
    key: str | None = None
    backend: Backend | None = None

    @property
    def cost(self) -> float | None:
        """What the tokens cost in USD; None when the backend did not say how many there were."""
        if self.usage is None or self.backend is None:
            return None
        return self.backend.price.cost(self.usage.input_tokens, self.usage.output_tokens)

    def line(self, at: str | UnsetType = UNSET) -> ExchangeLine:
        """What the log says of it; `at` is when it was over."""
        decision, backend, usage, first_byte = self.decision, self.backend, self.usage, self.first_byte
        route = confidence = source = reason = decision_ms = None
        if decision is not None:
            route, confidence, source, reason = decision.route, decision.confidence, decision.source, decision.reason
            decision_ms = int(decision.elapsed * 1e6 + 0.5) / 1e3
        return ExchangeLine(
            at,
            self.request_id,
            self.outcome,
            self.status,
            self.key,
            self.stream,
            route,
            None if backend is None else backend.name,
            None if confidence is None else round(confidence, 4),
            source,
            reason,
            decision_ms,
            list(map(Attempt.line, self.attempts)),
            None if first_byte is None else int(first_byte * 1e4 + 0.5) / 10,
            int(self.elapsed * 1e4 + 0.5) / 10,  # `round` takes ten times as long
            self.sent_bytes,
            None if usage is None else usage.input_tokens,
            None if usage is None else usage.output_tokens,
            self.cost,
            self.error,
        )

    def to_json(self) -> dict[str, Any]:
        """The exchange as JSON values: its line of the log, without the time."""
        told: dict[str, Any] = msgspec.to_builtins(self.line())
        return told


class ExchangeLine(msgspec.Struct, frozen=True, gc=False):
    """An exchange in the log, ready to be encoded: a struct, which takes half the time of a dictionary."""

    at: str | UnsetType
    request_id: str
    outcome: Outcome
    status: int
    key: str | None
    stream: bool
    route: str | None
    backend: str | None
    confidence: float | None
    source: str | None
    reason: str | None
    decision_ms: float | None
    attempts: list[AttemptLine]
    first_byte_ms: float | None
    ms: float
    bytes: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    error: str
