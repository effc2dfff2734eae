"""What comes out, and what NAT's front ends make of it."""

from __future__ import annotations

import json

from starlette.responses import Response

from fingerpost.nat.answer import Completion, RouteDecision, ServedCompletion, to_chat, to_chunk, to_http, to_text
from fingerpost.records import Decision, Verdict
from fingerpost.routes import Backend

DECISION = Decision(
    "chat",
    (Backend("small", "nano-é", "http://localhost/v1"),),
    "why",
    "fixed",
    0.9,
    Verdict({"chat": 0.9, "other": 0.1}, "fixed"),
)


def test_a_decision_is_all_that_the_router_knows() -> None:
    decision = RouteDecision.of(DECISION)
    assert json.loads(to_text(decision)) == DECISION.to_json()
    assert decision.chosen == "nano-é"


def test_a_decision_without_a_backend_names_no_model() -> None:
    assert RouteDecision.of(Decision("chat", (), "", "fixed")).chosen == ""


def test_nats_chat_endpoints_get_the_model_to_call() -> None:
    for made in (RouteDecision.of(DECISION), Completion.naming("nano-é", "objective")):
        answer, chunk = to_chat(made), to_chunk(made)
        assert answer.choices[0].message.content == "nano-é"
        assert chunk.choices[0].delta.content == "nano-é"
        assert json.loads(chunk.model_dump_json())["object"] == "chat.completion.chunk"


def test_a_completion_is_the_references() -> None:
    made = Completion.naming("nano-é", "objective")
    served = to_http(made)
    assert isinstance(served, ServedCompletion)
    told = json.loads(served.model_dump_json())
    assert sorted(told) == ["choices", "created", "id", "model", "object", "usage"]
    assert told["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "nano-é"}, "finish_reason": "stop"}]
    assert (told["model"], told["object"], str(made)) == ("objective", "chat.completion", "nano-é")


def test_a_completion_that_was_asked_for_as_a_stream_is_sent_as_events() -> None:
    sent = to_http(Completion.naming("nano", "objective", stream=True))
    assert isinstance(sent, Response)
    assert sent.media_type == "text/event-stream"
    assert bytes(sent.body).endswith(b"data: [DONE]\n\n")
    assert b'"content":"nano"' in bytes(sent.body)
