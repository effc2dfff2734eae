from __future__ import annotations

import json
from pathlib import Path

from fingerpost.assemble import load_router
from fingerpost.chat import ChatRequest
from fingerpost.classifiers.fixed import Fixed
from fingerpost.demo import CONVERSATIONS, decide_all
from fingerpost.router import Router
from fingerpost.routes import OTHER, Backend, Route, RouteTable
from fingerpost.testing import ScriptedClassifier

INTENDED = [
    "chit_chat",
    "hard_question",
    "image_understanding",
    "image_question",
    "try_again",
    "other",
    "chit_chat",
    "hard_question",
    "image_understanding",
    "try_again",
    "image_understanding",
]


def test_the_conversations_are_the_notebooks():
    notebook = Path(__file__).with_name("golden") / "notebook_conversations.json"
    assert list(CONVERSATIONS) == json.loads(notebook.read_text(encoding="utf-8"))


async def test_each_conversation_is_decided_and_told_with_its_latest_text():
    backend = Backend("small", "org/small", "http://localhost:1/v1", accepts=frozenset({"text", "image"}))
    table = RouteTable((Route("chat", "Chat.", backends=("small",)), Route(OTHER, backends=("small",))), {"small": backend})
    rows = await decide_all(Router(table, Fixed("chat", 0.75)))
    assert [row["request"] for row in rows] == [ChatRequest.from_messages(one).conversation.text for one in CONVERSATIONS]
    assert all(row["ms"] >= 0 for row in rows)
    for row in rows:
        assert list(row) == ["request", "route", "backend", "model", "confidence", "ms"]
        assert (row["route"], row["backend"], row["model"], row["confidence"]) == ("chat", "small", "org/small", 0.75)


async def test_the_classifier_is_prepared_first():
    classifier = ScriptedClassifier(None)
    rows = await decide_all(Router(RouteTable(()), classifier))
    assert len(classifier.prepared) == 1
    assert {(row["route"], row["backend"], row["confidence"]) for row in rows} == {(OTHER, None, None)}


async def test_most_come_out_as_the_notebook_intends():
    router = load_router()
    rows = await decide_all(router)
    await router.aclose()
    assert sum(row["route"] == route for row, route in zip(rows, INTENDED, strict=True)) >= 9
    assert rows[-1]["backend"] == "nemotron-vl"
