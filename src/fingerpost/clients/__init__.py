"""Who asks: clients by their keys, what each may use, and how much of it. A Visit is one request of a client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from fingerpost.errors import FingerpostError, Refused
from fingerpost.records import Exchange
from fingerpost.routes import EVERYTHING, Access

Headers = list[tuple[bytes, bytes]]
What = Literal["requests", "tokens", "budget"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a client may use: requests and tokens in any minute, and USD in a calendar day or month (UTC).

    None is no limit.
    """

    requests: int | None = None
    tokens: int | None = None
    usd: float | None = None
    per: Literal["day", "month"] = "month"

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.requests is not None or self.tokens is not None or self.usd is not None


@dataclass(frozen=True, slots=True)
class Client:
    """The holder of a key. Its name, not its key, stands in logs and metrics."""

    name: str
    access: Access = EVERYTHING
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Standing:
    """How a client stands with its limits after a request was taken, or `refused` for what is used up.

    `left` and `reset` are how much is left of each limit and the seconds until all of it is there again; `retry_after` is
    None where waiting does not help.
    """

    left: Mapping[What, float]
    reset: Mapping[What, float]
    refused: What | None = None
    retry_after: float | None = None


class Ledger(Protocol):
    """Keeps count of what clients use."""

    async def take(self, client: Client, tokens: int) -> Standing | None:
        """Counts one request of about `tokens` tokens, if the client's limits allow it; None while nothing is counted.

        Raises:
            FingerpostError: nothing can be counted, and nothing is let through without.
        """

    def settle(self, client: Client, tokens: int, usd: float) -> None:
        """Corrects what was taken: by `tokens` (less than 0: give back), and by what the request did cost."""

    async def flush(self) -> None:
        """Brings what was settled to where it is kept."""

    async def aclose(self) -> None:
        """Closes all connections."""


class Visit:
    """One request of a client: admitted before anything is decided, settled when it is over."""

    def __init__(self, client: Client, ledger: Ledger) -> None:
        self.client = client
        self._ledger = ledger
        self._standing: Standing | None = None
        self._taken: int | None = None

    @property
    def name(self) -> str:
        """The client's name."""
        return self.client.name

    @property
    def metered(self) -> bool:
        """Whether tokens or money are counted, for which a reply's usage must be readable."""
        return self.client.limits.tokens is not None or self.client.limits.usd is not None

    async def admit(self, tokens: int) -> None:
        """Lets a request of about `tokens` tokens in.

        Raises:
            Refused: the client has used up one of its limits.
        """
        if not self.client.limits.any:
            return
        self._standing = await self._ledger.take(self.client, tokens)
        if self._standing is not None and self._standing.refused is not None:
            raise _used_up(self.client, self._standing.refused, self._standing.retry_after)
        self._taken = tokens

    def settle(self, exchange: Exchange) -> None:
        """Counts what the request did use: as the backend reports it, or estimated from what went out."""
        if self._taken is None or not self.metered:
            return
        tokens, usd = used(exchange, self._taken)
        self._ledger.settle(self.client, tokens - self._taken, usd)

    async def end(self) -> None:
        """Brings to the ledger what was settled; the client has its answer by then."""
        if self._taken is not None and self.metered:
            await self._ledger.flush()

    def headers(self) -> Headers:
        """OpenAI's `x-ratelimit-*` headers for the limits that the client has."""
        found: Headers = []
        if self._standing is None:
            return found
        limits: tuple[tuple[What, int | None], ...] = (
            ("requests", self.client.limits.requests),
            ("tokens", self.client.limits.tokens),
        )
        for what, limit in limits:
            if limit is not None and what in self._standing.left:
                name = what.encode()
                found += [
                    (b"x-ratelimit-limit-" + name, b"%d" % limit),
                    (b"x-ratelimit-remaining-" + name, b"%d" % max(0, int(self._standing.left[what]))),
                    (b"x-ratelimit-reset-" + name, b"%.3fs" % max(0.0, self._standing.reset[what])),
                ]
        return found


STREAM_BYTES_PER_TOKEN = 150
"""A token in a stream comes in an event of its own with ids and names around it, 150 to 350 bytes in all."""


def used(exchange: Exchange, estimate: int) -> tuple[int, float]:
    """The tokens and USD that a request used; where the backend does not say, an estimate that errs high.

    `estimate` is what was thought of the request before, the longest answer that it asks for included.
    """
    if exchange.usage is not None:
        return exchange.usage.input_tokens + exchange.usage.output_tokens, exchange.cost or 0.0
    if exchange.first_byte is None:
        return 0, 0.0
    if exchange.backend is None or exchange.status >= 400:
        return 0, 0.0
    output = exchange.sent_bytes // (STREAM_BYTES_PER_TOKEN if exchange.stream else 3)
    return estimate + output, exchange.backend.price.cost(estimate, output)


def _used_up(client: Client, what: What, retry_after: float | None) -> FingerpostError:
    limits = client.limits
    if what == "budget":
        message = f"the key {client.name} has spent its budget of {limits.usd:g} USD for this {limits.per}"
        return Refused.for_now(message, "insufficient_quota", retry_after)
    limit = limits.requests if what == "requests" else limits.tokens
    if retry_after is None:
        message = f"the request is larger than the {limit} {what} a minute that the key {client.name} may use"
    else:
        message = f"the key {client.name} has used its {limit} {what} a minute; try again in {retry_after:.1f} s"
    return Refused.for_now(message, "rate_limit_exceeded", retry_after)
