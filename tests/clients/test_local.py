from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.clients import Client, Limits
from fingerpost.clients.local import MINUTE, Local, judge, period_of


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(("per", "now", "period", "seconds"), [
    ("day", at(2026, 11, 25), "2026-11-25", 86400), ("day", at(2026, 12, 31, 23, 59, 59), "2026-12-31", 1),
    ("month", at(2026, 12, 31, 23, 59, 59), "2026-12", 1), ("month", at(2024, 2, 1), "2024-02", 29 * 86400),
    ("month", at(2026, 1, 31), "2026-01", 86400),
])  # fmt: skip
def test_a_period_is_a_calendar_day_or_month_in_utc(per: str, now: float, period: str, seconds: float) -> None:
    assert period_of(per, now) == (period, seconds)


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 90), st.integers(0, 50)), min_size=1, max_size=60),
)
async def test_no_minute_ever_lets_through_more_than_twice_its_limit_and_an_idle_one_lets_all_through(
    limit: int, asked: list[tuple[float, int]]
) -> None:
    clock = [0.0]
    ledger, client = Local(lambda: clock[0], lambda: 0.0), Client("x", limits=Limits(tokens=limit))
    let: list[tuple[float, int]] = []
    for wait, tokens in asked:
        clock[0] += wait
        standing = await ledger.take(client, tokens)
        if standing.refused is None:
            let.append((clock[0], tokens))
        assert 0 <= standing.left["tokens"] <= limit + 0.01
    for start, _ in let:
        # What a bucket of one minute's worth allows in any minute: its content and what flows in meanwhile.
        assert sum(tokens for when, tokens in let if start <= when <= start + MINUTE) <= 2 * limit + 0.01
    clock[0] += MINUTE
    assert (await ledger.take(client, limit)).refused is None


def test_a_refusal_leaves_what_is_left_as_it_was() -> None:
    standing = judge(Limits(requests=60, tokens=600), (61.0, 30.0), 100, 0.0, 0.0)
    assert (standing.refused, standing.retry_after) == ("requests", 1.0)
    assert (round(standing.left["requests"], 3), round(standing.left["tokens"], 3)) == (0.0, 400.0)
