"""NeMo Switchyard's contract, in pure form and against recorded answers of its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fingerpost import policy
from fingerpost.errors import FingerpostError, InvalidRequest
from fingerpost.records import Decision
from fingerpost.routes import Backend, Route, RouteTable
from fingerpost.server.decision import answer, read

RECORDED = json.loads((Path(__file__).parent / "recorded/decision.json").read_text(encoding="utf-8"))["exchanges"]
WEAK, STRONG = (
    Backend(name, model, "http://127.0.0.1:9/v1") for name, model in (("weak", "small-model"), ("strong", "big-model"))
)
TABLE = RouteTable(
    (
        Route("direct", "d", backends=("weak",)),
        Route("mixed", "m", backends=("weak", "strong")),
        Route("other", backends=("weak",)),
    ),
    {"weak": WEAK, "strong": STRONG},
)


def asked(input_format: str, **request: Any):
    return read(json.dumps({"input_format": input_format, "request": request}).encode())


@pytest.mark.parametrize("exchange", RECORDED)
def test_the_answer_is_what_switchyards_server_gives(exchange: dict[str, Any]) -> None:
    try:
        request = read(json.dumps(exchange["body"]).encode())
        ours = answer(policy.obey(TABLE, request.needs, request.model))
        status = 200
    except FingerpostError as error:
        ours, status = error.to_json(), error.status
    if exchange["status"] == 200:
        assert (status, ours) == (200, exchange["answer"])
    else:
        assert status == {422: 400}.get(exchange["status"], exchange["status"])
        assert exchange["answer"]["error"].keys() <= ours["error"].keys()


def test_the_recording_holds_answers_and_refusals() -> None:
    assert {exchange["status"] for exchange in RECORDED} >= {200, 404, 422}


def test_no_key_and_no_password_is_in_the_answer() -> None:
    backend = Backend("b", "m", "https://user:secret@host:8443/v1", "secret")
    answered = answer(Decision("r", (backend,), "", "fixed"))
    assert answered["selected"]["llm_client"]["base_url"] == "https://host:8443/v1"
    assert "secret" not in json.dumps(answered)


def test_anthropics_messages_are_read() -> None:
    request = asked(
        "anthropic_messages",
        model="auto",
        system="Be kind.",
        max_tokens=7,
        tools=[{"name": "look", "input_schema": {}}],
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "See:"}, {"type": "image", "source": {}}, {"type": "document"}],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "A tie."}]},
        ],
    )
    conversation = request.conversation
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool"]
    assert conversation.text == "See:"
    assert conversation.messages[0].media == ("image", "file")
    assert conversation.tools == ("look",)
    assert conversation.messages[1].calls_tools
    assert request.needs.features == {"text", "image", "file", "tools"}


def test_openais_responses_are_read() -> None:
    request = asked(
        "openai_responses",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "See:"}, {"type": "input_image", "image_url": "x"}]},
            {"type": "function_call", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "output": "A tie."},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A tie."}]},
        ],
        tools=[{"type": "function", "name": "look"}],
        text={"format": {"type": "json_schema", "schema": {}}},
        max_output_tokens=1000,
    )
    assert request.model == "auto"
    assert [message.role for message in request.conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert request.conversation.images == 1
    assert request.conversation.messages[-1].text == "A tie."
    assert request.needs.features == {"text", "image", "tools", "json_schema"}
    assert request.needs.tokens > 1000


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b"{", None),
        (b"\xff", None),
        (b'{"input_format": "openai_chat", "request": {"messages": [{"role": "user", "content": 3}]}}', "messages[0].content"),
        (b'{"input_format": "anthropic_messages", "request": {"messages": 3}}', "messages"),
        (b'{"input_format": "anthropic_messages", "request": {"messages": [3]}}', "messages[0]"),
        (b'{"input_format": "anthropic_messages", "request": {"messages": [{"role": "user", "content": [3]}]}}',
         "messages[0].content[0]"),
        (b'{"input_format": "openai_responses", "request": {}}', "input"),
        (b'{"input_format": "openai_responses", "request": {"input": [3]}}', "messages[0]"),
        (b'{"input_format": "openai_responses", "request": {"input": [], "text": 3}}', "messages"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_told_with_its_path(sent: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(sent)
    assert caught.value.param == param
