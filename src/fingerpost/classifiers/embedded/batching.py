"""What waits for a worker thread is answered together: a batch costs a core less than its members one by one.

Nobody waits for others to come. Whoever comes while all threads work is in the next batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Ready = TypeVar("Ready")
Answer = TypeVar("Answer")


class Batcher(Generic[Asked, Ready, Answer]):
    """Answers in `threads` worker threads: `prepare` for each that asks, then `answer` for a batch of them.

    A batch takes what waits as long as the sum of its members' `size` is at most `most`; what is larger is alone.
    """

    def __init__(
        self,
        prepare: Callable[[Asked], Ready],
        size: Callable[[Ready], int],
        answer: Callable[[Sequence[Ready]], Sequence[Answer]],
        most: int,
        threads: int,
    ) -> None:
        self._prepare, self._size, self._answer, self._most = prepare, size, answer, most
        self._threads, self._working = threads, 0
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="fingerpost-embedded")
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._ready: deque[tuple[Ready, asyncio.Future[Answer]]] = deque()  # too much for the batch before
        self._lock = Lock()
        self._closed = False

    async def ask(self, asked: Asked) -> Answer:
        """The answer, or the error that making it raised.

        Raises:
            RuntimeError: it was closed.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the classifier was closed")
            self._waiting.append((asked, future))
            self._set_to_work()
        return await future

    def close(self) -> None:
        """Cancels what waits; what is being answered still is."""
        with self._lock:
            self._closed = True
            futures = [future for _, future in (*self._ready, *self._waiting)]
            self._ready.clear()
            self._waiting.clear()
        for future in futures:
            with suppress(RuntimeError):  # a loop that has been closed waits for nothing
                future.get_loop().call_soon_threadsafe(future.cancel)
        self._workers.shutdown(wait=False)

    def _set_to_work(self) -> None:
        """Lets one more thread work, if one rests; called with the lock held."""
        if self._working < self._threads and not self._closed:
            self._working += 1
            self._workers.submit(self._work)

    def _work(self) -> None:
        while batch := self._take():
            futures = [future for _, future in batch]
            try:
                answers = self._answer([ready for ready, _ in batch])
            except Exception as error:
                _tell([(future, error) for future in futures])
            else:
                _tell(list(zip(futures, answers, strict=True)))

    def _take(self) -> list[tuple[Ready, asyncio.Future[Answer]]]:
        """The next batch; where nobody waits it is empty, and this thread no longer counts as working."""
        batch: list[tuple[Ready, asyncio.Future[Answer]]] = []
        size = 0
        while (found := self._next(resting=not batch)) is not None:
            if found[1].cancelled():  # it left while it was prepared, or while the batch before was answered
                continue
            size += self._size(found[0])
            if batch and size > self._most:
                with self._lock:
                    self._ready.append(found)
                    self._set_to_work()
                break
            batch.append(found)
        return batch

    def _next(self, resting: bool) -> tuple[Ready, asyncio.Future[Answer]] | None:
        """The next one to answer, prepared; None where nobody waits, and then this thread rests if it is `resting`."""
        while True:
            with self._lock:
                if self._ready:
                    return self._ready.popleft()
                if not self._waiting:
                    self._working -= resting
                    return None
                asked, future = self._waiting.popleft()
            if future.cancelled():
                continue
            try:
                return self._prepare(asked), future
            except Exception as error:
                _tell([(future, error)])


def _tell(outcomes: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
    """Settles futures in their loops."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].get_loop(), []).append(outcome)
    for loop, several in by_loop.items():
        with suppress(RuntimeError):  # a loop that has been closed waits for nothing
            loop.call_soon_threadsafe(_settle, several)


def _settle(outcomes: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
    for future, outcome in outcomes:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
