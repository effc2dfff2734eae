"""Deadlines that are all of the same length: one timer watches over those of all requests."""

from __future__ import annotations

import asyncio

import msgspec


class Deadline(msgspec.Struct, eq=False):
    """One task's; `missed` says that it came before the task had ended what it stood for."""

    task: asyncio.Task[object]
    at: float
    missed: bool = False


class Deadlines:
    """Cancels the tasks whose time of so many seconds is over. Times are those of the running loop's clock.

    `asyncio.timeout` sets up a timer for each request, which costs as much as reading it. Here the first one to begin is the
    first one to end, so that one timer is enough, and beginning and ending cost an entry in a dictionary.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[object]) -> Deadline:
        """A deadline for this task, which is the current one; end it in any case."""
        loop = task.get_loop()
        deadline = Deadline(task, loop.time() + self.seconds)
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_at(deadline.at, self._look, loop)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """Lets the task take as long as it likes from now on."""
        self._running.pop(deadline, None)

    def missed(self, deadline: Deadline) -> bool:
        """Whether the cancellation that the task has just caught is this deadline's alone, so that it need not be passed on."""
        return deadline.missed and deadline.task.uncancel() == 0

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer went off: tells those whose time is over, and waits for the next one."""
        now, self._timer = loop.time(), None
        while self._running:
            deadline = next(iter(self._running))
            if deadline.at > now:
                self._timer = loop.call_at(deadline.at, self._look, loop)
                return
            del self._running[deadline]
            deadline.missed = True
            deadline.task.cancel()
