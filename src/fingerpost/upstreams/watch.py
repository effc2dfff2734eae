"""A timer for what is put off often: it is not moved each time, only the moment that it looks at when it goes off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watch:
    """Calls `late` when the moment that was set last has come; times are those of the loop's clock."""

    __slots__ = ("_at", "_deadline", "_late", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], None]) -> None:
        self._loop = loop
        self._late = late
        self._deadline = self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def expect_by(self, time: float) -> None:
        """Sets the moment, sooner or later than before."""
        self._deadline = time
        if self._timer is None or time < self._at:
            self._set()

    def stop(self) -> None:
        """Ends it for good; what it would have called is let go of, which mostly holds this watch."""
        if self._timer is not None:
            self._timer.cancel()
        self._late = _nothing

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        """The timer went off: is the time really up, or has it moved on meanwhile?"""
        if self._loop.time() < self._deadline:
            self._set()
        else:
            self._late()


def _nothing() -> None:
    """What a watch calls that was stopped."""
