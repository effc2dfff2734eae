"""A ledger in this process's memory: what is counted here is lost with the process and not seen by others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fingerpost.clients import Client, Limits, Standing, What

MINUTE = 60.0


@dataclass(slots=True)
class _Account:
    """When a client's limits are whole again, in seconds of the clock; what it spent in the period that `ends` then."""

    requests: float = -math.inf
    tokens: float = -math.inf
    per: str = ""
    ends: float = 0.0
    spent: float = 0.0


class Local:
    """Counts in memory; `clock` gives seconds that only grow, `now` seconds since the epoch."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,  # noqa: TID251  (a stamp)
    ) -> None:
        self._clock = clock
        self._now = now
        self._accounts: dict[str, _Account] = {}

    async def take(self, client: Client, tokens: int) -> Standing:
        """Counts one request of about `tokens` tokens, if the client's limits allow it."""
        account, limits, clock = self._account(client), client.limits, self._clock()
        requests = max(account.requests, clock) + cost(1, limits.requests)
        more = max(account.tokens, clock) + cost(tokens, limits.tokens)
        standing = judge(limits, (requests - clock, more - clock), tokens, account.spent, self._now())
        if standing.refused is None:
            account.requests, account.tokens = requests, more
        return standing

    def settle(self, client: Client, tokens: int, usd: float) -> None:
        """Corrects what was taken by `tokens`, and adds `usd` to what was spent."""
        account = self._account(client)
        account.tokens = max(account.tokens, self._clock()) + cost(tokens, client.limits.tokens)
        account.spent += usd

    def learn(self, client: Client, spent: float) -> None:
        """Takes over what another ledger says was spent in this period."""
        self._account(client).spent = spent

    async def flush(self) -> None:
        """There is nothing to bring anywhere."""

    async def aclose(self) -> None:
        """There is nothing to close."""

    def _account(self, client: Client) -> _Account:
        account = self._accounts.setdefault(client.name, _Account())
        per = client.limits.per
        if client.limits.usd is None:
            return account
        now = self._now()
        if now >= account.ends or account.per != per:
            account.per, account.ends, account.spent = per, now + period_of(per, now)[1], 0.0
        return account


def cost(amount: int, per_minute: int | None) -> float:
    """The seconds by which `amount` puts off the time when a limit is whole again."""
    return amount * MINUTE / per_minute if per_minute else 0.0


def judge(limits: Limits, until_whole: tuple[float, float], tokens: int, spent: float, now: float) -> Standing:
    """How a client would stand if one more request was taken.

    This is the generic cell rate algorithm (ATM Forum, UNI 3.1) with a minute's worth as its burst: `until_whole` are the
    seconds until the limits of requests and tokens would be whole again, at most a minute each for a request to be taken.
    """
    amounts: tuple[tuple[What, int | None, int, float], ...] = (
        ("requests", limits.requests, 1, until_whole[0]),
        ("tokens", limits.tokens, tokens, until_whole[1]),
    )
    asked = [(what, limit, amount, seconds) for what, limit, amount, seconds in amounts if limit is not None]
    waits: dict[What, float | None] = {}
    if limits.usd is not None and spent >= limits.usd:
        waits["budget"] = period_of(limits.per, now)[1]
    for what, limit, amount, seconds in asked:
        if amount > limit or seconds > MINUTE + 1e-6:
            waits[what] = None if amount > limit else seconds - MINUTE
    # A request that is refused takes nothing.
    reset = {what: seconds - cost(amount, limit) if waits else seconds for what, limit, amount, seconds in asked}
    left = {what: (MINUTE - reset[what]) * limit / MINUTE + 1e-6 for what, limit, _, _ in asked}
    refused = next(iter(waits), None)
    return Standing(left, reset, refused, waits[refused] if refused else None)


def period_of(per: str, now: float) -> tuple[str, float]:
    """The calendar day or month (UTC) of `now`, such as 2026-11, and the seconds until it ends."""
    at = datetime.fromtimestamp(now, UTC)
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "day":
        return f"{at:%Y-%m-%d}", (start + timedelta(days=1) - at).total_seconds()
    return f"{at:%Y-%m}", ((start.replace(day=1) + timedelta(days=32)).replace(day=1) - at).total_seconds()
