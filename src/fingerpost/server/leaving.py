"""Clients that leave: whatever was being done for one ends as soon as its connection is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client closed its connection before the reply was over."""


class Leaving:
    """Who is to be called when the client has left; at once, if it has left already."""

    def __init__(self) -> None:
        self._left = False
        self._calls: set[Callable[[], None]] = set()

    def add(self, call: Callable[[], None]) -> None:
        """Calls `call` when the client leaves."""
        if self._left:
            call()
        else:
            self._calls.add(call)

    def discard(self, call: Callable[[], None]) -> None:
        """Does not call it any more."""
        self._calls.discard(call)

    def left(self) -> None:
        """Notes that the client has left."""
        self._left = True
        for call in tuple(self._calls):
            call()


async def until_client_leaves(work: Callable[[], Awaitable[None]], leaving: Leaving) -> None:
    """Runs `work`, and cancels it as soon as the client closes its connection."""
    task, gone = asyncio.current_task(), False
    assert task is not None

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    leaving.add(leave)
    try:
        await work()
    except asyncio.CancelledError:
        if gone and not task.uncancel():
            raise ClientGone from None
        raise
    finally:
        leaving.discard(leave)


async def until_disconnect(work: Callable[[], Awaitable[None]], receive: Receive) -> None:
    """The same in a server that tells of it by a message only, for which a second task must wait."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ClientGone

    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            await work()
            watching.cancel()
    except BaseExceptionGroup as failed:
        # One of the two failed; the other was only cancelled for it.
        raise failed.exceptions[0] from None
