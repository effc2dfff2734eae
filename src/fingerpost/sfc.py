"""The contract of NVIDIA's LLM router blueprint (v2): a chat completion whose content is the model to call. Pure."""

from __future__ import annotations

from typing import Any

import msgspec


def completion(model: str, answer_id: str, now: int, decided_by: str) -> dict[str, Any]:
    """The chat completion that names `model`; `now` is in seconds since the epoch, `decided_by` stands as its own model."""
    message = {"role": "assistant", "content": model}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return {**_head(answer_id, now, decided_by), "object": "chat.completion", "choices": [choice], "usage": usage}


def events(model: str, answer_id: str, now: int, decided_by: str) -> bytes:
    """The same as server-sent events, the end included."""
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": model}, None), ({}, "stop")]
    head = {**_head(answer_id, now, decided_by), "object": "chat.completion.chunk"}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in deltas]
    return b"".join([*(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"])


def answer(model: str, answer_id: str, now: int, *, stream: bool) -> tuple[bytes, bytes]:
    """The content type and the body of the HTTP answer."""
    if stream:
        return b"text/event-stream", events(model, answer_id, now, model)
    return b"application/json", msgspec.json.encode(completion(model, answer_id, now, model))


def _head(answer_id: str, now: int, decided_by: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{answer_id}", "created": now, "model": decided_by}
