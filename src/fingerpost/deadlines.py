"""Deadlines that are all of the same length: one timer watches over those of all requests."""

from __future__ import annotations

import asyncio


class Deadlines:
    """Cancels the tasks whose time of so many seconds is over. Times are those of the running loop's clock.

    `asyncio.timeout` sets up a timer for each request, which costs as much as reading it. Here the first one to begin is the
    first one to end, so that one timer is enough, and beginning and ending cost an entry in a dictionary.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: dict[asyncio.Task[object], float] = {}
        self._missed: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[object]) -> float:
        """When this task, which is the current one, must have ended what it begins now; end it in any case."""
        loop = task.get_loop()
        at = self._running[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(at, self._look, loop)
        return at

    def end(self, task: asyncio.Task[object]) -> None:
        """Lets the task take as long as it likes from now on."""
        if self._running.pop(task, None) is None:
            self._missed.discard(task)

    def missed(self, task: asyncio.Task[object]) -> bool:
        """Whether the cancellation that the task has just caught is its deadline's alone, so that it need not be passed on."""
        return task in self._missed and task.uncancel() == 0

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer went off: tells those whose time is over, and waits for the next one."""
        now, self._timer = loop.time(), None
        while self._running:
            task, at = next(iter(self._running.items()))
            if at > now:
                self._timer = loop.call_at(at, self._look, loop)
                return
            del self._running[task]
            self._missed.add(task)
            task.cancel()
