from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.classifiers.arch.prompt import DROPPED_NOTE
from fingerpost.classifiers.systemone import INSTRUCTIONS, NONE_OF_THESE, SystemOne, question, transcript
from fingerpost.errors import ClassifierError
from fingerpost.router import Router
from fingerpost.routes import OTHER, Backend, Route, RouteTable
from fingerpost.testing import FakeBackend, FakeReply
from fingerpost.upstreams.http1 import Http1Upstream

TABLE = RouteTable((Route("billing", "Invoices."), Route("delivery", examples=("Where is it?", "When?")), Route(OTHER)))


def answered(choice: str = "billing", **fields: Any) -> FakeReply:
    return FakeReply(completion={"answers": {"route": {"type": "choice", "choice": choice, **fields}}})


@asynccontextmanager
async def asking(fake: FakeBackend, **options):
    backend = Backend("systemone", "jev-latest", fake.url.removesuffix("/v1"), "secret")
    classifier = SystemOne(backend, Http1Upstream(backend), **options)
    try:
        yield classifier
    finally:
        await classifier.aclose()


def said(*texts: str) -> Conversation:
    return ChatRequest.from_messages([{"role": "user", "content": text} for text in texts]).conversation


async def believed(reply: FakeReply):
    with FakeBackend(reply) as fake:
        async with asking(fake) as classifier:
            return await classifier.classify(said("Hi"), TABLE)


async def test_the_model_is_asked_one_question_about_the_conversation() -> None:
    with FakeBackend(answered(confidence=0.8, probabilities={"billing": 0.8, "delivery": 0.15, "other": 0.05})) as fake:
        async with asking(fake) as classifier:
            await classifier.prepare(TABLE)
            verdict = await classifier.classify(said("Hé!"), TABLE)
    assert verdict.source == "systemone"
    assert verdict.probabilities == {"billing": 0.8, "delivery": 0.15, "other": pytest.approx(0.05)}
    (request,) = fake.requests
    assert request.target == "/v1/systemone"
    assert request.headers["authorization"] == "Bearer secret"
    criteria = {"billing": "Invoices.", "delivery": "Where is it?; When?", "other": NONE_OF_THESE}
    assert request.json == {
        "model": "jev-latest",
        "state": [{"role": "user", "content": "Hé!"}],
        "questions": {"route": {"type": "choice", "instructions": INSTRUCTIONS, "criteria": criteria}},
    }


def test_a_description_of_other_is_told() -> None:
    assert question(RouteTable((Route("a", "A."), Route(OTHER, "The rest."))))["criteria"] == {"a": "A.", "other": "The rest."}
    assert question(RouteTable((Route("a", "A."),)))["criteria"] == {"a": "A.", "other": NONE_OF_THESE}


def test_a_transcript_has_what_was_said_and_what_was_attached() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    conversation = ChatRequest.from_messages(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": [{"type": "text", "text": "See:"}, image]},
        ]
    ).conversation
    turns = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "See:\n[image attached]"}]
    assert transcript(conversation, 2048) == (turns, "")


async def test_what_did_not_fit_is_noted() -> None:
    with FakeBackend(answered()) as fake:
        async with asking(fake, budget=64) as classifier:
            verdict = await classifier.classify(said("word " * 100, "Hi"), TABLE)
    assert verdict.note == DROPPED_NOTE
    assert fake.requests[0].json["state"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answered(), {"billing": 1.0, "delivery": 0.0, "other": 0.0}),
        (answered(confidence=0.75), {"billing": 0.75, "delivery": 0.0, "other": 0.25}),
        (answered(probabilities={"billing": 0.5, "delivery": 0.25}), {"billing": 0.5, "delivery": 0.25, "other": 0.25}),
        (answered(probabilities={"billing": 1.0, "delivery": 0.5, "other": 0.5}),
         {"billing": 0.5, "delivery": 0.25, "other": 0.25}),
    ],
)  # fmt: skip
async def test_what_the_probabilities_leave_goes_to_other(reply: FakeReply, expected: dict[str, float]) -> None:
    assert (await believed(reply)).probabilities == expected


@pytest.mark.parametrize(
    "reply",
    [
        FakeReply(status=429),
        FakeReply(status=500),
        FakeReply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{{{"),
        FakeReply(completion={"answers": {}}),
        FakeReply(completion={"answers": {"route": {"type": "noul", "noul": 0.5}}}),
        answered("nobody"),
        answered(probabilities={"billing": 1.5}),
        answered(probabilities={"billing": 0.5, "delivery": -0.5}),
        answered(probabilities={"nobody": 1.0}),
    ],
)
async def test_an_answer_that_says_nothing_is_no_verdict(reply: FakeReply) -> None:
    with pytest.raises(ClassifierError):
        await believed(reply)


async def test_a_server_that_is_not_there_is_no_verdict() -> None:
    with FakeBackend() as fake:
        pass
    async with asking(fake) as classifier:
        with pytest.raises(ClassifierError, match="systemone"):
            await classifier.classify(said("Hi"), TABLE)


async def test_a_late_or_broken_server_fails_no_request() -> None:
    with FakeBackend(FakeReply(hang=True)) as fake:
        async with asking(fake, deadline=0.05) as classifier:
            router = Router(TABLE, classifier)
            decision = await asyncio.wait_for(router.decide("Hi"), 10)
    assert decision.route == OTHER
    assert "systemone gave no verdict within 0.05 s" in decision.reason


async def test_another_fingerpost_answers_it(door) -> None:
    """The server's `fixed` classifier knows no `billing`, so it has no verdict: 503, and the decision is the default."""
    backend = Backend("systemone", "any", door.url)
    classifier = SystemOne(backend, Http1Upstream(backend), deadline=10)
    chat = RouteTable((Route("chat", "Small talk."), Route(OTHER)))
    assert (await classifier.classify(said("Hi"), chat)).probabilities == {"chat": 1.0, "other": 0.0}
    with pytest.raises(ClassifierError, match="answered 503"):
        await classifier.classify(said("Hi"), TABLE)
    await classifier.aclose()
