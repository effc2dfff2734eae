"""How backends fare: pure state machines under a clock that the tests move, and the guard that asks them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.errors import UpstreamBusy
from fingerpost.routes import Backend, Breaker
from fingerpost.upstreams.health import SUSPECT, Budget, Circuit, Gate, Guard, backoff, retry_after


def circuit(**settings: Any) -> Circuit:
    """A circuit without jitter: it opens for exactly the stated times."""
    return Circuit(Breaker(**settings), jitter=lambda: 1.0)


def fail(one: Circuit, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        one.failed(one.begin(now), now)


def succeed(one: Circuit, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        one.succeeded(one.begin(now), now)


# The circuit


def test_failures_in_a_row_open_the_circuit_and_no_sooner() -> None:
    one = circuit(failures=3, pause=2.0)
    fail(one, 2)
    assert (one.state(0.0), one.refusal(0.0)) == ("closed", None)
    fail(one, 1)
    refusal = one.refusal(0.5)
    assert one.state(0.5) == "open"
    assert refusal is not None
    assert (refusal.why, refusal.retry_after, refusal.status) == ("open", 1.5, 503)


def test_a_success_ends_a_row_of_failures() -> None:
    one = circuit(failures=3)
    for _ in range(10):
        fail(one, 2)
        succeed(one, 3)
    assert one.state(0.0) == "closed"


def test_a_share_of_failures_opens_the_circuit_once_there_are_enough_calls() -> None:
    one = circuit(failures=100, rate=0.5, least=10, window=10.0)
    for _ in range(4):
        succeed(one, 1)
        fail(one, 1)
    succeed(one, 1)
    assert one.state(0.0) == "closed"
    fail(one, 1)
    assert one.state(0.0) == "open"


def test_what_was_longer_ago_than_the_window_does_not_count() -> None:
    one = circuit(failures=100, rate=0.5, least=10, window=10.0)
    fail(one, 9, now=0.0)
    succeed(one, 9, now=11.0)
    fail(one, 1, now=11.0)
    assert one.state(11.0) == "closed"


def test_after_its_pause_one_call_may_try_and_the_others_wait_for_it() -> None:
    one = circuit(failures=1, pause=1.0)
    fail(one, 1)
    assert one.state(1.0) == "half_open"
    assert one.refusal(1.0) is None
    token = one.begin(1.0)
    assert one.refusal(1.1) is not None
    one.succeeded(token, 1.2)
    assert (one.state(1.2), one.refusal(1.2)) == ("closed", None)


def test_a_try_that_lasts_does_not_hold_up_the_others_for_ever() -> None:
    one = circuit(failures=1, pause=1.0, longest=30.0)
    fail(one, 1)
    one.begin(1.0)
    assert one.refusal(30.9) is not None
    assert one.refusal(31.0) is None


def test_a_try_whose_client_left_lets_the_next_one_try() -> None:
    one = circuit(failures=1, pause=1.0)
    fail(one, 1)
    one.forget(one.begin(1.0))
    assert (one.state(1.0), one.refusal(1.0)) == ("half_open", None)


def test_each_failed_try_doubles_the_pause_up_to_the_longest_and_a_good_one_starts_anew() -> None:
    one, now, pauses = circuit(failures=2, pause=1.0, longest=5.0), 0.0, []
    fail(one, 2)
    for _ in range(5):
        refusal = one.refusal(now)
        assert refusal is not None
        pauses.append(refusal.retry_after)
        now += refusal.retry_after
        fail(one, 1, now)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    succeed(one, 1, now + 5.0)
    fail(one, 2, now + 5.0)
    assert one.refusal(now + 5.5).retry_after == 0.5  # type: ignore[union-attr]


@given(st.floats(0.0, 1.0))
def test_the_pause_is_jittered_downwards_by_at_most_a_quarter(jitter: float) -> None:
    one = Circuit(Breaker(failures=1, pause=4.0), jitter=lambda: jitter)
    fail(one, 1)
    assert one.refusal(2.99) is not None
    assert one.refusal(4.0) is None


def test_results_of_calls_from_before_it_opened_say_nothing() -> None:
    one = circuit(failures=2, pause=1.0)
    old = [one.begin(0.0) for _ in range(4)]
    fail(one, 2)
    one.succeeded(old[0], 0.5)
    assert one.state(0.5) == "open"
    one.failed(old[1], 1.0)
    one.forget(old[2])
    assert one.state(1.0) == "half_open"
    succeed(one, 1, 1.0)
    one.failed(old[3], 1.0)
    fail(one, 1, 1.0)
    assert one.state(1.0) == "closed"


def test_a_circuit_that_is_off_never_opens() -> None:
    one = circuit(enabled=False, failures=1)
    fail(one, 100)
    assert one.refusal(0.0) is None


@pytest.mark.parametrize(("asked", "rests"), [(3.0, 3.0), (1e9, 60.0)])
def test_a_rest_is_kept_as_long_as_the_settings_allow_and_remembers_who_asked(asked: float, rests: float) -> None:
    one = circuit(rest=60.0)
    one.rest(asked, 429, now=0.0)
    refusal = one.refusal(0.0)
    assert refusal is not None
    assert (refusal.why, refusal.status, refusal.retry_after) == ("resting", 429, rests)
    assert one.refusal(rests) is None
    assert one.state(0.0) == "closed"


def test_a_rest_of_nothing_is_none() -> None:
    one = circuit(rest=0.0)
    one.rest(5.0, 503, now=0.0)
    assert one.refusal(0.0) is None


def test_a_backend_that_was_seen_alive_is_tried_at_once() -> None:
    one = circuit(failures=1, pause=100.0, longest=100.0)
    fail(one, 1)
    one.let_one_try(2.0)
    assert (one.state(2.0), one.refusal(2.0)) == ("half_open", None)
    assert one.token == one.begin(2.0)


@given(st.lists(st.tuples(st.sampled_from(["good", "bad", "left", "rest"]), st.floats(0.0, 5.0)), max_size=60))
def test_whatever_happens_a_circuit_lets_a_call_through_again(story: list[tuple[str, float]]) -> None:
    one, now = Circuit(Breaker(failures=2, least=4), jitter=lambda: 0.5), 0.0
    for what, seconds in story:
        now += seconds
        if what == "rest":
            one.rest(seconds, 503, now)
        elif one.refusal(now) is None:
            token = one.begin(now)
            {"good": one.succeeded, "bad": one.failed, "left": lambda token, _: one.forget(token)}[what](token, now)
    assert one.refusal(now + 60.0) is None


# The gate


async def enter(gate: Gate, into: list[int], number: int) -> None:
    if not gate.slip_in():
        await gate.wait()
    into.append(number)


async def test_the_gate_lets_in_as_many_as_its_limit_and_then_in_the_order_they_came() -> None:
    gate, inside = Gate(2, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(gate, inside, number)) for number in range(5)]
    await asyncio.sleep(0)
    assert (inside, gate.inside, gate.waiting) == ([0, 1], 2, 3)
    for _ in range(3):
        gate.leave()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert (inside, gate.inside, gate.waiting) == ([0, 1, 2, 3, 4], 2, 0)
    gate.leave()
    gate.leave()
    assert gate.inside == 0


async def test_one_who_stops_waiting_loses_no_place_for_the_others() -> None:
    gate, inside = Gate(1, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(gate, inside, number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert gate.waiting == 2
    gate.leave()
    tasks[2].cancel()  # just when its turn has come
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (inside, gate.inside, gate.waiting) == ([0, 3], 1, 0)


async def test_a_turn_that_was_given_up_is_passed_over() -> None:
    gate, inside = Gate(1, 10), list[int]()
    tasks = [asyncio.ensure_future(enter(gate, inside, number)) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    gate.leave()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (inside, gate.inside) == ([0, 2], 1)


# The guard


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def guard(clock: Clock, urls: int = 1, **settings: Any) -> Guard:
    more = tuple(f"http://h{number}:8000/v1" for number in range(1, urls))
    settings.setdefault("breaker", Breaker(failures=2, pause=10.0))
    return Guard(Backend("b", "m", "http://u:p@h0/v1?k=1", more_urls=more, **settings), clock, lambda: 1.0)


async def test_the_url_with_the_fewest_calls_is_taken() -> None:
    one = guard(Clock(), urls=3)
    leases = [await one.enter() for _ in range(7)]
    assert [lease.place.index for lease in leases] == [0, 1, 2, 0, 1, 2, 0]
    leases[1].release()
    leases[4].release()
    assert (await one.enter()).place.index == 1


async def test_a_url_that_has_just_failed_comes_last_for_a_moment() -> None:
    clock = Clock()
    one = guard(clock, urls=2)
    lease = await one.enter()
    lease.settle(False)
    lease.release()
    held = [await one.enter() for _ in range(3)]
    assert [lease.place.index for lease in held] == [1, 1, 1]
    clock.now = SUSPECT
    assert (await one.enter()).place.index == 0


async def test_the_next_url_is_taken_when_one_keeps_failing_and_none_when_all_do() -> None:
    clock = Clock()
    one = guard(clock, urls=2)
    for _ in range(4):
        lease = await one.enter()
        lease.settle(False)
        lease.release()
        clock.now += 1.5
    with pytest.raises(UpstreamBusy, match="keeps failing") as caught:
        await one.enter()
    assert caught.value.why == "open"
    assert 0 < caught.value.retry_after < 10.0
    assert (one.gate.inside, [place.in_flight for place in one.places]) == (0, [0, 0])


async def test_a_full_queue_is_said_at_once() -> None:
    one = guard(Clock(), concurrency=1, queue=1)
    lease = await one.enter()
    waiting = asyncio.ensure_future(one.enter())
    await asyncio.sleep(0)
    with pytest.raises(UpstreamBusy, match="its queue is full") as caught:
        await one.enter()
    assert caught.value.why == "full"
    lease.release()
    assert (await waiting).place.in_flight == 1


async def test_one_who_waited_is_told_when_the_circuit_opened_meanwhile() -> None:
    one = guard(Clock(), concurrency=1, queue=5, breaker=Breaker(failures=1))
    lease = await one.enter()
    waiting = [asyncio.ensure_future(one.enter()) for _ in range(3)]
    await asyncio.sleep(0)
    lease.settle(False)
    lease.release()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in told] == [UpstreamBusy] * 3
    assert (one.gate.inside, one.gate.waiting) == (0, 0)


async def test_a_lease_gives_its_place_back_once_and_counts_its_first_result_only() -> None:
    one = guard(Clock(), breaker=Breaker(failures=2))
    other, lease = await one.enter(), await one.enter()
    for _ in range(3):
        lease.settle(False)
    for _ in range(3):
        lease.release()
    assert (one.gate.inside, one.places[0].in_flight, one.places[0].circuit.state(0.0)) == (1, 1, "closed")
    other.rest(5.0, 429)
    with pytest.raises(UpstreamBusy, match="asked for a rest") as caught:
        await one.enter()
    assert caught.value.status == 429


def test_what_is_shown_of_a_url_holds_no_secret() -> None:
    assert [place.shown for place in guard(Clock(), urls=2).places] == ["h0/v1", "h1:8000/v1"]


# The budget, the pauses, and what backends ask for


def test_the_budget_is_a_share_of_the_requests_beyond_its_floor() -> None:
    clock = Clock()
    budget = Budget(0.25, 3.0, clock)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    for _ in range(8):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    clock.now = 1.0
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_what_is_not_spent_is_not_saved_up_without_end() -> None:
    clock = Clock()
    budget = Budget(0.1, 2.0, clock)
    clock.now = 1e6
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) == 10


@given(st.integers(1, 60), st.floats(0.0, 1.0))
def test_pauses_grow_to_a_limit_and_are_jittered(round_: int, jitter: float) -> None:
    assert min(0.1 * 2**round_, 10.0) / 2 <= backoff(round_, jitter) <= min(0.1 * 2**round_, 10.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"0")], 0.0),
        ([(b"retry-after", b"99"), (b"retry-after-ms", b"1500")], 1.5),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:01:40 GMT")], 60.0),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:00:00 GMT")], 0.0),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"-5")], None),
        ([(b"retry-after", b"9" * 400)], None),
        ([(b"retry-after", b"\xff\xfe")], None),
        ([], None),
    ],
)
def test_how_long_a_reply_asks_to_wait(headers: Any, seconds: float | None) -> None:
    assert retry_after(headers, wall=40.0) == seconds


@given(st.binary(max_size=40))
def test_no_value_of_retry_after_is_an_error(value: bytes) -> None:
    seconds = retry_after([(b"retry-after", value)], wall=0.0)
    assert seconds is None or seconds >= 0.0
