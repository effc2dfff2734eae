"""How backends fare: what happened to the calls so far, and whether the next one should be made, wait, or go elsewhere.

The live state is here, one Guard for each backend. Circuit and Budget decide without I/O: the time comes in as a number of
seconds on any clock that only goes forward.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from fingerpost.errors import UpstreamBusy
from fingerpost.routes import Backend, Breaker
from fingerpost.upstreams import Headers

State = Literal["closed", "half_open", "open"]

SUSPECT = 1.0
"""Seconds for which a URL that has just failed comes after the others of its backend."""

_SLOTS = 10


class Circuit:
    """The circuit breaker of one URL (Nygard, Release It!, chapter 5). Pure: every method takes the time.

    A call that begins gets a token and gives it back with its result; a result from before the state last changed says
    nothing about now and is left out.
    """

    def __init__(self, settings: Breaker, jitter: Callable[[], float] = random.random) -> None:
        self.failed_at = float("-inf")
        self._resting_until = float("-inf")
        self._resting_status = 503
        self._settings = settings
        self._jitter = jitter
        self._window: deque[list[float]] = deque()
        self._slot_ends = float("-inf")
        self._streak = 0
        self._trips = 0
        self._open_until = float("-inf")
        self._trying_until = float("-inf")
        self._era = 0

    def state(self, now: float) -> State:
        """Whether calls pass (closed), one may try (half_open), or none (open)."""
        if not self._trips:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def refusal(self, now: float) -> UpstreamBusy | None:
        """Why no call may begin now and when one may; None when one may now."""
        if now < self._resting_until:
            busy = UpstreamBusy("not called, it asked for a rest", "resting", self._resting_until - now)
            busy.status = self._resting_status
            return busy
        wait = max(self._open_until, self._trying_until) - now
        if self._trips and wait > 0:
            return UpstreamBusy("not called, it keeps failing", "open", wait)
        return None

    def begin(self, now: float) -> int:
        """A token for a call that begins. While half open no other may begin until it has ended, or for as long as an open
        circuit waits at most: a model may well take minutes to answer.

        Raises:
            UpstreamBusy: none may.
        """
        if self._trips or now < self._resting_until:
            refusal = self.refusal(now)
            if refusal is not None:
                raise refusal
            self._trying_until = now + self._settings.longest
        return self._era

    @property
    def token(self) -> int:
        """A token for a question that takes no call's place."""
        return self._era

    def succeeded(self, token: int, now: float) -> None:
        """Takes a good result; the one that was let through to see closes the circuit."""
        if token != self._era:
            return
        self._streak = 0
        if self._trips:
            self._trips, self._era = 0, self._era + 1
        self._slot(now)[1] += 1

    def failed(self, token: int, now: float) -> None:
        """Takes a bad result, which may open the circuit."""
        self.failed_at = now
        if token != self._era or not self._settings.enabled:
            return
        self._streak += 1
        slot, limits = self._slot(now), self._settings
        slot[1] += 1
        slot[2] += 1
        calls, failures = (sum(slot[what] for slot in self._window) for what in (1, 2))
        if self._trips or self._streak >= limits.failures or (calls >= limits.least and failures >= limits.rate * calls):
            self._trip(now)

    def forget(self, token: int) -> None:
        """Takes back a call that ended without a result: its client left."""
        if token == self._era:
            self._trying_until = float("-inf")

    def rest(self, seconds: float, status: int, now: float) -> None:
        """Lets no call begin for that long, or for as long as the settings allow; `status` is the one that asked for it."""
        self._resting_until = max(self._resting_until, now + min(seconds, self._settings.rest))
        self._resting_status = status

    def let_one_try(self, now: float) -> None:
        """Ends the time for which it is open, because the backend was seen alive."""
        self._open_until = min(self._open_until, now)

    def _trip(self, now: float) -> None:
        longest = min(self._settings.longest, self._settings.pause * 2.0 ** min(self._trips, 30))
        self._open_until, self._trying_until = now + longest * (0.75 + 0.25 * self._jitter()), float("-inf")
        self._trips, self._era, self._streak = self._trips + 1, self._era + 1, 0
        self._window, self._slot_ends = deque(), float("-inf")

    def _slot(self, now: float) -> list[float]:
        """The latest part of the window, which moves in tenths of its length: when it began, its calls and failures."""
        if now >= self._slot_ends:
            self._window.append([now, 0, 0])
            self._slot_ends = now + self._settings.window / _SLOTS
            while self._window[0][0] <= now - self._settings.window:
                self._window.popleft()
        return self._window[-1]


class Gate:
    """Lets `limit` through at a time; up to `queue` more wait, first come, first served."""

    def __init__(self, limit: int, queue: int) -> None:
        self.limit = limit
        self.queue = queue
        self.inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nobody more may wait."""
        return len(self._waiting) >= self.queue

    def slip_in(self) -> bool:
        """Whether there was room inside, which is taken then."""
        if self.inside >= self.limit:
            return False
        self.inside += 1
        return True

    async def wait(self) -> None:
        """Returns when inside. Look whether it is `full` before."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn had come when it was told to go
            else:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Makes room: for the one who waits longest, else for whoever comes."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn.set_result(None)
        self.inside -= 1


@dataclass(slots=True)
class Place:
    """One URL of a backend: its circuit and the calls that are on their way there."""

    index: int
    shown: str
    circuit: Circuit
    in_flight: int = 0


class Guard:
    """Stands before a backend: who may call it now, and at which of its URLs. Lives as long as the backend's settings do.

    `now` is the time on its clock.
    """

    def __init__(
        self, backend: Backend, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self.backend = backend
        self.gate = Gate(backend.concurrency, backend.queue)
        self.places = [Place(i, _shown(url), Circuit(backend.breaker, jitter)) for i, url in enumerate(backend.urls)]
        self.now = clock

    async def enter(self) -> Lease:
        """A lease of one of the URLs, after a wait where others are before.

        Raises:
            UpstreamBusy: the queue is full, or no URL may be called now.
        """
        if not self.gate.slip_in():
            self._pick(self.now())  # who would be refused inside need not wait
            if self.gate.full:
                raise UpstreamBusy("not called, its queue is full", "full", 1.0)
            await self.gate.wait()
        return self.lease()

    def lease(self) -> Lease:
        """A lease for a call that is inside the gate, which it leaves where no URL may be called.

        Raises:
            UpstreamBusy: none may.
        """
        now, places = self.now(), self.places
        try:
            place = places[0] if len(places) == 1 else self._pick(now)
            token = place.circuit.begin(now)
        except UpstreamBusy:
            self.gate.leave()
            raise
        place.in_flight += 1
        return Lease(self, place, token)

    def _pick(self, now: float) -> Place:
        """The URL that may be called, has not just failed, and has the fewest calls on their way."""
        refusals = [place.circuit.refusal(now) for place in self.places]
        free = [place for place, refusal in zip(self.places, refusals, strict=True) if refusal is None]
        if not free:
            raise min(filter(None, refusals), key=lambda busy: busy.retry_after)
        return min(free, key=lambda place: (now - place.circuit.failed_at < SUSPECT, place.in_flight))


class Lease(msgspec.Struct, eq=False, gc=False):
    """One call's right to a URL. Give exactly one result, `settle`, and let go of it, `release`; more of either do nothing."""

    _guard: Guard
    place: Place
    _token: int | None
    _held: bool = True

    def settle(self, good: bool | None) -> None:
        """Says how the call went: good, bad, or (None) that nobody waited for it."""
        token, self._token = self._token, None
        if token is None:
            return
        circuit, now = self.place.circuit, self._guard.now()
        if good:
            circuit.succeeded(token, now)
        elif good is None:
            circuit.forget(token)
        else:
            circuit.failed(token, now)

    def rest(self, seconds: float, status: int) -> None:
        """Says that the backend wants no calls for so many seconds."""
        self.place.circuit.rest(seconds, status, self._guard.now())

    def release(self) -> None:
        """Makes room for the next call."""
        if self._token is not None:
            self.settle(None)
        if self._held:
            self._held = False
            self.place.in_flight -= 1
            self._guard.gate.leave()


class Budget:
    """How many more calls than requests there may be: `share` of the requests, and `floor` a second whatever their number.

    A token bucket (as in Finagle's RetryBudget), so that retries cannot multiply the load of a backend that is in trouble.
    """

    def __init__(self, share: float = 0.2, floor: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = share
        self.floor = floor
        self._clock = clock
        self._most = max(100.0 * share, floor)
        self._tokens = floor
        self._at = clock()

    def earn(self) -> None:
        """Counts a request."""
        tokens = self._tokens + self.share
        self._tokens = tokens if tokens < self._most else self._most

    def spend(self) -> bool:
        """Takes one more call out of the budget; false when it is used up."""
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._at) * self.floor, self._most)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def backoff(round_: int, jitter: float) -> float:
    """Seconds to wait before the list of backends is tried for the `round_`th time more; `jitter` is from 0 to 1."""
    return min(0.1 * 2.0**round_, 10.0) * (0.5 + 0.5 * jitter)


def retry_after(headers: Headers, wall: float) -> float | None:
    """The seconds that a reply asks to wait (RFC 9110, section 10.2.3, and OpenAI's retry-after-ms); `wall` is the time of day.

    None where it asks for nothing, or for what makes no sense.
    """
    found: Mapping[bytes, bytes] = dict(headers)
    milliseconds, value = found.get(b"retry-after-ms", b""), found.get(b"retry-after", b"")
    if milliseconds.isdigit() and len(milliseconds) < 16:
        return int(milliseconds) / 1e3
    if value.isdigit() and len(value) < 16:
        return float(value)
    try:
        return max(parsedate_to_datetime(value.decode("ascii")).timestamp() - wall, 0.0)
    except (ValueError, OverflowError):
        return None


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
