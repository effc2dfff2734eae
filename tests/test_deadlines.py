"""Deadlines of many tasks under one timer."""

from __future__ import annotations

import asyncio

import pytest

from fingerpost.deadlines import Deadlines


async def wait_under(deadlines: Deadlines, event: asyncio.Event) -> str:
    task = asyncio.current_task()
    assert task is not None
    deadlines.begin(task)
    try:
        await event.wait()
    except asyncio.CancelledError:
        if not deadlines.missed(task):
            raise
        return "missed"
    finally:
        deadlines.end(task)
    return "done"


async def test_each_task_is_told_when_its_own_time_is_over() -> None:
    deadlines, never, soon = Deadlines(0.05), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    began, waits = loop.time(), []
    for event in (never, soon, never):
        waits.append(asyncio.ensure_future(wait_under(deadlines, event)))
        await asyncio.sleep(0.01)
    soon.set()
    assert await asyncio.gather(*waits) == ["missed", "done", "missed"]
    assert loop.time() - began >= 0.07
    assert not any(task.cancelling() for task in waits)


async def test_one_that_ended_is_never_told() -> None:
    deadlines, event = Deadlines(0.01), asyncio.Event()
    event.set()
    assert await wait_under(deadlines, event) == "done"
    await asyncio.sleep(0.03)
    assert await wait_under(deadlines, event) == "done"


async def test_another_cancellation_is_not_taken_for_the_deadlines() -> None:
    deadlines = Deadlines(0.01)
    task = asyncio.ensure_future(wait_under(deadlines, asyncio.Event()))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, task.cancel)  # in the very round of the loop, perhaps
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_at_once_are_the_others() -> None:
    deadlines = Deadlines(0.01)
    task = asyncio.ensure_future(wait_under(deadlines, asyncio.Event()))
    await asyncio.sleep(0)
    deadlines._look(Later())  # type: ignore[arg-type]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Later:
    """A loop whose clock is far ahead."""

    def time(self) -> float:
        return float("inf")
