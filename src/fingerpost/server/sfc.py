"""The reference's contract, `POST /sfc_router/chat/completions`: a chat completion whose content is the model to call."""

from __future__ import annotations

from typing import Any

import msgspec

from fingerpost.records import Decision


def answer(decision: Decision, request_id: str, now: int, *, stream: bool) -> tuple[bytes, bytes]:
    """The content type and the body of the answer; `now` is in seconds since the epoch."""
    model = decision.backend.model if decision.backend else ""
    head = {"id": f"chatcmpl-{request_id}", "created": now, "model": model}
    if not stream:
        message = {"role": "assistant", "content": model}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return b"application/json", msgspec.json.encode(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": model}, None), ({}, "stop")]
    events = [
        {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    lines = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events]
    return b"text/event-stream", b"".join([*lines, b"data: [DONE]\n\n"])
