"""The reference's contract, in pure form."""

from __future__ import annotations

import json

from fingerpost.sfc import answer, completion


def test_the_answer_is_a_chat_completion_whose_content_is_the_model() -> None:
    kind, body = answer("nvidia/nano-é", "r1", 1_700_000_000, stream=False)
    completion = json.loads(body)
    assert kind == b"application/json"
    assert completion["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "nvidia/nano-é"}, "finish_reason": "stop"}
    ]
    assert (completion["id"], completion["object"], completion["created"]) == ("chatcmpl-r1", "chat.completion", 1_700_000_000)
    assert completion["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_the_streamed_answer_is_two_chunks_and_an_end() -> None:
    kind, body = answer("nvidia/nano-é", "r1", 0, stream=True)
    *events, end, rest = body.decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert kind == b"text/event-stream"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["nvidia/nano-é", None]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert (end, rest) == ("data: [DONE]", "")


def test_who_decided_stands_where_the_model_of_a_completion_does() -> None:
    told = completion("nano", "r1", 0, "hf_intent_objective_fn")
    assert told["model"] == "hf_intent_objective_fn"
    assert told["choices"][0]["message"]["content"] == "nano"
