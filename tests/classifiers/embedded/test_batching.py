from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event, Thread

import pytest

from fingerpost.classifiers.embedded.batching import Batcher


@dataclass
class Work:
    """Doubles numbers; each batch waits until it is let go, and says that it has begun."""

    batches: list[list[int]] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    go: Event = field(default_factory=Event)
    begun: Event = field(default_factory=Event)

    def prepare(self, number: int) -> int:
        self.prepared.append(number)
        if number < 0:
            raise ValueError(f"{number} is below zero")
        return number

    def answer(self, numbers: list[int]) -> list[int]:
        self.batches.append(numbers)
        self.begun.set()
        assert self.go.wait(10)
        if 13 in numbers:
            raise ArithmeticError("thirteen")
        return [2 * number for number in numbers]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def batcher(work: Work) -> Iterator[Batcher[int, int, int]]:
    batcher = Batcher(work.prepare, lambda _: 1, work.answer, most=3, threads=1)
    yield batcher
    work.go.set()
    batcher.close()


async def begin(batcher: Batcher[int, int, int], work: Work, first: int = 1) -> asyncio.Task[int]:
    """The task of a first one that asks, once its batch is being answered."""
    task = asyncio.ensure_future(batcher.ask(first))
    assert await asyncio.to_thread(work.begun.wait, 10)
    return task


async def put(batcher: Batcher[int, int, int], *numbers: int) -> list[asyncio.Task[int]]:
    """Tasks that wait for their answers."""
    tasks = [asyncio.ensure_future(batcher.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


async def test_one_that_asks_alone_is_answered_alone(batcher, work):
    work.go.set()

    assert [await batcher.ask(number) for number in (1, 2, 3)] == [2, 4, 6]
    assert work.batches == [[1], [2], [3]]


async def test_those_that_wait_are_answered_together_up_to_a_size(batcher, work):
    first = await begin(batcher, work)
    others = await put(batcher, 2, 3, 4, 5, 6)
    work.go.set()

    assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12]
    assert work.batches == [[1], [2, 3, 4], [5, 6]]


async def test_the_sizes_of_the_members_count(work):
    batcher = Batcher(work.prepare, lambda number: number, work.answer, most=10, threads=1)
    first = await begin(batcher, work)
    others = await put(batcher, 4, 5, 6, 4, 20, 1)
    work.go.set()
    await asyncio.gather(first, *others)
    batcher.close()

    assert work.batches == [[1], [4, 5], [6, 4], [20], [1]]
    assert work.prepared == [1, 4, 5, 6, 4, 20, 1]


async def test_several_threads_answer_at_once(work, eventually):
    batcher = Batcher(work.prepare, lambda _: 1, work.answer, most=1, threads=2)
    tasks = await put(batcher, 1, 2, 3)
    await asyncio.to_thread(eventually, lambda: len(work.batches) == 2)
    begun = sorted(number for batch in work.batches for number in batch)
    work.go.set()

    assert begun == [1, 2]
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    batcher.close()


async def test_one_that_cannot_be_prepared_says_so_and_the_others_are_answered(batcher, work):
    first = await begin(batcher, work)
    [good, bad, better] = await put(batcher, 2, -3, 4)
    work.go.set()

    with pytest.raises(ValueError, match="-3 is below zero"):
        await bad
    assert await asyncio.gather(first, good, better) == [2, 4, 8]


async def test_an_error_is_told_to_all_of_its_batch_and_the_next_is_answered(batcher, work):
    first = await begin(batcher, work)
    tasks = await put(batcher, 12, 13, 14, 15)
    work.go.set()

    found = await asyncio.gather(first, *tasks, return_exceptions=True)

    assert [type(one) for one in found] == [int, ArithmeticError, ArithmeticError, ArithmeticError, int]


async def test_one_that_no_longer_waits_is_not_prepared(batcher, work):
    first = await begin(batcher, work)
    [gone, stays] = await put(batcher, 2, 3)
    gone.cancel()
    await asyncio.sleep(0)
    work.go.set()

    assert await asyncio.gather(first, stays) == [2, 6]
    assert work.prepared == [1, 3]
    assert gone.cancelled()


async def test_one_that_leaves_after_it_was_too_much_for_a_batch_is_not_answered(work, eventually):
    gates, batches = {4: Event(), 6: Event(), 7: Event()}, []
    gates[7].set()

    def answer(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        assert gates[numbers[0]].wait(10)
        return numbers

    batcher = Batcher(work.prepare, lambda number: number, answer, most=10, threads=1)
    tasks = await put(batcher, 4)
    await asyncio.to_thread(eventually, lambda: batches == [[4]])
    tasks += await put(batcher, 6, 5, 7)
    gates[4].set()
    await asyncio.to_thread(eventually, lambda: batches == [[4], [6]])
    tasks.pop(2).cancel()
    await asyncio.sleep(0)
    gates[6].set()

    assert await asyncio.gather(*tasks) == [4, 6, 7]
    assert batches == [[4], [6], [7]]
    batcher.close()


async def test_one_that_leaves_while_it_is_answered_disturbs_nobody(batcher, work):
    first = await begin(batcher, work)
    [second] = await put(batcher, 2)
    first.cancel()
    await asyncio.sleep(0)
    work.go.set()

    assert await second == 4
    assert first.cancelled()


async def test_closing_cancels_who_waits_and_not_who_is_being_answered(batcher, work):
    first = await begin(batcher, work)
    [waits] = await put(batcher, 2)

    batcher.close()
    work.go.set()

    assert await first == 2
    with pytest.raises(asyncio.CancelledError):
        await waits
    with pytest.raises(RuntimeError, match="closed"):
        await batcher.ask(3)


def test_several_loops_may_ask(batcher, work):
    found = {}

    def ask(number: int) -> None:
        found[number] = asyncio.run(batcher.ask(number))

    threads = [Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    work.go.set()
    for thread in threads:
        thread.join(10)

    assert found == {number: 2 * number for number in range(5)}


def test_a_loop_that_ends_before_its_answer_disturbs_nobody(batcher, work):
    async def leave() -> None:
        await begin(batcher, work)

    asyncio.run(leave())
    work.go.set()

    assert asyncio.run(batcher.ask(2)) == 4
