"""A ledger in Redis, shared by all processes that use it. Without Redis, requests go on as `when_down` says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from fingerpost.clients import Client, Standing
from fingerpost.clients.local import MINUTE, Local, cost, judge, period_of
from fingerpost.errors import FingerpostError

PAUSE = 1.0
"""Seconds for which a Redis that did not answer is left alone, so that it does not delay every request."""

CONNECTIONS = 32

KEEP_SPENT = 40 * 86400
"""Seconds for which a period's spending is kept: longer than any month."""

# KEYS: when the limits of requests and of tokens are whole again; what was spent in the period. All three lie in one slot of a
# cluster. ARGV: seconds and USD that are owed from before; seconds that one more request costs of each limit; the most
# seconds that may be missing; USD that may be spent (all of them -1 for none).
SCRIPT = f"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local function owed(key) return math.max(tonumber(redis.call('GET', key) or 0), now) end
local function keep(key, at) redis.call('SET', key, string.format('%.6f', at), 'EX', math.max(1, math.ceil(at - now) + 1)) end
local requests, tokens = owed(KEYS[1]), owed(KEYS[2])
if tonumber(ARGV[1]) ~= 0 then
  tokens = tokens + ARGV[1]
  if tokens > now then keep(KEYS[2], tokens) else redis.call('DEL', KEYS[2]); tokens = now end
end
local spent = redis.call('GET', KEYS[3]) or '0'
if tonumber(ARGV[2]) ~= 0 then
  spent = redis.call('INCRBYFLOAT', KEYS[3], ARGV[2])
  redis.call('EXPIRE', KEYS[3], {KEEP_SPENT})
end
local most, usd = tonumber(ARGV[5]), tonumber(ARGV[6])
local then_requests, then_tokens = requests + ARGV[3], tokens + ARGV[4]
if most > 0 and then_requests - now <= most and then_tokens - now <= most and (usd < 0 or tonumber(spent) < usd) then
  if tonumber(ARGV[3]) > 0 then keep(KEYS[1], then_requests) end
  if tonumber(ARGV[4]) > 0 then keep(KEYS[2], then_tokens) end
end
return {{string.format('%.6f', then_requests - now), string.format('%.6f', then_tokens - now), spent}}
"""

_log = logging.getLogger("fingerpost.clients")


@dataclass(slots=True)
class _Owed:
    """What was settled and Redis does not know yet: seconds of the limit of tokens, and USD."""

    client: Client
    period: str
    seconds: float = 0.0
    usd: float = 0.0


class Shared:
    """Counts in Redis at `url`, which may take `timeout` seconds: it is asked before a request goes on, and told after its
    answer went out what it did use. While it is down, lets requests through (`allow`), counts in memory (`local`), or lets none
    through (`refuse`).

    What is settled meanwhile is kept and brought to Redis when it is back. An answer that was lost on its way may be settled
    twice: a budget rather ends too early than too late.
    """

    def __init__(
        self,
        url: str,
        when_down: Literal["allow", "local", "refuse"] = "local",
        *,
        timeout: float = 0.1,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,  # noqa: TID251  (a stamp)
    ) -> None:
        pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(SCRIPT)
        self._when_down = when_down
        self._timeout = timeout
        self._local = Local(clock, now)
        self._clock = clock
        self._now = now
        self._down_until = 0.0
        self._was_down = False
        self._owed: dict[tuple[str, str], _Owed] = {}

    async def take(self, client: Client, tokens: int) -> Standing | None:
        """Counts one request of about `tokens` tokens; see `Ledger.take`."""
        limits = client.limits
        wants = cost(1, limits.requests), cost(tokens, limits.tokens)
        told = await self._tell(client, self._period(client), *wants, MINUTE + 1e-6, -1 if limits.usd is None else limits.usd)
        if told is not None:
            requests, more, spent = told
            self._local.learn(client, spent)
            return judge(limits, (requests, more), tokens, spent, self._now())
        if self._when_down == "refuse":
            error = FingerpostError("limits cannot be checked at the moment, and nothing is let through without")
            error.status, error.code, error.retry_after = 503, "limits_unavailable", PAUSE
            raise error
        return await self._local.take(client, tokens) if self._when_down == "local" else None

    def settle(self, client: Client, tokens: int, usd: float) -> None:
        """Notes what is to be brought to Redis."""
        self._local.settle(client, tokens, usd)
        period = self._period(client)
        owed = self._owed.setdefault((client.name, period), _Owed(client, period))
        owed.seconds += cost(tokens, client.limits.tokens)
        owed.usd += usd

    async def flush(self) -> None:
        """Brings all that is owed to Redis, if it can be reached."""
        for key, owed in tuple(self._owed.items()):
            if key in self._owed:  # and not on its way already
                await self._tell(owed.client, owed.period, 0, 0, 0, -1)

    async def aclose(self) -> None:
        """Brings what is owed to Redis and closes the connections."""
        await self.flush()
        await self._redis.aclose()

    async def _tell(self, client: Client, period: str, *wants: float) -> tuple[float, float, float] | None:
        """The answer of the script, which gets what is owed with it; None when Redis does not answer."""
        if self._clock() < self._down_until:
            return None
        place = f"fingerpost:{{{client.name}}}:"
        owed = self._owed.pop((client.name, period), None) or _Owed(client, period)
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(2 * self._timeout):
                keys = [place + "requests", place + "tokens", place + period]
                answer = await self._script(keys, [f"{owed.seconds:.6f}", f"{owed.usd:.9f}", *wants])
        except (RedisError, OSError, TimeoutError, asyncio.CancelledError) as error:
            back = self._owed.setdefault((client.name, period), _Owed(client, period))
            back.seconds, back.usd = back.seconds + owed.seconds, back.usd + owed.usd
            if isinstance(error, asyncio.CancelledError):
                raise
            self._fell(error)
            # Others that rest in the pool are as dead; one of them would make a Redis that is back look down again.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            if task and task.cancelling() > cancelled:
                # Until Python 3.12 `asyncio.wait_for`, which the client uses, may take a cancellation for its own.
                raise asyncio.CancelledError from None
            return None
        if self._was_down:
            self._was_down = False
            _log.warning("Redis counts limits again")
        requests, more, spent = answer
        return float(requests), float(more), float(spent)

    def _fell(self, error: Exception) -> None:
        self._down_until = self._clock() + PAUSE
        if not self._was_down:
            self._was_down = True
            # Its text may quote the address with its password.
            _log.warning("Redis does not count limits (%s); until it does: %s", type(error).__name__, self._when_down)

    def _period(self, client: Client) -> str:
        return period_of(client.limits.per, self._now())[0]
