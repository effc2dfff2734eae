"""The reference's contract, in pure form."""

from __future__ import annotations

import json

from fingerpost.records import Decision
from fingerpost.routes import Backend
from fingerpost.server.sfc import answer

DECISION = Decision("chat", (Backend("small", "nvidia/nano-é", "http://localhost/v1"),), "", "fixed")


def test_the_answer_is_a_chat_completion_whose_content_is_the_model() -> None:
    kind, body = answer(DECISION, "r1", 1_700_000_000, stream=False)
    completion = json.loads(body)
    assert kind == b"application/json"
    assert completion["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "nvidia/nano-é"}, "finish_reason": "stop"}
    ]
    assert (completion["id"], completion["object"], completion["created"]) == ("chatcmpl-r1", "chat.completion", 1_700_000_000)
    assert completion["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_the_streamed_answer_is_two_chunks_and_an_end() -> None:
    kind, body = answer(DECISION, "r1", 0, stream=True)
    *events, end, rest = body.decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert kind == b"text/event-stream"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["nvidia/nano-é", None]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (end, rest) == ("data: [DONE]", "")


def test_a_decision_without_a_backend_names_no_model() -> None:
    _, body = answer(Decision("chat", (), "", "fixed"), "r1", 0, stream=False)
    assert json.loads(body)["choices"][0]["message"]["content"] == ""
