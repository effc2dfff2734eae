"""What a workflow is given becomes a chat request of which nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nat.data_models import api_server
from pydantic import ValidationError

from fingerpost.errors import InvalidRequest
from fingerpost.nat.request import RoutingRequest, from_messages, from_nat, from_nat_either, from_text

ASKED = [
    {"role": "user", "content": "What is 17 times 23?"},
    {"role": "assistant", "content": "371"},
    {"role": "user", "content": "No."},
]


@pytest.mark.parametrize(
    "text", ["Hello", "", "{not json", "[1, 2]", "{}", "[]", '{"a": 1}', '{"messages": [{"a": 1}]}', "[" * 10_000, "é 日本"]
)
def test_text_is_one_user_message_as_it_stands(text: str) -> None:
    assert from_text(text).messages == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    "text", [json.dumps(ASKED), json.dumps({"messages": ASKED, "temperature": 0.5}), "\n " + json.dumps(ASKED)]
)
def test_text_that_is_a_conversation_in_json_is_that_conversation(text: str) -> None:
    assert from_text(text).messages == ASKED


def test_a_list_is_the_messages() -> None:
    assert from_messages(ASKED).messages == ASKED


def test_nats_own_request_is_taken_over_with_unknown_fields() -> None:
    request = from_nat(api_server.ChatRequest.model_validate({"messages": ASKED, "model": "x", "verbosity": "low"}))
    assert request.messages == ASKED
    assert request.model_extra == {"verbosity": "low"}


def test_what_nats_agents_hand_on_is_a_conversation_or_a_text() -> None:
    assert from_nat_either(api_server.ChatRequestOrMessage(input_message="Hi")).messages == [{"role": "user", "content": "Hi"}]
    assert from_nat_either(api_server.ChatRequestOrMessage.model_validate({"messages": ASKED})).messages == ASKED


@pytest.mark.parametrize("message", [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
    {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/i.png"}, "detail": "low"}]},
    {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": None},
    {"role": "user", "content": [{"type": "hologram", "hologram": 1}]},
])  # fmt: skip
def test_what_nats_own_request_refuses_is_taken_and_kept(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        api_server.ChatRequest.model_validate({"messages": [message]})
    request = RoutingRequest.model_validate({"messages": [message], "reasoning_effort": "high"})
    chat = request.to_chat()
    assert isinstance(chat.source, dict)
    assert chat.source["messages"] == [message]
    assert chat.source["reasoning_effort"] == "high"


@pytest.mark.parametrize("model", ["nvidia/nemotron", "chit_chat", None])
def test_whatever_the_model_what_is_asked_for_is_a_decision(model: str | None) -> None:
    assert RoutingRequest.model_validate({"messages": ASKED, "model": model}).to_chat().model == "auto"


def test_a_wrong_shape_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role: not a role"):
        RoutingRequest(messages=[{"role": "canary", "content": "x"}]).to_chat()
    with pytest.raises(InvalidRequest, match="at least one message"):
        RoutingRequest(messages=[]).to_chat()


def test_its_text_for_logs_holds_no_prompt() -> None:
    request = RoutingRequest.model_validate({"messages": [{"role": "user", "content": "canary"}], "user": "canary"})
    assert f"{request} {request!r}" == "RoutingRequest(1 messages) RoutingRequest(1 messages)"


def test_an_error_about_its_shape_holds_no_prompt() -> None:
    with pytest.raises(ValidationError, match="messages") as caught:
        RoutingRequest.model_validate({"messages": "canary"})
    assert "canary" not in str(caught.value)
