"""A chain with `race`: all links at once."""

from __future__ import annotations

import asyncio

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.arch import MODEL, Arch
from fingerpost.classifiers.chain import Chain, Link
from fingerpost.errors import ClassifierError
from fingerpost.records import Verdict
from fingerpost.router import Router
from fingerpost.routes import OTHER, Backend, Route, RouteTable
from fingerpost.testing import FakeBackend, FakeReply, ScriptedClassifier
from fingerpost.upstreams.http1 import Http1Upstream

TABLE = RouteTable((Route("chat", "Chat."), Route("hard", "Hard."), Route(OTHER)))
SURE = Verdict({"chat": 0.9, "other": 0.1}, "quick")
UNSURE = Verdict({"chat": 0.5, "other": 0.5}, "quick")
SLOW = Verdict({"hard": 0.6, "other": 0.4}, "slow")
CONVERSATION = ChatRequest.from_messages("Hi").conversation


def quick(*script, **options) -> ScriptedClassifier:
    return ScriptedClassifier(*script, name="quick", **options)


class Slow(ScriptedClassifier):
    """Says in `gave_up` how often it was cancelled, after giving back what it held."""

    def __init__(self, *script, **options) -> None:
        super().__init__(*script, **{"name": "slow", **options})
        self.gave_up = 0

    async def classify(self, conversation, table):
        try:
            return await super().classify(conversation, table)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.gave_up += 1
            raise


async def raced(*links: Link) -> Verdict | None:
    """What a race gives; nothing of it may be left running."""
    async with asyncio.timeout(5):
        verdict = await Chain(links, race=True).classify(CONVERSATION, TABLE)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return verdict


async def test_all_are_asked_at_once():
    both = asyncio.Barrier(2)

    class Meeting(ScriptedClassifier):
        async def classify(self, conversation, table):
            await both.wait()
            return await super().classify(conversation, table)

    assert await raced(Link(Meeting(UNSURE), 0.9), Link(Meeting(SLOW))) is SLOW


async def test_a_sure_first_link_ends_the_race_and_the_loser_leaves_nothing_behind():
    slow = Slow(SLOW, delay=3600)
    assert await raced(Link(quick(SURE), 0.9), Link(slow)) is SURE
    assert (len(slow.seen), slow.gave_up) == (1, 1)


async def test_while_the_first_link_is_unsure_the_later_one_is_waited_for():
    assert await raced(Link(quick(UNSURE), 0.9), Link(Slow(SLOW, delay=0.05), 0.9)) is SLOW


async def test_the_first_links_verdict_counts_when_the_later_one_is_late():
    slow = Slow(SLOW, delay=3600, deadline=0.05)
    verdict = await raced(Link(quick(UNSURE), 0.9), Link(slow))
    assert (verdict.route, verdict.source) == ("chat", "quick")
    assert verdict.note == "slow gave no verdict within 0.05 s"
    assert verdict.provisional
    assert slow.gave_up == 1


async def test_a_sure_later_link_does_not_wait_for_an_earlier_one():
    first = Slow(UNSURE, delay=3600, name="first")
    assert await raced(Link(first), Link(quick(SURE), 0.9)) is SURE
    assert first.gave_up == 1


async def test_of_two_that_are_sure_at_the_same_time_the_earlier_counts():
    assert await raced(Link(quick(SURE), 0.9), Link(Slow(SLOW))) is SURE


async def test_the_deadlines_run_side_by_side():
    links = [Link(Slow(SLOW, delay=3600, deadline=0.3, name=f"slow{n}")) for n in range(20)]
    with pytest.raises(ClassifierError, match=r"slow19 gave no verdict within 0\.3 s"):
        await raced(*links)


async def test_failures_and_missing_opinions_are_passed_over_and_told():
    verdict = await raced(Link(quick(ClassifierError("down"))), Link(quick(None)), Link(Slow(SLOW, delay=0.05)))
    assert (verdict.route, verdict.note, verdict.provisional) == ("hard", "quick gave no verdict (down)", True)
    verdict = await raced(Link(quick(UNSURE), 0.9), Link(Slow(KeyError(), delay=0.05)))
    assert (verdict.route, verdict.note) == ("chat", "slow gave no verdict (KeyError)")


async def test_without_any_opinion_there_is_none():
    assert await raced(Link(quick(None)), Link(Slow(None))) is None
    assert await raced() is None


async def test_a_loser_cancelled_by_a_sure_verdict_is_no_failure():
    verdict = await raced(Link(quick(SURE, delay=0.02), 0.9), Link(Slow(SLOW, delay=3600)))
    assert not verdict.provisional


async def test_a_client_that_leaves_stops_all():
    links = [Slow(UNSURE, delay=3600), Slow(SLOW, delay=3600)]
    task = asyncio.ensure_future(Chain([Link(link) for link in links], race=True).classify(CONVERSATION, TABLE))
    while not all(link.seen for link in links):  # noqa: ASYNC110  (the first turns of the loop start them)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [link.gave_up for link in links] == [1, 1]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_loser_that_waits_for_a_server_cuts_its_call(eventually):
    with FakeBackend(FakeReply(hang=True)) as fake:
        backend = Backend("arch", MODEL, fake.url)
        arch = Arch(backend, Http1Upstream(backend), deadline=None)

        class WhenAsked(ScriptedClassifier):
            async def classify(self, conversation, table):
                await asyncio.to_thread(eventually, lambda: fake.requests)
                return await super().classify(conversation, table)

        decision = await Router(TABLE, Chain([Link(WhenAsked(SURE), 0.9), Link(arch)], race=True)).decide("Hi")
        await asyncio.to_thread(eventually, lambda: fake.abandoned == 1)
        await arch.aclose()
    assert decision.route == "chat"


async def test_a_verdict_given_because_the_other_was_late_is_not_remembered():
    slow = ScriptedClassifier(SLOW, delay=3600, deadline=0.02, name="slow")
    router = Router(TABLE, Chain([Link(quick(UNSURE), 0.9), Link(slow)], race=True))
    assert (await router.decide("Hi")).route == "chat"
    slow.delay = 0.0
    assert (await router.decide("Hi")).route == "hard"
    assert (await router.decide("Hi")).cached
