from __future__ import annotations

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.fixed import Fixed
from fingerpost.records import Verdict
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable

TABLE = RouteTable((Route("chat", "Chat."), Route(OTHER)))


@pytest.mark.parametrize("text", ["Hi", "", "Prove that P is not NP."])
async def test_the_same_is_believed_whatever_is_said(text):
    fixed = Fixed("chat", 0.75)
    await fixed.prepare(TABLE)
    assert await fixed.classify(ChatRequest.from_messages(text).conversation, TABLE) == Verdict(
        {"chat": 0.75, "other": 0.25}, "fixed"
    )
    await fixed.aclose()


async def test_certainty_is_the_default():
    verdict = await Fixed("chat").classify(ChatRequest.from_messages("Hi").conversation, TABLE)
    assert (verdict.route, verdict.confidence) == ("chat", 1.0)


async def test_other_gets_everything():
    verdict = await Fixed(OTHER, 0.3).classify(ChatRequest.from_messages("Hi").conversation, TABLE)
    assert verdict.probabilities == {OTHER: 1.0}


async def test_a_route_that_a_request_did_not_bring_gives_the_default_route():
    body = {"messages": [{"role": "user", "content": "Hi"}], "fingerpost": {"routes": [{"name": "x", "description": "X."}]}}
    assert (await Router(TABLE, Fixed("chat")).decide(body)).route == OTHER
