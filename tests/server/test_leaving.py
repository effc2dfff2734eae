"""Clients that leave, before and while something is done for them."""

from __future__ import annotations

import asyncio

import pytest

from fingerpost.server.leaving import ClientGone, Leaving, until_client_leaves


async def test_work_is_cancelled_when_the_client_leaves():
    leaving, ends = Leaving(), []

    async def work() -> None:
        try:
            asyncio.get_running_loop().call_soon(leaving.left)
            await asyncio.Event().wait()
        finally:
            ends.append("over")

    with pytest.raises(ClientGone):
        await until_client_leaves(work, leaving)
    assert ends == ["over"]


async def test_nothing_is_waited_for_when_the_client_has_left_before():
    leaving = Leaving()
    leaving.left()

    with pytest.raises(ClientGone):
        await until_client_leaves(asyncio.Event().wait, leaving)


async def test_a_client_that_leaves_after_its_answer_cancels_nothing():
    leaving = Leaving()

    async def work() -> None:
        await asyncio.sleep(0)

    await until_client_leaves(work, leaving)
    leaving.left()
    await asyncio.sleep(0)


async def test_the_servers_own_cancellation_is_not_taken_for_the_clients():
    task = asyncio.ensure_future(until_client_leaves(asyncio.Event().wait, Leaving()))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
