from __future__ import annotations

import asyncio

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers import ask
from fingerpost.errors import ClassifierError
from fingerpost.records import Verdict
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.testing import ScriptedClassifier

TABLE = RouteTable((Route("chat", "Chat."),))
CONVERSATION = ChatRequest.from_messages("Hi").conversation


@pytest.mark.parametrize(
    "probabilities",
    [{"chat": 1.0}, {"chat": 0.0}, {OTHER: 1.0}, {"chat": 0.3, OTHER: 0.7}, {"chat": 1.0000001}, {"chat": -1e-9, OTHER: 1}],
)
async def test_a_sound_verdict_is_passed_on(probabilities):
    verdict = Verdict(probabilities, "scripted")
    assert await ask(ScriptedClassifier(verdict), CONVERSATION, TABLE) == (verdict, "")


async def test_no_opinion_is_no_failure():
    assert await ask(ScriptedClassifier(None), CONVERSATION, TABLE) == (None, "")


@pytest.mark.parametrize(
    "probabilities",
    [{}, {"hard": 1.0}, {"chat": 2.0}, {"chat": -0.5}, {"chat": float("nan")}, {"chat": float("inf")}, {"": 1.0}],
)
async def test_an_unsound_verdict_is_a_failure(probabilities):
    answer = await ask(ScriptedClassifier(Verdict(probabilities, "scripted")), CONVERSATION, TABLE)
    assert answer == (None, "scripted gave no sound verdict about the routes asked")


@pytest.mark.parametrize("returned", ["chat", 5, {"chat": 1.0}, Verdict("chat", "x"), Verdict({"chat": None}, "x")])
async def test_a_plugin_that_returns_nonsense_fails_and_nothing_else_does(returned):
    verdict, failure = await ask(ScriptedClassifier(returned), CONVERSATION, TABLE)
    assert verdict is None
    assert failure.startswith("scripted gave no ")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ClassifierError("it is down"), "it is down"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (TimeoutError(), "TimeoutError"),
        (RecursionError(), "RecursionError"),
    ],
)
async def test_whatever_is_raised_is_a_failure(error, why):
    assert await ask(ScriptedClassifier(error), CONVERSATION, TABLE) == (None, f"scripted gave no verdict ({why})")


async def test_a_late_verdict_is_a_failure():
    late = ScriptedClassifier(Verdict({"chat": 1.0}, "scripted"), delay=5, deadline=0.02)
    assert await ask(late, CONVERSATION, TABLE) == (None, "scripted gave no verdict within 0.02 s")


async def test_a_plugin_that_cancels_itself_is_a_failure():
    class Cancelling(ScriptedClassifier):
        async def classify(self, conversation, table):
            raise asyncio.CancelledError

    answer = await ask(Cancelling(), CONVERSATION, TABLE)
    assert answer == (None, "scripted gave no verdict (something in it was cancelled)")


async def test_cancelling_the_asking_cancels_it():
    task = asyncio.ensure_future(ask(ScriptedClassifier(None, delay=5), CONVERSATION, TABLE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
