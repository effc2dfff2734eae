from __future__ import annotations

import asyncio

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.chain import Chain, Link
from fingerpost.classifiers.rules import Rule, Rules
from fingerpost.errors import ClassifierError
from fingerpost.records import Verdict
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.testing import ScriptedClassifier

TABLE = RouteTable((Route("chat", "Chat."), Route("hard", "Hard."), Route(OTHER)))
SURE = Verdict({"chat": 0.9, "other": 0.1}, "quick", 0.25)
UNSURE = Verdict({"chat": 0.5, "other": 0.5}, "quick", 0.25)
SLOW = Verdict({"hard": 0.6, "other": 0.4}, "slow", note="it was cut")
CONVERSATION = ChatRequest.from_messages("Hi").conversation


def quick(*script, **options) -> ScriptedClassifier:
    return ScriptedClassifier(*script, name="quick", **options)


def slow(*script, **options) -> ScriptedClassifier:
    return ScriptedClassifier(*script, name="slow", **options)


async def test_a_first_verdict_that_is_sure_enough_ends_the_asking():
    second = slow(SLOW)
    assert await Chain([Link(quick(SURE), 0.9), Link(second)]).classify(CONVERSATION, TABLE) is SURE
    assert second.seen == []


async def test_an_unsure_verdict_lets_the_next_be_asked():
    chain = Chain([Link(quick(UNSURE), 0.51), Link(slow(SLOW), 0.6)])
    assert await chain.classify(CONVERSATION, TABLE) is SLOW


async def test_links_are_asked_in_order_and_about_the_same_conversation():
    asked = []

    class Noting(ScriptedClassifier):
        async def classify(self, conversation, table):
            asked.append((self.name, conversation, table))

    await Chain([Link(Noting(name=name)) for name in "abc"]).classify(CONVERSATION, TABLE)
    assert asked == [(name, CONVERSATION, TABLE) for name in "abc"]


async def test_without_a_sure_verdict_the_last_one_counts():
    chain = Chain([Link(quick(SURE), 0.95), Link(slow(SLOW), 0.95)])
    assert await chain.classify(CONVERSATION, TABLE) is SLOW


async def test_the_last_verdict_counts_even_when_later_links_have_no_opinion():
    chain = Chain([Link(quick(UNSURE), 0.9), Link(slow(None))])
    assert await chain.classify(CONVERSATION, TABLE) is UNSURE


async def test_a_link_without_opinion_is_passed_over():
    chain = Chain([Link(Rules([Rule("hard", keywords=("prove",))])), Link(quick(SURE))])
    assert await chain.classify(CONVERSATION, TABLE) is SURE


async def test_a_chain_in_which_no_one_has_an_opinion_has_none():
    assert await Chain([Link(quick(None)), Link(slow(None))]).classify(CONVERSATION, TABLE) is None
    assert await Chain([]).classify(CONVERSATION, TABLE) is None


FAILING = [
    (quick(ClassifierError("it is down")), "quick gave no verdict (it is down)"),
    (quick(ValueError("a bug")), "quick gave no verdict (ValueError)"),
    (quick(TimeoutError()), "quick gave no verdict (TimeoutError)"),
    (quick(SURE, delay=5, deadline=0.02), "quick gave no verdict within 0.02 s"),
    (quick(Verdict({"elsewhere": 1.0}, "quick")), "quick gave no sound verdict about the routes asked"),
    (quick(Verdict({"chat": float("nan")}, "quick")), "quick gave no sound verdict about the routes asked"),
]


@pytest.mark.parametrize(("link", "why"), FAILING, ids=[why for _, why in FAILING])
async def test_a_link_that_fails_or_is_late_is_passed_over_and_the_verdict_says_so(link, why):
    verdict = await Chain([Link(link), Link(slow(SURE))]).classify(CONVERSATION, TABLE)
    assert verdict.note == why
    assert verdict.provisional
    assert (verdict.probabilities, verdict.source, verdict.elapsed) == (SURE.probabilities, SURE.source, SURE.elapsed)


async def test_the_notes_of_failures_come_before_the_verdicts_own():
    chain = Chain([Link(quick(ClassifierError("down"))), Link(slow(SLOW))])
    assert (await chain.classify(CONVERSATION, TABLE)).note == "quick gave no verdict (down); it was cut"


async def test_an_unsure_verdict_stands_when_the_next_link_fails():
    verdict = await Chain([Link(quick(UNSURE), 0.9), Link(slow(ClassifierError("down")))]).classify(CONVERSATION, TABLE)
    assert verdict.route == "chat"
    assert verdict.note == "slow gave no verdict (down)"


async def test_a_chain_in_which_all_fail_fails_with_every_reason():
    chain = Chain([Link(quick(ClassifierError("down"))), Link(slow(None)), Link(slow(KeyError()))])
    with pytest.raises(ClassifierError, match=r"^quick gave no verdict \(down\); slow gave no verdict \(KeyError\)$"):
        await chain.classify(CONVERSATION, TABLE)


async def test_each_link_has_a_deadline_of_its_own():
    links = [quick(SURE, delay=5, deadline=0.02), slow(SLOW, delay=0.1, deadline=None)]
    async with asyncio.timeout(2):
        verdict = await Chain([Link(link) for link in links]).classify(CONVERSATION, TABLE)
    assert verdict.route == "hard"


async def test_a_chain_may_be_a_link():
    inner = Chain([Link(quick(UNSURE), 0.9), Link(quick(None))])
    assert (await Chain([Link(inner, 0.9), Link(slow(SLOW))]).classify(CONVERSATION, TABLE)) is SLOW


async def test_a_decision_names_the_link_that_it_comes_from():
    decision = await Router(TABLE, Chain([Link(quick(ClassifierError("down"))), Link(slow(SLOW))])).decide("Hi")
    assert decision.source == "slow"
    assert decision.reason == "slow is 60% sure (quick gave no verdict (down); it was cut)"


async def test_a_client_that_leaves_stops_the_asking():
    second = slow(SLOW)
    task = asyncio.ensure_future(Chain([Link(quick(SURE, delay=5)), Link(second)]).classify(CONVERSATION, TABLE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert second.seen == []


async def test_preparing_and_closing_reach_every_link():
    links = [quick(), slow()]
    chain = Chain([Link(link) for link in links])
    await chain.prepare(TABLE)
    await chain.aclose()
    assert [(link.prepared, link.closed) for link in links] == [([TABLE], 1)] * 2
