"""Many at once: nobody waits for a slow one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from fingerpost.testing import FakeBackend, FakeReply, Received

STREAM = {"model": "auto", "stream": True}


def slow_or_quick(request: Received) -> FakeReply:
    slow = request.json["messages"][0]["content"] == "slow"
    return FakeReply("word " * 20, pause=60 if slow else 0.01)


async def stream(session: aiohttp.ClientSession, url: str, text: str) -> tuple[float, bytes]:
    """Seconds until the last event, and the last event."""
    start = time.perf_counter()
    body = {**STREAM, "messages": [{"role": "user", "content": text}]}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        content = await answer.read()
    return time.perf_counter() - start, content[-14:]


async def test_64_streams_at_once_are_not_delayed_by_a_slow_one_and_health_answers(
    serving: Callable[..., Any], fake: FakeBackend
) -> None:
    fake.default = slow_or_quick
    door = serving()
    waits: list[float] = []

    async def watch_health(session: aiohttp.ClientSession) -> None:
        while True:
            start = time.perf_counter()
            async with session.get(f"{door.url}/health") as answer:
                assert answer.status == 200
            waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.01)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        slow = asyncio.ensure_future(stream(session, door.url, "slow"))
        watching = asyncio.ensure_future(watch_health(session))
        quick = await asyncio.gather(*(stream(session, door.url, f"quick {number}") for number in range(64)))
        still_running = not slow.done()
        for task in (slow, watching):
            task.cancel()
        await asyncio.gather(slow, watching, return_exceptions=True)
    assert still_running
    assert {end for _, end in quick} == {b"data: [DONE]\n\n"}
    assert max(seconds for seconds, _ in quick) < 30
    assert len(waits) >= 3
    assert sorted(waits)[len(waits) // 2] < 2
    assert sorted(told.outcome for told in door.told(65)) == ["client_gone"] + ["completed"] * 64
